"""The circuit of a compiled program: which edges it needs, given what flows along the others.

What a program needs depends on how the other edges are ablated. With `resample`, they carry what their senders say on
another input: an edge whose message is the same on all inputs is not needed. With `mean` they carry its average, with
`zero` nothing, so that constants are needed, too. There may be several minimal circuits: a uniform pattern, for one,
results from a query of zero as well as from a key of zero.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

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


@dataclass(frozen=True)
class Truth:
    """What a program needs.

    Attributes:
        needed: edges without which it goes wrong if all others are on.
        circuits: all minimal ones: no set of edges within one of them is right.
        exhaustive: all sets of edges were tried. Else only those with everything in `needed`, and there may be others:
            two edges can go wrong one by one and be right together, like the two sides of a comparison. Where even
            those are too many, edges were taken away one by one in `ORDERS` random orders: then there may be smaller
            ones, and those that are given are right and need each of their edges.
        inputs: on how many inputs (pairs of inputs for `resample`) each was tried.
    """

    needed: frozenset[Edge]
    circuits: tuple[frozenset[Edge], ...]
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
) -> Truth:
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
    graph = trial.graph
    every = graph.masked(flow)
    without = torch.stack([every & ~graph.masked([e]) for e in flow])
    right = trial.right(torch.cat([every[None], without]))
    if not right[0]:
        raise ValueError("the program needs an edge along which nothing flows: this compiled model has been changed")
    needed = frozenset(e for e, ok in zip(flow, right[1:].tolist(), strict=True) if not ok)
    exhaustive = len(flow) <= MOST
    base = frozenset[Edge]() if exhaustive else needed
    free = [e for e in flow if e not in base]
    if len(free) > MOST:
        return Truth(needed, _reduced(trial, every, free), exhaustive, trial.size)
    found: list[frozenset[Edge]] = []
    for n in range(len(free) + 1):
        sets = [frozenset(c) for c in itertools.combinations(free, n) if not any(f <= frozenset(c) for f in found)]
        for some in _parts(sets, 512):
            masks = torch.stack([graph.masked(base | c) for c in some])
            found += [c for c, ok in zip(some, trial.right(masks).tolist(), strict=True) if ok]
    return Truth(needed, tuple(base | c for c in found), exhaustive, trial.size)


def works(
    compiled: Compiled,
    ablation: Ablation,
    circuits: Sequence[Collection[Edge]],
    inputs: Sequence[Sequence[Value]],
    corrupted: Sequence[Sequence[Value]] | None = None,
) -> Bool[Tensor, " circuit"]:
    """Which of several sets of edges are right on all inputs; arguments and errors as of `truth`."""
    trial = _Trial.of(compiled, ablation, inputs, inputs if corrupted is None else corrupted)
    return trial.right(torch.stack([trial.graph.masked(circuit) for circuit in circuits]))


def _reduced(trial: "_Trial", every: Tensor, free: list[Edge]) -> tuple[frozenset[Edge], ...]:
    """Circuits that are right and need each of their edges: found on some inputs, and tried on all."""
    graph, generator = trial.graph, torch.Generator().manual_seed(0)
    single = torch.stack([graph.masked([e]) for e in free])
    few = FEW
    while True:
        some = replace(trial, pairs=trial.pairs[:few])
        masks, changed = every.expand(ORDERS, *every.shape).clone(), True
        while changed:
            before = masks.clone()
            for row in torch.stack([torch.randperm(len(free), generator=generator) for _ in masks], 1):
                less = masks & ~single[row]
                masks = torch.where(some.right(less)[:, None, None], less, masks)
            masks, changed = masks.unique(dim=0), not torch.equal(before, masks)
        if few >= trial.size or trial.right(masks).all():
            found = [frozenset(graph.edges(mask)) for mask in masks]
            return tuple(sorted(found, key=lambda circuit: (len(circuit), sorted(map(str, circuit)))))
        few *= 4


def _parts(items: list[frozenset[Edge]], n: int) -> Iterator[list[frozenset[Edge]]]:
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

    def right(self, masks: Bool[Tensor, "circuit sender receiver"]) -> Bool[Tensor, " circuit"]:
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
