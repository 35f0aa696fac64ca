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
    """The curve of one kind of SAE from a sweep (`sweeps.Measured`): of the seeds that have all levels of sparsity.

    Errors: `ValueError` if no seed has them, or one has a level twice.
    """
    levels = sorted({s["sparsity"] for s in saes})
    cells = {(s["seed"], s["sparsity"]): s for s in saes}
    seeds = [seed for seed in sorted({s["seed"] for s in saes}) if all((seed, level) in cells for level in levels)]
    if len(cells) != len(saes) or not seeds:
        raise ValueError(f"of {len(saes)} SAEs at {len(levels)} levels of sparsity no seed has every level once")

    def table(name: str) -> Tensor:
        return torch.tensor([[cells[s, level][name] for level in levels] for s in seeds], dtype=torch.float64)

    l0, y = table("l0"), table(measure)
    order = l0.argsort(dim=1)
    return Curve(l0.gather(1, order), y.gather(1, order))


def by_seed(saes: Sequence[Mapping[str, Any]], measure: str, l0: float) -> Float[Tensor, " seed"]:
    """One measure of every seed at one L0: each SAE at the level that most seeds have, moved along the curve.

    Moved means multiplied by what the curve of the complete seeds gains from the SAE's own L0 to that one.

    Errors: `ValueError` as in `curve`, or if the curve does not reach so far.

    >>> row = {"sparsity": 1, "seed": 0, "l0": 8.0, "fvu": 0.4}
    >>> saes = [row, row | {"sparsity": 2, "l0": 32.0, "fvu": 0.2}, row | {"seed": 1, "fvu": 0.5}]
    >>> by_seed(saes, "fvu", 16.0)
    tensor([0.3000, 0.3750], dtype=torch.float64)
    """
    whole = curve(saes, measure)
    mean = Curve(whole.l0.mean(0, keepdim=True), whole.y.mean(0, keepdim=True))
    levels = [s["sparsity"] for s in saes]
    level = max(dict.fromkeys(levels), key=levels.count)
    own = sorted((s for s in saes if s["sparsity"] == level), key=lambda s: s["seed"])
    at = torch.tensor([l0, *(s["l0"] for s in own)], dtype=torch.float64)
    low, high = float(mean.l0[0, 0]), float(mean.l0[0, -1])
    if not low <= l0 <= high:
        raise ValueError(f"this sweep has L0s from {low:.3g} to {high:.3g}, and not {l0:.3g}")
    there, *here = mean.at(at.clamp(low, high))[0]
    return torch.stack([s[measure] * there / y for s, y in zip(own, here, strict=True)])


@dataclass(frozen=True)
class Costs:
    """What one seed's SAEs of a kind cost on every row of held-out text, by increasing L0; nats per token."""

    l0: Float[Tensor, " level"]
    cost: Float[Tensor, "row level"]

    def at(self, l0: Float[Tensor, " point"]) -> Float[Tensor, "row point"]:
        """The costs at other L0s, as `Curve.at`."""
        return torch.stack([_interpolate(self.l0.log(), y, l0.log()) for y in self.cost])


def costs(saes: Sequence[Mapping[str, Any]]) -> Costs:
    """The costs of the first seed that has all levels of sparsity.

    Errors: `ValueError` as in `curve`.
    """
    l0 = curve(saes, "l0").l0[0]
    own = [next(s for s in saes if s["l0"] == value) for value in l0.tolist()]
    return Costs(l0, torch.tensor([s["rows"] for s in own], dtype=torch.float64).T)


def common(*curves: Curve | Costs, points: int = 9) -> Float[Tensor, " point"]:
    """L0s that every seed of every curve reaches, evenly spaced in the logarithm.

    Errors: `ValueError` if there are none.
    """
    lo = max(float(c.l0[..., 0].max()) for c in curves)
    hi = min(float(c.l0[..., -1].min()) for c in curves)
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
