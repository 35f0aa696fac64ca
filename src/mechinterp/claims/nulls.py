"""What must fail: the null that is matched to a claim, or the positive control of a claim that something is small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from mechinterp.claims.expectations import Expectation, Range, judge, part
from mechinterp.claims.values import Leaf, Value, clean
from mechinterp.stats import Estimate

LEVEL = 0.05


@dataclass(frozen=True)
class Chance:
    """The exact probability that the null meets the expectation.

    >>> Chance(0.004).p
    0.004
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"a probability lies between 0 and 1, got {self.p}")


@dataclass(frozen=True)
class Either:
    """Several nulls of one claim: whichever meets the expectation most often counts."""

    nulls: tuple[Any, ...]

    def __init__(self, *nulls: Any) -> None:
        if len(nulls) < 2:
            raise ValueError("give two nulls or more, or the one by itself")
        object.__setattr__(self, "nulls", nulls)


@dataclass(frozen=True)
class Null:
    """A measured null.

    Attributes:
        value: what it gives, in the claim's shape or some of its rows; for draws their median and the range that
            holds 90 % of them; None for a bare probability.
        passes: how often it meets the expectation: a fraction of the draws, a probability, or for one measured value
            0 if all of its interval fails and 1 otherwise.
    """

    value: Value | None
    passes: float

    @property
    def fails(self) -> bool:
        """Whether the claim is told apart from its null."""
        return self.passes <= LEVEL


def measured(expected: Expectation, null: Any) -> Null:
    """Judge a null.

    Args:
        expected: what the claim expects.
        null: one value as for `Ledger.record`, of all rows of a table or of some; or draws, a sequence of numbers, or
            of a table some rows with as many numbers each (draw i passes if all of its rows do); or a `Chance`; or
            `Either` of several.

    Errors: `ValueError` for another shape, too few draws to fail, or rows without a bound.

    >>> measured(Range(0.5), [0.1, 0.2, 0.9] + [0.0] * 97).passes
    0.01
    """
    if isinstance(null, Chance):
        return Null(None, float(null.p))
    if isinstance(null, Either):
        return max((measured(expected, one) for one in null.nulls), key=lambda one: one.passes)
    rows = null if isinstance(null, Mapping) else {"": null}
    draws = {str(row): _draws(item) for row, item in rows.items()}
    if isinstance(null, Mapping) and isinstance(expected, dict):
        expected = some = part(expected, draws)
        null, draws = {row: null[row] for row in some}, {row: draws[row] for row in some}
    if all(item is None for item in draws.values()):
        value = clean(null)
        return Null(value, float(judge(expected, value) != "not reproduced"))
    if any(item is None for item in draws.values()):
        raise ValueError("rows of a null are all draws or all single values, not a mixture")
    if isinstance(expected, dict) != isinstance(null, Mapping):
        raise ValueError("a null has the shape of its claim: a table for a table, numbers for a number")
    table = {row: item for row, item in draws.items() if item is not None}
    sizes = {len(item) for item in table.values()}
    if len(sizes) != 1:
        raise ValueError(f"rows of a null have as many draws each, got {sorted(sizes)}")
    n = sizes.pop()
    if n * LEVEL < 1:
        raise ValueError(f"{n} draws cannot show that a null passes less than {LEVEL:.0%} of the time; take 20 or more")
    rules = expected if isinstance(expected, dict) else {"": expected}
    if not all(isinstance(rule, Range) for rule in rules.values()):
        raise ValueError("draws are numbers, and this claim expects names; give their size as a row of its own")
    passed = np.all([[rules[row].holds(x) for x in item] for row, item in table.items()], axis=0)
    shown: dict[str, Leaf] = {row: _summary(item) for row, item in table.items()}
    return Null(shown if isinstance(null, Mapping) else shown[""], float(passed.mean()))


def _draws(item: Any) -> list[float] | None:
    """Numbers, if it is a sequence of them."""
    if isinstance(item, Estimate | str | Mapping):
        return None
    if hasattr(item, "tolist"):
        item = item.tolist()
    if isinstance(item, Sequence) and item and all(isinstance(x, Real) for x in item):
        return [float(x) for x in item]
    return None


def _summary(draws: list[float]) -> Estimate:
    lo, middle, hi = (float(f"{x:.6g}") for x in np.quantile(draws, [0.05, 0.5, 0.95]))
    return Estimate(middle, (lo, hi), len(draws), "draws")
