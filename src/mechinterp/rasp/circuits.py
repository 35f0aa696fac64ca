"""The circuit of a compiled program: which edges it needs, given what flows along the others.

What a program needs depends on how the other edges are ablated. With `resample`, they carry what their senders say on
another input: an edge whose message is the same on all inputs is not needed. With `mean` they carry its average, with
`zero` nothing, so that constants are needed, too. There may be several minimal circuits: a uniform pattern, for one,
results from a query of zero as well as from a key of zero.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from mechinterp.anatomy import size
from mechinterp.discovery import Edge, Graph, Receiver, Sender, patched_logits, said
from mechinterp.rasp.compiled import Compiled
from mechinterp.rasp.language import Value

Ablation = Literal["resample", "mean", "zero"]
MOST = 13
"""Edges of which all subsets are tried."""
AT_ONCE = 2**13
"""Rows of one pass."""
ORDERS = 8
"""In which edges are taken away where all sets of them are too many."""
FEW = 128
"""Inputs, or pairs of them, on which edges are taken away at first; what is found is tried on all."""


class EdgeAt(NamedTuple):
    """An edge at one position: the sender's message there, to the receiver there. Position 0 is `<bos>`.

    >>> str(EdgeAt(Edge.parse("input→a0.0.v"), 1))
    'input→a0.0.v@1'
    """

    edge: Edge
    position: int

    def __str__(self) -> str:
        return f"{self.edge}@{self.position}"


Item = TypeVar("Item", bound=Edge | EdgeAt)


@dataclass(frozen=True)
class Truth(Generic[Item]):
    """What a program needs, as edges or as edges at positions.

    Attributes:
        needed: edges without which it goes wrong if all others are on.
        circuits: all minimal ones: no set of edges within one of them is right.
        exhaustive: all sets of edges were tried. Else only those with everything in `needed`, and there may be others:
            two edges can go wrong one by one and be right together, like the two sides of a comparison. Where even
            those are too many, edges were taken away one by one in `ORDERS` random orders: then there may be smaller
            ones, and those that are given are right and need each of their edges.
        inputs: on how many inputs (pairs of inputs for `resample`) each was tried.
    """

    needed: frozenset[Item]
    circuits: tuple[frozenset[Item], ...]
    exhaustive: bool
    inputs: int


def dataflow(compiled: Compiled) -> list[Edge]:
    """Edges along which anything flows: from a sender to all that read a direction that it writes."""
    graph, weights, n = Graph.of(compiled.model), compiled.weights, size(compiled.model).d_head
    writes = {Sender("input"): weights["tok_embed.weight"].any(0) | weights["pos.weight"].any(0)}
    reads = {Receiver("logits"): weights["head.weight"].any(0)}
    for at in compiled.heads:
        rows, own = slice(at.head * n, (at.head + 1) * n), f"layers.{at.layer}.attn"
        writes[Sender("head", *at)] = weights[f"{own}.o.weight"][:, rows].any(1)
        for kind in ("q", "k", "v"):
            reads[Receiver(kind, *at)] = weights[f"{own}.{kind}.weight"][rows].any(0)
    for layer in compiled.neurons:
        writes[Sender("mlp", layer)] = weights[f"layers.{layer}.mlp.fc_out.weight"].any(1)
        reads[Receiver("mlp", layer)] = weights[f"layers.{layer}.mlp.fc_in.weight"].any(0)
    nothing = torch.zeros(len(compiled.layout.directions), dtype=torch.bool)
    return [e for e in graph if (writes.get(e.sender, nothing) & reads.get(e.receiver, nothing)).any()]


def truth(
    compiled: Compiled,
    ablation: Ablation,
    inputs: Sequence[Sequence[Value]],
    corrupted: Sequence[Sequence[Value]] | None = None,
) -> Truth[Edge]:
    """The minimal circuits of a program, by trying them on all given inputs.

    A circuit is right if the model, with its edges on and all others off, says on every input what it says with all on.
    Edges along which nothing flows are left out from the start.

    Args:
        inputs: of one length; of every pair of an input and a corrupted one for `resample`.
        corrupted: whose messages flow along edges that are off, or are averaged; by default the inputs.

    Errors: `ValueError` for an unknown ablation; as of `Compiled.tokens`.
    """
    trial = _Trial.of(compiled, ablation, inputs, inputs if corrupted is None else corrupted)
    flow = dataflow(compiled)
    return _search(trial, flow, torch.stack([trial.graph.masked([e]) for e in flow]))


def truth_by_position(
    compiled: Compiled,
    ablation: Ablation,
    inputs: Sequence[Sequence[Value]],
    corrupted: Sequence[Sequence[Value]] | None = None,
) -> Truth[EdgeAt]:
    """The minimal circuits of a program, position by position: which edges it needs where.

    As `truth`, with every edge at every position on or off by itself. A circuit is one of inputs of this length.
    Edges at positions are soon too many for all sets of them: see `Truth.exhaustive`.

    Args and errors: as of `truth`.

    >>> from mechinterp.rasp import compile_program, library
    >>> shift = compile_program(library.shift_by(1), "ab", 2)
    >>> [circuit] = truth_by_position(shift, "resample", ["aa", "ab", "ba", "bb"]).circuits
    >>> sorted(map(str, circuit))
    ['a0.0→logits@2', 'input→a0.0.v@1']
    """
    trial = _Trial.of(compiled, ablation, inputs, inputs if corrupted is None else corrupted)
    items = [EdgeAt(e, p) for e in dataflow(compiled) for p in range(trial.tokens.shape[1])]
    return _search(trial, items, torch.stack([trial.mask([item]) for item in items]))


def _search(trial: "_Trial", items: list[Item], single: Bool[Tensor, "item *pos sender receiver"]) -> Truth[Item]:
    """The minimal circuits out of some items, given the mask of each."""
    places = range(len(items))
    right = trial.right(torch.stack([_union(single, places), *(_union(single, set(places) - {i}) for i in places)]))
    if not right[0]:
        raise ValueError("the program needs an edge along which nothing flows: this compiled model has been changed")
    needed = frozenset(i for i in places if not right[1 + i])
    exhaustive = len(items) <= MOST
    base = frozenset[int]() if exhaustive else needed
    free = [i for i in places if i not in base]
    found: list[frozenset[int]] = []
    if len(free) > MOST:
        found = _reduced(trial, single, free)
    else:
        for n in range(len(free) + 1):
            sets = [base | set(c) for c in itertools.combinations(free, n)]
            sets = [c for c in sets if not any(f <= c for f in found)]
            for some in _parts(sets, 512):
                masks = torch.stack([_union(single, c) for c in some])
                found += [c for c, ok in zip(some, trial.right(masks).tolist(), strict=True) if ok]

    named = [frozenset(items[i] for i in circuit) for circuit in found]
    return Truth(frozenset(items[i] for i in needed), tuple(named), exhaustive, trial.size)


def _union(single: Bool[Tensor, "item *pos sender receiver"], some: Collection[int]) -> Bool[Tensor, "*pos s r"]:
    return single[list(some)].any(0)


def works(
    compiled: Compiled,
    ablation: Ablation,
    circuits: Sequence[Collection[Edge]] | Sequence[Collection[EdgeAt]],
    inputs: Sequence[Sequence[Value]],
    corrupted: Sequence[Sequence[Value]] | None = None,
) -> Bool[Tensor, " circuit"]:
    """Which of several sets of edges, or of edges at positions, are right on all inputs; else as `truth`."""
    trial = _Trial.of(compiled, ablation, inputs, inputs if corrupted is None else corrupted)
    masks = torch.broadcast_tensors(*(trial.mask(circuit) for circuit in circuits))
    return trial.right(torch.stack(masks))


def _reduced(
    trial: "_Trial", single: Bool[Tensor, "item *pos sender receiver"], free: list[int]
) -> list[frozenset[int]]:
    """Circuits that are right and need each of their items: found on some inputs, and tried on all."""
    generator = torch.Generator().manual_seed(0)
    few = FEW
    while True:
        some = replace(trial, pairs=trial.pairs[:few])
        kept, changed = torch.ones(ORDERS, len(single), dtype=torch.bool), True
        while changed:
            before = kept.clone()
            orders = torch.stack([torch.randperm(len(free), generator=generator) for _ in kept], 1)
            for row in torch.tensor(free)[orders]:
                less = kept.clone()
                less[torch.arange(len(kept)), row] = False
                right = some.right(torch.stack([_union(single, c.nonzero()[:, 0].tolist()) for c in less]))
                kept = torch.where(right[:, None], less, kept)
            kept, changed = kept.unique(dim=0), not torch.equal(before, kept)
        circuits = [frozenset(row.nonzero()[:, 0].tolist()) for row in kept]
        if few >= trial.size or trial.right(torch.stack([_union(single, c) for c in circuits])).all():
            return sorted(circuits, key=lambda circuit: (len(circuit), sorted(circuit)))
        few *= 4


def _parts(items: list[frozenset[int]], n: int) -> Iterator[list[frozenset[int]]]:
    return (items[i : i + n] for i in range(0, len(items), n))


@dataclass(frozen=True)
class _Trial:
    """All inputs with what flows along edges that are off."""

    compiled: Compiled
    graph: Graph
    tokens: Tensor
    elsewhere: Tensor | None
    pairs: Tensor
    expected: Tensor

    @classmethod
    def of(
        cls, compiled: Compiled, ablation: Ablation, inputs: Sequence[Sequence[Value]], other: Sequence[Sequence[Value]]
    ) -> "_Trial":
        if ablation not in get_args(Ablation):
            raise ValueError(f"unknown ablation {ablation!r}; one of {', '.join(get_args(Ablation))}")
        tokens = compiled.tokens(inputs)
        expected = compiled.answers(compiled.model(tokens))
        elsewhere = None if ablation == "zero" else said(compiled.model, compiled.tokens(other))
        if elsewhere is not None and ablation == "mean":
            elsewhere = elsewhere.mean(0, keepdim=True)
        n = 1 if elsewhere is None else len(elsewhere)
        pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(n))
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
        return cls(compiled, Graph.of(compiled.model), tokens, elsewhere, pairs, expected)

    @property
    def size(self) -> int:
        return len(self.pairs)

    def mask(self, circuit: Collection[Edge] | Collection[EdgeAt]) -> Bool[Tensor, "*pos sender receiver"]:
        """Some edges, or edges at positions, as a mask: with positions if any item has one.

        Errors: `ValueError` for an edge that does not exist, or a position that the inputs do not have.
        """
        placed = [item for item in circuit if isinstance(item, EdgeAt)]
        mask = self.graph.masked(item for item in circuit if not isinstance(item, EdgeAt))
        if not placed:
            return mask
        length = self.tokens.shape[1]
        mask = mask.expand(length, -1, -1).clone()
        for item in placed:
            if not 0 <= item.position < length:
                raise ValueError(f"{item} lies outside: these inputs have the positions 0 (<bos>) to {length - 1}")
            mask[item.position] |= self.graph.masked([item.edge])
        return mask

    def right(self, masks: Bool[Tensor, "circuit *pos sender receiver"]) -> Bool[Tensor, " circuit"]:
        """Which circuits are right on all inputs; those that failed once are not tried further."""
        alive, at = torch.ones(len(masks), dtype=torch.bool), 0
        while at < self.size:
            n = max(1, AT_ONCE // int(alive.sum().clamp(min=1)) // self.tokens.shape[1])
            some, at = self.pairs[at : at + n], at + n
            rows = alive.nonzero()[:, 0]
            if not len(rows):
                break
            here = torch.cartesian_prod(rows, torch.arange(len(some)))
            x, other = some[here[:, 1]].unbind(-1)
            elsewhere = None if self.elsewhere is None else self.elsewhere[other]
            logits = patched_logits(
                self.compiled.model, self.tokens[x], masks[here[:, 0]], elsewhere, batch_size=len(here)
            )
            same = ((self.compiled.answers(logits) - self.expected[x]).abs() < 0.02).all(-1)
            alive[rows] &= same.view(len(rows), -1).all(1)
        return alive
