"""What a value must be for a claim to count as reproduced.

An expectation has the shape of the value: `Range` for an estimate, `SameSet`, `Includes` or `Size` for a set of names,
a dict of them for a table. The whole interval decides, and whether a set recurs: what crosses a bound is undecided.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from mechinterp.claims.values import Leaf, Names, Value
from mechinterp.stats import short

Outcome = Literal["reproduced", "not reproduced", "undecided"]
RECURS = 0.8
"""A set is reproduced if its rule holds in this fraction of half-splits, not reproduced if in less than the rest."""


@dataclass(frozen=True)
class Range:
    """A number between `lo` and `hi`, both included.

    >>> Range(0.985).holds(0.993), str(Range(3.31, 3.81)), str(Range(hi=0))
    (True, '3.31 to 3.81', 'at most 0')
    >>> str(Range())
    'any number'
    """

    lo: float = -math.inf
    hi: float = math.inf

    def __post_init__(self) -> None:
        if not self.lo <= self.hi:
            raise ValueError(f"a range goes from lo to hi, got lo={self.lo} and hi={self.hi}")

    def holds(self, value: Any) -> bool:
        """Whether the number lies in the range."""
        return self.lo <= value <= self.hi

    def __str__(self) -> str:
        if math.isinf(self.lo):
            return "any number" if math.isinf(self.hi) else f"at most {short(self.hi)}"
        return f"at least {short(self.lo)}" if math.isinf(self.hi) else f"{short(self.lo)} to {short(self.hi)}"

    def json(self) -> Any:
        """`[lo, hi]`, an open end as null."""
        return [None if math.isinf(end) else end for end in (self.lo, self.hi)]


@dataclass(frozen=True)
class SameSet:
    """Exactly these names, in any order.

    >>> SameSet(["9.9", "9.6"]).holds(["9.6", "9.9"])
    True
    """

    members: Iterable[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _names(self.members))

    def holds(self, value: Any) -> bool:
        """Whether the two sets are equal."""
        return set(value) == set(self.members)

    def __str__(self) -> str:
        return "exactly " + ", ".join(self.members)

    def json(self) -> Any:
        """`{"equal": [...]}`."""
        return {"equal": list(self.members)}


@dataclass(frozen=True)
class Includes:
    """At least these names; others may come with them.

    >>> Includes(["3.0"]).holds(["0.1", "3.0"])
    True
    """

    members: Iterable[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _names(self.members))

    def holds(self, value: Any) -> bool:
        """Whether every member is there."""
        return set(self.members) <= set(value)

    def __str__(self) -> str:
        return "includes " + ", ".join(self.members)

    def json(self) -> Any:
        """`{"include": [...]}`."""
        return {"include": list(self.members)}


@dataclass(frozen=True)
class Size:
    """A set with between `lo` and `hi` members, whichever they are.

    >>> Size(1, 6).holds(["3.2"]), str(Size(1, 6)), str(Size(1)), str(Size(0, 4))
    (True, '1 to 6 heads', 'at least 1 head', 'at most 4 heads')
    """

    lo: int = 0
    hi: int | None = None

    def holds(self, value: Any) -> bool:
        """Whether the number of different members fits."""
        return self.lo <= len(set(value)) and (self.hi is None or len(set(value)) <= self.hi)

    def __str__(self) -> str:
        if self.hi is None:
            return f"at least {self.lo} head{'s' * (self.lo != 1)}" if self.lo else "any heads"
        return f"{self.lo} to {self.hi} heads" if self.lo else f"at most {self.hi} heads"

    def json(self) -> Any:
        """`{"size": [lo, hi]}`."""
        return {"size": [self.lo, self.hi]}


Rule = Range | SameSet | Includes | Size
Expectation = Rule | dict[str, Rule]


def judge(expected: Expectation, value: Value) -> Outcome:
    """Inside, outside or across the bounds; a table is inside if all of its rows are, outside if any is.

    A table may have rows that are not bounded: a chapter measures the same ones at every scale.

    Errors: `ValueError` if the two have different shapes, or a bounded row is missing.

    >>> from mechinterp.stats import Estimate
    >>> judge(Range(3), Estimate(3.5, (3.2, 3.8), 15, "templates"))
    'reproduced'
    >>> judge(Range(3), Estimate(3.5, (2.9, 4.1), 15, "templates"))
    'undecided'
    """
    if isinstance(expected, dict):
        if not isinstance(value, dict) or not set(value) >= set(expected):
            got = f"the rows {sorted(value)}" if isinstance(value, dict) else repr(value)
            raise ValueError(f"expected a table with the rows {sorted(expected)}, got {got}")
        rows = {judge(rule, value[key]) for key, rule in expected.items()}
        return "not reproduced" if "not reproduced" in rows else "undecided" if "undecided" in rows else "reproduced"
    if isinstance(value, dict):
        raise ValueError(f"expected {_kind(expected)}, got a table with the rows {sorted(value)}")
    return _judge_leaf(expected, value)


def part(expected: Expectation, rows: Iterable[str]) -> dict[str, Rule]:
    """What a table is expected to hold in some of its rows; those without a bound are left out.

    Errors: `ValueError` if none of the rows has a bound that a null could fail.
    """
    rows = list(rows)
    rules = expected if isinstance(expected, dict) else {}
    some = {row: rules[row] for row in rows if rules.get(row, Range()) != Range()}
    if not some:
        raise ValueError(f"none of the rows {rows} has a bound ({describe(expected)}), so that a null could not fail")
    return some


def describe(expected: Expectation) -> str:
    """An expectation in words; rows that may hold any number are left out.

    >>> describe({"LD": Range(3.1, 3.9), "heads": Size(1)})
    'LD: 3.1 to 3.9; heads: at least 1 head'
    """
    if isinstance(expected, dict):
        return "; ".join(f"{key}: {rule}" for key, rule in expected.items() if rule != Range())
    return str(expected)


def to_json(expected: Expectation | None) -> Any:
    """An expectation as it stands in a results file."""
    if isinstance(expected, dict):
        return {key: rule.json() for key, rule in expected.items()}
    return None if expected is None else expected.json()


def _judge_leaf(rule: Rule, value: Leaf) -> Outcome:
    if isinstance(rule, Range) == isinstance(value, Names):
        raise ValueError(f"expected {_kind(rule)}, got {value!r}")
    if isinstance(value, Names):
        recurs = [rule.holds(split) for split in value.splits] or [rule.holds(value.names)]
        often = sum(recurs) / len(recurs)
        return "reproduced" if often >= RECURS else "not reproduced" if often < 1 - RECURS else "undecided"
    assert isinstance(rule, Range)
    lo, hi = value.interval or (value.value, value.value)
    if rule.lo <= lo and hi <= rule.hi:
        return "reproduced"
    return "not reproduced" if hi < rule.lo or lo > rule.hi else "undecided"


def _names(members: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(member) for member in members)


def _kind(expected: Rule) -> str:
    return "an estimate" if isinstance(expected, Range) else "a list of names"
