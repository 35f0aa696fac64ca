"""Passes with few edges on, changed a little at a time: only what hears of a change computes.

`Sparse` holds a pass under a mask of edges: every sender's message, the inputs of receivers that have been needed,
queries, keys, values and z. A change of one receiver's input, or of some senders' messages, is followed along the edges
that are on, several variants of it at once, and can be made part of the state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy, Layer
from mechinterp.discovery.forward import by_head, run
from mechinterp.discovery.graph import Graph, Receiver, Sender

Moved = dict[int, Float[Tensor, "variant prompt pos d_model"]]
"""By how much the messages of some senders differ from the state's."""
Streams = dict[int, Float[Tensor, "variant prompt pos d_model"]]
"""What some receivers see."""
KINDS = ("q", "k", "v")
FEW = 16
"""Messages that are added up anew instead of adding changes to a sum, whose rounding a norm would enlarge."""


@dataclass
class Sparse:
    """A pass in which some edges are on.

    Attributes:
        on: the edges, changed in place as they are taken away.
        here: every sender's message; `change`: that minus what it says elsewhere, [prompt pos sender d_model].
        off: the stream of what is said elsewhere, with biases, as receivers of each half-layer see it.
        made: queries, keys, values and z of every layer [prompt pos head d_head], as the model's hooks have them.
        inputs: the streams of receivers, by number, where they have been needed.
    """

    anatomy: Anatomy
    graph: Graph
    at: Int[Tensor, " prompt"]
    on: Bool[Tensor, "sender receiver"]
    here: Float[Tensor, "prompt pos sender d_model"]
    change: Float[Tensor, "prompt pos sender d_model"]
    off: dict[tuple[str, int], Tensor]
    made: dict[tuple[str, int], Tensor]
    inputs: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        anatomy: Anatomy,
        graph: Graph,
        tokens: Int[Tensor, "prompt pos"],
        there: Float[Tensor, "*prompt pos sender d_model"] | None,
        at: Int[Tensor, " prompt"],
        on: Bool[Tensor, "sender receiver"],
    ) -> "Sparse":
        """The pass under a mask of edges; `ValueError` where a post norm rescales biases, which belong to nobody."""
        if any(layer.post1 and layer.o.bias is not None for layer in anatomy.layers):
            raise ValueError("output biases of heads under a post norm are not supported here")
        off: dict[tuple[str, int], Tensor] = {}
        made: dict[tuple[str, int], Tensor] = {}

        def keep(name: str, layer: int, x: Tensor) -> None:
            (off if name in ("attn", "mlp", "logits") else made)[name, layer] = x

        change, _ = run(anatomy, graph, tokens, on[None, None].to(anatomy.device), there, keep)
        here = change if there is None else change + there.to(change)
        return cls(anatomy, graph, at, on.clone(), here, change.clone() if there is None else change, off, made)

    def logits(self) -> Float[Tensor, "1 prompt d_vocab_out"]:
        """Of the state itself."""
        return self._logits({}, {}, [])

    def edges(self, receiver: Receiver) -> "Trial":
        """To take away edges into a receiver."""
        column = self.graph.receivers.index(receiver)

        def changes(some: Sequence[int]) -> tuple[Moved, Streams]:
            # What is left is added up, not taken from the whole: nothing left is nothing, which norms would enlarge.
            left = self.on[:, column].clone()
            left[list(some)] = False
            rest = self.off_at(column) + self.change[:, :, left.nonzero()[:, 0].to(self.here.device)].sum(2)
            later = [rest, *(self.change[:, :, sender] for sender in reversed(some[1:]))]
            return {}, {column: torch.stack(later).cumsum(0).flip(0)}

        def take(some: Sequence[int]) -> None:
            self.on[list(some), column] = False

        return Trial(self, changes, take)

    def nodes(self) -> "Trial":
        """To take away all edges that leave some senders, none of which hears another."""

        def changes(some: Sequence[int]) -> tuple[Moved, Streams]:
            gone = torch.arange(len(some), device=self.here.device)
            flags = (gone >= gone[:, None]).to(self.change)[:, :, None, None, None]
            return {s: -flag * self.change[:, :, s] for s, flag in zip(some, flags, strict=True)}, {}

        def take(some: Sequence[int]) -> None:
            self.on[list(some)] = False

        return Trial(self, changes, take)

    def follow(self, moved: Moved, injected: Streams, first: int) -> tuple[Tensor, Moved, "Updates"]:
        """Logits after changes of messages and of receivers' inputs, from layer `first` on; what else has changed."""
        updates: Updates = []
        for layer in self.anatomy.layers[first:]:
            self._heads(layer, moved, injected, updates)
            receiver = self.graph.receivers.index(Receiver("mlp", layer.index))
            stream = self._heard(receiver, moved, injected)
            if stream is not None:
                sender = self.graph.senders.index(Sender("mlp", layer.index))
                moved[sender] = layer.mlp(stream) - self.here[:, :, sender]
                updates.append(partial(self._hear, receiver, stream))
        return self._logits(moved, injected, updates), moved, updates

    def matters(self, receiver: Receiver) -> bool:
        """Whether anything that is on leaves the head, MLP or group of heads that a receiver feeds.

        Under a post norm all heads of a layer matter if any does: each has a part in the scale of the others.
        """
        if receiver.kind in KINDS and self.anatomy.layers[receiver.layer].post1:
            first = self.graph.senders.index(Sender("head", receiver.layer, 0))
            return bool(self.on[first : first + self.graph.n_heads].any())
        return self.graph.matters(self.on, receiver)

    def off_at(self, receiver: int) -> Float[Tensor, "prompt pos d_model"]:
        """The stream of what is said elsewhere, as a receiver sees it."""
        which = self.graph.receivers[receiver]
        return self.off["attn" if which.kind in KINDS else which.kind, which.layer]

    def input(self, receiver: int) -> Float[Tensor, "prompt pos d_model"]:
        """The stream that a receiver sees."""
        if receiver not in self.inputs:
            senders = self.on[:, receiver].nonzero()[:, 0].to(self.here.device)
            self.inputs[receiver] = self.off_at(receiver) + self.change[:, :, senders].sum(2)
        return self.inputs[receiver]

    def _heard(self, receiver: int, moved: Moved, injected: Streams) -> Tensor | None:
        """A receiver's stream in every variant; None: no change reaches it."""
        if receiver in injected:
            return injected[receiver]
        movers = [sender for sender in moved if self.on[sender, receiver]]
        if not movers:
            return None
        senders = self.on[:, receiver].nonzero()[:, 0].tolist()
        if len(senders) > FEW:
            return self.input(receiver) + sum(moved[sender] for sender in movers)
        new = (self.change[:, :, s] + moved[s] if s in moved else self.change[:, :, s] for s in senders)
        return sum(new, self.off_at(receiver))

    def _logits(
        self, moved: Moved, injected: Streams, updates: "Updates"
    ) -> Float[Tensor, "variant prompt d_vocab_out"]:
        receiver = len(self.graph.receivers) - 1
        stream = self._heard(receiver, moved, injected)
        if stream is None:
            stream = self.input(receiver)[None]
        else:
            updates.append(partial(self._hear, receiver, stream))
        return self.anatomy.unembed(stream[:, torch.arange(len(self.at), device=stream.device), self.at])

    def _heads(self, layer: Layer, moved: Moved, injected: Streams, updates: "Updates") -> None:
        """A layer's heads, as far as they hear of a change."""
        changed: dict[str, tuple[list[int], Tensor]] = {}
        for kind in KINDS:
            n = layer.n_heads if kind == "q" else layer.n_kv_heads
            first = self.graph.receivers.index(Receiver(kind, layer.index, 0))  # type: ignore[arg-type]
            heard = {row: x for row in range(n) if (x := self._heard(first + row, moved, injected)) is not None}
            rows = list(heard)
            if rows:
                streams = torch.stack([heard[row] for row in rows])
                linear = getattr(layer, kind)
                weight = linear.weight.unflatten(0, (n, -1))[rows]
                new = torch.einsum("rvnpd,rhd->vnprh", layer.norm1(streams), weight)
                if linear.bias is not None:
                    new = new + linear.bias.view(n, -1)[rows]
                changed[kind] = rows, new
                for row, stream in zip(rows, streams, strict=True):
                    updates.append(partial(self._hear, first + row, stream))
                updates.append(partial(self._put, kind, layer.index, rows, new))
        if not changed:
            return
        heads = self._reached(layer, changed)
        if not heads:
            return
        z = self._attend(layer, heads, changed)
        updates.append(partial(self._put, "z", layer.index, heads, z))
        first = self.graph.senders.index(Sender("head", layer.index, 0))
        if layer.post1:
            whole = self._with("z", layer.index, heads, z)
            outputs = by_head(layer, whole.flatten(0, 1))[0].unflatten(0, whole.shape[:2]).movedim(3, 0)
            heads = list(range(layer.n_heads))
        else:
            outputs = layer.outputs(z, heads)
        for head, out in zip(heads, outputs, strict=True):
            moved[first + head] = out - self.here[:, :, first + head]

    def _reached(self, layer: Layer, changed: dict[str, tuple[list[int], Tensor]]) -> list[int]:
        """Heads whose z changes, and matters to somebody."""
        every = range(layer.n_heads)
        if layer.joint and ("q" in changed or "k" in changed):
            found = set(every)
        else:
            found = set(changed["q"][0]) if "q" in changed else set()
            for kind in ("k", "v"):
                if kind in changed:
                    found |= {head for head in every if layer.kv(head) in changed[kind][0]}
        if layer.post1:
            return sorted(found)
        first = self.graph.senders.index(Sender("head", layer.index, 0))
        return [head for head in sorted(found) if self.on[first + head].any()]

    def _attend(self, layer: Layer, heads: list[int], changed: dict[str, tuple[list[int], Tensor]]) -> Tensor:
        """z of some heads, [variant prompt pos head d_head]."""
        positions = torch.arange(self.here.shape[1], device=self.here.device)
        ready = {}
        for kind in KINDS:
            full = (
                self._with(kind, layer.index, *changed[kind]) if kind in changed else self.made[kind, layer.index][None]
            )
            if layer.joint:
                full = layer.ready(kind, full, positions)  # type: ignore[arg-type]
            some = full[..., heads, :] if kind == "q" else layer.expand(full, heads)
            ready[kind] = some if layer.joint else layer.ready(kind, some, positions)  # type: ignore[arg-type]
        unseen = layer.hidden(positions[:, None] - positions)
        pattern = layer.scores(ready["q"], ready["k"]).masked_fill(unseen, -torch.inf).softmax(-1)
        return layer.weigh(pattern, ready["v"])

    def _with(self, name: str, layer: int, rows: list[int], new: Tensor) -> Tensor:
        """An activation of all heads with some replaced, variant by variant."""
        whole = self.made[name, layer].expand(len(new), *self.made[name, layer].shape).clone()
        whole[..., rows, :] = new
        return whole

    def _put(self, name: str, layer: int, rows: list[int], new: Tensor, variant: int) -> None:
        self.made[name, layer][..., rows, :] = new[variant]

    def _hear(self, receiver: int, streams: Tensor, variant: int) -> None:
        self.inputs[receiver] = streams[variant]


Updates = list[Callable[[int], None]]
"""What makes one variant part of the state."""


@dataclass
class Trial:
    """Taking away one thing after another."""

    state: Sparse
    changes: Callable[[Sequence[int]], tuple[Moved, Streams]]
    take: Callable[[Sequence[int]], None]
    some: Sequence[int] = ()
    moved: Moved = field(default_factory=dict)
    updates: Updates = field(default_factory=list)

    def without(self, some: Sequence[int]) -> Float[Tensor, "variant prompt d_vocab_out"]:
        """Logits without the first, the first two, … of some senders' edges."""
        moved, injected = self.changes(some)
        layers = [self.state.graph.receivers[r].layer for r in injected]
        layers += [self.state.graph.senders[s].layer for s in moved]
        self.some = some
        logits, self.moved, self.updates = self.state.follow(moved, injected, max(min(layers), 0))
        return logits

    def settle(self, n: int) -> None:
        """Make the absence of the first n part of the state."""
        if n == 0:
            return
        for update in self.updates:
            update(n - 1)
        for sender, change in self.moved.items():
            self.state.here[:, :, sender] += change[n - 1]
            self.state.change[:, :, sender] += change[n - 1]
        self.take(self.some[:n])
