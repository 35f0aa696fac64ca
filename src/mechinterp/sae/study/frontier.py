"""Comparing SAEs at equal sparsity, and undoing shrinkage after the fact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.sae.architectures import SAE, same_function


@dataclass(frozen=True)
class Curve:
    """One measure of a sweep: a row a seed, a column a level of sparsity, by increasing L0."""

    l0: Float[Tensor, "seed level"]
    y: Float[Tensor, "seed level"]

    def at(self, l0: Float[Tensor, " point"]) -> Float[Tensor, "seed point"]:
        """The measure at other L0s, by linear interpolation in log L0; NaN where a seed's sweep does not reach.

        >>> Curve(torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 6.0]])).at(torch.tensor([2.0, 5.0]))
        tensor([[4., nan]])
        """
        return torch.stack([_interpolate(x.log(), y, l0.log()) for x, y in zip(self.l0, self.y, strict=True)])

    def l0_at(self, y: Float[Tensor, " point"]) -> Float[Tensor, "seed point"]:
        """The L0 at which the measure has some values; for measures that fall or rise with L0 throughout."""
        found = []
        for x, own in zip(self.l0, self.y, strict=True):
            order = own.argsort()
            found.append(_interpolate(own[order], x[order].log(), y).exp())
        return torch.stack(found)


def _interpolate(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    right = torch.searchsorted(x.contiguous(), at.contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    share = (at - x[left]) / (x[right] - x[left])
    inside = (at >= x[0]) & (at <= x[-1])
    return torch.where(inside, y[left] + share * (y[right] - y[left]), torch.nan)


def curve(saes: Sequence[Mapping[str, Any]], measure: str) -> Curve:
    """The curve of one kind of SAE from a committed sweep (`sweeps.Measured.choose`).

    Errors: `ValueError` if the seeds do not have the same levels of sparsity.
    """
    seeds, levels = sorted({s["seed"] for s in saes}), sorted({s["sparsity"] for s in saes})
    cells = {(s["seed"], s["sparsity"]): s for s in saes}
    if len(cells) != len(saes) or len(cells) != len(seeds) * len(levels):
        raise ValueError(f"{len(saes)} SAEs do not fill {len(seeds)} seeds x {len(levels)} levels of sparsity")

    def table(name: str) -> Tensor:
        return torch.tensor([[cells[s, level][name] for level in levels] for s in seeds], dtype=torch.float64)

    l0, y = table("l0"), table(measure)
    order = l0.argsort(dim=1)
    return Curve(l0.gather(1, order), y.gather(1, order))


def common(*curves: Curve, points: int = 9) -> Float[Tensor, " point"]:
    """L0s that every seed of every curve reaches, evenly spaced in the logarithm.

    Errors: `ValueError` if there are none.
    """
    lo = max(float(c.l0[:, 0].max()) for c in curves)
    hi = min(float(c.l0[:, -1].min()) for c in curves)
    if not lo < hi:
        raise ValueError(f"the sweeps have no L0 in common: the sparsest ends at {hi:.3g}, another begins at {lo:.3g}")
    inner = torch.linspace(0, 1, points + 2, dtype=torch.float64)[1:-1]
    return (lo * (hi / lo) ** inner).double()


@torch.no_grad()
def rescale_and_shift(sae: SAE, x: Float[Tensor, "token d_in"], *, ridge: float = 1e-6) -> SAE:
    """A standard SAE with a scale and a shift for every latent, fitted by least squares, all else frozen.

    What Figure 9 of arXiv:2404.16014 fits by gradient descent: f = [π > 0] relu(exp(r_mag) … + b_mag), a gated SAE
    with the standard one's directions. Latents that never fire on `x` keep scale one.

    Memory: (2 · live latents)² floats in float64. Errors: `ValueError` for another kind.

    >>> from mechinterp.sae import initial
    >>> plain = SAE("standard", initial("standard", 4, 8, seed=0))
    >>> x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    >>> fitted = rescale_and_shift(plain, x)
    >>> bool((fitted(x) - x).square().mean() < (plain(x) - x).square().mean())
    True
    """
    gated = same_function(sae, "gated")
    f = sae.encode(x)
    live = (f > 0).any(0).nonzero()[:, 0]
    on = (f[:, live] > 0).double()
    z = torch.cat([f[:, live].double(), on], 1)
    d = sae.W_dec[live].double().repeat(2, 1)
    # x̂ = b_dec + Σ (a f + c [f > 0]) d: the normal equations of a and c.
    normal = (z.T @ z) * (d @ d.T)
    target = (z * ((x - sae.b_dec).double() @ d.T)).sum(0)
    normal.diagonal().add_(ridge * normal.diagonal().mean())
    scale, shift = torch.linalg.solve(normal, target).float().chunk(2)
    rate, extra = shift.new_ones(sae.d_sae), shift.new_zeros(sae.d_sae)
    rate[live], extra[live] = scale.clamp(min=1e-3), shift
    b_mag = rate * gated.params["b_mag"] + extra
    return replace(gated, params=gated.params | {"r_mag": rate.log(), "b_mag": b_mag})
