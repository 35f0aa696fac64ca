"""The weights of a program's heads and neurons, written into named directions (arXiv:2301.05062, appendix D).

A head's score is 1 (times the softmax's coldness) where the predicate holds and 0 elsewhere. `<bos>` gets 1/2, so that
a query that selects nothing attends to `<bos>`, whose value is nothing. For a selector's width `<bos>` gets 1: the head
then averages a 1 over width + 1 positions. A conjunction of n selectors adds up their scores, and `<bos>` stands
between n - 1 and n. Neurons look values up, or tell numbers apart by thresholds between them.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from mechinterp.rasp.language import (
    Aggregate,
    LinearSequenceMap,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    SOp,
    Value,
    applied,
)
from mechinterp.rasp.layout import BOS, ONE, Direction, Layout

STEEPEST = 1e5
"""Slope of a neuron's step, from which a program is refused."""
Terms = dict[Direction, float]
"""A vector of the stream, by its nonzero coordinates."""


@dataclass(frozen=True)
class HeadTerms:
    """One head: each list has an entry for every coordinate of the head that is used.

    `width`: coordinates that it needs, counted as Tracr does, the larger of its queries' and its keys' input spaces.
    """

    query: list[Terms]
    key: list[Terms]
    value: list[Terms]
    output: list[Terms]

    width: int


@dataclass(frozen=True)
class Neuron:
    """relu(read · x), written."""

    read: Terms
    write: Terms


def head(layout: Layout, sop: SOp) -> HeadTerms:
    """The head of an `Aggregate` or of a `SelectorWidth`."""
    assert isinstance(sop, Aggregate | SelectorWidth)
    counts = isinstance(sop, SelectorWidth)
    selects = sop.selector.selects
    query, key = [], []
    for select in selects:
        for at, terms in _scores(layout, select):
            query.append(terms)
            key.append({at: 1.0})
    to_bos = len(selects) - (0.0 if counts else 0.5)
    query.append({Direction(ONE): to_bos})
    key.append({Direction("tokens", BOS): 1.0})
    if isinstance(sop, SelectorWidth):
        read, written = [Direction("tokens", BOS)], [layout.head_of(sop)]
    else:
        read, written = layout.of(sop.of), layout.of(sop)
    queries = sum(len(layout.of(select.queries)) for select in selects) + 2  # one, and <bos> without a weight
    width = max(queries, len(key), len(read))
    return HeadTerms(query, key, [{d: 1.0} for d in read], [{d: 1.0} for d in written], width)


def _scores(layout: Layout, select: Select) -> Iterator[tuple[Direction, Terms]]:
    """For every value of the keys, which values of the queries select it."""
    keys, queries = layout.of(select.keys), layout.of(select.queries)
    for at in keys:
        yield at, {q: 1.0 for q in queries if select.holds(at.value, q.value)}


def neurons(layout: Layout, sop: SOp, exactness: float) -> list[Neuron]:
    """The neurons that compute an S-op: of a `SelectorWidth`, from what its head has written."""
    match sop:
        case SelectorWidth():
            at = layout.head_of(sop)
            widths = layout.values[sop]
            found = _by_threshold(
                at, [Fraction(1, w + 1) for w in widths], _writer(layout, sop, lambda x: int(1 / x - 1)), exactness
            )
            return _nothing_at_bos(found, {at: 1.0}, also={at: -1.0})
        case Map():
            out = _writer(layout, sop, lambda x: applied(sop.f, x))
            if sop.of.numerical:
                found = _by_threshold(layout.of(sop.of)[0], list(layout.values[sop.of]), out, exactness)
                return _nothing_at_bos(found, {}, also={})
            return _looked_up({d: out(d.value) for d in layout.of(sop.of)})
        case SequenceMap() if sop.first is sop.second:
            return _looked_up(
                {d: _writer(layout, sop, lambda x: applied(sop.f, x, x))(d.value) for d in layout.of(sop.first)}
            )
        case SequenceMap():
            out2 = _writer(layout, sop, lambda pair: applied(sop.f, *pair))
            return [
                Neuron({one: 1.0, two: 1.0, Direction(ONE): -1.0}, out2((one.value, two.value)))
                for one in layout.of(sop.first)
                for two in layout.of(sop.second)
            ]
        case LinearSequenceMap():
            at = layout.of(sop)[0]
            return [
                Neuron({layout.of(read)[0]: sign}, {at: sign * factor})
                for read, factor in ((sop.first, sop.a), (sop.second, sop.b))
                for sign in (1.0, -1.0)
            ]
    raise ValueError(f"{layout.names[sop]} is no work for neurons")


