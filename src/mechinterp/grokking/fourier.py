"""What a network that adds modulo p has learnt, read in the Fourier basis (Nanda et al., arXiv:2301.05217).

A network that generalises computes Σ_k α_k cos(w_k (a + b − c)), w_k = 2πk/p, for a few key frequencies k. All tools
take the logits (or activations) on the whole table of inputs, [a, b, …].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.datasets.modular_addition import pairs
from mechinterp.grokking.model import Shape, hidden, logits, unpack


@torch.no_grad()
def all_logits(flat: Float[Tensor, " params"], shape: Shape) -> Float[Tensor, "a b c"]:
    """One network's logits on the whole table, mean over answers removed."""
    a, b = pairs(shape.p).to(flat.device).T[:, None]
    values = logits(unpack(flat[None], shape), a, b)[0]
    return (values - values.mean(-1, keepdim=True)).unflatten(0, (shape.p, shape.p))


def _over_difference(table: Float[Tensor, "a b c"]) -> Float[Tensor, " p"]:
    """Mean over all inputs of the logit of the answer c = a + b − d, by d."""
    p = len(table)
    a, b, d = torch.meshgrid(*[torch.arange(p, device=table.device)] * 3, indexing="ij")
    return table.gather(2, (a + b - d) % p).mean((0, 1))


def trig_share(table: Float[Tensor, "a b c"]) -> float:
    """Share of the logits' energy in span{cos, sin(w_k (a + b − c)) : all k}; Varma et al. call a net C_gen above 95 %.

    Functions of a + b − c alone are that span, so the projection is a mean. Energy is the sum of squares: the share of
    the norm is the square root and larger. Random logits have 1 / p².

    >>> c = torch.arange(7)
    >>> table = torch.cos(2 * torch.pi * 3 / 7 * (c[:, None, None] + c[:, None] - c))
    >>> round(trig_share(table), 4)
    1.0
    """
    g = _over_difference(table)
    return (g.pow(2).sum() * len(table) ** 2 / table.pow(2).sum()).item()


def logit_spectrum(table: Float[Tensor, "a b c"]) -> Float[Tensor, " frequency"]:
    """Share of the energy of the trigonometric part by frequency k = 1 … (p − 1) / 2."""
    power = torch.fft.rfft(_over_difference(table)).abs().pow(2)[1:]
    return power / power.sum()


def embedding_spectrum(w_e: Float[Tensor, "token d_model"]) -> Float[Tensor, " frequency"]:
    """Norm of the embedding's component of each frequency k = 1 … (p − 1) / 2, sine and cosine together.

    Args:
        w_e: embeddings of the p numbers, without the equals sign.
    """
    return (torch.fft.rfft(w_e, dim=0).abs().pow(2).sum(1)[1:] * 2 / len(w_e)).sqrt()


@dataclass(frozen=True)
class Neurons:
    """For every MLP neuron the frequency that explains most of it, and how much.

    Attributes:
        frequency: k. share: of its variance over all inputs in the 3 x 3 block {1, cos k, sin k}² without the constant.
        variance: of its activation; a neuron that never fires has 0.
    """

    frequency: Int[Tensor, " neuron"]
    share: Float[Tensor, " neuron"]
    variance: Float[Tensor, " neuron"]

    def alive(self) -> Tensor:
        """Neurons with more than a thousandth of the mean variance."""
        return self.variance > 1e-3 * self.variance.mean()

    def clustered(self, threshold: float = 0.85) -> float:
        """Share of the live neurons that one frequency explains to more than `threshold`."""
        return (self.share[self.alive()] > threshold).float().mean().item()

    def key(self, threshold: float = 0.85, at_least: float = 0.02) -> list[int]:
        """Key frequencies: those that own at least that share of the live neurons above the threshold."""
        chosen = self.frequency[self.alive() & (self.share > threshold)]
        if len(chosen) == 0:
            return []
        count = torch.bincount(chosen)
        return (count >= at_least * len(chosen)).logical_and(count > 0).nonzero()[:, 0].tolist()


