"""Circuit efficiency: what a logit costs in parameter norm, and where two circuits cost the same.

(Varma et al., arXiv:2309.02390.) A circuit of parameter norm P gives the logit o = (P / P')^κ; P' is its cost, the
norm at which the logit is 1, and the circuit with the smaller P' is the more efficient one. The generalising
circuit's cost is the same whatever the training set; a memorising one's rises with every example. Where the two
curves cross lies D_crit.

Curves over training-set sizes are tensors `[seed size]`: a seed's networks are one repetition of the experiment, so
crossings and slopes are found seed by seed, and the estimate is over seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp import stats
from mechinterp.grokking.model import Shape
from mechinterp.grokking.runs import METRICS, Run, data_of, evaluate
from mechinterp.stats import Estimate


@torch.no_grad()
def scaling_exponent(
    flat: Float[Tensor, " params"], shape: Shape, run: Run, *, scales: tuple[float, ...] = (0.9, 0.95, 1.0, 1.05, 1.1)
) -> float:
    """κ of logit ∝ norm^κ: all parameters times c, log of the mean right logit regressed on log c.

    An answer passes six matrices, W_E W_V W_O W_in W_out W_U, each of which c multiplies once; so κ is 6 with uniform
    attention and no biases, and more if attention sharpens as well.

    Errors: `ValueError` if the network's right logits are not positive, so that it has no exponent.
    """
    data = data_of([run], shape.p, flat.device)
    found = torch.stack([evaluate((c * flat)[None], data, shape)[METRICS.index("train_logit"), 0] for c in scales])
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


def norms_at_loss(runs: Sequence[Mapping[str, Any]], sizes: Sequence[int], target: float) -> Float[Tensor, "seed size"]:
    """`norm_at_loss` of every seed and size, from runs as `sweeps.measured` has them.

    Errors: `ValueError` for a cell with runs of fewer than two weight decays.
    """
    rows = []
    for seed in sorted({run["seed"] for run in runs}):
        cells = [[run for run in runs if (run["seed"], run["size"]) == (seed, size)] for size in sizes]
        columns = [[torch.tensor([run[key] for run in cell]) for key in ("train_loss", "norm")] for cell in cells]
        rows.append([norm_at_loss(loss, norm, target) for loss, norm in columns])
    return torch.tensor(rows, dtype=torch.float64)


def common_losses(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The lowest and the highest train loss that lie between those of every seed's and size's runs.

    Errors: `ValueError` if there is none.

    >>> runs = [{"seed": 0, "size": 9, "train_loss": x} for x in (1e-7, 1e-5)]
    >>> common_losses([*runs, {"seed": 1, "size": 9, "train_loss": 1e-6}, {"seed": 1, "size": 9, "train_loss": 1e-4}])
    (1e-06, 1e-05)
    """
    cells: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        cells.setdefault((run["seed"], run["size"]), []).append(run["train_loss"])
    lo, hi = max(min(cell) for cell in cells.values()), min(max(cell) for cell in cells.values())
    if lo > hi:
        raise ValueError(f"no train loss is common to all networks: some stay above {lo:.1e}, some below {hi:.1e}")
    return lo, hi


def crossings(
    sizes: Sequence[float] | Tensor, curves: Float[Tensor, "seed size"], level: Any, *, bound: bool = False
) -> Float[Tensor, " seed"]:
    """The size at which each seed's curve first reaches its level from below, linear in log size.

    Args:
        level: a number, or one for each seed.
        bound: where a curve does not cross, take the end of `sizes` beyond which it must: the smallest if it is above
            from the start, the largest if it stays below. By default that is an error.

    Errors: `ValueError` for sizes that do not rise, shapes that differ, or a curve that does not cross.

    >>> crossings([100, 400], torch.tensor([[10.0, 30.0]]), 20.0).round()
    tensor([200.], dtype=torch.float64)
    """
    x, curves = torch.as_tensor(sizes).double(), curves.double()
    if len(x) < 2 or (x[1:] <= x[:-1]).any():
        raise ValueError("sizes must rise and be at least two")
    if curves.ndim != 2 or curves.shape[1] != len(x):
        raise ValueError(f"curves are [seed size] with {len(x)} sizes, got shape {tuple(curves.shape)}")
    levels = torch.as_tensor(level, dtype=torch.float64).expand(len(curves))
    found = []
    for curve, height in zip(curves, levels, strict=True):
        above = (curve >= height).nonzero()[:, 0].tolist()
        if not above or above[0] == 0:
            if not bound:
                side = "above" if above else "below"
                raise ValueError(f"a curve is {side} {height.item():.4g} at all sizes: measure more, or set bound=True")
            found.append(x[0] if above else x[-1])
            continue
        i = above[0]
        t = (height - curve[i - 1]) / (curve[i] - curve[i - 1])
        found.append((x[i - 1].log() + t * (x[i] / x[i - 1]).log()).exp())
    return torch.stack(found)


