"""RASP: sequence operations, and selectors of which position looks at which (arXiv:2106.06981, arXiv:2301.05062).

A program is an expression. An S-op is a sequence with one value at every position; `None` is the value of a position
that has none, or 0 if the S-op is numerical. A selector says for every query position which key positions it selects.

>>> same = Select(tokens, tokens, "==")
>>> hist = SelectorWidth(same).named("hist")
>>> evaluate(hist, "abac")
[2, 1, 2, 1]
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

Value = Any
"""Of a position: text, a number, a truth value, a tuple; anything that can be a key of a dictionary."""
Predicate = Callable[[Value, Value], bool]
"""Of a key's and a query's value."""
COMPARISONS: dict[str, Predicate] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "all": lambda key, query: True,
    "none": lambda key, query: False,
}


@dataclass(frozen=True, eq=False)
class SOp:
    """A sequence operation. Comparisons and arithmetic make new ones: `tokens == "a"` is a `Map`, not a truth value.

    Attributes:
        name: of its directions in the stream; by default the operation's.
        numerical: one direction that holds the number, instead of one direction for every value.
    """

    name: str = field(default="", kw_only=True)
    numerical: bool = field(default=False, kw_only=True)

    def named(self, name: str) -> "SOp":
        """The same operation under a name."""
        return replace(self, name=name)

    def as_numerical(self) -> "SOp":
        """The same operation, encoded as a number in one direction."""
        return replace(self, numerical=True)

    @property
    def inputs(self) -> "tuple[SOp, ...]":
        """The S-ops that it reads, those of a selector included."""
        return ()

    def _with(self, other: Value, f: Callable[[Value, Value], Value]) -> "SOp":
        if isinstance(other, SOp):
            return SequenceMap(f, self, other)
        return Map(lambda x: f(x, other), self)

    def __eq__(self, other: Value) -> "SOp":  # type: ignore[override]
        return self._with(other, operator.eq)

    def __ne__(self, other: Value) -> "SOp":  # type: ignore[override]
        return self._with(other, operator.ne)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError("an S-op has no truth value: combine two with & and |, or name them in a Map")

    def __lt__(self, other: Value) -> "SOp":
        return self._with(other, operator.lt)

    def __le__(self, other: Value) -> "SOp":
        return self._with(other, operator.le)

    def __gt__(self, other: Value) -> "SOp":
        return self._with(other, operator.gt)

    def __ge__(self, other: Value) -> "SOp":
        return self._with(other, operator.ge)

    def __add__(self, other: Value) -> "SOp":
        return self._with(other, operator.add)

    def __sub__(self, other: Value) -> "SOp":
        return self._with(other, operator.sub)

    def __mul__(self, other: Value) -> "SOp":
        return self._with(other, operator.mul)

    def __truediv__(self, other: Value) -> "SOp":
        return self._with(other, operator.truediv)

    def __radd__(self, other: Value) -> "SOp":
        return Map(lambda x: other + x, self)

    def __rsub__(self, other: Value) -> "SOp":
        return Map(lambda x: other - x, self)

    def __rmul__(self, other: Value) -> "SOp":
        return Map(lambda x: other * x, self)

    def __rtruediv__(self, other: Value) -> "SOp":
        return Map(lambda x: other / x, self)

    def __and__(self, other: Value) -> "SOp":
        return self._with(other, lambda x, y: x and y)

    def __or__(self, other: Value) -> "SOp":
        return self._with(other, lambda x, y: x or y)

    def __invert__(self) -> "SOp":
        return Map(operator.not_, self)


@dataclass(frozen=True, eq=False)
class Tokens(SOp):
    """The input."""


@dataclass(frozen=True, eq=False)
class Indices(SOp):
    """The positions, from 0."""


tokens = Tokens(name="tokens")
indices = Indices(name="indices")


@dataclass(frozen=True, eq=False)
class Map(SOp):
    """f of every value."""

    f: Callable[[Value], Value]
    of: SOp

    @property
    def inputs(self) -> tuple[SOp, ...]:
        return (self.of,)


@dataclass(frozen=True, eq=False)
class SequenceMap(SOp):
    """f of the two values at every position."""

    f: Callable[[Value, Value], Value]
    first: SOp
    second: SOp

    @property
    def inputs(self) -> tuple[SOp, ...]:
        return (self.first, self.second)


@dataclass(frozen=True, eq=False)
class LinearSequenceMap(SOp):
    """a · first + b · second; all three numerical."""

    first: SOp
    second: SOp
    a: float
    b: float
    numerical: bool = field(default=True, kw_only=True)

    @property
    def inputs(self) -> tuple[SOp, ...]:
        return (self.first, self.second)


@dataclass(frozen=True, eq=False)
class Select:
    """Query positions select the key positions for which the predicate of the key's and the query's value holds.

    Where a key or a query has no value, nothing is selected. `&` of two is a selector of any kind; `|` needs the same
    keys and queries; `~` turns a predicate into its opposite.

    Errors: `ValueError` for an unknown comparison.
    """

    keys: SOp
    queries: SOp
    predicate: Predicate | str

    def __post_init__(self) -> None:
        if isinstance(self.predicate, str):
            if self.predicate not in COMPARISONS:
                raise ValueError(f"unknown comparison {self.predicate!r}; one of {', '.join(COMPARISONS)}")
            object.__setattr__(self, "predicate", COMPARISONS[self.predicate])

    def holds(self, key: Value, query: Value) -> bool:
        """The predicate, false where there is no value."""
        assert callable(self.predicate)
        return key is not None and query is not None and bool(self.predicate(key, query))

    @property
    def selects(self) -> "tuple[Select, ...]":
        """All that have to hold together."""
        return (self,)

    def __and__(self, other: "Select | Both") -> "Select | Both":
        return _both(self, other)

    def __or__(self, other: "Select") -> "Select":
        if not (isinstance(other, Select) and self.keys is other.keys and self.queries is other.queries):
            raise ValueError(
                "only selectors with the same keys and the same queries can be joined by |: a head adds up what "
                "several pairs say and cannot see that both hold; join the S-ops in a SequenceMap first"
            )
        return Select(self.keys, self.queries, lambda key, query: self.holds(key, query) or other.holds(key, query))

    def __invert__(self) -> "Select":
        return Select(self.keys, self.queries, lambda key, query: not self.holds(key, query))


@dataclass(frozen=True, eq=False)
class Both:
    """Several selectors of different keys or queries, all of which have to hold."""

    selects: tuple[Select, ...]

    def __and__(self, other: "Select | Both") -> "Select | Both":
        return _both(self, other)

    def __or__(self, other: Any) -> "Select":
        raise ValueError(
            "a conjunction of different S-ops cannot be joined by |: join the S-ops in a SequenceMap first"
        )

    def __invert__(self) -> "Select":
        raise ValueError("the opposite of a conjunction is a disjunction, which no head computes: negate its parts")


Selector = Select | Both


def _both(one: Selector, two: Selector) -> Selector:
    merged = list(one.selects)
    for new in two.selects:
        for i, old in enumerate(merged):
            if old.keys is new.keys and old.queries is new.queries:
                merged[i] = Select(old.keys, old.queries, _conjunction(old, new))
                break
        else:
            merged.append(new)
    return merged[0] if len(merged) == 1 else Both(tuple(merged))


def _conjunction(one: Select, two: Select) -> Predicate:
    return lambda key, query: one.holds(key, query) and two.holds(key, query)


@dataclass(frozen=True, eq=False)
class Aggregate(SOp):
    """The mean of the selected values; nothing (0 if numerical) where none is selected.

    A categorical one must not select two different values at once; a numerical one takes the mean of zeros and ones.
    """

    selector: Selector
    of: SOp

    @property
    def inputs(self) -> tuple[SOp, ...]:
        return (*_of_selector(self.selector), self.of)


@dataclass(frozen=True, eq=False)
class SelectorWidth(SOp):
    """How many positions are selected."""

    selector: Selector

    @property
    def inputs(self) -> tuple[SOp, ...]:
        return _of_selector(self.selector)


def _of_selector(selector: Selector) -> tuple[SOp, ...]:
    return tuple(sop for select in selector.selects for sop in (select.keys, select.queries))


def full(value: Value) -> SOp:
    """The same value everywhere."""
    return Map(lambda _: value, tokens, name=f"{value}")


def nodes(program: SOp) -> list[SOp]:
    """All S-ops that a program consists of, each after those that it reads.

    Errors: `ValueError` for something that is no S-op.
    """
    found: dict[int, SOp] = {}

    def visit(sop: SOp) -> None:
        if not isinstance(sop, SOp):
            raise ValueError(f"expected an S-op, not {sop!r}")
        if id(sop) not in found:
            for read in sop.inputs:
                visit(read)
            found[id(sop)] = sop

    visit(program)
    return list(found.values())


def applied(f: Callable[..., Value], *values: Value) -> Value:
    """f of values: nothing where a value is missing or f has no result (a division by zero)."""
    if any(value is None for value in values):
        return None
    try:
        return f(*values)
    except ArithmeticError:
        return None


def number(value: Value) -> Fraction:
    """A number as RASP keeps it, exactly: 1/5 - 1/4 and 3/20 - 1/5 are the same, as floats they are not.

    Errors: `ValueError` for a value that is no number.
    """
    if not isinstance(value, int | float | Fraction) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number, and the S-op is numerical")
    return Fraction(value)


def evaluate(program: SOp, inputs: Sequence[Value], *, causal: bool = False) -> list[Value]:
    """The program's values on one input, position by position: what its compiled model must say.

    Args:
        causal: a position selects itself and those before it, nothing after it.

    Errors: `ValueError` where a categorical `Aggregate` selects two different values, or a numerical one averages
        others than zeros and ones.
    """
    return trace(program, inputs, causal=causal)[program]


def trace(program: SOp, inputs: Sequence[Value], *, causal: bool = False) -> dict[SOp, list[Value]]:
    """The values of every S-op of a program; see `evaluate`."""
    found: dict[SOp, list[Value]] = {}
    for sop in nodes(program):
        values = _values(sop, list(inputs), found, causal)
        found[sop] = [number(v or 0) for v in values] if sop.numerical else values
    return {sop: [float(v) for v in values] if sop.numerical else values for sop, values in found.items()}


def _values(sop: SOp, inputs: list[Value], known: dict[SOp, list[Value]], causal: bool) -> list[Value]:
    match sop:
        case Tokens():
            return inputs
        case Indices():
            return list(range(len(inputs)))
        case Map():
            return [applied(sop.f, x) for x in known[sop.of]]
        case SequenceMap():
            return [applied(sop.f, x, y) for x, y in zip(known[sop.first], known[sop.second], strict=True)]
        case LinearSequenceMap():
            a, b = number(sop.a), number(sop.b)
            return [a * x + b * y for x, y in zip(known[sop.first], known[sop.second], strict=True)]
        case SelectorWidth():
            return [sum(row) for row in _selected(sop.selector, known, len(inputs), causal)]
        case Aggregate():
            rows = _selected(sop.selector, known, len(inputs), causal)
            return [_mean(sop, [v for v, on in zip(known[sop.of], row, strict=True) if on]) for row in rows]
    raise ValueError(f"{type(sop).__name__} is no operation of RASP")


def _selected(selector: Selector, known: dict[SOp, list[Value]], n: int, causal: bool) -> list[list[bool]]:
    return [
        [
            all(s.holds(known[s.keys][key], known[s.queries][query]) for s in selector.selects)
            and not (causal and key > query)
            for key in range(n)
        ]
        for query in range(n)
    ]


def _mean(sop: Aggregate, values: list[Value]) -> Value:
    if not values:
        return None
    if not sop.numerical:
        if len(set(values)) > 1:
            raise ValueError(
                f"{sop.name or 'an Aggregate'} selects different values at once ({values}): no category is their mean"
            )
        return values[0]
    if not set(values) <= {0, 1}:
        raise ValueError(f"{sop.name or 'an Aggregate'} averages {values}; a numerical one takes zeros and ones")
    return Fraction(sum(values), len(values))
