"""A transformer as a graph: who writes into the residual stream, who reads it, and the edges between them.

Senders are the input (embeddings and positions together), every head and every MLP. Receivers are each head's query,
each group's key and value, every MLP's input, and the logits. An edge leads from a sender to every receiver that comes
after it; in a parallel block the MLP gets nothing from the heads of its own layer. Biases of output projections belong
to no sender. Where query heads share keys and values, an edge into them is one edge, not one for each query head.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from mechinterp.anatomy import Anatomy

SenderKind = Literal["input", "head", "mlp"]
ReceiverKind = Literal["q", "k", "v", "mlp", "logits"]


class Sender(NamedTuple):
    """What writes into the stream: printed `input`, `a3.0`, `m2`."""

    kind: SenderKind
    layer: int = -1
    head: int = 0

    def __str__(self) -> str:
        return {"input": "input", "head": f"a{self.layer}.{self.head}", "mlp": f"m{self.layer}"}[self.kind]


class Receiver(NamedTuple):
    """What reads the stream: printed `a3.0.q`, `m2`, `logits`; of keys and values, `head` is the group."""

    kind: ReceiverKind
    layer: int = -1
    head: int = 0

    def __str__(self) -> str:
        if self.kind == "logits":
            return "logits"
        return f"m{self.layer}" if self.kind == "mlp" else f"a{self.layer}.{self.head}.{self.kind}"


class Edge(NamedTuple):
    """From a sender to a receiver, printed `m0→a1.0.q`.

    >>> str(Edge.parse("input → a0.1.q"))
    'input→a0.1.q'
    """

    sender: Sender
    receiver: Receiver

    def __str__(self) -> str:
        return f"{self.sender}→{self.receiver}"

    @classmethod
    def parse(cls, text: str) -> "Edge":
        """Read what is printed, or `a0.1->logits`; `ValueError` for anything else."""
        match = re.fullmatch(r"(input|a\d+\.\d+|m\d+)\s*(?:→|->)\s*(logits|a\d+\.\d+\.[qkv]|m\d+)", text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not an edge; write it as m0→a1.0.q, input→m0 or a1.0→logits")
        numbers = [[int(n) for n in re.findall(r"\d+", part)] for part in match.groups()]
        sender = Sender({"i": "input", "a": "head", "m": "mlp"}[match[1][0]], *numbers[0])  # type: ignore[arg-type]
        kind = match[2][-1] if match[2][0] == "a" else {"m": "mlp", "l": "logits"}[match[2][0]]
        return cls(sender, Receiver(kind, *numbers[1]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Graph:
    """All edges of a model of a shape.

    Masks of edges are [sender receiver], in the order of `senders` and `receivers`.

    >>> graph = Graph(12, 12, 12, (False,) * 12)
    >>> len(graph)
    32491
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: tuple[bool, ...]

    @classmethod
    def of(cls, model: Any) -> "Graph":
        """The graph of a model, or of its anatomy; errors as of `Anatomy.of`."""
        anatomy = model if isinstance(model, Anatomy) else Anatomy.of(model, bidirectional=True)
        sizes = anatomy.size
        return cls(sizes.n_layers, sizes.n_heads, sizes.n_kv_heads, tuple(x.parallel for x in anatomy.layers))

    @cached_property
    def senders(self) -> tuple[Sender, ...]:
        """The input, then each layer's heads and MLP."""
        layers = (
            [*(Sender("head", layer, head) for head in range(self.n_heads)), Sender("mlp", layer)]
            for layer in range(self.n_layers)
        )
        return (Sender("input"), *(sender for layer in layers for sender in layer))

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """Each layer's queries, keys, values and MLP, then the logits."""
        found: list[Receiver] = []
        for layer in range(self.n_layers):
            found += [Receiver("q", layer, head) for head in range(self.n_heads)]
            found += [Receiver("k", layer, group) for group in range(self.n_kv_heads)]
            found += [Receiver("v", layer, group) for group in range(self.n_kv_heads)]
            found.append(Receiver("mlp", layer))
        return (*found, Receiver("logits"))

    @cached_property
    def row(self) -> dict[Sender, int]:
        """The number of every sender."""
        return {sender: i for i, sender in enumerate(self.senders)}

    @cached_property
    def column(self) -> dict[Receiver, int]:
        """The number of every receiver."""
        return {receiver: i for i, receiver in enumerate(self.receivers)}

    def before(self, receiver: Receiver) -> int:
        """How many senders come before a receiver."""
        per_layer = self.n_heads + 1
        if receiver.kind == "logits":
            return 1 + self.n_layers * per_layer
        heads = self.n_heads if receiver.kind == "mlp" and not self.parallel[receiver.layer] else 0
        return 1 + receiver.layer * per_layer + heads

    @cached_property
    def mask(self) -> Bool[Tensor, "sender receiver"]:
        """Which pairs are edges."""
        found = torch.zeros(len(self.senders), len(self.receivers), dtype=torch.bool)
        for i, receiver in enumerate(self.receivers):
            found[: self.before(receiver), i] = True
        return found

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges(self.mask))

    def edges(self, mask: Bool[Tensor, "sender receiver"]) -> list[Edge]:
        """The edges of a mask, receiver by receiver."""
        return [Edge(self.senders[s], self.receivers[r]) for r, s in (mask & self.mask).T.nonzero().tolist()]

    def masked(self, edges: Iterable[Edge | str]) -> Bool[Tensor, "sender receiver"]:
        """The mask of some edges, given as such or as text.

        Errors: `ValueError` naming the first that is no edge of this graph.
        """
        found = torch.zeros_like(self.mask)
        for given in edges:
            edge = Edge.parse(given) if isinstance(given, str) else given
            at = self.row.get(edge.sender, -1), self.column.get(edge.receiver, -1)
            if min(at) < 0 or not self.mask[at]:
                raise ValueError(
                    f"{edge} is no edge of this graph of {self.n_layers} layers with {self.n_heads} heads, "
                    f"{self.n_kv_heads} of them with keys and values of their own"
                )
            found[at] = True
        return found

    def live(self, mask: Bool[Tensor, "*more sender receiver"]) -> Bool[Tensor, "*more sender receiver"]:
        """Those edges of a mask that lie on a path from the input to the logits: others carry nothing that matters."""
        found = mask & self.mask
        while True:
            fed, used = found.any(-2), found.any(-1)
            heard = torch.stack([self._fed(fed, sender) for sender in self.senders], -1)
            read = torch.stack([self._used(used, receiver) for receiver in self.receivers], -1)
            pruned = found & heard[..., :, None] & read[..., None, :]
            if torch.equal(pruned, found):
                return found
            found = pruned

    def matters(self, mask: Bool[Tensor, "sender receiver"], receiver: Receiver) -> bool:
        """Whether any edge of a mask leaves the head, MLP or group of heads that a receiver feeds."""
        return bool(self._used((mask & self.mask).any(-1), receiver))

    def _fed(self, fed: Tensor, sender: Sender) -> Tensor:
        """Whether a sender has something to say, given which receivers hear anything."""
        if sender.kind == "input":
            return torch.ones_like(fed[..., 0])
        if sender.kind == "mlp":
            return fed[..., self.column[Receiver("mlp", sender.layer)]]
        group = sender.head * self.n_kv_heads // self.n_heads
        at = [Receiver("q", sender.layer, sender.head), *(Receiver(x, sender.layer, group) for x in ("k", "v"))]
        return fed[..., [self.column[receiver] for receiver in at]].any(-1)

    def _used(self, used: Tensor, receiver: Receiver) -> Tensor:
        """Whether anybody hears what a receiver's head or MLP says."""
        if receiver.kind == "logits":
            return torch.ones_like(used[..., 0])
        if receiver.kind == "mlp":
            return used[..., self.row[Sender("mlp", receiver.layer)]]
        share = 1 if receiver.kind == "q" else self.n_heads // self.n_kv_heads
        heads = range(receiver.head * share, (receiver.head + 1) * share)
        return used[..., [self.row[Sender("head", receiver.layer, head)] for head in heads]].any(-1)


def between_heads(edges: Iterable[Edge]) -> frozenset[Edge]:
    """What a circuit is at the level of heads, as path patching sees it: who reaches whom directly or through MLPs.

    From each head to the inputs of heads, and to the logits, that its messages reach along the given edges without
    passing through another head. What the input sends is left out.

    >>> chain = ["input→a0.0.v", "a0.0→m0", "m0→a1.0.q", "a1.0→logits"]
    >>> sorted(map(str, between_heads(map(Edge.parse, chain))))
    ['a0.0→a1.0.q', 'a1.0→logits']
    """
    edges = list(edges)
    behind: dict[Sender, set[Sender]] = {}

    def heads(sender: Sender) -> set[Sender]:
        return {sender} if sender.kind == "head" else behind.get(sender, set())

    for edge in sorted((e for e in edges if e.receiver.kind == "mlp"), key=lambda e: e.receiver.layer):
        behind.setdefault(Sender("mlp", edge.receiver.layer), set()).update(heads(edge.sender))
    return frozenset(Edge(head, e.receiver) for e in edges if e.receiver.kind != "mlp" for head in heads(e.sender))
