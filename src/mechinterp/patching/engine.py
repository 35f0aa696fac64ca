"""Running part of a transformer: from a layer on, at some positions, with some activations replaced.

Every intervention of this package is a question about a forward pass that differs from a clean one only
from some layer and position on. `trace` runs a model once and keeps what such a pass needs; `resume` runs
the rest of it for a window of positions, many variants of it at once, with the keys and values of earlier
positions taken from the clean pass.

The arithmetic is written here from the model's weights (layer norms and MLPs of other kinds than GPT-2's are
the model's own modules), so hooks on the model do not see it. Serial attention and MLP blocks with absolute
positions are supported (GPT-2 and its like); anything else is refused by `check_model`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from transformers.activations import NewGELUActivation

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
    """Positions `first` to `last` of every prompt, as a rectangle; short rows repeat their last position."""

    first: Int[Tensor, " prompt"]
    last: Int[Tensor, " prompt"]

    @property
    def end(self) -> Int[Tensor, "prompt 1"]:
        """The column of the last position."""
        return (self.last - self.first).clamp(min=0)[:, None]

    @property
    def columns(self) -> Int[Tensor, "prompt column"]:
        """0, 1, 2, … for every prompt."""
        width = int(self.end.max()) + 1
        return torch.arange(width, device=self.first.device).expand(len(self.first), -1)

    @property
    def positions(self) -> Int[Tensor, "prompt column"]:
        """The position behind every column."""
        return self.first[:, None] + torch.minimum(self.columns, self.end)


def pick(x: Float[Tensor, "prompt pos ..."], where: Int[Tensor, "prompt window"]) -> Float[Tensor, "prompt window ..."]:
    """The activations at some positions of every prompt."""
    return x[torch.arange(len(x), device=x.device)[:, None], where]


def pick_columns(
    x: Shaped[Tensor, "variant prompt column ..."], columns: Int[Tensor, "prompt picked"]
) -> Shaped[Tensor, "variant prompt picked ..."]:
    """Some columns of a window, of every variant."""
    return x[:, torch.arange(x.shape[1], device=x.device)[:, None], columns]


def normalise(norm: Any, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Apply a layer norm of the model to any leading shape."""
    inner = norm.original_component
    if isinstance(inner, torch.nn.LayerNorm):
        return inner(x)
    return norm(x.reshape(-1, 1, x.shape[-1])).reshape(x.shape)


