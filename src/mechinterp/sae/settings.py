"""What to train, and how: one `Spec` an SAE, one `Config` a run."""

import math
from dataclasses import dataclass

from mechinterp.sae.kinds import KINDS, kind_named


@dataclass(frozen=True)
class Spec:
    """One SAE to train.

    Attributes:
        kind: see `kinds`. `hook`: where in the model. `d_sae`: latents.
        sparsity: λ, for inputs of mean square norm one; for topk and batchtopk the k.
        seed: of the initial weights. `lr`: Adam's learning rate.
        variant: an ablation, one of the kind's `variants`.

    Errors: `ValueError` for an unknown kind, a variant of another kind, or a k outside 1 … d_sae.
    """

    kind: str
    hook: str
    d_sae: int
    sparsity: float
    seed: int = 0
    lr: float = 1e-3
    variant: str = ""

    def __post_init__(self) -> None:
        if self.variant not in ("", *kind_named(self.kind).variants):
            raise ValueError(f"{self.variant!r} is no variant of a {self.kind} SAE")
        if self.k is not None and (self.k != self.sparsity or not 1 <= self.k <= self.d_sae):
            raise ValueError(f"the sparsity of a {self.kind} SAE is its k, a whole number in 1..{self.d_sae}")
        if self.sparsity < 0:
            raise ValueError(f"sparsity must not be negative, got {self.sparsity}")

    @property
    def k(self) -> int | None:
        """k of the kinds that take it, None for the others."""
        return int(self.sparsity) if KINDS[self.kind].takes_k else None


@dataclass(frozen=True)
class Config:
    """What all SAEs of a run share. Defaults are Gemma Scope's (arXiv:2408.05147, section 3), but for the length.

    Attributes:
        steps: batches. `betas`: Adam's.
        lr_warmup: steps of the cosine from a tenth of the learning rate to all of it, at the start and after
            every resampling. `cooldown`: share of the steps at the end with a linear way down to zero.
        sparsity_warmup: steps in which λ rises linearly from zero.
        bandwidth: ε of the jumprelu's kernel, for inputs of mean square norm one.
        threshold: where thresholds begin, for inputs of mean square norm one. `threshold_rate`: learning rate of their
            logarithms over that of all else. Short runs need more of both: a latent's threshold ends near 0.1, and at
            one, with a learning rate of 0.001, its logarithm takes thousands of steps to get there.
        dead_after: tokens without firing after which a latent is dead, for the log and for AuxK.
        resample_every: steps between two resamplings of dead latents of standard and gated SAEs; 0 for none.
            `resamples`: how many.
        log_every: steps between two entries of the log.
    """

    steps: int
    betas: tuple[float, float] = (0.0, 0.999)
    lr_warmup: int = 1000
    cooldown: float = 0.0
    sparsity_warmup: int = 10_000
    bandwidth: float = 1e-3
    threshold: float = 1e-3
    threshold_rate: float = 1.0
    dead_after: int = 10_000_000
    resample_every: int = 0
    resamples: int = 4
    log_every: int = 50

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step."""
        since = step
        if self.resample_every:
            turns = min(step // self.resample_every, self.resamples)
            since = step - turns * self.resample_every
        warm = min(1.0, since / self.lr_warmup) if self.lr_warmup else 1.0
        rate = 0.1 + 0.9 * (1 - math.cos(math.pi * warm)) / 2
        left = (self.steps - step) / (self.cooldown * self.steps) if self.cooldown else 1.0
        return rate * min(1.0, left)

    def resamples_at(self, step: int) -> bool:
        """Whether dead latents are resampled after a step."""
        every = self.resample_every
        return bool(every) and step % every == 0 and 0 < step // every <= self.resamples
