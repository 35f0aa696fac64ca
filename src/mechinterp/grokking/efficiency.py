"""Circuit efficiency: what a logit costs in parameter norm, and where two circuits cost the same.

(Varma et al., arXiv:2309.02390.) The generalising circuit costs the same whatever the training set; a memorising one
costs more with every example. Where the two curves cross lies D_crit.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.grokking.model import Shape
from mechinterp.grokking.training import METRICS, Run, _data, _evaluate


@torch.no_grad()
def scaling_exponent(
    flat: Float[Tensor, " params"], shape: Shape, run: Run, *, scales: tuple[float, ...] = (0.9, 0.95, 1.0, 1.05, 1.1)
) -> float:
    """κ of logit ∝ norm^κ: all parameters times c, log of the mean right logit regressed on log c.

    Errors: `ValueError` if the network's right logits are not positive, so that it has no exponent.
    """
    data = _data([run], shape.p, flat.device)
    found = torch.stack([_evaluate((c * flat)[None], data, shape)[METRICS.index("train_logit"), 0] for c in scales])
    if (found <= 0).any():
        raise ValueError("the mean logit of the right answer is not positive")
    x = torch.tensor(scales, dtype=torch.float64).log()
    y = found.log().cpu()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).pow(2).sum()).item()


def norm_at_loss(loss: Float[Tensor, " decay"], norm: Float[Tensor, " decay"], target: float) -> float:
    """Parameter norm at a train loss, by a straight line of norm over log loss through runs of several weight decays.

    >>> round(norm_at_loss(torch.tensor([1e-4, 1e-6]), torch.tensor([20.0, 30.0]), 1e-5), 3)
    25.0
    """
    if len(loss) < 2:
        raise ValueError("runs of at least two weight decays are needed to match the loss")
    x, y = loss.double().log(), norm.double()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).pow(2).sum().clamp(min=1e-12)
    return (y.mean() + slope * (torch.tensor(target, dtype=torch.float64).log() - x.mean())).item()


@dataclass(frozen=True)
class Located:
    """A training-set size, with a bootstrap interval over seeds; NaN where the curves do not cross."""

    size: float
    interval: tuple[float, float]


def crossing(
    sizes: Float[Tensor, " size"],
    rising: Float[Tensor, "seed size"],
    level: Float[Tensor, " seed_of_level"],
    *,
    n: int = 1000,
    seed: int = 0,
) -> Located:
    """Where the mean of rising curves reaches the mean of `level`, linear in log size.

    With the memorising norms by size as `rising` and the generalising norms as `level` this is D_crit by efficiency;
    with test accuracies and one half it is D_crit by ungrokking. The bootstrap draws from both sets of seeds.

    >>> found = crossing(torch.tensor([100.0, 400.0]), torch.tensor([[10.0, 30.0]]), torch.tensor([20.0]))
    >>> round(found.size), found.interval == (found.size, found.size)
    (200, True)
    """
    if len(sizes) < 2 or (sizes[1:] <= sizes[:-1]).any():
        raise ValueError("sizes must rise and be at least two")
    generator = torch.Generator().manual_seed(seed)
    rising, level = rising.double(), level.double()

    def cross(curve: Tensor, height: Tensor) -> float:
        above = (curve >= height).nonzero()[:, 0]
        if len(above) == 0 or above[0] == 0:
            return float("nan")
        i = int(above[0])
        x0, x1 = sizes[i - 1].double().log(), sizes[i].double().log()
        t = (height - curve[i - 1]) / (curve[i] - curve[i - 1])
        return (x0 + t * (x1 - x0)).exp().item()

    value = cross(rising.mean(0), level.mean())
    draws = []
    for _ in range(n):
        rows = torch.randint(len(rising), (len(rising),), generator=generator)
        others = torch.randint(len(level), (len(level),), generator=generator)
        draws.append(cross(rising[rows].mean(0), level[others].mean()))
    found = torch.tensor([d for d in draws if d == d], dtype=torch.float64)
    if len(found) < 0.9 * n:
        return Located(value, (float("nan"), float("nan")))
    lo, hi = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Located(value, (lo, hi))
