"""Standard: f = relu(pre), with an L1 penalty (Bricken et al. 2023; arXiv:2404.16014, equation 4).

‖x - x̂‖² + λ Σ f
"""

from collections.abc import Callable

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
    where_on,
)
from mechinterp.sae.kinds.cells import where


class Standard(Kind):
    """relu(pre)."""

    name = "standard"
    resampled = True

    def encode(self, p: Params, x: Tensor, k: int | None) -> Tensor:
        """relu(pre)."""
        return self.pre(p, x).relu()

    def forms(self) -> dict[str, Callable[[Params], Params]]:
        """A gated SAE whose gate is its magnitude."""
        return {"gated": _as_gated}

    def loss(self, p: Params, x: Tensor, sparsity: Tensor, o: Options) -> tuple[Tensor, Tensor, Tensor]:
        """‖x - x̂‖² + λ Σ f."""
        f = inner(p, x).relu()
        error = squared(x - decode(p, f))
        return f, error, error + sparsity * f.sum((-2, -1)) / len(x)

    def gradients(self, p: Params, x: Tensor, sparsity: Tensor, o: Options, value: bool) -> Gradients:
        """Of `loss`."""
        lam = per_token(sparsity, x)
        pre = inner(p, x)
        cells = where(pre > 0)
        f = cells.take(pre).relu_()
        e, error = error_of(p, f, x, cells)
        penalty = f.sum((1, 2)) * lam[:, 0, 0] if value else None
        d = where_on(cells.back(e, p["W_dec"]).add_(lam), f)
        return Gradients(into_weights(p, x, f, e, d, cells), error, f, penalty, cells)


def _as_gated(p: Params) -> Params:
    b_enc = p["b_enc"]
    same = {name: p[name] for name in ("W_enc", "W_dec", "b_dec")}
    return same | {"b_gate": b_enc, "b_mag": b_enc, "r_mag": torch.zeros_like(b_enc)}
