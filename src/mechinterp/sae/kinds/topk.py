"""TopK: f = relu of the k largest pre-activations of a token (arXiv:2406.04093, section 2.3).

    ‖x - x̂‖² / Var x + AuxK / 32        (appendix A)

AuxK lets dead latents explain what the others leave. It has no closed gradient; a step that revives uses autograd.
"""

import torch
from jaxtyping import Float
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
    squared,
    where_on,
)
from mechinterp.sae.kinds.cells import of_each_token


class TopK(Kind):
    """relu of the k largest pre of a token. It begins at the median of the inputs, as Gao et al. do."""

    name = "topk"
    takes_k = True
    at_median = True
    revived = True

    def largest(self, f: Float[Tensor, "... token d_sae"], k: int) -> Float[Tensor, "... token d_sae"]:
        """The latents that stay, zeros elsewhere."""
        return keep_largest(f, k)

    def encode(self, p: Params, x: Tensor, k: int | None) -> Tensor:
        """relu of the largest."""
        assert k is not None
        return self.largest(self.pre(p, x).relu(), k)

    def loss(self, p: Params, x: Tensor, sparsity: Tensor, o: Options) -> tuple[Tensor, Tensor, Tensor]:
        """‖x - x̂‖² / Var x + AuxK / 32."""
        pre = inner(p, x)
        f = self.largest(pre.relu(), o.k)
        e = x - decode(p, f)
        error = squared(e)
        total = error / squared((x - x.mean(0))[None])
        if o.dead is not None:
            total = total + aux_k(p, pre, e.detach(), o.dead) / 32
        return f, error, total

    def gradients(self, p: Params, x: Tensor, sparsity: Tensor, o: Options, value: bool) -> Gradients:
        """Of `loss` without AuxK."""
        spread, pre = variance(x), inner(p, x)
        top = pre.topk(o.k, dim=-1, sorted=False)
        cells, f = of_each_token(top.indices, top.values.relu_(), pre.shape[-1])
        e, error = error_of(p, f, x, cells)
        d = where_on(cells.back(e, p["W_dec"]), f).div_(spread)
        penalty = error / spread - error if value else None
        return Gradients(into_weights(p, x, f, e.div_(spread), d, cells), error, f, penalty, cells)


def keep_largest(f: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """The k largest entries of every row, zeros elsewhere.

    >>> keep_largest(torch.tensor([3.0, 1.0, 2.0]), 2)
    tensor([3., 0., 2.])
    """
    top = f.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(f).scatter_(-1, top.indices, top.values)


def variance(x: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """E‖x - E x‖² of a batch."""
    return (x - x.mean(0)).square().sum() / len(x)


def aux_k(p: Params, pre: Tensor, e: Tensor, dead: Tensor) -> Float[Tensor, " sae"]:
    """What the d_in / 2 strongest dead latents explain of the error, as a share of its variance."""
    silent = pre.masked_fill(~dead[:, None], -torch.inf)
    top = silent.topk(min(max(1, e.shape[-1] // 2), pre.shape[-1]), dim=-1, sorted=False)
    values = torch.where(top.values.isfinite(), top.values, 0.0).relu()
    f = torch.zeros_like(pre).scatter(-1, top.indices, values)
    missed = squared(e - torch.bmm(f, p["W_dec"]))
    spread = squared(e - e.mean(-2, keepdim=True))
    return torch.where(dead.any(-1), missed / spread, 0.0).nan_to_num(0.0)
