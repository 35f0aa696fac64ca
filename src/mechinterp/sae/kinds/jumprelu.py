"""JumpReLU: f = pre where pre > threshold, thresholds by straight-through estimators (arXiv:2407.14435).

    ‖x - x̂‖² + λ ‖f‖₀        (equation 9)

What is trained is the logarithm of the threshold. Near a threshold, in a rectangle K of width ε around it, it has the
pseudo-gradients (equations 11 and 12)

    ∂f/∂θ := -(θ/ε) K((π - θ)/ε)    ∂‖f‖₀/∂θ := -(1/ε) K((π - θ)/ε)    ∂f/∂π = H(π - θ)    ∂‖f‖₀/∂π := 0

The variant "gradient to pre" lets the kernel's gradients reach π, too (appendix H.1).
"""

from typing import Any

import torch
from torch import Tensor

from mechinterp.sae.kinds.base import (
    Gradients,
    Kind,
    Options,
    Params,
    decode,
    error_of,
    inner,
    into_weights,
    per_token,
    squared,
)
from mechinterp.sae.kinds.cells import where


class JumpReLU(Kind):
    """pre where pre > threshold."""

    name = "jumprelu"
    own = ("b_enc", "threshold")
    variants = ("gradient to pre",)
    thresholds = ("log_threshold",)

    def check(self, p: Params) -> None:
        """Thresholds must be positive, or a latent below zero could be on."""
        if not (p["threshold"] > 0).all():
            raise ValueError("thresholds of a jumprelu SAE must be positive")

    def fresh(self, d_sae: int, threshold: float) -> Params:
        """All thresholds alike."""
        return super().fresh(d_sae, threshold) | {"threshold": torch.full((d_sae,), threshold)}

    def encode(self, p: Params, x: Tensor, k: int | None) -> Tensor:
        """pre where pre > threshold."""
        pre = self.pre(p, x)
        return torch.where(pre > p["threshold"], pre, 0.0)

    def loss(self, p: Params, x: Tensor, sparsity: Tensor, o: Options) -> tuple[Tensor, Tensor, Tensor]:
        """Equation 9."""
        theta = p["log_threshold"].exp()[:, None]
        f, l0 = _Jump.apply(inner(p, x), theta, o.bandwidth, o.variant == "gradient to pre")
        error = squared(x - decode(p, f))
        return f, error, error + sparsity * l0

    def gradients(self, p: Params, x: Tensor, sparsity: Tensor, o: Options, value: bool) -> Gradients:
        """Of `loss`."""
        lam, pre = per_token(sparsity, x), inner(p, x)
        theta = p["log_threshold"].exp()
        cells = where(pre > (theta - o.bandwidth / 2)[:, None])
        pre = cells.take(pre)
        above = pre - cells.each(theta)
        gate = above.sign().clamp_(min=0)
        f = pre.mul_(gate)
        near = above.abs_().mul_(-2 / o.bandwidth).add_(1).sign_().clamp_(min=0)
        e, error = error_of(p, f, x, cells)
        d = cells.back(e, p["W_dec"])
        penalty = gate.sum((1, 2)) * lam[:, 0, 0] if value else None
        hit = near * d
        log_threshold = (cells.total(hit) * theta + cells.total(near) * lam[:, 0]) * theta / -o.bandwidth
        d *= gate
        if o.variant == "gradient to pre":
            d += hit.mul_(cells.each(theta)).add_(near.mul_(lam)).div_(o.bandwidth)
        grads = into_weights(p, x, f, e, d, cells) | {"log_threshold": log_threshold}
        return Gradients(grads, error, f, penalty, cells)

    def trained(self, p: Params) -> Params:
        """The logarithm of the thresholds in their place."""
        return {n: v for n, v in p.items() if n != "threshold"} | {"log_threshold": p["threshold"].log()}

    def finished(self, p: Params, level: Tensor) -> tuple[str, Params]:
        """Thresholds again."""
        return self.name, {n: v for n, v in p.items() if n != "log_threshold"} | {"threshold": p["log_threshold"].exp()}

    def sound(self, p: Params) -> Params:
        """Where a relu comes before the jump, a threshold that is not positive is that of the relu."""
        return p | {"threshold": p["threshold"].clamp(min=torch.finfo(torch.float32).tiny)}


class _Jump(torch.autograd.Function):
    """f = π H(π - θ) and the number of active latents ‖f‖₀ a token, with the pseudo-gradients of this module."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float, to_pre: bool) -> tuple[Tensor, Tensor]:
        above = pre - theta
        gate = above.sign().clamp_(min=0)
        ctx.save_for_backward(above, gate, theta)
        ctx.bandwidth, ctx.to_pre = bandwidth, to_pre
        return pre * gate, gate.sum((-2, -1)) / pre.shape[-2]

    @staticmethod
    def backward(ctx: Any, grad_f: Tensor, grad_l0: Tensor) -> tuple[Tensor | None, ...]:
        above, gate, theta = ctx.saved_tensors
        eps, tokens = ctx.bandwidth, above.shape[-2]
        near = above.abs().mul_(-2 / eps).add_(1).sign_().clamp_(min=0).div_(eps)  # K / ε
        count = grad_l0[:, None] / tokens
        hit = (grad_f * near).sum(-2) * theta[:, 0] + near.sum(-2) * count
        grad_pre = grad_f * gate
        if ctx.to_pre:
            grad_pre = grad_pre + near * (grad_f * theta + count[..., None])
        return grad_pre, -hit[:, None], None, None
