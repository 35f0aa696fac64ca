"""Estimates: a number, how sure it is, and what was counted.

Every number that the book judges or draws is an `Estimate`. Its interval resamples *units*: what another run would
draw anew. Prompts of one template, tokens of one document and pairs of one word list resemble each other, so the
unit is the template, the document or the list: name it, and give each sample's `clusters`. A whole population has no
interval: nothing would be drawn anew.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
from scipy import stats as scipy_stats
from torch import Tensor

FEW = 5
"""Below this number of units nothing is resampled: a t interval for means and ratios, the range for the rest."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the number.
        interval: (lo, hi), 95 % unless said otherwise; None for a whole population.
        n: how many units.
        unit: what was counted, in the plural: `prompts`, `templates`, `seeds`.

    Errors: `ValueError` for a number or an end that is not finite, ends out of order, no units, or no word for them.

    >>> print(Estimate(0.871, (0.84, 0.9), 15, "templates"))
    0.871 [0.84, 0.9] (15 templates)
    """

    value: float
    interval: tuple[float, float] | None
    n: int
    unit: str

    def __post_init__(self) -> None:
        numbers = [self.value, *(self.interval or ())]
        if not all(math.isfinite(x) for x in numbers):
            raise ValueError(f"an estimate needs finite numbers, got {numbers}: check the values and the intervention")
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(f"an interval needs its ends in order, got {self.interval}")
        if self.n < 1:
            raise ValueError(f"an estimate rests on at least one unit, not {self.n}")
        if not self.unit or not self.unit.strip():
            raise ValueError("an estimate says what was counted: give unit, as in unit='prompts'")

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)

    def __str__(self) -> str:
        ends = "" if self.interval is None else f" [{short(self.interval[0])}, {short(self.interval[1])}]"
        return f"{short(self.value)}{ends} ({self.n} {self.unit})"

    def map(self, f: Callable[[float], float]) -> "Estimate":
        """The estimate of an increasing or decreasing function of the number.

        >>> print(Estimate(0.25, (0.2, 0.3), 9, "prompts").map(lambda x: 1 - x))
        0.75 [0.7, 0.8] (9 prompts)
        """
        ends = None if self.interval is None else tuple(sorted((f(self.interval[0]), f(self.interval[1]))))
        return Estimate(f(self.value), ends, self.n, self.unit)  # type: ignore[arg-type]

    def within(self, lo: SupportsFloat, hi: SupportsFloat) -> "Estimate":
        """The estimate with its interval cut to what the number can be.

        >>> print(Estimate(0.97, (0.92, 1.02), 15, "templates").within(0, 1))
        0.97 [0.92, 1] (15 templates)
        """
        return self.map(lambda x: min(max(x, float(lo)), float(hi)))

    def size(self) -> "Estimate":
        """The estimate without its sign; an interval across zero begins at zero.

        >>> print(Estimate(-0.25, (-0.3, 0.1), 9, "prompts").size())
        0.25 [0, 0.3] (9 prompts)
        """
        if self.interval is None:
            return self.map(abs)
        ends = sorted(map(abs, self.interval))
        if self.interval[0] <= 0 <= self.interval[1]:
            ends[0] = 0.0
        return Estimate(abs(self.value), (ends[0], ends[1]), self.n, self.unit)


def short(x: SupportsFloat) -> str:
    """Three digits, with a minus sign that is one.

    >>> short(-0.12345)
    '−0.123'
    """
    return f"{float(x):.3g}".replace("-", "−")


def mean(values: Any, *, unit: str, clusters: Any = None, level: float = 0.95) -> Estimate:
    """The mean, with a t interval over units.

    Args:
        values: `[sample]`, a tensor or a sequence.
        unit: what `clusters` numbers, or what each sample is.
        clusters: `[sample]`, the unit that each sample belongs to; by default every sample is its own. The standard
            error is then the cluster-robust one, with as many degrees of freedom as units less one.
        level: coverage.

    Errors: `ValueError` for fewer than two units, values that are not finite, or lengths that differ.

    >>> print(mean([1.0, 2.0, 3.0, 4.0], unit="seeds"))
    2.5 [0.446, 4.55] (4 seeds)
    """
    values = _samples(values)
    return ratio(values, np.ones(len(values)), unit=unit, clusters=clusters, level=level)


def ratio(top: Any, bottom: Any, *, unit: str, clusters: Any = None, level: float = 0.95) -> Estimate:
    """Σ top / Σ bottom, a fraction of a whole, with a t interval of the linearised ratio over units.

    Better than the mean of top / bottom, which one small denominator decides. Arguments and errors as `mean`; also
    `ValueError` for denominators that sum to 0.

    >>> print(ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], unit="prompts"))
    0.5 [0.5, 0.5] (3 prompts)
    """
    top, bottom = _samples(top), _samples(bottom)
    if len(top) != len(bottom):
        raise ValueError(f"a ratio needs as many denominators as numerators, got {len(bottom)} and {len(top)}")
    groups = _groups(top, clusters, unit)
    whole = bottom.sum()
    if whole == 0:
        raise ValueError("the denominators of a ratio sum to 0: there is nothing to take a fraction of")
    value = top.sum() / whole
    sums = np.array([(top[g] - value * bottom[g]).sum() for g in groups])
    error = math.sqrt(len(groups) / (len(groups) - 1) * float((sums**2).sum())) / abs(whole)
    half = float(scipy_stats.t.ppf((1 + level) / 2, len(groups) - 1)) * error
    return Estimate(float(value), (float(value) - half, float(value) + half), len(groups), unit)


def share(flags: Any, *, unit: str, clusters: Any = None, level: float = 0.95) -> Estimate:
    """How often something is so, with Wilson's interval.

    The interval lies within 0 and 1 and has a width even when all agree. Clusters widen it by the design effect: the
    number of samples becomes p(1 − p) over the squared cluster-robust standard error, if that is smaller.

    Arguments and errors as `mean`; also `ValueError` for values other than 0 and 1.

    >>> print(share([True] * 18 + [False] * 2, unit="prompts"))
    0.9 [0.699, 0.972] (20 prompts)
    """
    flags = _samples(flags)
    if not np.isin(flags, (0, 1)).all():
        raise ValueError("a share needs values of 0 and 1; use mean for others")
    spread = mean(flags, unit=unit, clusters=clusters, level=level)
    p, z = spread.value, float(scipy_stats.norm.ppf((1 + level) / 2))
    n = float(len(flags))
    if clusters is not None and 0 < p < 1 and spread.interval is not None:
        t = float(scipy_stats.t.ppf((1 + level) / 2, spread.n - 1))
        error = (spread.interval[1] - p) / t
        z, n = t, min(n, p * (1 - p) / error**2) if error else n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    lo, hi = max(0.0, middle - half), min(1.0, middle + half)
    return Estimate(p, (0.0 if p == 0 else lo, 1.0 if p == 1 else hi), spread.n, unit)


def resampled(
    values: Any,
    statistic: Callable[[np.ndarray], float],
    *,
    unit: str,
    clusters: Any = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Any statistic, with a bias-corrected bootstrap interval over units (`scipy.stats.bootstrap`, BCa).

    Below five units the interval is the range of the statistic over the units one by one. Where BCa has no answer (the
    statistic is the same in all resamples but few) it is the percentile interval.

    Args:
        values: `[sample ...]`; a row stays together.
        statistic: from some of the rows, as an array, to a number.
        n: resamples. Other arguments and errors as `mean`.

    >>> print(resampled([1.0, 2.0, 3.0], np.median, unit="seeds"))
    2 [1, 3] (3 seeds)
    """
    values = _samples(values, rows=True)
    groups = _groups(values, clusters, unit)
    value = float(statistic(values))
    if len(groups) < FEW:
        each = [float(statistic(values[g])) for g in groups]
        return Estimate(value, (min(*each, value), max(*each, value)), len(groups), unit)

    def of(units: np.ndarray) -> float:
        return float(statistic(values[np.concatenate([groups[int(i)] for i in units])]))

    found, index = None, np.arange(len(groups))
    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy_stats.DegenerateDataWarning)
            found = scipy_stats.bootstrap(
                (index,),
                of,
                vectorized=False,
                n_resamples=n if found is None else 0,
                confidence_level=level,
                method=method,
                bootstrap_result=found,
                rng=np.random.default_rng(seed),
            )
        # Where resamples differ by rounding alone, BCa can give the ends in the wrong order.
        lo, hi = sorted(float(x) for x in found.confidence_interval)
        if math.isfinite(lo) and math.isfinite(hi):
            break
    return Estimate(value, (lo, hi), len(groups), unit)


