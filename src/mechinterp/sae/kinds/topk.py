"""TopK: f = relu of the k largest pre-activations of a token (arXiv:2406.04093, section 2.3).

    ‖x - x̂‖² / Var x + AuxK / 32        (appendix A)

AuxK lets dead latents explain what the others leave. On a CPU its gradient looks at the dead ones alone: elsewhere a
list of them would have to be waited for.
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
from mechinterp.sae.kinds.cells import Cells, of_each_token


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

    def chosen(self, pre: Float[Tensor, "sae token d_sae"], k: int) -> tuple[Cells, Tensor]:
        """The latents that stay, as cells and their values."""
        top = pre.topk(k, dim=-1, sorted=False)
        return of_each_token(top.indices, top.values.relu_(), pre.shape[-1])

    def gradients(self, p: Params, x: Tensor, sparsity: Tensor, o: Options, value: bool) -> Gradients:
        """Of `loss`."""
        spread, pre = variance(x), inner(p, x)
        cells, f = self.chosen(pre, o.k)
        e, error = error_of(p, f, x, cells)
        aux = None if o.dead is None else revival(p, x, pre, e * (-len(x) / 2), o.dead, 1 / 32)
        d = where_on(cells.back(e, p["W_dec"]), f).div_(spread)
        penalty = error / spread - error if value else None
        grads = into_weights(p, x, f, e.div_(spread), d, cells)
        if aux is not None:
            for name, more in aux[0].items():
                grads[name] += more
            penalty = penalty if penalty is None else penalty + aux[1]
        return Gradients(grads, error, f, penalty, cells)


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


def revival(
    p: Params, x: Tensor, pre: Tensor, e: Float[Tensor, "sae token d_in"], dead: Tensor, weight: float
) -> tuple[Params, Float[Tensor, " sae"]]:
    """The gradient and value of weight · `aux_k`, with e = x - x̂."""
    names = ("b_enc", "W_enc", "W_dec", "b_dec")
    grads, total = {name: torch.zeros_like(p[name]) for name in names}, e.new_zeros(len(e))
    for i, these in enumerate(dead):
        at = these.nonzero()[:, 0] if x.device.type == "cpu" else torch.arange(len(these), device=x.device)
        if not len(at):
            continue
        silent = pre[i].index_select(1, at).masked_fill_(~these[at], -torch.inf)
        top = silent.topk(min(max(1, x.shape[-1] // 2), len(at)), dim=-1, sorted=False)
        f = torch.zeros_like(silent).scatter_(-1, top.indices, top.values.relu_())
        W_dec, W_enc, spread = p["W_dec"][i, at], p["W_enc"][i, :, at], variance(e[i])
        share = torch.where(spread > 0, weight / spread, 0.0)
        r = (f @ W_dec).sub_(e[i])
        total[i] = r.square().sum() / len(x) * share * these.any()
        r.mul_(share * 2 / len(x))
        d = where_on(r @ W_dec.T, f)
        mass = d.sum(0)
        grads["b_enc"][i, at], grads["W_dec"][i, at], grads["b_dec"][i] = mass, f.T @ r, -(W_enc @ mass)
        grads["W_enc"][i, :, at] = x.T @ d - p["b_dec"][i][:, None] * mass
    return grads, total