@torch.no_grad()
def neuron_frequencies(flat: Float[Tensor, " params"], shape: Shape) -> Neurons:
    """2-D Fourier transform of every neuron over all inputs (Nanda et al., section 5.1)."""
    p = shape.p
    a, b = pairs(p).to(flat.device).T[:, None]
    _, act = hidden(unpack(flat[None], shape), a, b)
    act = act[0].unflatten(0, (p, p)).double()
    power = torch.fft.fft2(act, dim=(0, 1)).abs().pow(2)  # [p, p, neuron]
    power[0, 0] = 0
    k = torch.arange(1, (p + 1) // 2, device=act.device)
    # The block of frequency k: indices 0, k and p − k on both axes.
    block = torch.stack([torch.zeros_like(k), k, p - k], 1)
    inside = power[block[:, :, None], block[:, None, :]].sum((1, 2))
    total = power.sum((0, 1))
    best = inside.max(0)
    return Neurons(
        k[best.indices].cpu(), (best.values / total.clamp(min=1e-30)).float().cpu(), (total / p**4).float().cpu()
    )


def key_part(table: Float[Tensor, "a b c"], frequencies: Sequence[int]) -> Float[Tensor, "a b c"]:
    """The components cos, sin(w_k (a + b)) of the logits over inputs, for the given k: a projection.

    >>> s = torch.arange(7)[:, None] + torch.arange(7)
    >>> table = (2 * torch.pi * 3 / 7 * s).cos()[:, :, None].expand(7, 7, 7)
    >>> bool(torch.allclose(key_part(table, [3]), table, atol=1e-5)), bool(key_part(table, [2]).abs().max() < 1e-5)
    (True, True)
    """
    p = len(table)
    a, s = torch.meshgrid(*[torch.arange(p, device=table.device)] * 2, indexing="ij")
    by_sum = table[a, (s - a) % p].mean(0)  # mean over inputs with a + b = s: [s, c]
    spectrum = torch.fft.rfft(by_sum, dim=0)
    mask = torch.zeros(len(spectrum), 1, device=table.device)
    mask[list(frequencies)] = 1
    kept = torch.fft.irfft(spectrum * mask, n=p, dim=0)
    return kept[(a + s) % p]


def _loss(table: Float[Tensor, "a b c"], which: Int[Tensor, " pair"] | None) -> float:
    p = len(table)
    labels = pairs(p).sum(1).to(table.device) % p
    rows = table.flatten(0, 1).double()
    chosen = torch.arange(p * p, device=table.device) if which is None else which.to(table.device)
    return torch.nn.functional.cross_entropy(rows[chosen], labels[chosen]).item()


def restricted_loss(
    table: Float[Tensor, "a b c"], key: Sequence[int], which: Int[Tensor, " pair"] | None = None
) -> float:
    """Loss (nats) if of the logits only cos, sin(w_k (a + b)) for key k and their mean over inputs are kept.

    Args:
        which: pairs to average over, all by default.
    """
    return _loss(key_part(table, key) + table.mean((0, 1)), which)


def excluded_loss(
    table: Float[Tensor, "a b c"], key: Sequence[int], which: Int[Tensor, " pair"] | None = None
) -> float:
    """Loss (nats) if exactly those components are taken away; log p is a network that has nothing left."""
    return _loss(table - key_part(table, key), which)


def gini(values: Float[Tensor, " x"]) -> float:
    """Gini coefficient of non-negative values: 0 if all are equal, near 1 if one has everything.

    >>> gini(torch.ones(10)), round(gini(torch.tensor([0.0] * 99 + [1.0])), 2)
    (0.0, 0.99)
    """
    if (values < 0).any() or values.sum() <= 0:
        raise ValueError("gini needs values that are not negative and not all zero")
    x = values.double().sort().values
    n = len(x)
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)
    return (2 * (ranks * x).sum() / (n * x.sum()) - (n + 1) / n).item()