def population(value: Any, n: int, unit: str) -> Estimate:
    """A number over everything there is (all heads of the model, all tokens of the list): no interval.

    >>> print(population(0.12, 270, "heads"))
    0.12 (270 heads)
    """
    return Estimate(float(value), None, n, unit)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for looking at all of them (Holm, 1979): reject those below the level.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def _samples(values: Any, *, rows: bool = False) -> np.ndarray:
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
    if array.ndim == 0 or len(array) == 0 or (array.ndim > 1 and not rows):
        raise ValueError(f"samples go along {'the first' if rows else 'one'} axis, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("the samples contain NaN or infinity")
    return array


def _groups(values: np.ndarray, clusters: Any, unit: str) -> list[np.ndarray]:
    """The samples of each unit."""
    if not unit or not unit.strip():
        raise ValueError("an estimate says what was counted: give unit, as in unit='prompts'")
    if clusters is None:
        groups = [np.array([i]) for i in range(len(values))]
    else:
        labels = clusters.detach().cpu().numpy() if isinstance(clusters, Tensor) else np.asarray(clusters)
        if labels.shape != (len(values),):
            raise ValueError(f"clusters must name the unit of each of {len(values)} samples, got shape {labels.shape}")
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len(groups) < 2:
        raise ValueError(
            f"an interval needs at least two {unit}; for a whole population use population(value, n, unit)"
        )
    return groups