def _writer(layout: Layout, sop: SOp, f: Callable[[Value], Value]) -> Callable[[Value], Terms]:
    """What is written for an input value: the direction of the result, or its number; nothing where there is none."""
    directions = {d.value: d for d in layout.of(sop)}

    def write(x: Value) -> Terms:
        y = f(x)
        if y is None:
            return {}
        if sop.numerical:
            return {directions[None]: float(y)} if y else {}
        return {directions[y]: 1.0}

    return write


def _looked_up(table: dict[Direction, Terms]) -> list[Neuron]:
    """One neuron for each result, which the values that have it turn on."""
    by_result: dict[tuple[tuple[Direction, float], ...], list[Direction]] = {}
    for read, written in table.items():
        if written:
            by_result.setdefault(tuple(written.items()), []).append(read)
    return [Neuron(dict.fromkeys(reads, 1.0), dict(written)) for written, reads in by_result.items()]


def _by_threshold(
    at: Direction, values: list[Fraction], out: Callable[[Fraction], Terms], exactness: float
) -> list[Neuron]:
    """Steps between neighbouring values at which the result changes, each relu(Lx - Lt + 1) - relu(Lx - Lt).

    L is `exactness`, or so much that a step has been taken well before the next value.
    """
    values = sorted(values)
    steepness = max([exactness, *(float(4 / (b - a)) for a, b in itertools.pairwise(values))])
    if steepness > STEEPEST:
        raise ValueError(
            f"{at.variable} has values only {4 / steepness:.2g} apart, which neurons in fp32 cannot tell apart"
        )
    found, last = [Neuron({Direction(ONE): 1.0}, out(values[0]))], out(values[0])
    for low, high in itertools.pairwise(values):
        now = out(high)
        change = {d: c for d in (*now, *(d for d in last if d not in now)) if (c := now.get(d, 0.0) - last.get(d, 0.0))}
        last = now
        if not change:
            continue
        threshold = float(low + high) / 2
        for begins, sign in ((1.0, 1.0), (0.0, -1.0)):
            read = {at: steepness, Direction(ONE): begins - steepness * threshold}
            found.append(Neuron(read, {d: sign * c for d, c in change.items()}))
    return found


def _nothing_at_bos(found: list[Neuron], bos: Terms, also: Terms) -> list[Neuron]:
    """The neurons, and one that takes back what they write at `<bos>`, where the stream has the terms `bos` beside it.

    Heads rely on `<bos>` having no value of any variable.
    """
    stream = {Direction(ONE): 1.0} | bos
    written: Terms = dict(also)
    for neuron in found:
        on = max(0.0, sum(weight * stream.get(d, 0.0) for d, weight in neuron.read.items()))
        for d, weight in neuron.write.items():
            written[d] = written.get(d, 0.0) - on * weight
    written = {d: w for d, w in written.items() if w}
    return [*found, Neuron({Direction("tokens", BOS): 1.0}, written)] if written else found


def vectors(terms: list[Terms], layout: Layout, rows: int) -> Tensor:
    """[rows d_model]: the terms as vectors of the stream, and zeros."""
    place = {d: i for i, d in enumerate(layout.directions)}
    out = torch.zeros(rows, len(place), dtype=torch.float64)
    for i, row in enumerate(terms):
        for d, value in row.items():
            out[i, place[d]] = value
    return out
