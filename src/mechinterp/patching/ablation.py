"""Knock-outs: head and MLP outputs replaced by zeros, means or another prompt's (Wang et al., section 3).

A head's output is replaced through `z`, its value-weighted sum before W_O: since the output is `z W_O`
and b_O is left alone, this is the ablation of the head's result after W_O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.heads import Head, check_heads
from mechinterp.patching.engine import Edits, check_model, check_tokens, pick, resume, trace, unembed, window


@dataclass(frozen=True)
class Activations:
    """Head outputs (before W_O) and MLP outputs of every prompt; what `replace` puts in place."""

    z: Float[Tensor, "layer prompt pos head d_head"]
    mlp: Float[Tensor, "layer prompt pos d_model"]

    def zeros_like(self) -> "Activations":
        """All zeros: the values of a zero ablation."""
        return Activations(torch.zeros_like(self.z), torch.zeros_like(self.mlp))

    def __getitem__(self, prompts: slice | Tensor) -> "Activations":
        """The activations of some prompts."""
        return Activations(self.z[:, prompts], self.mlp[:, prompts])


def record(model: Any, tokens: Int[Tensor, "prompt pos"], *, batch_size: int = 64) -> Activations:
    """Head and MLP outputs of every prompt (the values of a resample ablation)."""
    check_model(model)
    check_tokens(model, tokens, batch_size)
    parts = [trace(model, part) for part in tokens.split(batch_size)]
    return Activations(torch.cat([p.z for p in parts], 1), torch.cat([p.mlp for p in parts], 1))


def group_means(activations: Activations, groups: Int[Tensor, " prompt"]) -> Activations:
    """Per-position mean over the prompts of each group, given back to every prompt of the group.

    With IOI prompts the group is the template (and order), so that named positions coincide.
    """
    if groups.shape != activations.z.shape[1:2]:
        raise ValueError(f"groups must hold one number a prompt ({activations.z.shape[1]}), got {tuple(groups.shape)}")
    _, index, count = groups.unique(return_inverse=True, return_counts=True)

    def mean(x: Tensor) -> Tensor:
        sums = x.new_zeros(x.shape[0], len(count), *x.shape[2:]).index_add_(1, index, x)
        return (sums / count.view(1, -1, *[1] * (x.ndim - 2)))[:, index]

    return Activations(mean(activations.z), mean(activations.mlp))


def mean_reference(
    model: Any, tokens: Int[Tensor, "prompt pos"], groups: Int[Tensor, " prompt"], *, batch_size: int = 64
) -> Activations:
    """The values of a mean ablation: `group_means` of `record`."""
    return group_means(record(model, tokens, batch_size=batch_size), groups)


def mask(
    model: Any, shape: tuple[int, int] | torch.Size, heads: Mapping[Head, Int[Tensor, " prompt"] | None]
) -> Bool[Tensor, "layer head prompt pos"]:
    """Mark heads, each at one position a prompt or (None) at all positions.

    Args:
        shape: (prompts, positions), `tokens.shape`.

    Errors: `ValueError` for a head that the model does not have or a position out of range.
    """
    marked = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, *shape, dtype=torch.bool, device=model.W_E.device)
    for (layer, head), positions in zip(check_heads(model, heads), heads.values(), strict=True):
        if positions is None:
            marked[layer, head] = True
            continue
        if positions.shape != (shape[0],) or not (0 <= int(positions.min()) and int(positions.max()) < shape[1]):
            raise ValueError(f"positions of {Head(layer, head)} must be {shape[0]} numbers in 0..{shape[1] - 1}")
        marked[layer, head, torch.arange(shape[0], device=marked.device), positions.to(marked.device)] = True
    return marked


@torch.no_grad()
def logits_at(
    model: Any, tokens: Int[Tensor, "prompt pos"], at: Int[Tensor, " prompt"], *, batch_size: int = 64
) -> Float[Tensor, "prompt vocab"]:
    """The model's logits at one position of every prompt; only that one is unembedded."""
    check_model(model)
    check_tokens(model, tokens, batch_size, at)
    out = []
    for part, where in zip(tokens.split(batch_size), at.split(batch_size), strict=True):
        out.append(unembed(model, pick(trace(model, part).resid_final, where[:, None])[:, 0]))
    return torch.cat(out)


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
    head outside it. Leading axes of the masks are variants, evaluated together. Nothing before the first
    marked layer and position, or after `at`, is recomputed, and heads that are replaced throughout are
    not computed at all.

    Args:
        batch_size: sequences (variant · prompt) at a time; bounds the memory, does not change results.

    Errors: `ValueError` for masks or values of the wrong shape, no mask, an unsupported architecture,
        or logits that are not finite.
    """
    check_model(model)
    check_tokens(model, tokens, batch_size, at)
    layers, n_heads, (n, length) = model.cfg.n_layers, model.cfg.n_heads, tokens.shape
    if heads is None and mlps is None:
        raise ValueError("nothing to replace: give heads, mlps or both")
    if heads is not None and heads.shape[-4:] != (layers, n_heads, n, length):
        raise ValueError(f"heads must end in {(layers, n_heads, n, length)}, got {tuple(heads.shape)}")
    if mlps is not None and mlps.shape[-3:] != (layers, n, length):
        raise ValueError(f"mlps must end in {(layers, n, length)}, got {tuple(mlps.shape)}")
    if values.z.shape[:4] != (layers, n, length, n_heads):
        raise ValueError(f"values.z must start with {(layers, n, length, n_heads)}, got {tuple(values.z.shape)}")
    lead = heads.shape[:-4] if heads is not None else mlps.shape[:-3]  # type: ignore[union-attr]
    if heads is None:
        heads = tokens.new_zeros((*lead, layers, n_heads, n, length), dtype=torch.bool)
    if mlps is None:
        mlps = tokens.new_zeros((*lead, layers, n, length), dtype=torch.bool)
    if mlps.shape[:-3] != lead:
        raise ValueError(f"heads and mlps have different variants: {tuple(lead)} and {tuple(mlps.shape[:-3])}")
    heads, mlps = heads.reshape(-1, layers, n_heads, n, length), mlps.reshape(-1, layers, n, length)
    rows = min(n, batch_size)
    at_once = max(1, batch_size // rows)
    columns = []
    for some in torch.arange(n, device=tokens.device).split(rows):
        clean = trace(model, tokens[some])
        parts = [
            _replace(model, clean, values[some], h[:, :, :, some], m[:, :, some], at[some])
            for h, m in zip(heads.split(at_once), mlps.split(at_once), strict=True)
        ]
        columns.append(torch.cat(parts))
    return torch.cat(columns, 1).reshape(*lead, n, -1)


def _replace(model: Any, clean: Any, values: Activations, heads: Tensor, mlps: Tensor, at: Tensor) -> Tensor:
    """One block of variants and prompts of `replace`."""
    positions = torch.arange(heads.shape[-1], device=at.device)
    heads, mlps = heads & (positions <= at[:, None]), mlps & (positions <= at[:, None])
    variants, prompts = len(heads), len(at)
    touched = heads.any(2) | mlps  # variant layer prompt pos
    if not touched.any():
        logits = unembed(model, pick(clean.resid_final, at[:, None])[:, 0])
        return logits.expand(variants, -1, -1)
    layer = int(touched.any(0).any(-1).any(-1).nonzero()[0])
    columns = touched.any(0).any(0)
    first = torch.where(columns.any(-1), columns.int().argmax(-1), at)
    where = window(first, at)
    rows = torch.arange(prompts, device=at.device)[:, None]
    h = heads[:, :, :, rows, where].movedim(2, -1)  # variant layer prompt window head
    m = mlps[:, :, rows, where]  # variant layer prompt window
    new_z, new_mlp = values.z[:, rows, where], values.mlp[:, rows, where]
    computed = (~h).flatten(2, 3).any(2).any(0)  # layer head
    needed = [row.nonzero()[:, 0].tolist() for row in computed.cpu()]

    def edit_z(i: int, z: Tensor) -> Tensor:
        return torch.where(h[:, i, ..., None], new_z[i], z) if h[:, i].any() else z

    def edit_mlp(i: int, out: Tensor) -> Tensor:
        return torch.where(m[:, i, ..., None], new_mlp[i], out) if m[:, i].any() else out

    edits = Edits(z=edit_z, mlp_out=edit_mlp, heads=lambda i: None if len(needed[i]) == heads.shape[2] else needed[i])
    x = pick(clean.resid_pre[layer], where).expand(variants, -1, -1, -1)
    final = resume(model, clean, x, where, layer=layer, edits=edits)
    here = (at - first)[:, None]
    return unembed(model, final[:, torch.arange(prompts, device=at.device), here[:, 0]])
