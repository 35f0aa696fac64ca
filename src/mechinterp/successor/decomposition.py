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
