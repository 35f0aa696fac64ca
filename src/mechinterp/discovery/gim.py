"""The backward pass of GIM (gim-explain 0.1.4), made for attention that has saturated; forward nothing changes."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.modules import Norm

TEMPERATURE = 2.0
"""Of the softmax of attention, backward."""
FACTORS = {"q": 0.25, "k": 0.25, "v": 0.5}
"""Of the gradients of queries, keys and values."""


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class Tempered(torch.autograd.Function):
    """The softmax, which goes backward as that of its scores over a temperature, without the factor of that."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward((scores / temperature).softmax(-1))
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (soft,) = ctx.saved_tensors
        return soft * (gradient - (gradient * soft).sum(-1, keepdim=True)), None


class _Frozen(Norm):
    """A norm whose scale is a constant for gradients."""

    def __call__(self, x: Tensor) -> Tensor:
        found = self.frozen(x, self.scale(x).detach())
        return found if self.bias is None else found + self.bias


def frozen_norms(anatomy: Anatomy) -> Anatomy:
    """The same transformer with norms whose scales are constants for gradients."""

    def frozen(norm: Norm) -> Norm:
        return _Frozen(**vars(norm)) if norm else norm

    layers = [
        replace(
            layer,
            norm1=frozen(layer.norm1),
            norm2=frozen(layer.norm2),
            post1=frozen(layer.post1),
            post2=frozen(layer.post2),
            q_norm=frozen(layer.q_norm),
            k_norm=frozen(layer.k_norm),
        )
        for layer in anatomy.layers
    ]
    return replace(anatomy, layers=tuple(layers), final=frozen(anatomy.final))
