"""The explorer's lists say what the functions behind them say."""

import pytest
import torch

from mechinterp.models import load
from mechinterp.sae import SAE, activations
from mechinterp.sae.latents.attribution import dfa_by_source
from mechinterp.sae.latents.explorer import latent_views
from mechinterp.sae.study.sweeps import shipped
from mechinterp.viz import token_explorer


@pytest.fixture(scope="module")
def saes() -> dict[int, SAE]:
    return {i: shipped(f"attention-{i}") for i in range(3)}


def test_views_of_a_prompt(saes: dict[int, SAE]) -> None:
    model = load("lab", device="cpu")
    tokens = torch.tensor([0, *model.tokenizer.encode(" Mr Holmes and Mr Holmes", add_special_tokens=False)])
    views = latent_views(model, saes, tokens, 2, n=3)
    assert len(views) == len(tokens)
    f = saes[2].encode(activations(model, tokens[None], [saes[2].hook])[saes[2].hook][0])
    best = f.argmax(1)
    dfa = dfa_by_source(model, saes[2], tokens.expand(len(tokens), -1), best, torch.arange(len(tokens)))
    for d, view in enumerate(views):
        assert view["latents that are on"][0] == (f"2.{int(best[d])}", pytest.approx(float(f[d].max())))
        assert len(view["latents that are on"]) == 3
        sources = view[f"2.{int(best[d])} comes from"]
        assert sources[0][0] == int(dfa[d].sum(0).argmax())
        assert all(0 < share <= 1 for _, share in sources), "shades"
        assert view["through heads"][0][0] == f"2.{int(dfa[d].sum(1).argmax())}"
        assert view["made of"]
        assert view["and those of"]
    page = token_explorer([str(t) for t in tokens.tolist()], views, caption="Latents.")._repr_html_()
    assert f"2.{int(best[-1])}" in page


def test_a_layer_without_sae(saes: dict[int, SAE]) -> None:
    with pytest.raises(KeyError):
        latent_views(load("lab", device="cpu"), saes, torch.tensor([0, 5]), 4)
