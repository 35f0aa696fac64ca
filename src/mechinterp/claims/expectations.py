"""What a value must be for a claim to count as reproduced.

A value is a number, a set of names (heads, mostly) or a table of those; an expectation has the same
shape: `Range` for a number, `SameSet`, `Includes` or `Size` for a set, a dict of them for a table.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

Leaf = float | list[str]
Value = float | list[str] | dict[str, Leaf]


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
            return "any number" if math.isinf(self.hi) else f"at most {_number(self.hi)}"
        return f"at least {_number(self.lo)}" if math.isinf(self.hi) else f"{_number(self.lo)} to {_number(self.hi)}"

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


def holds(expected: Expectation, value: Value) -> bool:
    """Whether `value` is as expected. `ValueError` if the two have different shapes.

    >>> holds({"LD": Range(3.1, 3.9), "with an extra IO": Range(0.8, 1.7)}, {"LD": 3.5, "with an extra IO": 2.0})
    False
    """
    if isinstance(expected, dict):
        if not isinstance(value, dict) or set(value) != set(expected):
            got = f"the rows {sorted(value)}" if isinstance(value, dict) else repr(value)
            raise ValueError(f"expected a table with the rows {sorted(expected)}, got {got}")
        return all(holds(rule, value[key]) for key, rule in expected.items())
    if isinstance(value, dict):
        raise ValueError(f"expected {_kind(expected)}, got a table with the rows {sorted(value)}")
    if isinstance(expected, Range) != isinstance(value, float):
        raise ValueError(f"expected {_kind(expected)}, got {value!r}")
    return expected.holds(value)


def clean(value: Any) -> Value:
    """Any number, set or table of them as plain JSON types; heads become strings.

    Zero-dimensional tensors and arrays count as numbers; six digits are kept. Errors: `ValueError` for NaN, infinity or
    anything else.

    >>> clean({"lower": [(9, 6)], "share": 1})
    {'lower': ['9.6'], 'share': 1.0}
    """
    if isinstance(value, Mapping):
        return {str(key): _clean_leaf(item, f" in row {key!r}") for key, item in value.items()}
    return _clean_leaf(value, "")


def show(value: Value | None, interval: Any = None) -> str:
    """A value in a few characters, each number or head with its interval if it has one.

    >>> show(0.99312, [0.98, 1.0])
    '0.993 [0.98, 1]'
    >>> show({"LD": 3.5, "heads": ["9.6", "9.9"]}, {"LD": [3, 4], "9.6": [-0.2, -0.1]})
    'LD: 3.5 [3, 4]; heads: 9.6 [−0.2, −0.1], 9.9'
    >>> show([]), show(None)
    ('none', '—')
    """
    if value is None:
        return "—"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_show_leaf(item, interval, key)}" for key, item in value.items())
    return _show_leaf(value, interval, None)


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


def _clean_leaf(value: Any, where: str) -> Leaf:
    if hasattr(value, "ndim") and hasattr(value, "item") and value.ndim == 0:
        value = value.item()
    if isinstance(value, Real):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(
                f"the value{where} is {number}; a claim needs a finite number: check the logits and the intervention"
            )
        return float(f"{number:.6g}")
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        items = list(value)
        if all(isinstance(item, str) for item in items) or all(_is_head(item) for item in items):
            return [item if isinstance(item, str) else f"{item[0]}.{item[1]}" for item in items]
    raise ValueError(f"the value{where} must be a number or a list of heads or names, not {value!r}")


def _show_leaf(value: Leaf, interval: Any, key: str | None) -> str:
    pairs = interval if isinstance(interval, dict) else {None: interval}
    if isinstance(value, list):
        return ", ".join(name + _show_pair(pairs.get(name)) for name in value) or "none"
    return _number(value) + _show_pair(pairs.get(key))


def _show_pair(pair: Any) -> str:
    return "" if pair is None else f" [{_number(pair[0])}, {_number(pair[1])}]"


def _number(x: float) -> str:
    return f"{x:.3g}".replace("-", "−")


def _is_head(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(i, int) for i in item)


def _names(members: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(member) for member in members)


def _kind(expected: Rule) -> str:
    return "a number" if isinstance(expected, Range) else "a list of names"
