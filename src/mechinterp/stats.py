"""Intervals for estimates over prompts or seeds."""

from collections.abc import Callable

import torch
from torch import Tensor


def mean(values: Tensor) -> Tensor:
    """Mean over the first axis."""
    return values.mean(0)


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
