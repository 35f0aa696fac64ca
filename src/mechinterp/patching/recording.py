"""Recorded head and MLP outputs, what stands for them in a knock-out, and where."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import size
from mechinterp.architectures import VALUE_BIASES
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_tokens
from mechinterp.patching.engine import Keep, final_streams, trace


@dataclass(frozen=True)
class Activations:
    """Head outputs (before W_O) and MLP outputs (after a post norm) of every prompt; what `replace` puts in place.

    A model that comes from `mechinterp.models.load` has its value biases folded into the output bias: z is then the
    weighted sum of values *without* their bias, and zeros mean "the head writes its bias". `zeros_like(raw=model)`
    gives the z that corresponds to zeros in the raw model.
    """

    z: Float[Tensor, "layer prompt pos head d_head"]
    mlp: Float[Tensor, "layer prompt pos d_model"]

    def zeros_like(self, *, raw: Any = None) -> "Activations":
        """All zeros: the values of a zero ablation.

        Args:
            raw: the model, if zeros of the raw model are meant. There a zeroed head loses its value bias as well,
                which here is part of b_O, so z becomes minus that bias (`value_biases`).
        """
        z = torch.zeros_like(self.z)
        if raw is not None:
            z -= value_biases(raw)[:, None, None].to(z)
        return Activations(z, torch.zeros_like(self.mlp))

    def __getitem__(self, prompts: slice | Tensor) -> "Activations":
        """The activations of some prompts."""
        return Activations(self.z[:, prompts], self.mlp[:, prompts])


def value_biases(model: Any) -> Float[Tensor, "layer head d_head"]:
    """What the raw model adds to every value of a head, before loading folded it into b_O; zeros if it adds nothing.

    Errors: `ValueError` for a model that `mechinterp.models` has not loaded.
    """
    found: Tensor | None = model.__dict__.get(VALUE_BIASES)
    if found is None:
        raise ValueError("the raw value biases of this model are not known: load it with mechinterp.models.load")
    return found


def record(model: Any, tokens: Int[Tensor, "prompt pos"], *, batch_size: int = 64) -> Activations:
    """Head and MLP outputs of every prompt (the values of a resample ablation)."""
    anatomy = check_tokens(model, tokens, batch_size, bidirectional=True)
    sizes, (n, length) = anatomy.size, tokens.shape
    kind: dict[str, Any] = {"dtype": anatomy.dtype, "device": anatomy.device}
    z = torch.empty(sizes.n_layers, n, length, sizes.n_heads, sizes.d_head, **kind)
    mlps = torch.empty(sizes.n_layers, n, length, sizes.d_model, **kind)
    for some in torch.arange(n, device=tokens.device).split(batch_size):
        rows = slice(int(some[0]), int(some[-1]) + 1)
        trace(anatomy, tokens[some], _write_to({"z": z[:, rows], "mlp_out": mlps[:, rows]}))
    return Activations(z, mlps)


def _write_to(targets: dict[str, Tensor]) -> Keep:
    """Write activations of a pass into their place."""

    def keep(name: str, layer: int, x: Tensor) -> None:
        if name in targets:
            targets[name][layer] = x

    return keep


def group_means(activations: Activations, groups: Int[Tensor, " prompt"]) -> Activations:
    """Per-position mean over the prompts of each group, given back to every prompt of the group.

    With IOI prompts the group is the template (and order), so that named positions coincide.

    Errors: `ValueError` if there is not one group number a prompt.

    >>> z = torch.tensor([1.0, 3.0, 10.0]).view(1, 3, 1, 1, 1)  # one layer, three prompts
    >>> group_means(Activations(z, z[..., 0]), torch.tensor([0, 0, 1])).z.flatten().tolist()
    [2.0, 2.0, 10.0]
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
    sizes, device = size(model), next(model.parameters()).device
    marked = torch.zeros(sizes.n_layers, sizes.n_heads, *shape, dtype=torch.bool, device=device)
    for (layer, head), positions in zip(check_heads(model, heads), heads.values(), strict=True):
        if positions is None:
            marked[layer, head] = True
            continue
        if positions.shape != (shape[0],) or not (int(positions.min()) >= 0 and int(positions.max()) < shape[1]):
            raise ValueError(f"positions of {Head(layer, head)} must be {shape[0]} numbers in 0..{shape[1] - 1}")
        marked[layer, head, torch.arange(shape[0], device=marked.device), positions.to(marked.device)] = True
    return marked


@torch.no_grad()
def logits_at(
    model: Any, tokens: Int[Tensor, "prompt pos"], at: Int[Tensor, " prompt"], *, batch_size: int = 64
) -> Float[Tensor, "prompt vocab"]:
    """The model's logits at one position of every prompt; only that one is unembedded.

    Errors: `ValueError` as in `replace`.
    """
    anatomy = check_tokens(model, tokens, batch_size, at, bidirectional=True)
    at = at.to(tokens.device)
    pairs = zip(tokens.split(batch_size), at.split(batch_size), strict=True)
    return torch.cat([anatomy.unembed(final_streams(anatomy, part, where)) for part, where in pairs])
