"""Fourier tools: against explicit projections, on networks with a known circuit, on random ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.grokking import (
    Shape,
    all_logits,
    embedding_spectrum,
    excluded_loss,
    fourier_network,
    gini,
    initial,
    key_part,
    logit_spectrum,
    neuron_frequencies,
    restricted_loss,
    trig_share,
    unpack,
)

SHAPE = Shape(p=31, d_model=32, n_heads=4, d_mlp=128)


def waves(p: int) -> torch.Tensor:
    """Orthonormal cosines and sines of w_k (a + b − c) over all (a, b, c): [2 · (p − 1) / 2, p³]."""
    n = torch.arange(p, dtype=torch.float64)
    d = n[:, None, None] + n[:, None] - n
    rows = []
    for k in range(1, (p + 1) // 2):
        rows += [torch.cos(2 * math.pi * k / p * d).flatten(), torch.sin(2 * math.pi * k / p * d).flatten()]
    basis = torch.stack(rows)
    return basis / basis.norm(dim=1, keepdim=True)


def test_trig_share_is_the_projection_on_all_waves() -> None:
    table = torch.randn(7, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table -= table.mean(-1, keepdim=True)
    basis = waves(7)
    expected = (basis @ table.flatten()).pow(2).sum() / table.pow(2).sum()
    assert trig_share(table) == pytest.approx(expected.item(), rel=1e-9)
    power = (basis @ table.flatten()).pow(2).view(-1, 2).sum(1)
    torch.testing.assert_close(logit_spectrum(table), power / power.sum())


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(1, 15), min_size=1, max_size=4), st.sampled_from(["exact", "circle"]))
def test_the_organism_s_frequencies_are_found(frequencies: set[int], kind: str) -> None:
    ks = sorted(frequencies)
    flat = fourier_network(SHAPE, ks, kind)  # type: ignore[arg-type]
    table = all_logits(flat, SHAPE)
    right = (torch.arange(31)[:, None] + torch.arange(31)) % 31
    assert (table.argmax(-1) == right).all()
    spectrum = logit_spectrum(table)
    assert ((spectrum > 0.01).nonzero()[:, 0] + 1).tolist() == ks
    torch.testing.assert_close(spectrum[torch.tensor(ks) - 1], torch.full((len(ks),), 1 / len(ks)), atol=0.01, rtol=0)
    share = 1.0 if kind == "exact" else 8 / math.pi**2
    assert trig_share(table) == pytest.approx(share, abs=0.01)
    if kind == "circle":
        neurons = neuron_frequencies(flat, SHAPE)
        assert neurons.key() == ks
        assert neurons.clustered() == 1.0
        e = embedding_spectrum(unpack(flat[None], SHAPE)["W_E"][0, :31])
        assert ((e > 1e-3).nonzero()[:, 0] + 1).tolist() == ks


def test_ablating_the_key_frequencies_leaves_chance_and_others_nothing() -> None:
    table = all_logits(fourier_network(SHAPE, [2, 7], "exact"), SHAPE)
    assert excluded_loss(table, [2, 7]) == pytest.approx(math.log(31), abs=1e-3)
    full = restricted_loss(table, [2, 7])
    assert restricted_loss(table, range(1, 16)) == pytest.approx(full, rel=1e-4)
    assert excluded_loss(table, [3, 5]) == pytest.approx(full, rel=1e-3, abs=1e-6)
    assert restricted_loss(table, [3, 5]) == pytest.approx(math.log(31), abs=1e-3)


def test_the_key_part_is_a_projection_and_its_parts_add_up() -> None:
    table = all_logits(initial(SHAPE, [0])[0], SHAPE)
    part = key_part(table, [2, 7])
    torch.testing.assert_close(key_part(part, [2, 7]), part, atol=1e-5, rtol=0)
    torch.testing.assert_close(key_part(table, [2]) + key_part(table, [7]), part, atol=1e-5, rtol=0)
    assert abs((part * (table - part)).sum().item()) < 1e-3 * part.pow(2).sum().item()
    assert key_part(table, []).abs().max() < 1e-6


def test_a_restricted_loss_on_some_pairs() -> None:
    table = all_logits(initial(SHAPE, [0])[0], SHAPE)
    which = torch.tensor([0, 40, 900])
    labels = torch.tensor([0, (1 + 9) % 31, (29 + 1) % 31])
    expected = torch.nn.functional.cross_entropy(table.flatten(0, 1)[which].double(), labels).item()
    kept = restricted_loss(table, [], which), excluded_loss(table, [], which)
    assert kept[1] == pytest.approx(expected)
    assert kept[0] != pytest.approx(expected)


def test_random_networks_have_no_circuit() -> None:
    flat = initial(SHAPE, [0])[0]
    assert trig_share(all_logits(flat, SHAPE)) < 0.02
    assert neuron_frequencies(flat, SHAPE).clustered() < 0.1
    assert gini(embedding_spectrum(unpack(flat[None], SHAPE)["W_E"][0, :31])) < 0.1


def test_the_embedding_spectrum_keeps_the_norm() -> None:
    x = torch.randn(31, 5, generator=torch.Generator().manual_seed(0))
    x -= x.mean(0)
    assert embedding_spectrum(x).pow(2).sum().item() == pytest.approx(x.pow(2).sum().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("shape", "frequencies", "words"),
    [
        (SHAPE, [], "1 … 15"),
        (SHAPE, [16], "1 … 15"),
        (SHAPE, [3, 3], "different"),
        (SHAPE, list(range(1, 10)), "dimensions"),
        (Shape(p=31, d_model=32, n_heads=4, d_mlp=32), [1], "table of"),
    ],
)
def test_organisms_that_do_not_fit(shape: Shape, frequencies: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fourier_network(shape, frequencies)


def test_gini_of_bad_values() -> None:
    with pytest.raises(ValueError, match="not negative"):
        gini(torch.tensor([-1.0, 2.0]))
    assert gini(torch.tensor([1.0, 3.0])) == pytest.approx(0.25)
