"""A compiled program in a folder: loaded like any model, and what the package does with any model works on it."""

import hashlib
import itertools
import json

import pytest
import torch

from mechinterp import models, patching, sae
from mechinterp.attention import ov_circuit, qk_circuit
from mechinterp.heads import Head
from mechinterp.rasp import compile_program, programs

LIBRARY = programs()


@pytest.fixture(scope="module")
def reverse():
    return compile_program(**LIBRARY["reverse"])


@pytest.fixture(scope="module")
def loaded(reverse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reverse")
    reverse.save(folder)
    return models.load(folder, device="cpu")


@pytest.mark.parametrize("name", LIBRARY)
def test_every_program_survives_being_saved(name, tmp_path):
    compiled = compile_program(**LIBRARY[name], causal=name == "hist")
    compiled.save(tmp_path / "new" / name)
    again = models.load(tmp_path / "new" / name, device="cpu")
    tokens = compiled.tokens([compiled.vocabulary[:2], compiled.vocabulary[1::-1]])
    assert torch.equal(again(tokens), compiled.model(tokens))
    assert again.tokenizer.convert_ids_to_tokens([0, 2]) == ["<bos>", str(compiled.vocabulary[0])]
    assert models.load_tokenizer(tmp_path / "new" / name).convert_ids_to_tokens([1]) == ["<pad>"]
    data = (tmp_path / "new" / name / "model.safetensors").read_bytes()
    assert models.describe(tmp_path / "new" / name)["sha256"] == hashlib.sha256(data).hexdigest()


def test_half_a_folder_and_edits_are_refused(reverse, tmp_path):
    reverse.save(tmp_path)
    with pytest.raises(ValueError, match="not by edit="):
        models.load(tmp_path, edit=lambda model: None)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="half of a handmade model"):
        models.load(tmp_path)
    reverse.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": config["model_type"]}))
    with pytest.raises(ValueError, match="half of a handmade model"):
        models.load(tmp_path)


def test_interventions_find_the_head_that_copies(reverse, loaded):
    clean, corrupt = reverse.tokens(["abcd", "dcba"]), reverse.tokens(["bbaa", "aadd"])
    at, answer = torch.tensor([1, 2]), torch.tensor([3, 1])  # d, then b: places among a, b, c, d
    value = lambda logits: logits.gather(-1, answer[:, None])[:, 0]  # noqa: E731
    paths = patching.path_patch(loaded, clean, corrupt, metric=value, at=at)
    assert paths.effect()[Head(3, 0)].item() == pytest.approx(-1, abs=1e-3)
    assert paths.effect()[Head(0, 0)].abs() < 1e-3
    parts = patching.direct_logit_attribution(loaded, clean, at, answer)
    assert parts.top(1)[0][0] == Head(3, 0)
    torch.testing.assert_close(parts.total(), value(loaded(clean)[torch.arange(2), at]), atol=1e-3, rtol=0)
    gone = patching.mask(loaded, clean.shape, {Head(3, 0): None})
    silent = patching.replace(loaded, clean, patching.record(loaded, corrupt), heads=gone, at=at)
    assert value(silent).tolist() == pytest.approx([0, 0], abs=1e-3), "d and b are elsewhere in the other inputs"


def test_saes_are_trained_and_measured_on_it(reverse, loaded):
    hook = "blocks.3.hook_resid_post"
    tokens = reverse.tokens(list(itertools.product("abcd", repeat=4)))
    x = sae.activations(loaded, tokens, [hook])[hook][:, 1:].flatten(0, 1)
    spec = sae.Spec("topk", hook, 64, 8, lr=3e-3)
    [found] = sae.train([spec], sae.Given({hook: x}, 256), sae.Config(400, lr_warmup=20, log_every=400)).saes
    assert found.encode(x).shape == (len(x), 64)
    assert sae.reconstruction(found, x).fvu < 0.1
    with torch.no_grad():
        spliced = loaded.run_with_hooks(tokens, fwd_hooks=[(hook, lambda z, hook: found(z))])
    wanted = [list(row)[::-1] for row in itertools.product("abcd", repeat=4)]
    assert sum(a == b for a, b in zip(reverse.decode(spliced), wanted, strict=True)) / len(wanted) > 0.9
    with pytest.raises(ValueError, match="does not predict the next token"):
        sae.site(loaded, tokens, hook)


def test_weights_say_which_positions_are_copied(reverse, loaded):
    """The OV circuit of the copying head takes a token's direction to the output's, and nothing else anywhere."""
    place = {str(d): i for i, d in enumerate(reverse.layout.directions)}
    moved = ov_circuit(loaded, Head(3, 0)).AB
    wanted = torch.zeros_like(moved)
    for letter in "abcd":
        wanted[place[f"tokens:{letter}"], place[f"reverse:{letter}"]] = 1
    torch.testing.assert_close(moved, wanted)
    matched = qk_circuit(loaded, Head(3, 0)).AB
    assert matched[place["opposite:2"], place["indices:2"]] == matched.max() > 0
    assert matched[place["opposite:2"], place["indices:1"]] == 0
