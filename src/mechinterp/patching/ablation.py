"""Knock-outs: head and MLP outputs replaced by zeros, means or another prompt's (Wang et al., section 3).

A head's output is replaced through `z`, its value-weighted sum before W_O: since the output is `z W_O`
and b_O is left alone, this is the ablation of the head's result after W_O. Models from `mechinterp.models.load` have
value biases folded into b_O, so a zeroed head still writes what its value bias writes; `Activations.zeros_like` offers
the raw meaning. Under post norms (Gemma 2 and 3, OLMo 2) their scale is computed anew.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.patching.checks import Metric, check_tokens, measure
from mechinterp.patching.engine import (
    Cache,
    Window,
    attend,
    final_streams,
    pick,
    pick_columns,
    reach,
    trace,
)
from mechinterp.patching.recording import Activations


@torch.no_grad()
def replace(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    values: Activations,
    *,
    heads: Bool[Tensor, "*variant layer head prompt pos"] | None = None,
    mlps: Bool[Tensor, "*variant layer prompt pos"] | None = None,
    at: Int[Tensor, " prompt"],
    batch_size: int = 256,
) -> Float[Tensor, "*variant prompt vocab"]:
    """Logits at `at` with the marked head and MLP outputs replaced by `values`, all else recomputed.

    Zero, mean and resample ablation differ in `values` only; a whole circuit is kept by marking every
    head outside it. Leading axes of the masks are variants: they are computed together as far up as their
    masks agree. Nothing before the first marked layer and position, or after `at`, is recomputed; heads
    that are replaced throughout are not computed at all.

    Args:
        batch_size: sequences (variant · prompt) at a time; does not change results. Memory beside the
            result: about 2 · layers · batch_size · positions · d_model floats.

    Errors: `ValueError` for masks or values of the wrong shape, no mask, positions out of range, an
        unsupported architecture, or logits that are not finite.

    >>> from mechinterp.models import organisms
    >>> from mechinterp.patching import mask, mean_reference
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> means = mean_reference(organism.model, data.abc(1).tokens, data.group)
    >>> gone = mask(organism.model, data.tokens.shape, dict.fromkeys(organism.heads("S-inhibition")))
    >>> logits = replace(organism.model, data.tokens, means, heads=gone, at=data.positions["END"])
    >>> bool(data.logit_diff(logits).mean() < 0.5 * data.logit_diff(organism.model(data.tokens)).mean())
    True
    """
    anatomy = check_tokens(model, tokens, batch_size, at, bidirectional=True)
    at = at.to(tokens.device)
    heads, mlps, lead = _check_masks(anatomy, tokens, values, heads, mlps)
    streams = _streams(anatomy, tokens, values, heads, mlps, at, batch_size)
    logits = torch.cat([anatomy.unembed(some) for some in streams.split(max(1, batch_size // len(tokens)))])
    return logits.reshape(*lead, len(tokens), -1)


@torch.no_grad()
def replaced_metric(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    values: Activations,
    *,
    heads: Bool[Tensor, "variant layer head prompt pos"],
    at: Int[Tensor, " prompt"],
    metric: Metric,
    batch_size: int = 256,
) -> Float[Tensor, "variant prompt"]:
    """The metric of `replace`'s logits, some variants at a time: the logits of all would not fit in memory.

    Errors: as `replace`, and `ValueError` for a metric that does not give one value a prompt.
    """
    anatomy = check_tokens(model, tokens, batch_size, at, bidirectional=True)
    at = at.to(tokens.device)
    heads, mlps, _ = _check_masks(anatomy, tokens, values, heads, None)
    streams = _streams(anatomy, tokens, values, heads, mlps, at, batch_size)
    some = streams.split(max(1, batch_size // len(tokens)))
    return torch.stack([measure(metric, logits) for part in some for logits in anatomy.unembed(part)])


def _streams(
    anatomy: Anatomy, tokens: Tensor, values: Activations, heads: Tensor, mlps: Tensor, at: Tensor, batch_size: int
) -> Float[Tensor, "variant prompt d_model"]:
    """The final residual streams at `at`, block by block of prompts."""
    length = int(reach(anatomy, at, tokens.shape[1]).max()) + 1
    rows = min(len(tokens), batch_size)
    columns = []
    for some in torch.arange(len(tokens), device=tokens.device).split(rows):
        at_most = max(1, batch_size // len(some))
        marked, marked_mlps = heads[:, :, :, some, :length], mlps[:, :, some, :length]
        columns.append(_replace(anatomy, tokens[some, :length], values[some], marked, marked_mlps, at[some], at_most))
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def _check_masks(
    anatomy: Anatomy, tokens: Tensor, values: Activations, heads: Tensor | None, mlps: Tensor | None
) -> tuple[Tensor, Tensor, torch.Size]:
    """Both masks with one variant axis, and the shape of the variants."""
    sizes, (n, length) = anatomy.size, tokens.shape
    layers, n_heads = sizes.n_layers, sizes.n_heads
    if heads is None and mlps is None:
        raise ValueError("nothing to replace: give heads, mlps or both")
    if heads is not None and heads.shape[-4:] != (layers, n_heads, n, length):
        raise ValueError(f"heads must end in {(layers, n_heads, n, length)}, got {tuple(heads.shape)}")
    if mlps is not None and mlps.shape[-3:] != (layers, n, length):
        raise ValueError(f"mlps must end in {(layers, n, length)}, got {tuple(mlps.shape)}")
    for name, given, width in (("z", values.z, (n_heads, sizes.d_head)), ("mlp", values.mlp, (sizes.d_model,))):
        if given.shape != (layers, n, length, *width):
            raise ValueError(f"values.{name} must have shape {(layers, n, length, *width)}, got {tuple(given.shape)}")
    lead = heads.shape[:-4] if heads is not None else mlps.shape[:-3]  # type: ignore[union-attr]
    if heads is None:
        heads = torch.zeros((), dtype=torch.bool, device=tokens.device).expand(*lead, layers, n_heads, n, length)
    if mlps is None:
        mlps = torch.zeros((), dtype=torch.bool, device=tokens.device).expand(*lead, layers, n, length)
    if mlps.shape[:-3] != lead:
        raise ValueError(f"heads and mlps have different variants: {tuple(lead)} and {tuple(mlps.shape[:-3])}")
    return heads.reshape(-1, layers, n_heads, n, length), mlps.reshape(-1, layers, n, length), lead


def _replace(
    anatomy: Anatomy, tokens: Tensor, values: Activations, heads: Tensor, mlps: Tensor, at: Tensor, at_most: int
) -> Float[Tensor, "variant prompt d_model"]:
    """`_streams` for one block of prompts: down the tree of variants whose masks agree so far.

    A state is the stream before some layer that a list of variants has in common. A layer's attention is
    computed once a state; its states then split where the masks of their variants differ.
    """
    layers = anatomy.size.n_layers
    length = heads.shape[-1]
    seen = torch.arange(length, device=at.device) <= reach(anatomy, at, length)[:, None]  # prompt pos
    touched = (heads.any(2) | mlps) & seen  # variant layer prompt pos
    anywhere = touched.any(0)
    if not anywhere.any():
        return final_streams(anatomy, tokens, at).expand(len(heads), -1, -1)
    start = int(anywhere.any(-1).any(-1).nonzero()[0])
    columns = anywhere.any(0)
    window = Window.of(anatomy, torch.where(columns.any(-1), columns.int().argmax(-1), at), at, length)
    where = window.positions
    rows = torch.arange(len(at), device=at.device)[:, None]
    new_z, new_mlp = values.z[:, rows, where], values.mlp[:, rows, where]
    h = heads[:, :, :, rows, where].movedim(2, -1)  # variant layer prompt column head
    m = mlps[:, :, rows, where]  # variant layer prompt column
    attending = (~h).flatten(2, 3).any(2).any(0).any(-1).nonzero()[:, 0]
    last_attending = int(attending[-1]) if len(attending) else -1
    before = bool((window.first > 0).any())

    def keep(name: str, layer: int, x: Tensor) -> Tensor | None:
        if (name, layer) == ("resid_pre", start):
            return pick(x, where)
        return x if before and layer >= start and name in ("key", "value") else None

    cache = trace(anatomy, tokens, keep, stop=layers if before else start)
    finals = tokens.new_empty((len(heads), len(at), anatomy.size.d_model), dtype=anatomy.dtype)
    stack = [_State(start, cache["resid_pre", start][None], [list(range(len(heads)))])]
    while stack:
        state = stack.pop()
        i, x = state.layer, state.x
        if i == layers:
            final = pick_columns(x, window.end)[:, :, 0] if x.shape[2] > 1 else x[:, :, 0]
            for variants, row in zip(state.variants, final, strict=True):
                finals[variants] = row
            continue
        # After the last layer that attends, nothing but the position that is read matters.
        end_only = i >= last_attending
        if state.z is None:
            state.z = _z(anatomy, state, h[:, i], window, cache, end_only)
            if end_only:
                state.x = x = pick_columns(x, window.end) if x.shape[2] > 1 else x
            state.split(h[:, i], m[:, i])
        children = state.children[:at_most]
        if len(state.children) > at_most:
            del state.children[:at_most]
            stack.append(state)
        parents = torch.tensor([parent for parent, _ in children], device=at.device)
        first = torch.tensor([variants[0] for _, variants in children], device=at.device)

        def here(t: Tensor, end_only: bool = end_only) -> Tensor:
            return pick_columns(t, window.end) if end_only else t

        gone, gone_mlp = here(h[first, i]), here(m[first, i])
        z, layer, x = state.z[parents], anatomy.layers[i], x[parents]
        if gone.any():
            z = torch.where(gone[..., None], here(new_z[i][None]), z)
        attn_out = layer.post1(layer.merge(z))
        out = layer.mlp(x if layer.parallel else x + attn_out)
        if gone_mlp.any():
            out = torch.where(gone_mlp[..., None], here(new_mlp[i][None]), out)
        stack.append(_State(i + 1, x + attn_out + out, [variants for _, variants in children]))
    return finals


@dataclass
class _State:
    """The streams before a layer, the variants that share each, and the children that are still to be computed."""

    layer: int
    x: Float[Tensor, "state prompt column d_model"]
    variants: list[list[int]]
    z: Float[Tensor, "state prompt query head d_head"] | None = None
    children: list[tuple[int, list[int]]] = field(default_factory=list)

    def split(self, h: Bool[Tensor, "variant prompt column head"], m: Bool[Tensor, "variant prompt column"]) -> None:
        """Group each state's variants by their masks at this layer."""
        for parent, variants in enumerate(self.variants):
            groups: dict[bytes, list[int]] = {}
            if len(variants) == 1:
                groups[b""] = variants
            else:
                marks = torch.cat([h[variants].flatten(1), m[variants].flatten(1)], 1).cpu().numpy()
                for variant, row in zip(variants, marks, strict=True):
                    groups.setdefault(row.tobytes(), []).append(variant)
            self.children += [(parent, group) for group in groups.values()]


def _z(anatomy: Anatomy, state: _State, h: Tensor, window: Window, cache: Cache, end_only: bool) -> Tensor:
    """z of every state; left at 0 for heads that all its variants replace everywhere."""
    shown = [v for variants in state.variants for v in variants]
    needed = (~h[shown]).flatten(0, 2).any(0).nonzero()[:, 0].tolist()
    columns = 1 if end_only else h.shape[2]
    z = state.x.new_zeros(len(state.x), len(h[0]), columns, anatomy.size.n_heads, anatomy.size.d_head)
    if needed:
        every = len(needed) == anatomy.size.n_heads
        some = attend(anatomy, state.layer, state.x, window, cache, heads=None if every else needed, end_only=end_only)
        if every:
            return some
        z[:, :, :, needed] = some
    return z
