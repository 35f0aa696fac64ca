"""Sparse data whose features are known, and how much of them a dictionary finds.

An example is a sum of few unit directions, each times a magnitude, plus noise:

    x = Σ_i f_i d_i + ε        f_i = m_i where feature i is on, else 0        E‖x‖² = 1

A trained dictionary is held against the directions: cosines both ways, and against the magnitudes: shrinkage
(Sharkey, Braun, Millidge 2022, mean max cosine similarity; arXiv:2404.16014, section 3, shrinkage).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Truth:
    """What generates the data; made by `truth`, in units of inputs with mean square norm one.

    Attributes:
        directions: unit norm. `probability`: how often each feature is on.
        low, high: magnitudes of what is on are uniform between them.
        group: of every feature. `gate`: how often each group may fire; given its group, a feature is on with
            probability / gate, independently of the others.
        noise: standard deviation of the noise in every dimension.
    """

    directions: Float[Tensor, "n_features d_in"]
    probability: Float[Tensor, " n_features"]
    low: float
    high: float
    group: Int[Tensor, " n_features"]
    gate: Float[Tensor, " n_groups"]
    noise: float

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.directions)

    @property
    def d_in(self) -> int:
        """Width of the inputs."""
        return self.directions.shape[1]


def truth(
    n_features: int,
    d_in: int,
    *,
    active: float,
    seed: int,
    magnitudes: tuple[float, float] = (0.5, 1.5),
    zipf: float = 0.0,
    group: int = 1,
    correlation: float = 0.0,
    noise: float = 0.0,
) -> Truth:
    """Random unit directions, and when they are on.

    Args:
        active: features on in an example, on average.
        magnitudes: bounds of the uniform magnitudes, up to the common scale that makes E‖x‖² = 1.
        zipf: feature r is on with probability proportional to r^-zipf; 0 makes all alike.
        group: features that fire together are neighbours, so many to a group.
        correlation: Pearson's r between "one is on" and "the other is on" in a group whose features are equally
            frequent.
        noise: share of E‖x‖² that is isotropic noise.

    Errors: `ValueError` for sizes or shares out of range, or a feature that would have to be on more than always.

    >>> t = truth(64, 16, active=3.0, seed=0, zipf=0.5, noise=0.1)
    >>> t.directions.shape, round(t.probability.sum().item(), 3)
    (torch.Size([64, 16]), 3.0)
    """
    if n_features < 1 or d_in < 1 or not 1 <= group <= n_features:
        raise ValueError(f"sizes must be positive: {n_features} features, {d_in} dimensions, groups of {group}")
    if not 0 < magnitudes[0] <= magnitudes[1]:
        raise ValueError(f"magnitudes must be positive and rise, got {magnitudes}")
    if not 0 <= noise < 1 or not 0 <= correlation <= 1:
        raise ValueError(f"noise must lie in [0, 1) and correlation in [0, 1], got {noise} and {correlation}")
    weight = torch.arange(1, n_features + 1, dtype=torch.float64) ** -zipf
    probability = active * weight / weight.sum()
    if active <= 0 or probability.max() > 1:
        raise ValueError(
            f"with {active} active of {n_features} and zipf {zipf} the commonest feature is on with probability "
            f"{probability.max().item():.3g}; it must lie in (0, 1]"
        )
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_features, d_in, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    member = torch.arange(n_features) // group
    commonest = probability.new_zeros(int(member.max()) + 1).scatter_reduce(0, member, probability, "amax")
    gate = commonest / (commonest + correlation * (1 - commonest))
    # E‖Σ f d‖² from how often two features are on together.
    together = probability[:, None] * probability
    together = torch.where(member[:, None] == member, together / gate[member], together).fill_diagonal_(0.0)
    low, high = magnitudes
    mean, square = (low + high) / 2, (low**2 + low * high + high**2) / 3
    power = square * probability.sum() + mean**2 * (together * (directions @ directions.T)).sum()
    scale = ((1 - noise) / power).sqrt().item()
    return Truth(
        directions.float(),
        probability.float(),
        low * scale,
        high * scale,
        member,
        gate.float(),
        (noise / d_in) ** 0.5,
    )


def sample(truth: Truth, n: int, seed: int) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n n_features"]]:
    """n examples: inputs x of mean square norm one, and what every feature contributes, f.

    Memory: a few times n · n_features floats.

    >>> x, f = sample(truth(64, 16, active=3.0, seed=0), 1000, seed=1)
    >>> x.shape, f.shape
    (torch.Size([1000, 16]), torch.Size([1000, 64]))
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(n, truth.n_features, generator=generator)
    opened = (torch.rand(n, len(truth.gate), generator=generator) < truth.gate)[:, truth.group]
    on = opened & (draw < truth.probability / truth.gate[truth.group])
    size = truth.low + (truth.high - truth.low) * torch.rand(n, truth.n_features, generator=generator)
    f = size * on
    x = f @ truth.directions
    if truth.noise:
        x = x + truth.noise * torch.randn(x.shape, generator=generator)
    return x, f


