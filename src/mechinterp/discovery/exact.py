"""The effect of every edge by itself: the slow truth that other scores estimate.

Patching an edge into receiver v changes nothing before v: from the clean pass, v's input is changed by the difference
of the sender's messages, v computes, and the rest of the model runs on, at the positions that can differ. Edges into
the same receiver are one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy
from mechinterp.discovery.forward import Elsewhere, at_rows, check_question, messages
from mechinterp.discovery.graph import Graph, Receiver
from mechinterp.discovery.scores import Scores, check_room
from mechinterp.patching.checks import Metric, measure
from mechinterp.patching.engine import Cache, Window, attend, pick, pick_columns, reach, resume, trace


@torch.no_grad()
def exact(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    edges: Bool[Tensor, "sender receiver"] | None = None,
    batch_size: int = 512,
    progress: bool = False,
) -> Scores:
    """The change of the metric when an edge is patched and all others are as in the clean run, edge by edge.

    Args:
        elsewhere: what flows along the patched edge: corrupted prompts aligned with the clean ones (resample ablation),
            messages as `said` gives them, or None, nothing.
        metric: from logits at `at` of *all* prompts to one value a prompt.
        edges: which to score, as `Graph.masked` makes them; None: all. Their number is the cost.
        batch_size: (edge, prompt) pairs at a time; changes no result. Memory: [prompt pos sender d_model] of all
            prompts, twice, and activations of one layer of a batch.

    Errors: `ValueError` for edges of another shape, prompts that are not aligned; as of `check_tokens`.
    """
    anatomy, graph, at = check_question(model, clean, elsewhere, at, batch_size)
    check_room(graph, clean, False)
    if edges is not None and edges.shape != graph.mask.shape:
        raise ValueError(f"edges have the shape {tuple(edges.shape)}; expected {tuple(graph.mask.shape)}")
    wanted = graph.mask if edges is None else edges.cpu() & graph.mask
    rows = min(len(clean), batch_size)
    blocks = [
        _Block.of(anatomy, graph, clean[some], at_rows(anatomy, graph, elsewhere, some), at[some])
        for some in torch.arange(len(clean), device=clean.device).split(rows)
    ]
    before = measure(metric, anatomy.unembed(torch.cat([block.stream for block in blocks])))
    values = torch.zeros(len(clean), *graph.mask.shape, device=clean.device)
    at_once = max(1, batch_size // rows)
    pairs = [(r, some) for r in range(len(graph.receivers)) for some in wanted[:, r].nonzero()[:, 0].split(at_once)]
    for r, senders in tqdm([p for p in pairs if len(p[1])], desc="exact effects", disable=not progress):
        streams = torch.cat([block.patched(graph.receivers[r], senders) for block in blocks], 1)
        for sender, logits in zip(senders.tolist(), anatomy.unembed(streams), strict=True):
            values[:, sender, r] = measure(metric, logits) - before
    return Scores("exact", graph, values, None if edges is None else wanted)


@dataclass(frozen=True)
class _Block:
    """Some prompts: the clean pass, and what senders say elsewhere minus what they say here, at a window's columns."""

    anatomy: Anatomy
    window: Window
    cache: Cache
    change: Float[Tensor, "prompt column sender d_model"]
    stream: Float[Tensor, "prompt d_model"]

    @classmethod
    def of(cls, anatomy: Anatomy, graph: Graph, clean: Tensor, there: Tensor | None, at: Tensor) -> "_Block":
        length = int(reach(anatomy, at, clean.shape[1]).max()) + 1
        clean = clean[:, :length]
        change = messages(anatomy, graph, clean)[0].neg_()
        if there is not None:
            change += there[..., :length, :, :].to(change)
        # Nothing differs before the first position at which anything says something else.
        differs = change.flatten(2).any(-1)
        first = torch.where(differs.any(1), differs.int().argmax(1), at).minimum(at)
        window, layers = Window.of(anatomy, first, at, length), anatomy.size.n_layers
        before = int(window.first.max())

        def keep(name: str, layer: int, x: Tensor) -> Tensor | None:
            if name in ("key", "value"):
                return x[:, :before]
            return pick(x, window.positions) if name in ("resid_pre", "attn", "attn_out", "mlp_out", "z") else None

        cache = trace(anatomy, clean, keep)
        stream = pick_columns(cache["resid_pre", layers][None], window.end)[0, :, 0]
        return cls(anatomy, window, cache, pick(change, window.positions), stream)

    def patched(self, receiver: Receiver, senders: Int[Tensor, " variant"]) -> Float[Tensor, "variant prompt d_model"]:
        """The final stream where it is read, with the edge from each of some senders patched."""
        change = self.change[:, :, senders].permute(2, 0, 1, 3)
        if receiver.kind == "logits":
            return self.stream + pick_columns(change, self.window.end)[:, :, 0]
        index = receiver.layer
        layer, last = self.anatomy.layers[index], index == self.anatomy.size.n_layers - 1

        def here(name: str) -> Tensor:
            x = self.cache[name, index][None]
            return pick_columns(x, self.window.end) if last else x

        x, attn_out = here("resid_pre"), here("attn_out")
        if receiver.kind == "mlp":
            change = pick_columns(change, self.window.end) if last else change
            reads = (x if layer.parallel else x + attn_out) + change
            after = x + attn_out + layer.mlp(reads)
        else:
            heads = self._heads(receiver)
            z = self._attend(receiver, heads, change, end_only=last)
            old = here("z")[..., heads, :]
            attn = here("attn") + layer.write(z - old, heads)
            after = layer.finish(x, layer.post1(attn))
        if last:
            return after[:, :, 0]
        return resume(self.anatomy, self.cache, after, self.window, layer=index + 1)

    def _heads(self, receiver: Receiver) -> Sequence[int]:
        """Query heads whose output depends on a receiver; all of them where queries and keys are normed together."""
        layer = self.anatomy.layers[receiver.layer]
        every = range(layer.n_heads)
        if receiver.kind == "v" or not layer.joint:
            return [h for h in every if (h if receiver.kind == "q" else layer.kv(h)) == receiver.head]
        return every

    def _attend(self, receiver: Receiver, heads: Sequence[int], change: Tensor, *, end_only: bool) -> Tensor:
        """z of some heads, with one receiver's input changed."""
        index = receiver.layer
        layer, x = self.anatomy.layers[index], self.cache["resid_pre", index][None]
        normal = layer.norm1(x + change)

        def edit(_: int, name: str, made: Tensor, columns: Tensor) -> Tensor:
            if name != receiver.kind:
                return made
            new = layer.project(name, normal)[..., receiver.head, :]  # type: ignore[arg-type]
            new = pick_columns(new, columns)
            if layer.joint:
                # All heads are there; of keys, those that are shared once, of values, one for each query head.
                rows = [h for h in range(made.shape[-2]) if self._reads(layer, name, h, made) == receiver.head]
            else:
                rows = list(range(made.shape[-2]))
            made = made.expand(len(change), *made.shape[1:]).clone()
            made[..., rows, :] = new[..., None, :]
            return made

        return attend(self.anatomy, index, x, self.window, self.cache, heads=heads, end_only=end_only, edit=edit)

    def _reads(self, layer: Any, name: str, row: int, made: Tensor) -> int:
        """Which receiver a row of queries, keys or values belongs to."""
        return layer.kv(row) if name != "q" and made.shape[-2] == layer.n_heads else row
