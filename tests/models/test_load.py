"""One door to every model: the numbers of the raw model come out, and every fault has its own clear error."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from mechinterp.models import describe, load, load_tokenizer, sha256, to_bridge
from mechinterp.models.load import LAB
from mechinterp.models.rehearsal import RECIPE, VARIABLE, rehearsal


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, make_gpt2: Callable[..., GPT2LMHeadModel]) -> Path:
    """A small random GPT-2 as a Hugging Face folder, its weights in fp16."""
    folder = tmp_path_factory.mktemp("model")
    make_gpt2(n_layer=2, n_head=2, n_embd=16).half().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(LAB / name, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model to damage."""
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def tokens(n: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(8192, (n, length), generator=torch.Generator().manual_seed(0))


def test_log_probabilities_are_those_of_the_raw_model(saved: Path) -> None:
    raw = GPT2LMHeadModel.from_pretrained(saved, dtype=torch.float32, attn_implementation="eager").eval()
    expected = raw(tokens()).logits.log_softmax(-1)
    model = load(saved, device="cpu")
    assert (model(tokens()).log_softmax(-1) - expected).abs().max() < 1e-4
    assert expected.std() > 0.2, "a flat distribution would agree with anything"


def test_a_loaded_model_is_fp32_still_and_processed(saved: Path) -> None:
    model = load(str(saved), device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.W_U.mean(-1).abs().max() < 1e-5, "unembedding centred"
    for writes in (model.W_E, model.W_pos, model.W_O):
        assert writes.mean(-1).abs().max() < 1e-5, "weights that write to the residual stream centred"
    x = torch.randn(1, 5, 16)
    normed = model.blocks[0].ln1(x)
    assert normed.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(1, 5), atol=1e-3, rtol=0)


def test_loading_is_quiet_and_leaves_the_settings_of_transformers(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(saved, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("name", ["no such model", "./nowhere", "/nowhere/at/all", "a/b/c", "-"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match="unknown model"):
        load(name)


def test_unknown_folder_given_as_a_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model"):
        load(tmp_path / "missing")


@pytest.mark.parametrize("door", [load, load_tokenizer, sha256, describe])
def test_offline_and_not_cached_names_three_ways_out(door: Callable[[str], object]) -> None:
    with pytest.raises(ConnectionError, match=r"connect once.*local folder.*'lab'"):
        door("mechinterp-tests/not-there")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (
            "RepositoryNotFoundError",
            ValueError,
            "unknown repository 'mechinterp-tests/not-there'.*the hub has no public",
        ),
        ("GatedRepoError", ValueError, "gated repository.*hf auth login"),
        ("RevisionNotFoundError", ValueError, "no revision 'nope'"),
        ("HfHubHTTPError", ConnectionError, "Three ways out"),
    ],
)
def test_answers_of_the_hub(monkeypatch: pytest.MonkeyPatch, answer: str, error: type, words: str) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def snapshot_download(name: str, *, local_files_only: bool, **rest: object) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        response = httpx.Response(404, request=httpx.Request("GET", "https://example.invalid"))
        raise getattr(errors, answer)("no", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(error, match=words):
        load("mechinterp-tests/not-there", revision="nope")


def test_a_cached_hub_model_needs_no_network(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(name: str, *, local_files_only: bool, **rest: object) -> str:
        asked.append(local_files_only)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load("somebody/model", device="cpu").cfg.n_layers == 2
    assert asked == [True]


def test_a_hub_model_with_pickles_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import huggingface_hub

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **rest: str(folder))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *args, **rest: ["config.json", "pytorch_model.bin"])
    with pytest.raises(ValueError, match=r"the hub's old/model has only pickled weights \(pytorch_model\.bin\)"):
        load("old/model")


def test_offline_with_half_a_model_in_the_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The tokenizer was fetched once, the weights never were."""
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(*args: object, **rest: object) -> None:
        raise OfflineModeIsEnabled

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **rest: str(folder))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    with pytest.raises(ConnectionError, match="Three ways out"):
        load("some/model")
    assert load_tokenizer("some/model").bos_token_id == 0


def test_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json in"):
        load(folder)


def test_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load(folder)


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (folder / "opened",)  # type: ignore[return-value]

    (folder / "model.safetensors").unlink()
    torch.save(Bomb(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model\.bin\).*never loaded"):
        load(folder)
    with pytest.raises(ValueError, match="never loaded"):
        sha256(folder)
    assert not (folder / "opened").exists()


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
        {"architectures": ["GPT2ForSequenceClassification"]},
        {"architectures": ["NobodysForCausalLM"]},
        {"architectures": None, "model_type": "unknown"},
    ],
)
def test_wrong_architecture(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match="expected a causal decoder"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_truncated_weights(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a safetensors file.*get it again"):
        load(folder)


def test_missing_tensors_are_not_filled_with_noise(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if ".mlp." not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lack 8 tensors"):
        load(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(ValueError, match="lack"):
        load(folder)


def test_nan_in_the_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.bias in .* contains NaN"):
        load(folder)


def test_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a shard named in"):
        load(folder)


def test_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    for door in (load, load_tokenizer):
        with pytest.raises(ValueError, match="no tokenizer in"):
            door(folder)


def test_tokenizer_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert load_tokenizer(folder).encode(" Mary") == load_tokenizer("lab").encode(" Mary")


def test_sha256_is_that_of_the_weight_file(saved: Path) -> None:
    expected = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert sha256(saved) == expected
    assert describe(saved) == {"name": str(saved), "sha256": expected}
    assert describe(saved, revision="main")["revision"] == "main"


def test_real_attention_weights_alone_are_refused(shared: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        load(shared / "gpt2_attention")


def test_rehearsal_needs_the_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"set {VARIABLE}"):
        load("rehearsal")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="not a folder"):
        load_tokenizer("rehearsal")
    assert len(sha256("rehearsal")) == 64


def test_rehearsal_weights_are_seeded_and_alive() -> None:
    recipe = RECIPE | {"n_layer": 3, "n_head": 4, "n_embd": 64, "vocab_size": 500, "n_positions": 32}
    model, again = rehearsal(recipe), rehearsal(recipe)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = rehearsal(recipe | {"seed": 1})
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    assert model.lm_head.weight is model.transformer.wte.weight
    bridge = to_bridge(model, load_tokenizer("lab"), device="cpu")
    logits, cache = bridge.run_with_cache(torch.randint(500, (8, 32), generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(logits).all()
    assert 0.1 < logits.std() < 5
    for layer in range(3):
        assert cache[f"blocks.{layer}.attn.hook_pattern"][:, :, -1].std(-1).mean() > 0.005, "attention is not uniform"


def test_rehearsal_has_the_heads_of_the_paper(monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(shared / "gpt2_tokenizer"))
    model = load("rehearsal", device="cpu")
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model, model.cfg.n_ctx) == (12, 12, 768, 1024)
    ids = model.tokenizer.encode("Hello, world!", add_special_tokens=False)
    assert ids == [15496, 11, 995, 0]
    logits = model(torch.tensor([ids]))
    assert logits.shape == (1, 4, 50257)
    assert 0.1 < logits.std() < 10


def test_the_lab_model_comes_with_the_package(lab: object) -> None:
    assert lab.cfg.n_ctx == 256  # type: ignore[attr-defined]
    assert lab.cfg.d_vocab == 8192  # type: ignore[attr-defined]
    assert (LAB / "model.safetensors").stat().st_size <= 16e6
    assert describe("lab") == {"name": "lab", "sha256": sha256(LAB)}
