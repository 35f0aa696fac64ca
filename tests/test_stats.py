"""Bootstrap intervals and ratios of means: coverage, seeds, statistics and bad samples."""

import pytest
import torch

from mechinterp.stats import bootstrap, ratio_of_means


def test_covers_the_true_mean_about_as_often_as_it_says() -> None:
    g = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(200):
        lo, hi = bootstrap(torch.randn(60, generator=g) + 3, n=400, level=0.9)
        inside += lo <= 3 <= hi
    assert 165 <= inside <= 195  # 0.9 of 200, four standard errors either way


def test_agrees_with_the_normal_interval_for_many_samples() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    lo, hi = bootstrap(x)
    half = 1.96 * x.std().item() / len(x) ** 0.5
    assert abs((hi - lo) / (2 * half) - 1) < 0.1
    assert abs((lo + hi) / 2 - x.mean().item()) < 0.1 * half


def test_same_seed_same_interval() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert bootstrap(x, seed=1) == bootstrap(x, seed=1)
    assert bootstrap(x, seed=1) != bootstrap(x, seed=2)


def test_a_higher_level_is_wider_and_constants_have_no_width() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    narrow, wide = bootstrap(x, level=0.5), bootstrap(x, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap(torch.full((10,), 2.5)) == (2.5, 2.5)


def test_any_statistic_keeps_rows_together() -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(0))
    pair = torch.stack([3 * x + 0.01, x], 1)
    lo, hi = bootstrap(pair, statistic=lambda p: torch.corrcoef(p.T)[0, 1])
    assert lo > 0.999
    assert hi <= 1 + 1e-6
    assert bootstrap(x, statistic=lambda v: v.mean(0)) == pytest.approx(bootstrap(x), abs=1e-9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.zeros(0), {}, "samples"),
        (torch.tensor(1.0), {}, "samples"),
        (torch.tensor([1.0, torch.nan]), {}, "NaN"),
        (torch.tensor([1.0, torch.inf]), {}, "infinity"),
        (torch.ones(3), {"level": 1.0}, "level"),
    ],
)
def test_bad_samples_are_refused(values: torch.Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(values, **options)


def test_a_ratio_of_means_is_a_share_of_the_sum_and_not_the_mean_share() -> None:
    pairs = torch.tensor([[1.0, 1.0], [1.0, 9.0]])
    assert ratio_of_means(pairs).item() == pytest.approx(0.2)
    assert ratio_of_means(pairs * torch.tensor([3.0, 1.0])).item() == pytest.approx(0.6)
    assert ratio_of_means(-pairs).item() == pytest.approx(0.2)


def test_the_interval_of_a_ratio_keeps_pairs_together() -> None:
    """Numerators that are a fixed share of their denominators leave no doubt about the share."""
    whole = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.1
    lo, hi = bootstrap(torch.stack([0.3 * whole, whole], 1), statistic=ratio_of_means)
    assert (lo, hi) == pytest.approx((0.3, 0.3), abs=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(0, 2), (3,), (3, 3), (2, 3)])
def test_a_ratio_needs_pairs(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs pairs"):
        ratio_of_means(torch.ones(shape))


def test_a_ratio_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="mean 0"):
        ratio_of_means(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
