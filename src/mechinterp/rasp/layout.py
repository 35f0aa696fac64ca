"""Where a program's variables live: their possible values, their directions, the layers that write them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from mechinterp.rasp.language import (
    Aggregate,
    Indices,
    LinearSequenceMap,
    Map,
    SelectorWidth,
    SequenceMap,
    SOp,
    Tokens,
    Value,
    applied,
    nodes,
    number,
)

WIDEST = 20_000
"""Neurons of one S-op, from which a program is refused."""
ONE, BOS, PAD = "one", "<bos>", "<pad>"


class Direction(NamedTuple):
    """One coordinate of the stream: a value of a categorical variable, or (value None) a variable's number."""

    variable: str
    value: Value = None

    def __str__(self) -> str:
        return self.variable if self.value is None else f"{self.variable}:{self.value}"


@dataclass(frozen=True)
class Layout:
    """A program's variables in a stream.

    Attributes:
        program: its S-ops, each after those that it reads.
        names: of each S-op's variable. `values`: which it can have, in order; never None.
        half: the half-layer after which it can be read: 2 · layer of a head, 2 · layer + 1 of an MLP, -1 of the input.
        directions: of the stream, in order.
    """

    program: tuple[SOp, ...]
    names: dict[SOp, str]
    values: dict[SOp, tuple[Value, ...]]
    half: dict[SOp, int]
    directions: tuple[Direction, ...]

    def of(self, sop: SOp) -> list[Direction]:
        """The directions of an S-op's values, or of its number."""
        name = self.names[sop]
        return [Direction(name)] if sop.numerical else [Direction(name, value) for value in self.values[sop]]

    def head_of(self, sop: SelectorWidth) -> Direction:
        """Where the head of a selector's width writes 1 / (width + 1)."""
        return Direction(f"{self.names[sop]}_head")

    @property
    def n_layers(self) -> int:
        """Blocks of attention and MLP."""
        return max(1, *(half // 2 + 1 for half in self.half.values()))


def lay_out(program: SOp, vocabulary: Sequence[Value], max_len: int) -> Layout:
    """The layout of a program for inputs of up to `max_len` tokens.

    Errors: `ValueError` for what a transformer of this kind cannot compute, naming the S-op and the way out; for more
        values than `WIDEST` neurons can tell apart.
    """
    order = nodes(program)
    names = _names(order)
    values: dict[SOp, tuple[Value, ...]] = {}
    half: dict[SOp, int] = {}
    for sop in order:
        _check(sop, names)
        values[sop] = _possible(sop, values, names, vocabulary, max_len)
        half[sop] = _half(sop, max((half[read] for read in sop.inputs), default=-1))
    inputs = [Direction("tokens", v) for v in (BOS, PAD, *vocabulary)]
    inputs += [Direction("indices", i) for i in range(max_len)] + [Direction(ONE)]
    laid = Layout(tuple(order), names, values, half, ())
    written = [d for sop in order if half[sop] >= 0 for d in _written(laid, sop)]
    return Layout(tuple(order), names, values, half, (*inputs, *written))


def _written(layout: Layout, sop: SOp) -> list[Direction]:
    return [*([layout.head_of(sop)] if isinstance(sop, SelectorWidth) else []), *layout.of(sop)]


def _names(order: list[SOp]) -> dict[SOp, str]:
    """One for each, made different by numbers."""
    used = {"tokens", "indices", ONE}
    found: dict[SOp, str] = {}
    for sop in order:
        if isinstance(sop, Tokens | Indices):
            found[sop] = sop.name
            continue
        base = sop.name or type(sop).__name__.lower()
        name = next(n for n in itertools.chain([base], (f"{base}_{i}" for i in itertools.count(2))) if n not in used)
        used |= {name, f"{name}_head"}
        found[sop] = name
    return found


def _half(sop: SOp, read: int) -> int:
    """The first half-layer of the right kind after all that is read."""
    match sop:
        case Tokens() | Indices():
            return -1
        case Aggregate():
            return read + 1 if read % 2 else read + 2
        case SelectorWidth():
            return read + 2 if read % 2 else read + 3
    return read + 2 if read % 2 else read + 1


def _check(sop: SOp, names: dict[SOp, str]) -> None:
    """`ValueError` for an encoding that no head or MLP of this kind can read or write."""
    name = names[sop]

    def refuse(problem: str) -> None:
        raise ValueError(f"{name}: {problem}")

    if isinstance(sop, Tokens | Indices) and sop.numerical:
        refuse("it is embedded as categories; make a number of it with Map(float, …).as_numerical()")
    if isinstance(sop, LinearSequenceMap) and not all(x.numerical for x in (sop, *sop.inputs)):
        refuse("a LinearSequenceMap reads and writes numbers; add .as_numerical() to its inputs, or use a SequenceMap")
    if isinstance(sop, SequenceMap) and any(x.numerical for x in (sop, *sop.inputs)):
        refuse("a SequenceMap reads and writes categories; use a LinearSequenceMap for numbers, or a Map after it")
    if isinstance(sop, Aggregate | SelectorWidth):
        reads = [x for s in sop.selector.selects for x in (s.keys, s.queries)]
        if any(x.numerical for x in reads):
            refuse("keys and queries of a selector are categories; make them so with Map(…)")
    if isinstance(sop, Aggregate) and sop.numerical != sop.of.numerical:
        refuse(f"it has to be encoded as what it aggregates: {'' if sop.of.numerical else 'not '}as_numerical()")


def _possible(
    sop: SOp, known: dict[SOp, tuple[Value, ...]], names: dict[SOp, str], vocabulary: Sequence[Value], max_len: int
) -> tuple[Value, ...]:
    """All values that an S-op can have, perhaps more; without None, with 0 if it is numerical."""

    def explode(n: int) -> None:
        if n > WIDEST:
            raise ValueError(
                f"{names[sop]} would tell {n:,} combinations of values apart, one neuron each; at most {WIDEST:,}: "
                "take a smaller vocabulary or shorter inputs, or map its inputs to fewer values first"
            )

    match sop:
        case Tokens():
            return tuple(vocabulary)
        case Indices():
            return tuple(range(max_len))
        case Map():
            found = [applied(sop.f, x) for x in known[sop.of]]
        case SequenceMap():
            explode(len(known[sop.first]) * len(known[sop.second]))
            found = [applied(sop.f, x, y) for x, y in itertools.product(known[sop.first], known[sop.second])]
        case LinearSequenceMap():
            explode(len(known[sop.first]) * len(known[sop.second]))
            a, b = number(sop.a), number(sop.b)
            found = [a * x + b * y for x, y in itertools.product(known[sop.first], known[sop.second])]
        case SelectorWidth():
            found = list(range(max_len + 1))
        case Aggregate():
            found = list(known[sop.of])
            if sop.numerical:
                if not set(found) <= {0, 1}:
                    raise ValueError(
                        f"{names[sop]} would average {len(set(found))} different numbers; a head's mean can be read "
                        "back only for zeros and ones: compare first, as in (tokens == 'a').as_numerical()"
                    )
                found = [Fraction(k, n) for n in range(1, max_len + 1) for k in range(n + 1)]
        case _:
            raise ValueError(f"{type(sop).__name__} is no operation of RASP")
    if sop.numerical:
        return tuple(sorted({number(v or 0) for v in (0, *found)}))
    return tuple(dict.fromkeys(v for v in found if v is not None))


def is_input(sop: SOp) -> bool:
    """Whether the embedding writes it."""
    return isinstance(sop, Tokens | Indices)
