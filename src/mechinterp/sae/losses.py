"""Training losses and their gradients, for a stack of SAEs of one kind on one batch; each kind's are in its file.

Weights carry a leading axis `sae`; the batch is shared. Inputs are scaled to mean square norm one. Every loss is a
mean over tokens, its squared error a sum over d_in, so that sparsity coefficients mean the same everywhere.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.sae.kinds import Gradients, Loss, Options, Params, kind_named


def loss(
    kind: str,
    params: Params,
    x: Float[Tensor, "token d_in"],
    sparsity: Float[Tensor, " sae"],
    *,
    k: int = 0,
    dead: Bool[Tensor, "sae d_sae"] | None = None,
    bandwidth: float = 0.01,
    variant: str = "",
) -> Loss:
    """Loss of every SAE of a stack on one batch.

    Args:
        params: tensors [sae, ...] named as in `tensor_shapes`; a jumprelu has `log_threshold` for its threshold.
        sparsity: λ of each SAE; ignored by topk and batchtopk, which take `k`.
        dead: latents for AuxK to revive; None if there are none.
        bandwidth: ε of the straight-through kernel, in units of inputs with mean square norm one.
        variant: an ablation, one of the kind's `variants`.

    Errors: `ValueError` for an unknown kind.
    """
    f, error, total = kind_named(kind).loss(params, x, sparsity, Options(k, bandwidth, variant, dead))
    return Loss(total, error.detach(), f.detach())


@torch.no_grad()
def gradients(
    kind: str,
    params: Params,
    x: Float[Tensor, "token d_in"],
    sparsity: Float[Tensor, " sae"],
    *,
    k: int = 0,
    dead: Bool[Tensor, "sae d_sae"] | None = None,
    bandwidth: float = 0.01,
    variant: str = "",
    value: bool = False,
) -> Gradients:
    """Gradients of `loss` in closed form: what a training step computes.

    Args:
        params, x, sparsity, k, dead, bandwidth, variant: as of `loss`.
        value: compute the penalty, too.

    Errors: `ValueError` for an unknown kind.
    """
    return kind_named(kind).gradients(params, x, sparsity, Options(k, bandwidth, variant, dead), value)
