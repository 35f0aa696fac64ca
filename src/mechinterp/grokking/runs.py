"""One training run as it is described, its data, and how it is evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.datasets.modular_addition import pairs, split
from mechinterp.grokking.model import Shape, logits, norm, unpack

METRICS = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "norm", "train_logit")


@dataclass(frozen=True)
class Run:
    """One training run. `random_labels` is the fraction of its training pairs with labels drawn at random."""

    size: int
    seed: int = 0
    weight_decay: float = 1.0
    random_labels: float = 0.0


@dataclass(frozen=True)
class Data:
    """Training pairs of a stack, padded to the largest set, and masks for the evaluation."""

    a: Int[Tensor, "runs batch"]
    b: Int[Tensor, "runs batch"]
    labels: Int[Tensor, "runs batch"]
    share: Float[Tensor, "runs batch"]
    table: Int[Tensor, "pairs 2"]
    all_labels: Int[Tensor, "runs pairs"]
    trained: Float[Tensor, "runs pairs"]

    def rows(self, keep: Tensor) -> "Data":
        return Data(
            self.a[keep],
            self.b[keep],
            self.labels[keep],
            self.share[keep],
            self.table,
            self.all_labels[keep],
            self.trained[keep],
        )


def data_of(runs: Sequence[Run], p: int, device: torch.device) -> Data:
    """Training pairs, labels and masks of a stack of runs.

    Errors: `ValueError` for a size or a fraction of random labels out of range, or p that is not prime.
    """
    splits = [split(p, run.size, seed=run.seed, random_labels=run.random_labels) for run in runs]
    table, widest = pairs(p), max(run.size for run in runs)
    index = torch.zeros(len(runs), widest, dtype=torch.long)
    share = torch.zeros(len(runs), widest, dtype=torch.float64)
    trained = torch.zeros(len(runs), p**2, dtype=torch.bool)
    for i, s in enumerate(splits):
        index[i, : len(s.train)] = s.train
        share[i, : len(s.train)] = 1 / len(s.train)
        trained[i, s.train] = True
    labels = torch.stack([s.labels for s in splits])
    a, b = table[index].unbind(-1)
    parts = (a, b, labels.gather(1, index), share, table, labels, trained)
    return Data(*(part.to(device) for part in parts))


@torch.no_grad()
def evaluate(flat: Tensor, data: Data, shape: Shape) -> Float[Tensor, "metrics runs"]:
    """All `METRICS`, one run after another: a run's p² × p logits are enough memory."""
    rows = []
    for i in range(len(flat)):
        a, b = data.table.T[:, None]
        values = logits(unpack(flat[i : i + 1], shape), a, b)[0]
        right = values.gather(-1, data.all_labels[i, :, None])[:, 0]
        loss = values.double().logsumexp(-1) - right
        correct = (values.argmax(-1) == data.all_labels[i]).double()
        train, test = data.trained[i].double(), (~data.trained[i]).double()
        mean = [(x * m).sum() / m.sum() for x in (loss, correct) for m in (train, test)]
        centred = ((right - values.mean(-1)) * train).sum() / train.sum()
        rows.append(torch.stack([*mean, norm(flat[i]).double(), centred]))
    return torch.stack(rows, dim=1)
