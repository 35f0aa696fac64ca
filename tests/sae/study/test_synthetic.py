"""Data with known features: moments against closed forms, recovery of perfect, random and shrunken dictionaries."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.sae.study.synthetic import Truth, chance_mmcs, recovery, sample, shrinkage_by_feature, truth

SETTINGS: list[dict[str, Any]] = [
    dict(active=4.0),
    dict(active=4.0, magnitudes=(1.0, 1.0), noise=0.2),
    dict(active=3.0, zipf=1.0, noise=0.05),
    dict(active=6.0, zipf=0.5, group=4, correlation=0.7),
]


@pytest.mark.parametrize("how", SETTINGS)
def test_moments_are_as_promised(how: dict[str, Any]) -> None:
    t = truth(48, 24, seed=0, **how)
    x, f = sample(t, 40_000, seed=1)
    power = x.square().sum(1)
    assert abs(power.mean().item() - 1) < 4 * power.std().item() / 200
    on = (f > 0).float()
    error = (t.probability * (1 - t.probability) / len(f)).sqrt()
    assert ((on.mean(0) - t.probability).abs() < 4.5 * error + 1e-6).all()
    assert t.probability.sum().item() == pytest.approx(how["active"], rel=1e-5)
    sizes = f[f > 0]
    assert t.low - 1e-6 <= sizes.min() <= sizes.max() <= t.high + 1e-6
    rest = x - f @ t.directions
    assert rest.square().sum(1).mean().item() == pytest.approx(how.get("noise", 0.0), abs=0.01)
    torch.testing.assert_close(t.directions.norm(dim=1), torch.ones(48))


def test_frequencies_follow_zipf() -> None:
    t = truth(50, 8, active=2.0, seed=0, zipf=1.0)
    torch.testing.assert_close(t.probability[0] / t.probability, torch.arange(1.0, 51.0))


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_correlation_within_groups_only(r: float) -> None:
    t = truth(24, 8, active=4.0, seed=0, group=3, correlation=r)
    _, f = sample(t, 40_000, seed=2)
    found = torch.corrcoef((f > 0).double().T)
    same = (t.group[:, None] == t.group) & ~torch.eye(24, dtype=torch.bool)
    assert found[same].mean().item() == pytest.approx(r, abs=0.01)
    apart = t.group[:, None] != t.group
    assert found[apart].abs().max() < 0.03


def test_the_last_group_may_be_smaller() -> None:
    t = truth(7, 4, active=1.0, seed=0, group=3, correlation=0.5)
    assert t.group.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert sample(t, 5, seed=0)[1].shape == (5, 7)


def test_seeds() -> None:
    t = truth(16, 8, active=2.0, seed=3)
    assert torch.equal(t.directions, truth(16, 8, active=2.0, seed=3).directions)
    assert not torch.equal(t.directions, truth(16, 8, active=2.0, seed=4).directions)
    one, same, other = (sample(t, 10, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(1, 30), st.integers(1, 30))
def test_recovery_is_the_obvious_double_loop(seed: int, d: int, n: int, m: int) -> None:
    g = torch.Generator().manual_seed(seed)
    W, D = torch.randn(m, d, generator=g), torch.randn(n, d, generator=g)
    found = recovery(W, D)
    cos = [[(w @ v / (w.norm() * v.norm())).item() for w in W] for v in D]
    assert found.by_feature.tolist() == pytest.approx([max(row) for row in cos], abs=1e-5)
    assert found.by_latent.tolist() == pytest.approx([max(row[j] for row in cos) for j in range(m)], abs=1e-5)
    assert found.mmcs == pytest.approx(sum(max(row) for row in cos) / n, abs=1e-5)
    pairs = found.pairs(above=-2.0)
    assert len(pairs[:, 0].unique()) == len(pairs[:, 1].unique()) == len(pairs) >= 1
    assert all(cos[i][j] == max(cos[i]) == max(row[j] for row in cos) for i, j in pairs.tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_recovery_knows_neither_scale_nor_order(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    W, D = torch.randn(20, 6, generator=g), torch.randn(15, 6, generator=g)
    order, scale = torch.randperm(20, generator=g), torch.rand(20, 1, generator=g) + 0.1
    one, other = recovery(W, D), recovery((W * scale)[order], D)
    torch.testing.assert_close(one.by_feature, other.by_feature)
    assert torch.equal(order[other.latent], one.latent)
    torch.testing.assert_close(one.by_latent[order], other.by_latent)


def test_a_perfect_dictionary_and_one_with_extra_missing_and_reversed_rows() -> None:
    t = truth(64, 32, active=3.0, seed=0)
    perfect = recovery(t.directions, t.directions)
    assert perfect.mmcs == pytest.approx(1, abs=1e-5)
    assert (perfect.recall(), perfect.precision()) == (1.0, 1.0)
    assert torch.equal(perfect.pairs(), torch.arange(64)[:, None].expand(-1, 2))
    extra = torch.randn(192, 32, generator=torch.Generator().manual_seed(1))
    mixed = recovery(torch.cat([t.directions[:48], extra]), t.directions)
    assert mixed.recall() == 0.75
    assert mixed.precision() == 0.2
    assert recovery(-t.directions, t.directions).recall() == 0.0


@pytest.mark.parametrize(("d_sae", "d_in"), [(64, 16), (512, 64), (10, 2), (30, 3)])
def test_a_random_dictionary_is_at_chance(d_sae: int, d_in: int) -> None:
    g = torch.Generator().manual_seed(0)
    D = torch.randn(4000, d_in, generator=g)
    found = recovery(torch.randn(d_sae, d_in, generator=g), D)
    means = torch.tensor([recovery(torch.randn(d_sae, d_in, generator=g), D[:200]).mmcs for _ in range(20)])
    assert means.mean().item() == pytest.approx(chance_mmcs(d_sae, d_in), abs=4 * means.std().item() / 20**0.5)
    if d_in >= 16:
        assert found.recall() < 0.02
        assert chance_mmcs(d_sae, d_in) < 0.65


def test_chance_in_three_dimensions_is_known() -> None:
    """The cosine is uniform there: the largest of n has mean (n − 1) / (n + 1)."""
    for n in (1, 2, 9):
        assert chance_mmcs(n, 3) == pytest.approx((n - 1) / (n + 1), abs=1e-6)


def shrunken(t: Truth, by: float) -> torch.Tensor:
    """Slopes for latents that are magnitudes less a constant, as L1 makes them, where that is positive."""
    _, f = sample(t, 5000, seed=1)
    pairs = recovery(t.directions, t.directions).pairs()
    return shrinkage_by_feature((f - by).relu(), f, pairs).slope


def test_shrinkage_is_seen_and_its_absence_too() -> None:
    t = truth(32, 16, active=3.0, seed=0)
    torch.testing.assert_close(shrunken(t, 0.0), torch.ones(32))
    by = 0.3 * t.low
    # Σ f (f − c) / Σ f² = 1 − c E[f] / E[f²] of uniform magnitudes.
    expected = 1 - by * (t.low + t.high) / 2 / ((t.low**2 + t.low * t.high + t.high**2) / 3)
    torch.testing.assert_close(shrunken(t, by), torch.full((32,), expected), atol=0.02, rtol=0)


def test_misses_and_false_alarms_are_not_shrinkage() -> None:
    f = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    learned = torch.tensor([[0.0, 0.9], [0.0, 1.8], [0.7, 5.0]])
    found = shrinkage_by_feature(learned, f, torch.tensor([[0, 1], [1, 0], [0, 0]]))
    assert found.pairs.tolist() == [[0, 1], [1, 0]]  # feature 0 and latent 0 never meet
    assert found.slope.tolist() == pytest.approx([0.9, 0.7 / 3])
    assert found.examples.tolist() == [2, 1]


def test_an_encoder_of_orthogonal_directions() -> None:
    """With no more features than dimensions, made orthogonal, transposed directions encode exactly."""
    t = truth(16, 16, active=3.0, seed=0)
    Q = torch.linalg.qr(t.directions.T).Q.T
    f = sample(t, 2000, seed=1)[1]
    learned = ((f @ Q) @ Q.T - 1e-4).relu()
    found = shrinkage_by_feature(learned, f, recovery(Q, Q).pairs())
    torch.testing.assert_close(found.slope, torch.ones(16), atol=1e-3, rtol=0)


def test_errors() -> None:
    x = torch.ones(4, 3)
    for make, words in [
        (lambda: truth(0, 4, active=1.0, seed=0), "sizes"),
        (lambda: truth(4, 4, active=5.0, seed=0), "on with probability 1.25"),
        (lambda: truth(40, 4, active=12.0, seed=0, zipf=2.0), "commonest feature"),
        (lambda: truth(4, 4, active=1.0, seed=0, magnitudes=(0.0, 1.0)), "magnitudes"),
        (lambda: truth(4, 4, active=1.0, seed=0, noise=1.0), "noise"),
        (lambda: sample(truth(4, 4, active=1.0, seed=0), 0, seed=0), "at least 1"),
        (lambda: recovery(x, torch.ones(4, 2)), "share d_in"),
        (lambda: recovery(0 * x, x), "W_dec has no rows"),
        (lambda: recovery(x, x / 0), "directions has no rows"),
        (lambda: chance_mmcs(3, 1), "two dimensions"),
        (lambda: shrinkage_by_feature(x, x[:2], torch.tensor([[0, 0]])), "same examples"),
        (lambda: shrinkage_by_feature(x, x, torch.zeros(0, 2, dtype=torch.long)), "at least one"),
        (lambda: shrinkage_by_feature(x, x, torch.tensor([[0, 3]])), "below"),
        (lambda: shrinkage_by_feature(0 * x, x, torch.tensor([[0, 0]])), "active together"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()  # type: ignore[no-untyped-call]
