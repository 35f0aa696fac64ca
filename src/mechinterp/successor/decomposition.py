"""Index plus domain: is "February" the sum of 2 and of months? (Gould et al., section 3)"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Decomposition:
    """x ≈ index[value] + domain[task], fitted by least squares.

    Attributes:
        index: one vector a value, `values` says which; they sum to zero over the fitted words.
        domain: one vector a task.
        explained: share of the variance around the task means that the values explain, on the fitted words.
    """

    values: tuple[int, ...]
    tasks: tuple[str, ...]
    index: Float[Tensor, "value d_model"]
    domain: Float[Tensor, "task d_model"]
    explained: float

    def synthesise(self, value: int, task: str) -> Float[Tensor, " d_model"]:
        """The representation of a word from its value and its task; `ValueError` for one that was not fitted."""
        if value not in self.values or task not in self.tasks:
            raise ValueError(f"value {value} or task {task!r} was not among the fitted words")
        return self.index[self.values.index(value)] + self.domain[self.tasks.index(task)]


def decompose(
    x: Float[Tensor, "word d_model"],
    values: Int[Tensor, " word"],
    tasks: Sequence[str],
    held_out: Bool[Tensor, " word"] | None = None,
    *,
    ridge: float = 1e-3,
) -> Decomposition:
    """Fit index and domain components on the words that are not held out, by ridge regression on one-hot labels.

    Errors: `ValueError` if every word is held out, or a task or value of no fitted word is needed.
    """
    keep = torch.ones(len(x), dtype=torch.bool) if held_out is None else ~held_out
    if not keep.any():
        raise ValueError("every word is held out")
    every_value = tuple(sorted(set(values[keep].tolist())))
    every_task = tuple(dict.fromkeys(t for t, k in zip(tasks, keep.tolist(), strict=True) if k))
    place = torch.tensor([every_value.index(int(v)) for v in values[keep]])
    group = torch.tensor([every_task.index(t) for t, k in zip(tasks, keep.tolist(), strict=True) if k])
    design = torch.cat(
        [torch.nn.functional.one_hot(group, len(every_task)), torch.nn.functional.one_hot(place, len(every_value))], 1
    ).double()
    # Only the indices are shrunk, so that the domains take the means.
    penalty = torch.diag(torch.tensor([1e-9] * len(every_task) + [ridge] * len(every_value), dtype=torch.float64))
    y = x[keep].double().cpu()
    weights = torch.linalg.solve(design.T @ design + penalty, design.T @ y)
    domain, index = weights.split([len(every_task), len(every_value)])
    means = torch.stack([y[group == g].mean(0) for g in range(len(every_task))])[group]
    residual = (y - design @ weights).pow(2).sum() / (y - means).pow(2).sum().clamp(min=1e-12)
    return Decomposition(every_value, every_task, index.float(), domain.float(), 1 - residual.item())


@dataclass(frozen=True)
class Projections:
    """x(value of a, task of b) ≈ centre + index · (x(a) − centre) + domain · (x(b) − centre).

    Attributes:
        index: reads the value of a word. domain: reads its task. Both map a column vector.
        centre: mean of the fitted words.
    """

    index: Float[Tensor, "d_model d_model"]
    domain: Float[Tensor, "d_model d_model"]
    centre: Float[Tensor, " d_model"]

    def combine(
        self, value_of: Float[Tensor, "*batch d_model"], task_of: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The word with the value of one word and the task of another."""
        return self.centre + (value_of - self.centre) @ self.index.T + (task_of - self.centre) @ self.domain.T


def train_projections(
    x: Float[Tensor, "word d_model"],
    values: Int[Tensor, " word"],
    tasks: Sequence[str],
    held_out: Bool[Tensor, " word"] | None = None,
    *,
    ridge: float = 1e-2,
) -> Projections:
    """Two linear maps that take a word apart, trained on every pair of words whose combination is a word, too.

    Least squares over all pairs (a, b) for which the word with a's value and b's task exists; no held-out word
    is a, b or the target.

    Args:
        ridge: penalty on both maps, relative to the mean variance of a coordinate times the number of pairs.

    Errors: `ValueError` if fewer than two tasks or two values are left to combine.
    """
    keep = torch.ones(len(x), dtype=torch.bool) if held_out is None else ~held_out
    where = {(int(values[i]), tasks[i]): i for i in keep.nonzero()[:, 0].tolist()}
    if len({v for v, _ in where}) < 2 or len({t for _, t in where}) < 2:
        raise ValueError("at least two tasks and two values are needed to tell index from domain")
    triples = [(a, b, where[v, t]) for (v, _), a in where.items() for (_, t), b in where.items() if (v, t) in where]
    a, b, target = torch.tensor(triples).T
    y = x.double().cpu()
    centre = y[keep].mean(0)
    y = y - centre
    inputs = torch.cat([y[a], y[b]], 1)
    size = len(triples) * y[keep].pow(2).mean()
    gram = inputs.T @ inputs + ridge * size * torch.eye(inputs.shape[1], dtype=torch.float64)
    index, domain = torch.linalg.solve(gram, inputs.T @ y[target]).split(x.shape[1])
    return Projections(index.T.float(), domain.T.float(), centre.float())
