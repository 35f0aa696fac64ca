"""Passes with few edges on, changed a little at a time: only what hears of a change computes.

`Sparse` holds a pass under a mask of edges: every sender's message, the inputs of receivers that have been needed,
queries, keys, values and z. A change of one receiver's input, or of some senders' messages, is followed along the edges
that are on, several variants of it at once, and can be made part of the state.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mechinterp.anatomy import Anatomy, Input, Layer
from mechinterp.discovery.forward import by_head, run
from mechinterp.discovery.graph import Graph, Receiver, Sender

KINDS: tuple[Input, ...] = ("q", "k", "v")


class Moved:
    """Messages of some senders that differ from the state's, variant by variant, in one tensor.

    By how much they differ; or the messages themselves, where nothing is said elsewhere.
    """

    def __init__(self, most: int) -> None:
        self.most, self.senders, self._values = most, list[int](), torch.empty(0)

    def add(self, sender: int, value: Float[Tensor, "variant prompt pos d_model"]) -> None:
        """One sender more; at most `most`."""
        if not self.senders:
            self._values = value.new_empty(self.most, *value.shape)
        self._values[len(self.senders)] = value
        self.senders.append(sender)

    @property
    def values(self) -> Float[Tensor, "moved variant prompt pos d_model"]:
        """In the order of `senders`."""
        return self._values[: len(self.senders)]


Streams = dict[int, Float[Tensor, "variant prompt pos d_model"]]
"""What some receivers see."""


@dataclass
class Sparse:
    """A pass in which some edges are on.

    Attributes:
        on: the edges, changed in place as they are taken away.
        here: every sender's message; `change`: that minus what it says elsewhere, [sender prompt pos d_model].
        silent: nothing is said elsewhere. Streams are then added up from messages and not from differences, since a sum
            of nothing must be nothing: what rounding would leave of it norms would enlarge.
        off: the stream of what is said elsewhere, with biases, as receivers of each half-layer see it.
        made: queries, keys, values and z of every layer [prompt pos head d_head], as the model's hooks have them.
        inputs: the streams of receivers, by number, where they have been needed.
        sums: streams of some senders only, by half-layer and senders, as long as these say the same.
    """

    anatomy: Anatomy
    graph: Graph
    at: Int[Tensor, " prompt"]
    on: Bool[Tensor, "sender receiver"]
    here: Float[Tensor, "sender prompt pos d_model"]
    change: Float[Tensor, "sender prompt pos d_model"]
    silent: bool
    off: dict[tuple[str, int], Tensor]
    made: dict[tuple[str, int], Tensor]
    inputs: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[tuple[tuple[str, int], tuple[int, ...]], Tensor] = field(default_factory=dict)

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
        here, change = (x.movedim(2, 0).contiguous() for x in (here, change))
        change = change.clone() if there is None else change
        return cls(anatomy, graph, at, on.clone(), here, change, there is None, off, made)

    def logits(self) -> Float[Tensor, "1 prompt d_vocab_out"]:
        """Of the state itself."""
        return self._logits(Moved(0), {}, [])

    def edges(self, receiver: Receiver) -> "Trial":
        """To take away edges into a receiver."""
        column = self.graph.column[receiver]

        def changes(some: Sequence[int]) -> tuple[Moved, Streams]:
            left = self.on[:, column].clone()
            left[list(some)] = False
            rest = self._added(column, left)
            later = [rest, *(self.change[sender] for sender in reversed(some[1:]))]
            return Moved(self._alive(receiver.layer)), {column: torch.stack(later).cumsum(0).flip(0)}

        def take(some: Sequence[int]) -> None:
            self.on[list(some), column] = False

        return Trial(self, receiver.layer if receiver.layer >= 0 else self.graph.n_layers, changes, take)

    def nodes(self, layer: int) -> "Trial":
        """To take away all edges that leave some senders of one half-layer; the input's layer is −1."""

        def changes(some: Sequence[int]) -> tuple[Moved, Streams]:
            moved, gone = Moved(self._alive(layer)), torch.arange(len(some), device=self.here.device)
            for sender, flag in zip(some, (gone >= gone[:, None]).to(self.change), strict=True):
                left = 1 - flag if self.silent else -flag
                moved.add(sender, left[:, None, None, None] * self.change[sender])
            return moved, {}

        def take(some: Sequence[int]) -> None:
            self.on[list(some)] = False

        return Trial(self, max(layer, 0), changes, take)

    def _alive(self, layer: int) -> int:
        """How many senders from a layer on can move."""
        first = 0 if layer < 0 else self.graph.row[Sender("head", layer, 0)] if layer < self.graph.n_layers else 0
        if any(one.post1 for one in self.anatomy.layers):
            return len(self.graph.senders) - first
        return int(self.on[first:].any(1).sum())

    def follow(self, moved: Moved, injected: Streams, first: int) -> tuple[Tensor, "Updates"]:
        """Logits after changes of messages and of receivers' inputs, from layer `first` on; what else has changed."""
        updates: Updates = []
        for layer in self.anatomy.layers[first:]:
            self._heads(layer, moved, injected, updates)
            sender = self.graph.row[Sender("mlp", layer.index)]
            receivers = [self.graph.column[Receiver("mlp", layer.index)]] * bool(self.on[sender].any())
            for _, stream in self._heard(receivers, moved, injected, updates):
                moved.add(sender, self._news(sender, layer.mlp(stream)))
        return self._logits(moved, injected, updates), updates

    def matters(self, receiver: Receiver) -> bool:
        """Whether anything that is on leaves the head, MLP or group of heads that a receiver feeds.

        Under a post norm all heads of a layer matter if any does: each has a part in the scale of the others.
        """
        if receiver.kind in KINDS and self.anatomy.layers[receiver.layer].post1:
            first = self.graph.row[Sender("head", receiver.layer, 0)]
            return bool(self.on[first : first + self.graph.n_heads].any())
        return self.graph.matters(self.on, receiver)

    def off_at(self, receiver: int) -> Float[Tensor, "prompt pos d_model"]:
        """The stream of what is said elsewhere, as a receiver sees it."""
        return self.off[self._half(receiver)]

    def _half(self, receiver: int) -> tuple[str, int]:
        """The half-layer that a receiver is of."""
        which = self.graph.receivers[receiver]
        return "attn" if which.kind in KINDS else which.kind, which.layer

    def _news(self, sender: int, message: Float[Tensor, "variant prompt pos d_model"]) -> Tensor:
        """A message as `Moved` holds it."""
        return message if self.silent else message - self.here[sender]

    def _added(self, receiver: int, senders: Bool[Tensor, " sender"]) -> Float[Tensor, "prompt pos d_model"]:
        """A receiver's stream with edges from some senders on."""
        return self.off_at(receiver) + self._sum(senders)

    def _sum(self, senders: Bool[Tensor, " sender"]) -> Float[Tensor, "prompt pos d_model"]:
        return self.change[senders.nonzero()[:, 0].to(self.here.device)].sum(0)

    def input(self, receiver: int) -> Float[Tensor, "prompt pos d_model"]:
        """The stream that a receiver sees."""
        if receiver not in self.inputs:
            self.inputs[receiver] = self._added(receiver, self.on[:, receiver])
        return self.inputs[receiver]

    def _heard(
        self, receivers: Sequence[int], moved: Moved, injected: Streams, updates: "Updates"
    ) -> Iterator[tuple[list[int], Float[Tensor, "variant prompt pos d_model"]]]:
        """Receivers of a half-layer that a change reaches, those that see the same stream together, and that stream."""
        alike: dict[bytes, list[int]] = {}
        for receiver in receivers:
            if receiver in injected:
                updates.append(partial(self._hear, [receiver], injected[receiver]))
                yield [receiver], injected[receiver]
            elif self.on[moved.senders, receiver].any():
                alike.setdefault(self.on[:, receiver].numpy().tobytes(), []).append(receiver)
        for some in alike.values():
            edges = self.on[moved.senders, some[0]].to(self.here)
            base = self._still(some[0], moved) if self.silent else self.input(some[0])
            stream = base + torch.einsum("u,uvnpd->vnpd", edges, moved.values)
            updates.append(partial(self._hear, some, stream))
            yield some, stream

    def _still(self, receiver: int, moved: Moved) -> Float[Tensor, "prompt pos d_model"]:
        """A receiver's stream without what the moved senders say: those of layers before them are added up once."""
        layer = max(self.graph.senders[min(moved.senders)].layer, 0)
        start = self.graph.row[Sender("head", layer, 0)]
        early, late = self.on[:, receiver].clone(), self.on[:, receiver].clone()
        early[start:] = False
        late[:start] = False
        early[moved.senders] = late[moved.senders] = False
        key = self._half(receiver), tuple(early.nonzero()[:, 0].tolist())
        if key not in self.sums:
            self.sums[key] = self._added(receiver, early)
        return self.sums[key] + self._sum(late)

    def _logits(
        self, moved: Moved, injected: Streams, updates: "Updates"
    ) -> Float[Tensor, "variant prompt d_vocab_out"]:
        receiver = len(self.graph.receivers) - 1
        heard = [stream for _, stream in self._heard([receiver], moved, injected, updates)]
        stream = heard[0] if heard else self.input(receiver)[None]
        return self.anatomy.unembed(stream[:, torch.arange(len(self.at), device=stream.device), self.at])

    def _heads(self, layer: Layer, moved: Moved, injected: Streams, updates: "Updates") -> None:
        """A layer's heads, as far as they hear of a change."""
        changed: dict[Input, list[tuple[list[int], Tensor]]] = {}
        groups = {kind: layer.n_heads if kind == "q" else layer.n_kv_heads for kind in KINDS}
        first = {kind: self.graph.column[Receiver(kind, layer.index, 0)] for kind in KINDS}
        first_head = self.graph.row[Sender("head", layer.index, 0)]
        alive = self.on[first_head : first_head + layer.n_heads].any(1)
        if layer.post1:
            alive = alive.any().expand(len(alive))
        kind_of = {
            first[kind] + row: (kind, row)
            for kind in KINDS
            for row in range(groups[kind])
            if alive.view(groups[kind], -1)[row].any()
        }
        for some, stream in self._heard(list(kind_of), moved, injected, updates):
            normal = layer.norm1(stream)
            for kind in KINDS:
                rows = [row for r in some for one, row in [kind_of[r]] if one == kind]
                if rows:
                    linear = getattr(layer, kind)
                    weight = linear.weight.unflatten(0, (groups[kind], -1))[rows].flatten(0, 1)
                    bias = None if linear.bias is None else linear.bias.view(groups[kind], -1)[rows].flatten()
                    new = functional.linear(normal, weight, bias).unflatten(-1, (len(rows), -1))
                    changed.setdefault(kind, []).append((rows, new))
                    updates.append(partial(self._put, kind, layer.index, rows, new))
        heads = self._reached(layer, {kind: [row for rows, _ in x for row in rows] for kind, x in changed.items()})
        if not heads:
            return
        z = self._attend(layer, heads, changed)
        updates.append(partial(self._put, "z", layer.index, heads, z))
        if layer.post1:
            whole = self._with("z", layer.index, [(heads, z)])
            outputs = by_head(layer, whole.flatten(0, 1))[0].unflatten(0, whole.shape[:2]).movedim(3, 0)
            heads = list(range(layer.n_heads))
        else:
            outputs = layer.outputs(z, heads)
        for head, out in zip(heads, outputs, strict=True):
            moved.add(first_head + head, self._news(first_head + head, out))

    def _reached(self, layer: Layer, changed: dict[Input, list[int]]) -> list[int]:
        """Heads whose z changes, and matters to somebody."""
        every = range(layer.n_heads)
        if layer.joint and ("q" in changed or "k" in changed):
            found = set(every)
        else:
            groups = {*changed.get("k", []), *changed.get("v", [])}
            found = {head for head in every if head in changed.get("q", []) or layer.kv(head) in groups}
        if layer.post1:
            return sorted(found)
        first = self.graph.row[Sender("head", layer.index, 0)]
        return [head for head in sorted(found) if self.on[first + head].any()]

    def _attend(self, layer: Layer, heads: list[int], changed: dict[Input, list[tuple[list[int], Tensor]]]) -> Tensor:
        """z of some heads, [variant prompt pos head d_head]."""
        positions = torch.arange(self.here.shape[2], device=self.here.device)
        ready = {}
        for kind in KINDS:
            full = self._with(kind, layer.index, changed.get(kind, []))
            if layer.joint:
                full = layer.ready(kind, full, positions)
            some = full[..., heads, :] if kind == "q" else layer.expand(full, heads)
            ready[kind] = some if layer.joint else layer.ready(kind, some, positions)
        unseen = layer.hidden(positions[:, None] - positions)
        pattern = layer.scores(ready["q"], ready["k"]).masked_fill(unseen, -torch.inf).softmax(-1)
        return layer.weigh(pattern, ready["v"])

    def _with(self, name: str, layer: int, new: Sequence[tuple[list[int], Tensor]]) -> Tensor:
        """An activation of all heads with some replaced, variant by variant."""
        own = self.made[name, layer]
        if not new:
            return own[None]
        whole = own.expand(len(new[0][1]), *own.shape).clone()
        for rows, some in new:
            whole[..., rows, :] = some
        return whole

    def _put(self, name: str, layer: int, rows: list[int], new: Tensor, variant: int) -> None:
        self.made[name, layer][..., rows, :] = new[variant]

    def _hear(self, receivers: list[int], streams: Tensor, variant: int) -> None:
        self.inputs |= dict.fromkeys(receivers, streams[variant].clone())


