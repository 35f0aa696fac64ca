"""Two circuits and one optimiser: the smallest simulation that groks (Varma et al., section 3 and Appendices C, D).

A generalising circuit says the right class with weight x = g₁ g₂, a memorising one with weight y = m₁ m₂: the right
class in training, a wrong one at test time. Gradient descent lowers the train loss plus a penalty on their cost.
"""

from dataclasses import dataclass, replace
from math import exp

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Toy:
    """Constants of the simulation; the defaults are the paper's.

    Attributes:
        classes: q. alpha: strength of the penalty. cost_gen, cost_mem: norm of each circuit at weight 1.
        kappa: a circuit's logits grow with its norm to the power κ, so the penalty is α P'² weight^(2/κ).
        start: g₁, g₂, m₁, m₂ at step 0; the generalising circuit starts so small that it is slow.
    """

    classes: int = 113
    alpha: float = 0.005
    cost_gen: float = 1.0
    cost_mem: float = 2.0
    kappa: float = 1.2
    lr: float = 0.01
    start: tuple[float, float, float, float] = (0.0, 0.005, 0.0, 1.0)

    @property
    def exponent(self) -> float:
        return 2 / self.kappa

    def ratio(self) -> float:
        """x / y at the minimum: (cost_mem² / cost_gen²)^(1 / (r − 1)), r = 2/κ; for r ≤ 1 one circuit takes all."""
        if self.exponent <= 1:
            raise ValueError(f"κ = {self.kappa} is 2 or more: only the more efficient circuit survives")
        return (self.cost_mem / self.cost_gen) ** (2 / (self.exponent - 1))


@dataclass(frozen=True)
class Course:
    """The run: weights of both circuits, and losses in nats, at every step."""

    gen: Float[Tensor, " step"]
    mem: Float[Tensor, " step"]
    train_loss: Float[Tensor, " step"]
    test_loss: Float[Tensor, " step"]

    def first_below(self, nats: float, *, test: bool = False) -> int:
        """The first step at which the train (or test) loss is below `nats`; the number of steps if it never is."""
        below = (self.test_loss if test else self.train_loss) < nats
        return int(below.float().argmax()) if below.any() else len(below)

    def grokking(self, nats: float = 1.0) -> dict[str, float]:
        """What makes a run grok: the test loss when the train loss falls below `nats` ("memorised", worse than guessing
        if only memory has learnt), how many times later the test loss does ("delay"), and the "final" test loss.
        """
        first = self.first_below(nats)
        return {
            "memorised": self.test_loss[min(first, len(self.test_loss) - 1)].item(),
            "delay": self.first_below(nats, test=True) / max(first, 1),
            "final": self.test_loss[-1].item(),
        }


def without_an_ingredient(each: int = 8, *, seed: int = 0) -> dict[str, list[Toy]]:
    """Toys that lack one of the three ingredients, and whose other constants are the paper's within a factor of two.

    - "nothing generalises": g₂ starts at 0, so the generalising circuit is never learnt;
    - "memory is cheaper": the two costs are exchanged;
    - "equally fast": g₂ starts where m₂ does.

    >>> [len(toys) for toys in without_an_ingredient(3).values()]
    [3, 3, 3]
    """
    paper, generator = Toy(), torch.Generator().manual_seed(seed)

    def varied(x: float) -> float:
        return x * 2 ** (2 * float(torch.rand((), generator=generator)) - 1)

    def toys(slow: float, gen: float, mem: float) -> list[Toy]:
        return [
            Toy(alpha=varied(paper.alpha), cost_gen=gen, cost_mem=mem, start=(0.0, varied(slow), 0.0, varied(1.0)))
            for _ in range(each)
        ]

    slow, gen, mem = paper.start[1], paper.cost_gen, paper.cost_mem
    return {
        "nothing generalises": toys(0.0, gen, mem),
        "memory is cheaper": toys(slow, mem, gen),
        "equally fast": [replace(toy, start=(0.0, toy.start[3], 0.0, toy.start[3])) for toy in toys(1.0, gen, mem)],
    }


def simulate(toy: Toy, steps: int = 30_000) -> Course:
    """Gradient descent on log(e^(x+y) + q − 1) − (x + y) + α (P'_gen² x^r + P'_mem² y^r), by its closed-form gradient.

    The test loss is log(e^x + e^y + q − 2) − x.
    """
    g1, g2, m1, m2 = toy.start
    r, q = toy.exponent, toy.classes
    weights = torch.empty(steps, 2, dtype=torch.float64)
    for step in range(steps):
        gen, mem = g1 * g2, m1 * m2
        weights[step, 0], weights[step, 1] = gen, mem
        # dCE/d(x + y) = p − 1, with p the probability of the right class.
        push = 1 / (1 + (q - 1) * exp(-(gen + mem))) - 1
        dx = push + toy.alpha * toy.cost_gen**2 * r * max(gen, 0.0) ** (r - 1)
        dy = push + toy.alpha * toy.cost_mem**2 * r * max(mem, 0.0) ** (r - 1)
        g1, g2 = g1 - toy.lr * dx * g2, g2 - toy.lr * dx * g1
        m1, m2 = m1 - toy.lr * dy * m2, m2 - toy.lr * dy * m1
    x, y = weights.unbind(1)
    rest = torch.full_like(x, float(q - 1)).log()
    others = torch.full_like(x, float(q - 2)).log()
    train = torch.logaddexp(x + y, rest) - (x + y)
    test = torch.stack([x, y, others]).logsumexp(0) - x
    return Course(x, y, train, test)
