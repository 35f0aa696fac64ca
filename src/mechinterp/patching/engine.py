"""Running part of a transformer: from a layer on, at some positions, with some activations replaced.

Every intervention of this package is a question about a forward pass that differs from a clean one only
from some layer and position on. `trace` runs a model once and keeps what such a pass needs; `resume` runs
the rest of it for a window of positions, many variants of it at once, with the keys and values of earlier
positions taken from the clean pass. Both ask the `Anatomy`, which knows the architecture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mechinterp.anatomy import Anatomy

Cache = dict[tuple[str, int], Tensor]
"""Activations of a clean pass by (name, layer). ("resid_pre", n_layers) is the final residual stream."""
Keep = Callable[[str, int, Tensor], Tensor | None]
"""(name, layer, activation [prompt pos ...]) -> what to keep of it, if anything."""
Change = Callable[[str, int, Tensor], Tensor]
"""(name, layer, activation [prompt pos ...]) -> what takes its place."""
Edit = Callable[[int, str, Tensor, Int[Tensor, "prompt column"]], Tensor]
"""(layer, "q" | "k" | "v", activation [variant prompt column head d_head], the window's columns it holds)."""


@dataclass(frozen=True)
class Window:
    """Positions `first` to `last` of every prompt, as a rectangle; short rows repeat their last position.

    `read`: the position whose final stream is wanted.
    """

    first: Int[Tensor, " prompt"]
    last: Int[Tensor, " prompt"]
    read: Int[Tensor, " prompt"]

    @classmethod
    def of(cls, anatomy: Anatomy, first: Tensor, at: Tensor, length: int) -> "Window":
        """The positions that can differ from a clean pass and matter at `at`, if the first that changes is `first`."""
        if anatomy.causal:
            return cls(first, at, at)
        return cls(torch.zeros_like(at), reach(anatomy, at, length), at)

    @property
    def end(self) -> Int[Tensor, "prompt 1"]:
        """The column of the position that is read."""
        return (self.read - self.first).clamp(min=0)[:, None]

    @property
    def columns(self) -> Int[Tensor, "prompt column"]:
        """0, 1, 2, … for every prompt."""
        width = int((self.last - self.first).clamp(min=0).max()) + 1
        return torch.arange(width, device=self.first.device).expand(len(self.first), -1)

    @property
    def positions(self) -> Int[Tensor, "prompt column"]:
        """The position of every column."""
        return torch.minimum(self.first[:, None] + self.columns, torch.maximum(self.first, self.last)[:, None])


def reach(anatomy: Anatomy, at: Int[Tensor, " prompt"], length: int) -> Int[Tensor, " prompt"]:
    """The last position that matters at `at`: itself, or the last of all where attention is not causal."""
    return at if anatomy.causal else torch.full_like(at, length - 1)


def pick(x: Float[Tensor, "prompt pos ..."], where: Int[Tensor, "prompt window"]) -> Float[Tensor, "prompt window ..."]:
    """The activations at some positions of every prompt."""
    return x[torch.arange(len(x), device=x.device)[:, None], where]


def pick_columns(
    x: Shaped[Tensor, "variant prompt column ..."], columns: Int[Tensor, "prompt picked"]
) -> Shaped[Tensor, "variant prompt picked ..."]:
    """Some columns of a window, of every variant."""
    return x[:, torch.arange(x.shape[1], device=x.device)[:, None], columns]


def attend(
    anatomy: Anatomy,
    index: int,
    x: Float[Tensor, "variant prompt column d_model"],
    window: Window,
    cache: Cache,
    *,
    heads: Sequence[int] | None = None,
    end_only: bool = False,
    edit: Edit | None = None,
) -> Float[Tensor, "changed prompt query head d_head"]:
    """z of some heads at the window's columns, or at its last position only.

    Keys and values before the window come from the clean pass. `edit` sees every query head's own keys and values,
    and may add variants.
    """
    layer, columns = anatomy.layers[index], window.columns
    queries = window.end if end_only else columns
    normal = layer.norm1(x)
    # A norm over all heads together needs all of them.
    some = None if layer.joint else heads
    q = layer.project("q", pick_columns(normal, queries) if end_only else normal, some)
    k, v = layer.project("k", normal, some), layer.project("v", normal, some)
    if some is None and not layer.joint:
        k = layer.expand(k)
    if some is None:
        v = layer.expand(v)
    if edit is not None:
        q, k, v = edit(index, "q", q, queries), edit(index, "k", k, columns), edit(index, "v", v, columns)
    start = window.first[:, None]
    q, k = layer.ready("q", q, start + queries), layer.ready("k", k, start + columns)
    v = layer.ready("v", v)
    if layer.joint:
        k = layer.expand(k)
        if heads is not None:
            q, k, v = (t[..., list(heads), :] for t in (q, k, v))
    unseen = layer.hidden(queries[:, :, None] - columns[:, None, :])  # prompt query key
    scores = layer.scores(q, k).masked_fill(unseen[None, :, None], -torch.inf)
    before = int(window.first.max())
    if before == 0:
        return layer.weigh(scores.softmax(-1), v)
    old_k, old_v = (layer.expand(cache[name, index][None, :, :before], heads) for name in ("key", "value"))
    places = torch.arange(before, device=x.device)
    unseen = (places >= start)[:, None] | layer.hidden((start + queries)[:, :, None] - places)
    old = layer.scores(q, old_k).masked_fill(unseen[None, :, None], -torch.inf)
    if len(old) != len(scores):
        old, scores = (s.expand(max(len(old), len(scores)), -1, -1, -1, -1) for s in (old, scores))
    pattern = torch.cat([old, scores], -1).softmax(-1)
    return layer.weigh(pattern[..., :before], old_v) + layer.weigh(pattern[..., before:], v)


def trace(
    anatomy: Anatomy,
    tokens: Int[Tensor, "prompt pos"],
    keep: Keep,
    *,
    stop: int | None = None,
    start: tuple[int, Float[Tensor, "prompt pos d_model"]] | None = None,
    change: Change | None = None,
    grad: bool = False,
) -> Cache:
    """One pass through the layers before `stop` (default: all), keeping what `keep` returns.

    Names: resid_pre; q, k, v as the model's hooks have them (shared keys and values once); query, key, value as the
    scores and the sum use them; pattern, z, attn (the heads' sum before a post norm), attn_out, resid_mid (serial
    blocks only), neurons (the MLP's activations), mlp_out; each [prompt pos ...]. The stream that leaves the last layer
    of the pass is offered as the next one's resid_pre.

    Args:
        start: a layer and the residual stream before it, to begin there instead of at the tokens.
        change: puts something else in the place of an activation, before it is offered.
        grad: what is kept can be differentiated with respect to `start`'s stream and what else requires gradients.
    """
    stop = anatomy.size.n_layers if stop is None else stop
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    cache: Cache = {}

    def offer(name: str, layer: int, x: Tensor) -> Tensor:
        if change is not None:
            x = change(name, layer, x)
        kept = keep(name, layer, x)
        if kept is not None:
            cache[name, layer] = kept
        return x

    with torch.set_grad_enabled(grad):
        first, x = (0, anatomy.embed(tokens)) if start is None else start
        for i in range(first, stop):
            layer = anatomy.layers[i]
            x = offer("resid_pre", i, x)
            normal = layer.norm1(x)
            q, k, v = (offer(name, i, layer.project(name, normal)) for name in ("q", "k", "v"))
            query = offer("query", i, layer.ready("q", q, positions))
            key, value = offer("key", i, layer.ready("k", k, positions)), offer("value", i, layer.ready("v", v))
            unseen = layer.hidden(positions[:, None] - positions)
            scores = layer.scores(query, layer.expand(key)).masked_fill(unseen, -torch.inf)
            pattern = offer("pattern", i, scores.softmax(-1))
            z = offer("z", i, layer.weigh(pattern, layer.expand(value)))
            attn_out = offer("attn_out", i, layer.post1(offer("attn", i, layer.merge(z))))
            mid = x if layer.parallel else offer("resid_mid", i, x + attn_out)
            neurons = offer("neurons", i, layer.neurons.hidden(layer.norm2(mid)))
            mlp_out = offer("mlp_out", i, layer.post2(layer.neurons.down(neurons)))
            x = x + attn_out + mlp_out if layer.parallel else mid + mlp_out
        offer("resid_pre", stop, x)
    return cache


@torch.no_grad()
def resume(
    anatomy: Anatomy,
    cache: Cache,
    x: Float[Tensor, "variant prompt column d_model"],
    window: Window,
    *,
    layer: int,
    edit: Edit | None = None,
) -> Float[Tensor, "variant prompt d_model"]:
    """Run from `layer` on, from the stream `x` at the window's columns; the final stream at its last position.

    Every position that differs from the clean pass and is seen from the last one must lie in the window.
    The cache must hold key and value of these layers, unless every window starts at position 0.
    """
    for i in range(layer, anatomy.size.n_layers):
        last = i == anatomy.size.n_layers - 1
        z = attend(anatomy, i, x, window, cache, end_only=last, edit=edit)
        x = anatomy.layers[i].after(pick_columns(x, window.end) if last else x, z)
    return pick_columns(x, window.end)[:, :, 0] if layer == anatomy.size.n_layers else x[:, :, 0]


def final_streams(
    anatomy: Anatomy, tokens: Int[Tensor, "prompt pos"], at: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt d_model"]:
    """The clean final residual stream at one position of every prompt."""
    end, last = reach(anatomy, at, tokens.shape[1]), anatomy.size.n_layers - 1
    tokens = tokens[:, : int(end.max()) + 1]
    keep: Keep = lambda name, layer, x: x if (name, layer) == ("resid_pre", last) else None  # noqa: E731
    cache = trace(anatomy, tokens, keep, stop=last)
    return resume(anatomy, cache, cache["resid_pre", last][None], Window(torch.zeros_like(at), end, at), layer=last)[0]
