"""Modular addition: every pair (a, b) with the label (a + b) mod p, true or random."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Which pairs a network is trained on, and with which labels. Pairs are numbered a · p + b.

    Attributes:
        train: indices of the training pairs, in random order.
        test: indices of all other pairs.
        labels: one label for each of the p² pairs; wrong ones only among the training pairs.
    """

    train: Int[Tensor, " size"]
    test: Int[Tensor, " rest"]
    labels: Int[Tensor, " pairs"]


def is_prime(n: int) -> bool:
    """Trial division.

    >>> [n for n in range(12) if is_prime(n)]
    [2, 3, 5, 7, 11]
    """
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def pairs(p: int) -> Int[Tensor, "pairs 2"]:
    """All p² pairs, pair number a · p + b.

    Errors: `ValueError` if p is not prime: for a composite p the frequencies 2πk/p are not alike (some
    of them see only a quotient of the group), so neither the task nor the analysis is the paper's.

    >>> pairs(3)[5].tolist()
    [1, 2]
    """
    if not is_prime(p):
        raise ValueError(f"p = {p} is not prime; the Fourier analysis needs one, such as 53, 67 or 113")
    return torch.cartesian_prod(torch.arange(p), torch.arange(p))


def split(p: int, size: int, *, seed: int = 0, random_labels: float = 0.0) -> Split:
    """A training set of `size` pairs and the rest; with one seed, smaller sets lie inside larger ones.

    Args:
        size: training pairs, 1 to p².
        random_labels: fraction of the training pairs (the first ones in their order) whose label is
            drawn uniformly instead of computed, so 1.0 leaves nothing to generalise from.

    >>> small, large = split(7, 10), split(7, 20)
    >>> set(small.train.tolist()) < set(large.train.tolist())
    True
    """
    table = pairs(p)
    if not 1 <= size <= p**2:
        raise ValueError(f"size = {size} is outside 1 .. p² = {p**2}, the number of pairs for p = {p}")
    if not 0 <= random_labels <= 1:
        raise ValueError(f"random_labels = {random_labels} is a fraction, 0 to 1")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(p**2, generator=generator)
    noise = torch.randint(p, (p**2,), generator=generator)
    labels = table.sum(1) % p
    corrupted = order[: round(random_labels * size)]
    labels[corrupted] = noise[corrupted]
    return Split(order[:size], order[size:], labels)
