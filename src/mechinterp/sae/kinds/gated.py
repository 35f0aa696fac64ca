"""Gated: one encoder decides which latents are on, a rescaled copy of it how strongly (arXiv:2404.16014, section 3).

inner = (x - b_dec) W_enc        π = inner + b_gate        f = relu(exp(r_mag) inner + b_mag) where π > 0

‖x - x̂‖² + λ Σ relu(π) + ‖x - x̂_frozen(relu(π))‖²        (equation 8)
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


class Gated(Kind):
    """relu(exp(r_mag) inner + b_mag) where inner + b_gate > 0; its pre-activations are those of the magnitudes."""

    name = "gated"
    own = ("b_gate", "b_mag", "r_mag")
    unitless = ("r_mag",)
    variants = ("no auxiliary loss", "unfrozen decoder", "no r_mag")
    resampled = True

    def linear(self, p: Params) -> tuple[Tensor, Tensor]:
        """That of the magnitudes."""
        return p["W_enc"] * p["r_mag"].exp(), p["b_mag"]

    def pre(self, p: Params, x: Tensor) -> Tensor:
        """That of the magnitudes."""
        return (x - p["b_dec"]) @ p["W_enc"] * p["r_mag"].exp() + p["b_mag"]

    def encode(self, p: Params, x: Tensor, k: int | None) -> Tensor:
        """Magnitudes where the gate is open."""
        shared = (x - p["b_dec"]) @ p["W_enc"]
        magnitude = (shared * p["r_mag"].exp() + p["b_mag"]).relu()
        return torch.where(shared + p["b_gate"] > 0, magnitude, 0.0)

    def forms(self) -> dict[str, Callable[[Params], Params]]:
        """A jumprelu SAE (appendix E)."""
        return {"jumprelu": _as_jumprelu}

    def loss(self, p: Params, x: Tensor, sparsity: Tensor, o: Options) -> tuple[Tensor, Tensor, Tensor]:
        """Equation 8."""
        shared = inner(p, x, None)
        gate = (shared + p["b_gate"][:, None]).relu()
        rate = 1.0 if o.variant == "no r_mag" else p["r_mag"].exp()[:, None]
        magnitude = (shared * rate + p["b_mag"][:, None]).relu()
        f = magnitude * gate.detach().sign()
        error = squared(x - decode(p, f))
        total = error + sparsity * gate.sum((-2, -1)) / len(x)
        if o.variant == "no auxiliary loss":
            return f, error, total
        frozen = p if o.variant == "unfrozen decoder" else {n: p[n].detach() for n in ("W_dec", "b_dec")}
        return f, error, total + squared(x - decode(frozen, gate))

    def gradients(self, p: Params, x: Tensor, sparsity: Tensor, o: Options, value: bool) -> Gradients:
        """Of `loss`."""
        lam = per_token(sparsity, x)
        pre, own, extra = inner(p, x, None), Params(), Params()
        cells = where(pre > -p["b_gate"][:, None])
        pre = cells.take(pre)
        gate = (pre + cells.each(p["b_gate"])).relu_()
        rate = torch.ones_like(p["r_mag"]) if o.variant == "no r_mag" else p["r_mag"].exp()
        f = where_on((pre * cells.each(rate)).add_(cells.each(p["b_mag"])).relu_(), gate)
        e, error = error_of(p, f, x, cells)
        magnitude = where_on(cells.back(e, p["W_dec"]), f)
        own["b_mag"] = cells.total(magnitude)
        if o.variant != "no r_mag":
            own["r_mag"] = cells.total(pre.mul_(magnitude)) * rate
        penalty = gate.sum((1, 2)) * lam[:, 0, 0] if value else None
        if o.variant == "no auxiliary loss":
            d = gate.sign_().mul_(lam)
        else:
            e_gate, missed = error_of(p, gate, x, cells)
            d = where_on(cells.back(e_gate, p["W_dec"]).add_(lam), gate)
            penalty = None if penalty is None else penalty + missed
            if o.variant == "unfrozen decoder":
                extra = {"W_dec": cells.rows(gate, e_gate), "b_dec": e_gate.sum(1)}
        own["b_gate"] = cells.total(d)
        d += magnitude.mul_(cells.each(rate))
        grads = into_weights(p, x, f, e, d, cells)
        del grads["b_enc"]
        for name, grad in extra.items():
            grads[name] += grad
        return Gradients(grads | own, error, f, penalty, cells)

    def centre(self, p: Params) -> Params:
        """Both biases move, that of the magnitudes by its rescaled share."""
        shift = p["b_dec"] @ p["W_enc"]
        return p | {"b_gate": p["b_gate"] + shift, "b_mag": p["b_mag"] + p["r_mag"].exp() * shift}


def _as_jumprelu(p: Params) -> Params:
    rate = p["r_mag"].exp()
    threshold = (p["b_mag"] - rate * p["b_gate"]).clamp(min=torch.finfo(p["W_enc"].dtype).tiny)
    same = {name: p[name] for name in ("W_dec", "b_dec")}
    return same | {"W_enc": p["W_enc"] * rate, "b_enc": p["b_mag"], "threshold": threshold}
