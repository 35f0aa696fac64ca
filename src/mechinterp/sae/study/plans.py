"""The sweeps of the two SAE chapters, by name and scale: which SAEs, on which text, for how long."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from mechinterp.sae.settings import Config, Spec

ScaleName = Literal["lab", "lab-long", "laptop", "paper"]
ABLATIONS = {
    ("gated", ""): True,
    ("gated", "unfrozen decoder"): True,
    ("gated", "no auxiliary loss"): False,
    ("gated", "no r_mag"): False,
    ("jumprelu", ""): False,
    ("jumprelu", "gradient to pre"): False,
}
"""Kinds and variants, and whether they have more than one seed: those that a claim is about."""
BANDWIDTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
KINDS = ("standard", "gated", "jumprelu", "topk")


@dataclass(frozen=True)
class Plan:
    """Sizes of all sweeps at one scale.

    Attributes:
        model: name for `models.load`. `length`: tokens in a row. `batch`: activations a step. `block`: rows that are
            shuffled together. `generated`: whether half of the text is generated documents.
        mlp, resid: where kinds are compared, and the second site. `resid_kinds`: the kinds at the second one.
        rows: of text, for those. `short_rows`: for widths, ablations and bandwidths.
        d_sae: latents; `wider`: of the kinds that have others on the frontier (standard ones half as many again,
            arXiv:2404.16014). `widths`: from narrow to wide.
        sparsities: by kind, from dense to sparse; the second and third are those of ablations and bandwidths.
        seeds, lr: of the frontier. `more_seeds`: others, at the third sparsity alone. `few`: seeds of the other sweeps.
        attention: where the attention SAEs live; `attention_d_sae`, `attention_l1`, `attention_lr`, `attention_rows`:
            their latents, λ, learning rate and text.
        ships: whether examples of its SAEs go into the package.
        held_out: rows of 256 tokens on which they are measured; where half of the text is generated, half of these.
    """

    model: str
    length: int
    batch: int
    block: int
    generated: bool
    mlp: str
    resid: str
    resid_kinds: tuple[str, ...]
    rows: int
    short_rows: int
    d_sae: int
    wider: dict[str, int]
    widths: tuple[int, ...]
    sparsities: dict[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    more_seeds: tuple[int, ...]
    few: tuple[int, ...]
    lr: float
    attention: tuple[str, ...]
    attention_d_sae: int
    attention_l1: tuple[float, ...]
    attention_lr: float
    attention_rows: int
    ships: bool = True
    held_out: int = 48

    def config(self, rows: int) -> Config:
        """The schedule for so many rows: JumpReLU's recipe (arXiv:2407.14435) where a run is long enough for it.

        In so few steps warm-ups are shares of the run, the kernel is wider, thresholds begin higher and move faster,
        Adam averages its gradients, and the learning rate falls to zero at the end.
        """
        steps = rows * (self.length - 1) // self.batch
        return Config(
            steps,
            betas=(0.9, 0.999),
            lr_warmup=min(1000, steps // 20),
            sparsity_warmup=min(10_000, steps // 5),
            cooldown=0.2,
            bandwidth=0.03,
            threshold=0.01,
            threshold_rate=20.0,
            dead_after=200_000,
            log_every=max(1, steps // 40),
        )


LAB = Plan(
    model="lab",
    length=256,
    batch=256,
    block=80,
    generated=True,
    mlp="blocks.2.hook_mlp_out",
    resid="blocks.2.hook_resid_post",
    resid_kinds=("topk",),
    rows=160,
    short_rows=80,
    d_sae=384,
    wider={"standard": 576},
    widths=(256, 384, 512),
    sparsities={
        "standard": (0.05, 0.12, 0.3),
        "gated": (0.1, 0.25, 0.6),
        "jumprelu": (0.001, 0.004, 0.015),
        "topk": (40, 16, 6),
    },
    seeds=(0,),
    more_seeds=(1, 2),
    few=(0, 1, 2),
    lr=3e-3,
    attention=tuple(f"blocks.{layer}.attn.hook_z" for layer in range(5)),
    attention_d_sae=1024,
    attention_l1=(0.03, 0.09, 0.2, 0.2, 0.18),
    attention_lr=2e-3,
    attention_rows=12_000,
    held_out=24,
)
LAB_LONG = replace(
    LAB,
    batch=1024,
    block=400,
    rows=16_000,
    d_sae=1024,
    wider={"standard": 1536},
    sparsities={
        "standard": (0.03, 0.07, 0.15, 0.3),
        "gated": (0.05, 0.1, 0.2, 0.4),
        "jumprelu": (0.0004, 0.001, 0.0025, 0.006),
        "topk": (80, 40, 20, 10),
    },
    more_seeds=(1, 2),
    lr=2e-3,
    ships=False,
    held_out=96,
)
"""Four million tokens for the lab model: the kinds on a frontier that is not cut short."""
LAPTOP = Plan(
    model="smollm2",
    length=256,
    batch=1024,
    block=512,
    generated=False,
    mlp="blocks.10.hook_mlp_out",
    resid="blocks.10.hook_resid_post",
    resid_kinds=("topk",),
    rows=8192,
    short_rows=2560,
    d_sae=2048,
    wider={"standard": 3072},
    widths=(1024, 2048, 4096),
    sparsities={
        "standard": (0.055, 0.09, 0.13, 0.18),
        "gated": (0.06, 0.1, 0.15, 0.22),
        "jumprelu": (0.0008, 0.0017, 0.0032, 0.0055),
        "topk": (96, 48, 24, 12),
    },
    seeds=(0,),
    more_seeds=(1, 2),
    few=(0, 1, 2),
    lr=2e-3,
    attention=tuple(f"blocks.{layer}.attn.hook_z" for layer in (8, 11, 17, 18, 20, 23)),
    attention_d_sae=2048,
    attention_l1=(0.18, 0.23, 0.23, 0.23, 0.19, 0.2),
    attention_lr=2e-3,
    attention_rows=2560,
)
PAPER = replace(
    LAPTOP,
    model="gpt2",
    length=1024,
    batch=4096,
    mlp="blocks.8.hook_mlp_out",
    resid="blocks.8.hook_resid_post",
    resid_kinds=KINDS,
    rows=400_000,
    short_rows=100_000,
    d_sae=24_576,
    wider={"standard": 36_864},
    widths=(6144, 12_288, 24_576, 49_152),
    seeds=(0, 1, 2),
    more_seeds=(),
    lr=3e-4,
    attention=tuple(f"blocks.{layer}.attn.hook_z" for layer in range(12)),
    attention_d_sae=24_576,
    attention_l1=(1.8, 0.8, 1.0, 0.9, 1.1, 1.0, 1.1, 1.1, 1.3, 1.2, 1.3, 3.0),
    attention_lr=1.2e-3,
    attention_rows=300_000,
)
PLANS: dict[ScaleName, Plan] = {"lab": LAB, "lab-long": LAB_LONG, "laptop": LAPTOP, "paper": PAPER}
SWEEPS = (
    *(f"mlp {kind}" for kind in KINDS),
    *(f"resid {kind}" for kind in KINDS),
    "attention",
    "width",
    "ablations",
    *(f"bandwidth {eps:g}" for eps in BANDWIDTHS),
)


@dataclass(frozen=True)
class Sweep:
    """SAEs that are trained together: which, for how long, on how many rows of text."""

    specs: tuple[Spec, ...]
    config: Config
    rows: int

    @property
    def hooks(self) -> tuple[str, ...]:
        """Where they live, each once."""
        return tuple(dict.fromkeys(spec.hook for spec in self.specs))


def names(scale: ScaleName) -> list[str]:
    """The sweeps of a scale.

    >>> [name for name in names("laptop") if name.startswith("resid")]
    ['resid topk']
    """
    plan = PLANS[scale]
    return [name for name in SWEEPS if name.removeprefix("resid ") in (name, *plan.resid_kinds)]


def sweep(name: str, scale: ScaleName) -> Sweep:
    """A named sweep.

    Errors: `ValueError` for an unknown scale, or a name that it does not have.

    >>> found = sweep("mlp standard", "laptop")
    >>> len(found.specs), found.specs[0].d_sae
    (6, 3072)
    """
    if scale not in PLANS or name not in names(scale):
        scales = ", ".join(get_args(ScaleName))
        raise ValueError(f"no sweep {name!r} at scale {scale!r}; sweeps {', '.join(SWEEPS)}, scales {scales}")
    plan = PLANS[scale]
    first, *rest = name.split()
    if name == "attention":
        pairs = zip(plan.attention, plan.attention_l1, strict=True)
        width, lr = plan.attention_d_sae, plan.attention_lr
        specs = [Spec("standard", hook, width, l1, lr=lr) for hook, l1 in pairs]
        return Sweep(tuple(specs), plan.config(plan.attention_rows), plan.attention_rows)
    if first in ("mlp", "resid"):
        kind, hook = rest[0], plan.mlp if first == "mlp" else plan.resid
        levels, width = plan.sparsities[kind], plan.wider.get(rest[0], plan.d_sae)
        cells = [(level, seed) for seed in plan.seeds for level in levels]
        cells += [(levels[2], seed) for seed in plan.more_seeds]
        return Sweep(
            tuple(Spec(kind, hook, width, level, seed, plan.lr) for level, seed in cells),
            plan.config(plan.rows),
            plan.rows,
        )
    config = plan.config(plan.short_rows)
    if name == "width":
        k = plan.sparsities["topk"][1]
        specs = [Spec("topk", plan.mlp, width, k, seed, plan.lr) for width in plan.widths for seed in plan.few]
    elif name == "ablations":
        specs = [
            Spec(kind, plan.mlp, plan.d_sae, level, seed, plan.lr, variant)
            for (kind, variant), repeated in ABLATIONS.items()
            for seed in (plan.few if repeated else plan.few[:1])
            for level in plan.sparsities[kind][1:3]
        ]
    else:
        config = replace(config, bandwidth=float(rest[0]))
        specs = [
            Spec("jumprelu", plan.mlp, plan.d_sae, level, lr=plan.lr) for level in plan.sparsities["jumprelu"][1:3]
        ]
    return Sweep(tuple(specs), config, plan.short_rows)