def mlp(block: Any, mid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """What the MLP of a block adds to the residual stream, from the stream before it."""
    x = normalise(block.ln2, mid)
    flat, layer = x.reshape(-1, x.shape[-1]), block.mlp
    if isinstance(getattr(layer.original_component, "act", None), NewGELUActivation) and layer.W_gate is None:
        hidden = torch.addmm(layer.b_in, flat, layer.W_in)
        out = torch.addmm(layer.b_out, functional.gelu(hidden, approximate="tanh"), layer.W_out)
    else:
        out = layer(flat[:, None])[:, 0]
    return out.reshape(x.shape)


def project(block: Any, name: str, x: Tensor, heads: Sequence[int] | None = None) -> Float[Tensor, "... head d_head"]:
    """Queries, keys or values ("q", "k", "v") of some heads from the normalised stream, as one matrix product."""
    w, b = getattr(block.attn, f"W_{name.upper()}"), getattr(block.attn, f"b_{name.upper()}")
    if heads is not None:
        w, b = w[list(heads)], b[list(heads)]
    flat = functional.linear(x, rearrange(w, "head d_model d_head -> (head d_head) d_model"), b.flatten())
    return flat.unflatten(-1, b.shape)


def merge(
    block: Any, z: Float[Tensor, "... head d_head"], heads: Sequence[int] | None = None
) -> Float[Tensor, "... d_model"]:
    """The sum of some heads' outputs, without bias."""
    w = block.attn.W_O if heads is None else block.attn.W_O[list(heads)]
    return z.flatten(-2) @ rearrange(w, "head d_head d_model -> (head d_head) d_model")


def unembed(model: Any, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
    """Logits of a final residual stream; `ValueError` if any is NaN or infinite."""
    logits = torch.add(normalise(model.ln_final, resid) @ model.W_U, model.b_U)
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        raise ValueError("the model's output contains NaN or infinity; check its weights and the values patched in")
    return logits


def attention_scores(model: Any, q: Tensor, k: Tensor) -> Float[Tensor, "variant prompt head query key"]:
    """Scaled products of queries and keys [variant prompt pos head d_head], before the causal mask."""
    scale = model.cfg.d_head**0.5 if getattr(model.cfg, "use_attn_scale", True) else 1.0
    return einsum(q / scale, k, "variant prompt q head d, variant prompt k head d -> variant prompt head q k")


def weigh(pattern: Tensor, v: Tensor) -> Float[Tensor, "variant prompt query head d_head"]:
    """z: the values weighed by the attention pattern."""
    return einsum(pattern, v, "variant prompt head q k, variant prompt k head d -> variant prompt q head d")


def attend(
    model: Any,
    layer: int,
    x: Float[Tensor, "variant prompt column d_model"],
    window: Window,
    cache: Cache,
    *,
    heads: Sequence[int] | None = None,
    end_only: bool = False,
    edit: Edit | None = None,
) -> Float[Tensor, "changed prompt query head d_head"]:
    """z of some heads at the window's columns, or at its last position only.

    Keys and values before the window come from the clean pass. `edit` may add variants.
    """
    block, columns = model.blocks[layer], window.columns
    queries = window.end if end_only else columns
    normal = normalise(block.ln1, x)
    q = project(block, "q", pick_columns(normal, queries) if end_only else normal, heads)
    k, v = project(block, "k", normal, heads), project(block, "v", normal, heads)
    if edit is not None:
        q, k, v = edit(layer, "q", q, queries), edit(layer, "k", k, columns), edit(layer, "v", v, columns)
    later = columns[:, None, :] > queries[:, :, None]  # prompt query key
    scores = attention_scores(model, q, k).masked_fill(later[None, :, None], -torch.inf)
    before = int(window.first.max())
    if before == 0:
        return weigh(scores.softmax(-1), v)
    old_k, old_v = (cache[name, layer][None, :, :before] for name in ("k", "v"))
    if heads is not None:
        old_k, old_v = old_k[..., list(heads), :], old_v[..., list(heads), :]
    inside = torch.arange(before, device=x.device) >= window.first[:, None]  # prompt key
    old = attention_scores(model, q, old_k).masked_fill(inside[None, :, None, None], -torch.inf)
    if len(old) != len(scores):
        old, scores = (s.expand(max(len(old), len(scores)), -1, -1, -1, -1) for s in (old, scores))
    pattern = torch.cat([old, scores], -1).softmax(-1)
    return weigh(pattern[..., :before], old_v) + weigh(pattern[..., before:], v)


def finish(block: Any, mid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """The residual stream after the MLP of a block, from the stream before it."""
    return mid + mlp(block, mid)


@torch.no_grad()
def trace(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    keep: Keep,
    *,
    stop: int | None = None,
    start: tuple[int, Float[Tensor, "prompt pos d_model"]] | None = None,
    change: Change | None = None,
) -> Cache:
    """One pass through the layers before `stop` (default: all), keeping what `keep` returns.

    Names: resid_pre, q, k, v, z, attn_out, resid_mid, mlp_out, each [prompt pos ...]. The stream that leaves
    the last layer of the pass is offered as the next one's resid_pre.

    Args:
        start: a layer and the residual stream before it, to begin there instead of at the tokens.
        change: puts something else in the place of an activation, before it is offered.
    """
    length = tokens.shape[1]
    stop = model.cfg.n_layers if stop is None else stop
    later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
    cache: Cache = {}

    def offer(name: str, layer: int, x: Tensor) -> Tensor:
        if change is not None:
            x = change(name, layer, x)
        kept = keep(name, layer, x)
        if kept is not None:
            cache[name, layer] = kept
        return x

    first, x = (0, model.W_E[tokens] + model.W_pos[:length]) if start is None else start
    for layer in range(first, stop):
        block = model.blocks[layer]
        x = offer("resid_pre", layer, x)
        normal = normalise(block.ln1, x)[None]
        q, k, v = (offer(name, layer, project(block, name, normal)[0])[None] for name in "qkv")
        z = weigh(attention_scores(model, q, k).masked_fill(later, -torch.inf).softmax(-1), v)
        z = offer("z", layer, z[0])
        attn_out = offer("attn_out", layer, merge(block, z) + block.attn.b_O)
        mid = offer("resid_mid", layer, x + attn_out)
        x = mid + offer("mlp_out", layer, mlp(block, mid))
    offer("resid_pre", stop, x)
    return cache


@torch.no_grad()
def resume(
    model: Any,
    cache: Cache,
    x: Float[Tensor, "variant prompt column d_model"],
    window: Window,
    *,
    layer: int,
    edit: Edit | None = None,
) -> Float[Tensor, "variant prompt d_model"]:
    """Run from `layer` on, from the stream `x` at the window's columns; the final stream at its last position.

    Every position that differs from the clean pass and is seen from the last one must lie in the window.
    The cache must hold k and v of these layers, unless every window starts at position 0.
    """
    for i in range(layer, model.cfg.n_layers):
        block, last = model.blocks[i], i == model.cfg.n_layers - 1
        z = attend(model, i, x, window, cache, end_only=last, edit=edit)
        stream = pick_columns(x, window.end) if last else x
        x = finish(block, stream + (merge(block, z) + block.attn.b_O))
    return pick_columns(x, window.end)[:, :, 0] if layer == model.cfg.n_layers else x[:, :, 0]


def final_streams(
    model: Any, tokens: Int[Tensor, "prompt pos"], at: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt d_model"]:
    """The clean final residual stream at one position of every prompt."""
    tokens, last = tokens[:, : int(at.max()) + 1], model.cfg.n_layers - 1
    cache = trace(model, tokens, lambda name, layer, x: x if (name, layer) == ("resid_pre", last) else None, stop=last)
    return resume(model, cache, cache["resid_pre", last][None], Window(torch.zeros_like(at), at), layer=last)[0]
