"""How much depends on a model's quantisation? Move every quantised weight at random within its rounding cell.

A weight stored in four bits may have been anywhere within half a step of the stored value. The models made here
are those that would have been rounded to about the same file: what differs between them was decided by rounding.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

BLOCK, LEVELS = 32, 16
"""GGUF's Q4_1: blocks of 32 weights of a row, on 16 evenly spaced levels from the smallest to the largest of them."""


def step_sizes(weight: Float[Tensor, "row column"]) -> Float[Tensor, "row block"] | None:
    """The distance between neighbouring levels in every block, or None for a tensor that is not on such levels.

    >>> on_levels = 0.5 * torch.arange(32).remainder(16)[None] - 1
    >>> step_sizes(on_levels)
    tensor([[0.5000]])
    >>> step_sizes(torch.randn(2, 32)) is None
    True
    """
    if weight.ndim != 2 or weight.shape[1] % BLOCK:
        return None
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    lowest, highest = blocks.amin(-1), blocks.amax(-1)
    step = (highest - lowest) / (LEVELS - 1)
    level = (blocks - lowest[..., None]) / step.clamp_min(torch.finfo(step.dtype).tiny)[..., None]
    return step if bool(((level - level.round()).abs() < 0.05).all()) else None


def dither(model: nn.Module, *, seed: int = 0, steps: float = 1.0) -> int:
    """Add to every Q4_1 weight, in place, noise that is uniform within `steps` rounding cells; how many weights moved.

    Args:
        model: as it was read from the file, before anything is folded into its weights.
        steps: width of the noise in steps of the weight's block; 1 stays within the cell of rounding.

    Errors: `ValueError` for a model without such weights, or a width that is not positive.
    """
    if not steps > 0:
        raise ValueError(f"the noise is some steps wide, got {steps}")
    generator, moved = torch.Generator().manual_seed(seed), 0
    for weight in model.parameters():
        sizes = step_sizes(weight.data)
        if sizes is None:
            continue
        noise = torch.rand(weight.shape, generator=generator) - 0.5
        weight.data += (steps * noise * sizes.repeat_interleave(BLOCK, 1)).to(weight)
        moved += weight.numel()
    if not moved:
        raise ValueError(
            f"none of the model's weights are on {LEVELS} levels per {BLOCK} of a row (GGUF's Q4_1): "
            "it is not quantised so, or its weights have been changed since they were read"
        )
    return moved
