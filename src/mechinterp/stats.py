"""Intervals for estimates over prompts or seeds."""

from collections.abc import Callable

import torch
from torch import Tensor


def mean(values: Tensor) -> Tensor:
    """Mean over the first axis."""
    return values.mean(0)


def ratio_of_means(pairs: Tensor) -> Tensor:
    """Mean of the first column over the mean of the second, Σ a / Σ b: a share of a whole, over prompts.

    Better than the mean of a / b, which one small denominator decides. Give it to `bootstrap` as the statistic.

    Args:
        pairs: `[sample 2]`, numerator and denominator of each sample.

    Errors: `ValueError` for another shape, or denominators whose mean is 0.

    >>> ratio_of_means(torch.tensor([[1.0, 4.0], [2.0, 0.0]]))
    tensor(0.7500)
    """
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0:
        raise ValueError(f"a ratio of means needs pairs, [sample 2], not shape {tuple(pairs.shape)}")
    top, bottom = pairs.mean(0)
    if bottom == 0:
        raise ValueError("the denominators of a ratio of means have the mean 0: there is nothing to take a share of")
    return top / bottom


def bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] = mean,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic.

    Args:
        values: samples along the first axis (prompts, seeds), whatever else behind it.
        statistic: from `values` (resampled along the first axis) to one number.
        n: resamples. `level`: coverage, 0.95 for a 95 % interval.

    Errors: `ValueError` for no samples, or values that are not finite.

    >>> bootstrap(torch.tensor([1.0, 1.0, 1.0]))
    (1.0, 1.0)
    """
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"bootstrap needs samples along the first axis, got shape {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError("bootstrap: the values contain NaN or infinity")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    values = values.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (n, len(values)), generator=generator)
    if statistic is mean and values.ndim == 1:
        results = values[draws].mean(1)
    else:
        results = torch.stack([torch.as_tensor(statistic(values[d]), dtype=torch.float64) for d in draws])
    tail = (1 - level) / 2
    lo, hi = results.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return lo, hi
