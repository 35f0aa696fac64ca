"""Estimates: coverage by simulation, agreement with scipy and closed forms, invariants, and bad samples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mechinterp.stats import Estimate, holm, mean, population, ratio, resampled, share

floats = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 3))


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.interval is not None
    return estimate.interval


def test_a_mean_has_students_interval() -> None:
    x = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    expected = scipy_stats.ttest_1samp(x.numpy(), 0).confidence_interval(0.95)
    assert ends(mean(x, unit="prompts")) == pytest.approx((expected.low, expected.high))
    assert (mean(x, unit="prompts").n, mean(x, unit="prompts").unit) == (12, "prompts")


def test_the_mean_of_equal_clusters_is_the_mean_of_their_means() -> None:
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).double()
    clusters = torch.arange(6).repeat_interleave(10)
    of_means = mean(x.mean(1), unit="templates")
    clustered = mean(x.flatten(), unit="templates", clusters=clusters)
    assert clustered.n == 6
    assert ends(clustered) == pytest.approx(ends(of_means))
    assert mean(x.flatten(), unit="prompts").n == 60


@pytest.mark.parametrize(("units", "statistic"), [(3, "mean"), (15, "mean"), (15, "ratio")])
def test_clustered_intervals_cover_as_often_as_they_say(units: int, statistic: str) -> None:
    """Samples of a unit share its offset: taken as independent, they would cover half as often."""
    rng, inside, naive = np.random.default_rng(0), 0, 0
    clusters = np.repeat(np.arange(units), 8)
    for _ in range(400):
        x = 3 + rng.normal(size=units).repeat(8) + 0.3 * rng.normal(size=units * 8)
        whole = np.full(len(x), 2.0)
        clustered = (
            mean(x, unit="templates", clusters=clusters)
            if statistic == "mean"
            else ratio(x, whole, unit="templates", clusters=clusters)
        )
        lo, hi = ends(clustered)
        inside += lo <= (3 if statistic == "mean" else 1.5) <= hi
        lo, hi = ends(mean(x, unit="prompts"))
        naive += lo <= 3 <= hi
    assert 362 <= inside <= 395  # 95 % of 400, four standard errors either way
    assert naive < 300


def test_a_percentile_interval_of_three_would_not_cover() -> None:
    """What t intervals are for: the percentile bootstrap of three normal values covers about 70 %."""
    rng, t, percentile = np.random.default_rng(0), 0, 0
    for _ in range(300):
        x = rng.normal(size=3)
        lo, hi = ends(mean(x, unit="seeds"))
        t += lo <= 0 <= hi
        draws = x[rng.integers(3, size=(400, 3))].mean(1)
        lo, hi = np.quantile(draws, [0.025, 0.975])
        percentile += lo <= 0 <= hi
    assert t >= 270
    assert percentile <= 240


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_share_has_wilsons_interval(hits: int, misses: int) -> None:
    if hits + misses < 2:
        return
    found = share([1] * hits + [0] * misses, unit="prompts")
    expected = scipy_stats.binomtest(hits, hits + misses).proportion_ci(method="wilson")
    assert ends(found) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_agreeing_samples_of_a_cluster_widen_a_share() -> None:
    flags = [1] * 50 + [0] * 50
    alone = share(flags, unit="prompts")
    together = share(flags, unit="templates", clusters=np.repeat(np.arange(10), 10))
    mixed = share([1, 0] * 50, unit="templates", clusters=np.repeat(np.arange(10), 10))
    assert ends(together)[0] < ends(alone)[0] - 0.1
    assert ends(mixed)[1] - ends(mixed)[0] < ends(together)[1] - ends(together)[0]
    assert share([1] * 20, unit="templates", clusters=np.repeat(np.arange(4), 5)).interval != (1.0, 1.0)


@given(st.lists(floats, min_size=2, max_size=30), st.floats(0.1, 10), st.floats(-5, 5))
def test_means_follow_their_samples(x: list[float], scale: float, shift: float) -> None:
    a, b = mean(x, unit="prompts"), mean([scale * v + shift for v in x], unit="prompts")
    assert b.value == pytest.approx(scale * a.value + shift, rel=1e-6, abs=1e-6)
    assert ends(b) == pytest.approx(tuple(scale * v + shift for v in ends(a)), rel=1e-6, abs=1e-5)
    assert ends(a)[0] <= a.value + 1e-9
    assert a.value <= ends(a)[1] + 1e-9


@given(st.permutations(range(12)))
def test_the_order_of_samples_means_nothing(order: list[int]) -> None:
    x = np.linspace(-1, 2, 12) ** 3
    clusters = np.arange(12) % 4
    one = mean(x, unit="templates", clusters=clusters)
    other = mean(x[order], unit="templates", clusters=clusters[order])
    assert ends(one) == pytest.approx(ends(other))


def test_a_ratio_is_a_fraction_of_the_sum_and_not_the_mean_fraction() -> None:
    assert ratio([1.0, 1.0], [1.0, 9.0], unit="prompts").value == pytest.approx(0.2)
    whole = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.1
    assert ends(ratio(0.3 * whole, whole, unit="prompts")) == pytest.approx((0.3, 0.3), abs=1e-6)


def test_a_linearised_ratio_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    bottom = rng.uniform(1, 3, 200)
    top = 0.4 * bottom + rng.normal(size=200) * 0.3
    linear = ratio(top, bottom, unit="prompts")
    drawn = resampled(np.stack([top, bottom], 1), lambda p: p[:, 0].sum() / p[:, 1].sum(), unit="prompts")
    assert linear.value == pytest.approx(drawn.value)
    assert ends(linear) == pytest.approx(ends(drawn), abs=0.01)


@pytest.mark.parametrize("value", [0.05202130106440961, 0.1149326332809052])
def test_units_that_are_alike_up_to_rounding_have_an_interval(value: float) -> None:
    found = resampled([value] * 5, lambda v: float(v.sum() / len(v) * 3 - 1), unit="lists", n=200)
    assert found.interval == pytest.approx((3 * value - 1,) * 2)


def test_resampling_keeps_rows_and_units_together() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    pairs = np.stack([3 * x + 0.01, x], 1)

    def correlation(p: np.ndarray) -> float:
        return float(np.corrcoef(p.T)[0, 1])

    assert ends(resampled(pairs, correlation, unit="prompts"))[0] > 0.999
    units = np.repeat(np.arange(12), 5)
    offsets = rng.normal(size=12).repeat(5)
    wide = resampled(offsets + 0.1 * x, np.median, unit="templates", clusters=units)
    narrow = resampled(offsets + 0.1 * x, np.median, unit="prompts")
    assert wide.n == 12
    assert ends(wide)[1] - ends(wide)[0] > ends(narrow)[1] - ends(narrow)[0]


def test_few_units_give_their_range_and_constants_no_width() -> None:
    assert resampled([1.0, 5.0, 2.0], np.median, unit="seeds").interval == (1.0, 5.0)
    assert resampled([2.5] * 10, np.median, unit="prompts").interval == (2.5, 2.5)
    assert resampled(np.arange(9.0), np.median, unit="prompts", seed=1) == resampled(
        np.arange(9.0), np.median, unit="prompts", seed=1
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_p_values_are_between_the_plain_ones_and_bonferronis(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a >= b - 1e-12 for a, b in zip(adjusted, p, strict=True))
    assert all(a <= min(1.0, len(p) * b) + 1e-12 for a, b in zip(adjusted, p, strict=True))
    assert min(adjusted) == pytest.approx(min(1.0, len(p) * min(p)))


def test_an_estimate_is_read_and_printed() -> None:
    found = Estimate(-0.871, (-0.9, -0.84), 15, "templates")
    assert str(found) == "−0.871 [−0.9, −0.84] (15 templates)"
    assert f"{found:.1f} {found}" == "-0.9 −0.871 [−0.9, −0.84] (15 templates)"
    assert found.map(lambda x: -x).interval == (0.84, 0.9)
    assert population(0.5, 8, "pairs").interval is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Estimate(math.nan, None, 1, "prompts"), "finite"),
        (lambda: Estimate(1.0, (2.0, 1.0), 3, "prompts"), "in order"),
        (lambda: Estimate(1.0, None, 0, "prompts"), "at least one"),
        (lambda: Estimate(1.0, None, 3, " "), "give unit"),
        (lambda: mean([], unit="prompts"), "samples"),
        (lambda: mean([1.0], unit="prompts"), "at least two prompts"),
        (lambda: mean([1.0, math.nan], unit="prompts"), "NaN"),
        (lambda: mean([1.0, 2.0], unit=""), "give unit"),
        (lambda: mean([[1.0], [2.0]], unit="prompts"), "one axis"),
        (lambda: mean([1.0, 2.0], unit="templates", clusters=[0, 0]), "at least two templates"),
        (lambda: mean([1.0, 2.0], unit="templates", clusters=[0]), "each of 2 samples"),
        (lambda: ratio([1.0, 1.0], [1.0, -1.0], unit="prompts"), "sum to 0"),
        (lambda: ratio([1.0, 1.0], [1.0], unit="prompts"), "as many"),
        (lambda: share([0.5, 1.0], unit="prompts"), "0 and 1"),
    ],
)
def test_bad_samples_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3))
def test_the_size_of_an_estimate_covers_the_sizes_of_its_interval(value, below, above):
    estimate = Estimate(value, (value - below, value + above), 9, "prompts")
    lo, hi = estimate.size().interval
    inside = np.abs(np.linspace(value - below, value + above, 101))
    assert lo <= inside.min() + 1e-9
    assert hi == pytest.approx(inside.max())
    assert estimate.size().value == abs(value)
