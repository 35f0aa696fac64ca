"""Composition through d_head x d_head matrices against the full d_model x d_model products."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.attention import HeadWeights, chance_level, composition, ov_circuit, qk_circuit, ranks
from mechinterp.heads import Head
from mechinterp.models import organisms

MODES = ("q", "k", "v")


def random_weights(seed: int, layers: int = 3, heads: int = 2, d_model: int = 12, d_head: int = 4) -> HeadWeights:
    g = torch.Generator().manual_seed(seed)
    read = [torch.randn(layers, heads, d_model, d_head, generator=g) for _ in range(3)]
    return HeadWeights(*read, torch.randn(layers, heads, d_head, d_model, generator=g))


def slow(w: HeadWeights, mode: str, writer: Head, reader: Head) -> float:
    """Elhage et al.'s formulas with every matrix formed."""
    ov = w.W_V[writer] @ w.W_O[writer]
    qk = w.W_Q[reader] @ w.W_K[reader].T
    second = w.W_V[reader] @ w.W_O[reader]
    product, other = {"q": (ov @ qk, qk), "k": (ov @ qk.T, qk), "v": (ov @ second, second)}[mode]
    return (product.norm() / (ov.norm() * other.norm())).item()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), mode=st.sampled_from(MODES))
def test_equals_the_formulas_and_lies_between_zero_and_one(seed: int, mode: Any) -> None:
    weights = random_weights(seed)
    scores = composition(weights, mode)
    assert (scores <= 1 + 1e-5).all()
    assert (scores >= 0).all()
    for a in range(3):
        for b in range(3):
            for i in range(2):
                for j in range(2):
                    expected = slow(weights, mode, Head(a, i), Head(b, j)) if a < b else 0.0
                    assert scores[a, i, b, j] == pytest.approx(expected, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), mode=st.sampled_from(MODES))
def test_scale_and_the_basis_of_a_head_do_not_matter(seed: int, scale: float, mode: Any) -> None:
    w = random_weights(seed)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))).Q
    other = HeadWeights(scale * w.W_Q @ turn, w.W_K @ turn, scale * w.W_V @ turn, turn.T @ w.W_O)
    torch.testing.assert_close(composition(other, mode), composition(w, mode), atol=1e-4, rtol=1e-4)


def test_ranks_count_heads_that_come_before(tiny: Any) -> None:
    scores = composition(HeadWeights.of(tiny), "k")
    order = ranks(scores)
    for b in range(3):
        for j in range(4):
            column = order[:b, :, b, j].flatten()
            assert sorted(column.tolist()) == list(range(1, 4 * b + 1))
            assert not order[b:, :, b, j].any()
            for i, r in enumerate(column.tolist()):
                stronger = (scores[:b, :, b, j].flatten() > scores[:b, :, b, j].flatten()[i]).sum()
                assert r == int(stronger) + 1


def test_the_organisms_wiring_is_read_off_the_weights() -> None:
    organism = organisms.ioi_circuit()
    weights = HeadWeights.of(organism.model)
    [previous], [induction] = organism.heads("previous token"), organism.heads("induction")
    order = ranks(composition(weights, "k"))
    assert order[previous + induction] == 1
    writers = organism.heads("S-inhibition")
    order = ranks(composition(weights, "q"))
    for reader in organism.heads("name mover") + organism.heads("negative name mover"):
        assert {int(order[w + reader]) for w in writers} == {1, 2}, reader
    order = ranks(composition(weights, "v"))
    flags = [*organism.heads("duplicate token"), induction]
    assert {int(order[w + Head(2, 0)]) for w in flags} == {1, 2}


@pytest.mark.parametrize("mode", MODES)
def test_random_weights_stand_at_the_chance_level(mode: Any) -> None:
    weights = random_weights(7, layers=6, heads=6, d_model=48, d_head=8)
    mean, (low, high) = chance_level(weights, mode, seeds=5)
    scores = composition(weights.random_like(99), mode)
    scores = scores[scores > 0]
    assert scores.mean().item() == pytest.approx(mean, rel=0.05)
    assert ((scores > low) & (scores < high)).float().mean() > 0.85


def test_the_organism_is_above_its_chance_level_only_where_it_is_wired() -> None:
    organism = organisms.induction()
    weights = HeadWeights.of(organism.model)
    [previous], [induction] = organism.heads("previous token"), organism.heads("induction")
    _, (_, high) = chance_level(weights, "k")
    assert composition(weights, "k")[previous + induction] > 2 * high


def test_circuits_are_the_products(tiny: Any) -> None:
    head = Head(1, 2)
    torch.testing.assert_close(ov_circuit(tiny, head).AB, tiny.W_V[1, 2] @ tiny.W_O[1, 2])
    torch.testing.assert_close(qk_circuit(tiny, head).AB, tiny.W_Q[1, 2] @ tiny.W_K[1, 2].T)
    for circuit in (ov_circuit, qk_circuit):
        with pytest.raises(ValueError, match=r"no head 12\.3"):
            circuit(tiny, Head(12, 3))


def test_a_folder_gives_the_same_as_the_loaded_model(make_gpt2: Any, tokenizer: Any, tmp_path: Path) -> None:
    from mechinterp.models import to_bridge

    raw = make_gpt2(seed=3)
    raw.save_pretrained(tmp_path)
    ours = HeadWeights.load(tmp_path)
    theirs = HeadWeights.of(to_bridge(raw, tokenizer, name="saved", device="cpu"))
    for mode in MODES:
        torch.testing.assert_close(composition(ours, mode), composition(theirs, mode), atol=1e-4, rtol=1e-3)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match=r"has no config\.json"):
        HeadWeights.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_head": 2, "n_layer": 1}))
    with pytest.raises(ValueError, match=r"has no model.safetensors"):
        HeadWeights.load(tmp_path)
    save_file({"h.0.ln_1.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no tensor 'h.0.attn.c_attn.weight'"):
        HeadWeights.load(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_bad_input() -> None:
    with pytest.raises(ValueError, match="mode must be 'q', 'k' or 'v', not 'o'"):
        composition(random_weights(0), "o")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one layer has no composition"):
        chance_level(random_weights(0, layers=1), "k")


def test_no_matrix_of_the_model_s_width_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded: no intermediate result is d_model x d_model."""
    w = random_weights(0, d_model=64, d_head=4)
    sizes: list[int] = []
    einsum, matmul = torch.einsum, Tensor.__matmul__

    def watch(result: Tensor) -> Tensor:
        sizes.append(int(result.shape[-1] * result.shape[-2]))
        return result

    monkeypatch.setattr(torch, "einsum", lambda *a: watch(einsum(*a)))
    monkeypatch.setattr(Tensor, "__matmul__", lambda a, b: watch(matmul(a, b)))
    composition(w, "k")
    assert sizes
    assert max(sizes) <= 64 * 4
