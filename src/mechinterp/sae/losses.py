"""Training losses of the five kinds, for a stack of SAEs of one kind on one batch.

Weights carry a leading axis `sae`; the batch is shared. Inputs are scaled to mean square norm one. Every loss is a
mean over tokens, its squared error a sum over d_in, so that sparsity coefficients mean the same everywhere.

| kind | loss | source |
|---|---|---|
| standard | ‖x - x̂‖² + λ Σ f | Bricken et al. 2023; arXiv:2404.16014, equation 4 |
| gated | ‖x - x̂‖² + λ Σ relu(π) + ‖x - x̂_frozen(relu(π))‖², π the gate's | arXiv:2404.16014, equation 8 |
| jumprelu | ‖x - x̂‖² + λ ‖f‖₀, thresholds by straight-through estimators | arXiv:2407.14435, equation 9 |
| topk, batchtopk | ‖x - x̂‖² / Var x + AuxK / 32 | arXiv:2406.04093, appendix A |
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.sae.architectures import Kind, Params, keep_largest, keep_largest_of_batch

Variant = Literal["", "no auxiliary loss", "unfrozen decoder", "no r_mag", "gradient to pre"]
VARIANTS: dict[Variant, Kind | None] = {
    "": None,
    "no auxiliary loss": "gated",
    "unfrozen decoder": "gated",
    "no r_mag": "gated",
    "gradient to pre": "jumprelu",
}
"""What can be left out or done otherwise, and of which kind."""


@dataclass(frozen=True)
class Loss:
    """What a step needs: the loss of each SAE, and detached numbers to log.

    Attributes:
        total: to be minimised. `error`: mean of ‖x - x̂‖². `f`: the latents.
    """

    total: Float[Tensor, " sae"]
    error: Float[Tensor, " sae"]
    f: Float[Tensor, "sae token d_sae"]


class _Jump(torch.autograd.Function):
    """f = π H(π - θ) and the number of active latents ‖f‖₀ a token, with the rectangle kernel's pseudo-gradients.

    ∂f/∂θ := -(θ/ε) K((π - θ)/ε), ∂‖f‖₀/∂θ := -(1/ε) K((π - θ)/ε), ∂f/∂π = H(π - θ), ∂‖f‖₀/∂π := 0
    (arXiv:2407.14435, equations 11 and 12). `to_pre` lets the kernel's gradients reach π, too (its appendix H.1).
    """

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


def product(a: Float[Tensor, "sae m k"], b: Float[Tensor, "sae k n"]) -> Float[Tensor, "sae m n"]:
    """a @ b of every SAE. `bmm` would copy what is transposed, on a CPU."""
    return torch.mm(a[0], b[0])[None] if len(a) == 1 else torch.bmm(a, b)


def inner(params: Params, x: Float[Tensor, "token d_in"], bias: str | None) -> Float[Tensor, "sae token d_sae"]:
    """(x - b_dec) W_enc + bias, with b_dec folded into the bias: no gradient has to pass through the input."""
    offset = product(params["b_dec"][:, None], params["W_enc"])
    shift = -offset if bias is None else params[bias][:, None] - offset
    return product(x.expand(len(shift), -1, -1), params["W_enc"]).add_(shift)


def _decode(params: Params, f: Tensor) -> Tensor:
    return torch.baddbmm(params["b_dec"][:, None], f, params["W_dec"])


def _squared(e: Tensor) -> Float[Tensor, " sae"]:
    """Mean over tokens of the squared norm."""
    return e.square().sum((-2, -1)) / e.shape[-2]


def loss(
    kind: Kind,
    params: Params,
    x: Float[Tensor, "token d_in"],
    sparsity: Float[Tensor, " sae"],
    *,
    k: int = 0,
    dead: Bool[Tensor, "sae d_sae"] | None = None,
    bandwidth: float = 0.01,
    variant: Variant = "",
) -> Loss:
    """Loss of every SAE of a stack on one batch.

    Args:
        params: tensors [sae, ...] named as in `tensor_shapes`; a jumprelu has `log_threshold` for its threshold.
        sparsity: λ of each SAE; ignored by topk and batchtopk, which take `k`.
        dead: latents for AuxK to revive; None if there are none.
        bandwidth: ε of the straight-through kernel, in units of inputs with mean square norm one.
        variant: an ablation, see `VARIANTS`.
    """
    match kind:
        case "standard":
            f = inner(params, x, "b_enc").relu()
            error = _squared(x - _decode(params, f))
            total = error + sparsity * f.sum((-2, -1)) / len(x)
        case "gated":
            f, error, total = _gated(params, x, sparsity, variant)
        case "jumprelu":
            pre = inner(params, x, "b_enc")
            theta = params["log_threshold"].exp()[:, None]
            f, l0 = _Jump.apply(pre, theta, bandwidth, variant == "gradient to pre")
            error = _squared(x - _decode(params, f))
            total = error + sparsity * l0
        case _:
            pre = inner(params, x, "b_enc")
            f = keep_largest(pre.relu(), k) if kind == "topk" else keep_largest_of_batch(pre.relu(), k)
            e = x - _decode(params, f)
            error = _squared(e)
            total = error / _squared((x - x.mean(0))[None])
            if dead is not None:
                total = total + _aux_k(params, pre, e.detach(), dead) / 32
    return Loss(total, error.detach(), f.detach())


def _gated(params: Params, x: Tensor, sparsity: Tensor, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    shared = inner(params, x, None)
    gate = (shared + params["b_gate"][:, None]).relu()
    rate = 1.0 if variant == "no r_mag" else params["r_mag"].exp()[:, None]
    magnitude = (shared * rate + params["b_mag"][:, None]).relu()
    f = magnitude * gate.detach().sign()
    error = _squared(x - _decode(params, f))
    total = error + sparsity * gate.sum((-2, -1)) / len(x)
    if variant == "no auxiliary loss":
        return f, error, total
    frozen = params if variant == "unfrozen decoder" else {n: params[n].detach() for n in ("W_dec", "b_dec")}
    return f, error, total + _squared(x - _decode(frozen, gate))


def _aux_k(params: Params, pre: Tensor, e: Tensor, dead: Tensor) -> Float[Tensor, " sae"]:
    """What the d_in / 2 strongest dead latents explain of the error, as a share of its variance."""
    silent = pre.masked_fill(~dead[:, None], -torch.inf)
    top = silent.topk(min(max(1, e.shape[-1] // 2), pre.shape[-1]), dim=-1, sorted=False)
    values = torch.where(top.values.isfinite(), top.values, 0.0).relu()
    f = torch.zeros_like(pre).scatter(-1, top.indices, values)
    missed = _squared(e - torch.bmm(f, params["W_dec"]))
    spread = _squared(e - e.mean(-2, keepdim=True))
    return torch.where(dead.any(-1), missed / spread, 0.0).nan_to_num(0.0)
