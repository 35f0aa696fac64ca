"""Mod-10 features: directions shared by all tokens whose number ends in the same digit (Gould et al., section 3).

Found twice, without labels by a sparse dictionary and with labels by a linear probe; they should agree.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Dictionaries:
    """Sparse dictionaries of the same data from several seeds, trained side by side.

    Attributes:
        decoder: unit-norm features. `codes`: activation of every feature on every input.
        loss: final MSE and mean L1, by seed.
    """

    decoder: Float[Tensor, "seed feature d_model"]
    codes: Float[Tensor, "seed input feature"]
    loss: Float[Tensor, "seed two"]

    def stability(self) -> Float[Tensor, " seed"]:
        """Mean over live features of the largest cosine with any feature of another seed, by seed."""
        seeds = len(self.decoder)
        if seeds < 2:
            raise ValueError("stability compares seeds; train at least two")
        live = (self.codes > 0).any(1)
        cosines = torch.einsum("afd,bgd->abfg", self.decoder, self.decoder)
        cosines = cosines.masked_fill(~live[None, :, None, :], -1).amax(-1)  # seed, other, feature
        best = cosines.masked_fill(torch.eye(seeds, dtype=torch.bool)[:, :, None], 0).sum(1) / (seeds - 1)
        return (best * live).sum(1) / live.sum(1).clamp(min=1)


def train_dictionaries(
    x: Float[Tensor, "input d_model"],
    *,
    features: int = 512,
    l1: float = 0.3,
    seeds: int = 8,
    steps: int = 2000,
    lr: float = 3e-3,
    seed: int = 0,
) -> Dictionaries:
    """ReLU dictionaries with unit-norm features, loss MSE + l1 · Σ|code|, all seeds as one batched model.

    The data are centred and scaled to mean norm 1; the features are directions of the centred data.

    Errors: `ValueError` for no data, or data that are not finite.
    """
    if x.ndim != 2 or len(x) == 0 or not torch.isfinite(x).all():
        raise ValueError(f"x must be finite and of shape [input d_model], got {tuple(x.shape)}")
    generator = torch.Generator().manual_seed(seed)
    x = (x - x.mean(0)).detach().cpu()
    x = x / x.norm(dim=-1).mean().clamp(min=1e-8)
    d = x.shape[1]
    decoder = torch.randn(seeds, features, d, generator=generator)
    decoder = torch.nn.functional.normalize(decoder, dim=-1)
    encoder, bias = decoder.clone(), torch.zeros(seeds, 1, features)
    parameters = [p.requires_grad_(True) for p in (decoder, encoder, bias)]
    optimiser = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        unit = torch.nn.functional.normalize(decoder, dim=-1)
        codes = torch.relu(x @ encoder.transpose(1, 2) + bias)
        error = (codes @ unit - x).pow(2).sum(-1).mean(1)
        size = codes.sum(-1).mean(1)
        optimiser.zero_grad()
        (error + l1 * size).sum().backward()
        optimiser.step()
    unit = torch.nn.functional.normalize(decoder, dim=-1)
    return Dictionaries(unit.detach(), codes.detach(), torch.stack([error, size], 1).detach())


def residue_features(
    dictionaries: Dictionaries, residue: Int[Tensor, " input"], *, classes: int = 10
) -> tuple[Float[Tensor, "seed residue d_model"], Float[Tensor, "seed residue"]]:
    """For every seed and residue the feature that marks it best, and how well (area under the ROC curve).

    A feature marks a residue if it is stronger on inputs of that residue than on others; ties, above all the inputs on
    which a feature is off, count one half.
    """
    codes = dictionaries.codes
    order = _ranks(codes.transpose(1, 2)).transpose(1, 2)
    best, scores = [], []
    for r in range(classes):
        own = residue == r
        n, m = int(own.sum()), int((~own).sum())
        if n == 0 or m == 0:
            raise ValueError(f"no input of residue {r}" if n == 0 else f"every input has residue {r}")
        auc = (order[:, own].sum(1) - n * (n + 1) / 2) / (n * m)
        auc = torch.where((codes > 0).any(1), auc, torch.zeros_like(auc))  # a dead feature marks nothing
        score, feature = auc.max(1)
        best.append(dictionaries.decoder[torch.arange(len(codes)), feature])
        scores.append(score)
    return torch.stack(best, 1), torch.stack(scores, 1).float()


def _ranks(values: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch input"]:
    """Rank of each input, from 1; equal values share their mean rank. Memory: a few times `values`."""
    values = values.contiguous()
    ordered = values.sort(-1).values.contiguous()
    below = torch.searchsorted(ordered, values)
    upto = torch.searchsorted(ordered, values, right=True)
    return (below + upto + 1).double() / 2


@dataclass(frozen=True)
class Probe:
    """Multinomial logistic regression. `directions` are class weights minus their mean; `accuracy` is on `held_out`."""

    directions: Float[Tensor, "residue d_model"]
    bias: Float[Tensor, " residue"]
    train_accuracy: float
    accuracy: float

    def predict(self, x: Float[Tensor, "input d_model"]) -> Int[Tensor, " input"]:
        """The likeliest residue."""
        return (x @ self.directions.T + self.bias).argmax(-1)


def linear_probe(
    x: Float[Tensor, "input d_model"],
    residue: Int[Tensor, " input"],
    held_out: Tensor,
    *,
    l2: float = 1e-3,
    steps: int = 200,
    classes: int = 10,
) -> Probe:
    """Fit residues on the inputs that are not held out (a mask), L-BFGS on the exact loss.

    Errors: `ValueError` if nothing is left to fit or to test.
    """
    if held_out.all() or not held_out.any():
        raise ValueError("hold out some inputs, and not all of them")
    x = x.detach().cpu().float()
    centre = x[~held_out].mean(0)
    scale = (x[~held_out] - centre).norm(dim=-1).mean()
    z = (x - centre) / scale
    weights = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = z[~held_out] @ weights.T + bias
        loss = torch.nn.functional.cross_entropy(logits, residue[~held_out]) + l2 * weights.pow(2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        guess = (z @ weights.T + bias).argmax(-1) == residue
        directions = (weights - weights.mean(0)) / scale
        offset = bias - (weights - weights.mean(0)) @ centre / scale
    return Probe(directions, offset, guess[~held_out].float().mean().item(), guess[held_out].float().mean().item())


def agreement(
    features: Float[Tensor, "seed residue d_model"], directions: Float[Tensor, "residue d_model"]
) -> Float[Tensor, "seed residue"]:
    """Cosine between the dictionary's feature and the probe's direction of each residue."""
    return torch.nn.functional.cosine_similarity(features, directions[None], dim=-1)