def critical_sizes(
    sizes: Sequence[float] | Tensor,
    memorising: Float[Tensor, "seed size"],
    generalising: Float[Tensor, " seed"],
    *,
    wrong: float = 0.0,
) -> Float[Tensor, " seed"]:
    """D_crit with a fraction of wrong labels, which a generalising network has to memorise as well.

    The squares of norms of circuits in one network add up, so P_gen² + P_mem(wrong · D)² = P_mem(D)². With a power law
    P_mem = A D^s through each seed's norms, D = (P_gen / (A √(1 − wrong^2s)))^(1/s).

    Errors: `ValueError` for a fraction outside 0 … 1, or norms that do not rise with size.

    >>> critical_sizes([100, 400], torch.tensor([[10.0, 20.0]]), torch.tensor([15.0])).round()
    tensor([225.], dtype=torch.float64)
    """
    if not 0 <= wrong < 1:
        raise ValueError(f"the fraction of wrong labels is at least 0 and below 1, not {wrong}")
    x, y = torch.as_tensor(sizes).double().log(), memorising.double().log()
    power = ((x - x.mean()) * y).sum(1) / (x - x.mean()).pow(2).sum()
    if (power <= 0).any():
        raise ValueError(f"the memorising norm does not rise with size: exponents {power.tolist()}")
    paid = generalising.double().log() - (1 - wrong ** (2 * power)).log() / 2
    return ((paid - y.mean(1)) / power + x.mean()).exp()


def over_seeds(sizes: Float[Tensor, " seed"]) -> Estimate:
    """The geometric mean of sizes or ratios, one a seed, with a t interval of their logarithms.

    >>> print(over_seeds(torch.tensor([200.0, 200.0, 200.0])))
    200 [200, 200] (3 seeds)
    """
    if (sizes <= 0).any():
        raise ValueError(f"sizes and ratios are positive, got {sizes.tolist()}")
    return stats.mean(sizes.double().log(), unit="seeds").map(lambda x: float(torch.tensor(x).double().exp()))


def slopes_at_equal_loss(runs: Sequence[Mapping[str, Any]]) -> Float[Tensor, " seed"]:
    """Change of the parameter norm per factor e of the training-set size at the same train loss, seed by seed.

    Least squares of norm = a + b log loss + c log size over each seed's runs; c is returned.

    Errors: `ValueError` for a seed whose runs do not determine the three.
    """
    found = []
    for seed in sorted({run["seed"] for run in runs}):
        own = [run for run in runs if run["seed"] == seed]
        loss, size, norm = (
            torch.tensor([float(run[key]) for run in own], dtype=torch.float64)
            for key in ("train_loss", "size", "norm")
        )
        x = torch.stack([torch.ones_like(size), loss.log(), size.log()], 1)
        if torch.linalg.matrix_rank(x) < 3:
            raise ValueError(
                f"the {len(own)} runs of seed {seed} do not tell size from loss: give more sizes or decays"
            )
        found.append(torch.linalg.lstsq(x, norm[:, None], driver="gelsd").solution[2, 0])
    return torch.stack(found)


def largest_gap(table: Float[Tensor, "decay seed size"]) -> Estimate:
    """How far two weight decays differ where they differ most, without counting what chance alone would find.

    For every seed, the size and the two decays are chosen at which the mean over the *other* seeds differs most; the
    difference is that of this seed, its sign that of the others' difference.

    Errors: `ValueError` for fewer than two decays or seeds.
    """
    if table.ndim != 3 or len(table) < 2 or table.shape[1] < 2:
        raise ValueError(f"the table is [decay seed size] with at least two decays and seeds, got {tuple(table.shape)}")
    found = []
    for seed in range(table.shape[1]):
        rest = torch.cat([table[:, :seed], table[:, seed + 1 :]], 1).mean(1)
        gap = rest.max(0).values - rest.min(0).values
        at = int(gap.argmax())
        high, low = int(rest[:, at].argmax()), int(rest[:, at].argmin())
        found.append(table[high, seed, at] - table[low, seed, at])
    return stats.mean(torch.stack(found), unit="seeds")