Updates = list[Callable[[int], None]]
"""What makes one variant part of the state."""


@dataclass
class Trial:
    """Taking away one thing after another, that nothing before a layer hears of."""

    state: Sparse
    layer: int
    changes: Callable[[Sequence[int]], tuple[Moved, Streams]]
    take: Callable[[Sequence[int]], None]
    some: Sequence[int] = ()
    moved: Moved = field(default_factory=lambda: Moved(0))
    updates: Updates = field(default_factory=list)

    def without(self, some: Sequence[int]) -> Float[Tensor, "variant prompt d_vocab_out"]:
        """Logits without the first, the first two, … of some senders' edges."""
        self.some = some
        self.moved, injected = self.changes(some)
        logits, self.updates = self.state.follow(self.moved, injected, self.layer)
        return logits

    def settle(self, n: int) -> None:
        """Make the absence of the first n part of the state."""
        if n == 0:
            return
        for update in self.updates:
            update(n - 1)
        old = set(self.moved.senders)
        self.state.sums = {key: x for key, x in self.state.sums.items() if old.isdisjoint(key[1])}
        for sender, news in zip(self.moved.senders, self.moved.values, strict=True):
            if self.state.silent:
                self.state.here[sender] = self.state.change[sender] = news[n - 1]
            else:
                self.state.here[sender] += news[n - 1]
                self.state.change[sender] += news[n - 1]
        self.take(self.some[:n])