@dataclass(frozen=True)
class Recovery:
    """How well learned directions agree with true ones. Cosines are signed: a latent cannot be negative.

    Attributes:
        by_feature: for every true feature the largest cosine with a learned latent. `latent`: which one.
        by_latent: for every learned latent the largest cosine with a true feature. `feature`: which one.
    """

    by_feature: Float[Tensor, " n_features"]
    latent: Int[Tensor, " n_features"]
    by_latent: Float[Tensor, " d_sae"]
    feature: Int[Tensor, " d_sae"]

    @property
    def mmcs(self) -> float:
        """Mean over true features of the largest cosine."""
        return self.by_feature.mean().item()

    def recall(self, above: float = 0.9) -> float:
        """Share of true features that some latent has found."""
        return (self.by_feature > above).double().mean().item()

    def precision(self, above: float = 0.9) -> float:
        """Share of latents that are true features."""
        return (self.by_latent > above).double().mean().item()

    def pairs(self, above: float = 0.9) -> Int[Tensor, "pair two"]:
        """(feature, latent) that are each other's best, one to one, with a cosine above a limit."""
        features = torch.arange(len(self.latent), device=self.latent.device)
        mutual = (self.feature[self.latent] == features) & (self.by_feature > above)
        return torch.stack([features[mutual], self.latent[mutual]], 1)


def recovery(W_dec: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_features d_in"]) -> Recovery:
    """The largest cosine of every true feature with a learned latent, and the other way round.

    Two features may share a latent; `Recovery.pairs` are one to one. Leave latents that never fire out of W_dec, or
    they count as wrong. Memory: n_features · d_sae floats.

    Errors: `ValueError` for widths that differ, no rows, or rows that are zero or not finite.

    >>> t = truth(64, 16, active=3.0, seed=0)
    >>> found = recovery(t.directions, t.directions)
    >>> round(found.mmcs, 4), found.recall(), found.precision()
    (1.0, 1.0, 1.0)
    """
    if W_dec.ndim != 2 or directions.ndim != 2 or W_dec.shape[1] != directions.shape[1]:
        raise ValueError(
            f"W_dec [d_sae d_in] and directions [n_features d_in] must share d_in, got {tuple(W_dec.shape)} and "
            f"{tuple(directions.shape)}"
        )
    unit = []
    for name, rows in (("W_dec", W_dec), ("directions", directions)):
        norm = rows.norm(dim=1, keepdim=True)
        if len(rows) == 0 or not torch.isfinite(norm).all() or (norm == 0).any():
            raise ValueError(f"{name} has no rows, or rows that are zero or not finite; leave those out")
        unit.append(rows / norm)
    cosines = unit[1] @ unit[0].T
    by_feature, latent = cosines.max(1)
    by_latent, feature = cosines.max(0)
    return Recovery(by_feature, latent, by_latent, feature)


def chance_mmcs(d_sae: int, d_in: int) -> float:
    """Mean max cosine similarity of a random dictionary: E[max of d_sae cosines] with a fixed direction.

    The angle φ to a random direction has a density proportional to sin^(d_in - 2) φ; the mean of the largest of n
    cosines is 1 - ∫ P(cos ≤ t)ⁿ dt, by quadrature.

    Errors: `ValueError` for no latents, or less than two dimensions.

    >>> round(chance_mmcs(1, 8), 6), chance_mmcs(512, 64) < chance_mmcs(2048, 64) < 0.5
    (0.0, True)
    """
    if d_sae < 1 or d_in < 2:
        raise ValueError(f"a latent and two dimensions are needed, got d_sae={d_sae}, d_in={d_in}")
    angle = torch.linspace(0, torch.pi, 200_001, dtype=torch.float64)
    density = angle.sin() ** (d_in - 2)
    wider = torch.cumulative_trapezoid(density.flip(0)).flip(0)
    wider = torch.cat([wider, wider.new_zeros(1)]) / wider[0]  # P(angle > φ)
    return 1 - torch.trapezoid(wider**d_sae * angle.sin(), angle).item()


@dataclass(frozen=True)
class Shrinkage:
    """Slope of learned activations over true magnitudes, by pair: 1 without shrinkage, less with it.

    Attributes:
        pairs: (feature, latent). `examples`: in how many examples both are active.
    """

    pairs: Int[Tensor, "pair two"]
    slope: Float[Tensor, " pair"]
    examples: Int[Tensor, " pair"]


def shrinkage_by_feature(
    learned: Float[Tensor, "n d_sae"], f: Float[Tensor, "n n_features"], pairs: Int[Tensor, "pair two"]
) -> Shrinkage:
    """Regression through the origin, Σ learned · f / Σ f², over the examples in which both of a pair are active.

    Misses and false alarms are not shrinkage and do not count; pairs never active together are left out.

    Args:
        learned: latents of the examples. `f`: true magnitudes, from `sample`. `pairs`: from `Recovery.pairs`.

    Errors: `ValueError` for examples that differ in number, pairs out of range, or no pair that is active.

    >>> _, f = sample(truth(64, 16, active=3.0, seed=0), 1000, seed=1)
    >>> halved = shrinkage_by_feature(0.5 * f, f, torch.tensor([[3, 3], [7, 7]]))
    >>> halved.slope
    tensor([0.5000, 0.5000])
    """
    if len(learned) != len(f):
        raise ValueError(f"learned and f must have the same examples, got {len(learned)} and {len(f)}")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0:
        raise ValueError(f"pairs must be [pair 2], at least one of them, got {tuple(pairs.shape)}")
    if (pairs < 0).any() or pairs[:, 0].max() >= f.shape[1] or pairs[:, 1].max() >= learned.shape[1]:
        raise ValueError(f"pairs of (feature, latent) must lie below ({f.shape[1]}, {learned.shape[1]})")
    true, found = f[:, pairs[:, 0]], learned[:, pairs[:, 1]]
    both = (true > 0) & (found > 0)
    examples = both.sum(0)
    kept = examples > 0
    if not kept.any():
        raise ValueError("no pair is active together in any example; give more examples")
    slope = (true * found * both).sum(0)[kept] / (true.square() * both).sum(0)[kept]
    return Shrinkage(pairs[kept], slope, examples[kept])
