"""The explorer's lists against an organism whose answers are known, and against the definitions in loops."""

from typing import Any

import numpy as np
import pytest
import torch

from mechinterp.models import load, organisms
from mechinterp.sae import SAE
from mechinterp.sae.files import shipped
from mechinterp.sae.latents import latent_views
from mechinterp.viz import token_explorer


@pytest.fixture(scope="module")
def saes() -> dict[int, SAE]:
    return {i: shipped(f"lab/attention-{i}") for i in range(3)}


def test_views_of_an_induction_head() -> None:
    """Latent i of layer 1 reads what head 1.0 has copied when the word i + 1 is to come."""
    organism = organisms.induction()
    model, [tokens] = organism.model, organism.tokens(1)
    eye = torch.eye(192)[:31]
    params = {"W_enc": eye.T.contiguous(), "W_dec": eye, "b_enc": torch.full((31,), -0.5), "b_dec": torch.zeros(192)}
    views = latent_views(model, {1: SAE("standard", params, hook="blocks.1.attn.hook_z")}, tokens, 1, n=3)
    assert len(views) == 31
    for d in range(16, 31):  # a word that was there before: the token after its first copy comes next
        source, view = d - 15 + 1, views[d]
        word = int(tokens[source])
        latents = view["latents that are on"]
        assert latents[0] == (f"1.{word - 1}", pytest.approx(0.5, abs=0.02))
        assert [strength for _, strength in latents[1:]] == pytest.approx([0, 0], abs=0.02), "and no other"
        assert view[f"1.{word - 1} comes from"][0] == (source, pytest.approx(1.0))
        assert all(share < 0.05 for _, share in view[f"1.{word - 1} comes from"][1:])
        (head, moved), *others = view["through heads"]
        assert (head, moved) == ("1.0", pytest.approx(1, abs=0.05))
        assert all(abs(more) < 1e-3 for _, more in others)
        assert view["it promotes"][0].strip() == model.tokenizer.decode([word]).strip()
        assert view["and those of"] == ["nothing upstream"]


def test_views_of_a_prompt(saes: dict[int, SAE], slow: Any) -> None:
    """Of a trained SAE: strongest latents, sources, heads and tokens, each from its definition."""
    model, sae = load("lab", device="cpu"), saes[2]
    tokens = torch.tensor([0, *model.tokenizer.encode(" Mr Holmes and Mr Holmes", add_special_tokens=False)])
    views = latent_views(model, saes, tokens, 2, n=3)
    assert len(views) == len(tokens)
    got: dict[str, torch.Tensor] = {}
    keep = [(sae.hook, lambda x, hook: got.update(z=x.detach()))]
    model.run_with_hooks(tokens[None], return_type=None, fwd_hooks=keep)
    z, p = got["z"][0].reshape(len(tokens), -1).double().numpy(), {n: v.double().numpy() for n, v in sae.params.items()}
    for d, view in enumerate(views):
        f = [max(0.0, float((z[d] - p["b_dec"]) @ p["W_enc"][:, i] + p["b_enc"][i])) for i in range(sae.d_sae)]
        order = sorted(range(sae.d_sae), key=lambda i: -f[i])[:3]
        assert view["latents that are on"] == [(f"2.{i}", pytest.approx(f[i], abs=1e-3)) for i in order]
        dfa = slow.dfa(model, sae, tokens, order[0], d)
        by_source, by_head = dfa.sum(0), dfa.sum(1)
        sources = [int(s) for s in np.argsort(-by_source)[:3] if by_source[s] > 1e-9]
        expected = [(s, pytest.approx(by_source[s] / np.abs(by_source).max(), abs=1e-3)) for s in sources]
        assert view[f"2.{order[0]} comes from"] == expected[: d + 1]
        heads = [int(h) for h in np.argsort(-by_head)[:3]]
        assert view["through heads"] == [(f"2.{h}", pytest.approx(by_head[h], abs=1e-3)) for h in heads]
        written = sae.W_dec[order[0]] @ model.blocks[2].attn.W_O.detach().flatten(0, 1)
        best = int(slow.logits(model, written).argmax())
        assert view["it promotes"][0].strip() == model.tokenizer.decode([best]).strip()
        assert len(view["it promotes"]) == 5
        assert view["made of"]
        assert view["and those of"]
    page = token_explorer([str(t) for t in tokens.tolist()], views, caption="Latents.")._repr_html_()
    assert views[-1]["latents that are on"][0][0] in page


def test_a_layer_without_sae(saes: dict[int, SAE]) -> None:
    with pytest.raises(KeyError):
        latent_views(load("lab", device="cpu"), saes, torch.tensor([0, 5]), 4)
