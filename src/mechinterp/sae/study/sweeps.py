"""The long runs behind the two chapters, by name: one resumable command each, results in the package.

    python -m mechinterp.sae.study lab --text FOLDER --out FOLDER --export

reads the lab model's training text (`train*.txt.xz`), trains every sweep and writes what the chapters read: the
quality of each SAE on text that neither it nor the model has seen. Kill it and start it again at any moment. Setting
`MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` to 4294967296 makes it faster on Linux.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.arithmetic import arithmetic
from mechinterp.datasets.text import from_hub, generated_rows, packed_rows, sample
from mechinterp.files import atomic_write
from mechinterp.sae.architectures import SAE
from mechinterp.sae.files.formats import load as load_sae
from mechinterp.sae.files.formats import save
from mechinterp.sae.metrics import Name, Site, evaluate, site
from mechinterp.sae.settings import Config, Spec
from mechinterp.sae.store import Store
from mechinterp.sae.training import Trained, train

ScaleName = str
MEASURED = Path(__file__).with_name("measured")
SHIPPED = Path(__file__).with_name("lab")
INTERVALS: tuple[Name, ...] = ("l0", "fvu", "gamma", "delta_loss", "loss_recovered")


@dataclass(frozen=True)
class Plan:
    """Sizes of all sweeps at one scale.

    Attributes:
        model: name for `models.load`. `rows`, `length`: text for training. `batch`: activations a step.
        sites: where Gated and JumpReLU are compared. `attention`: where the attention SAEs live.
        d_sae: latents; `wider`: of the kinds that have others on the frontier (standard ones half as many again,
            arXiv:2404.16014).
        sparsities: by kind, six levels from dense to sparse. `seeds`, `lr`: of the frontier.
        attention_l1, attention_lr, attention_rows: λ, learning rate and rows of text of the attention SAEs.
    """

    model: str
    rows: int
    length: int
    batch: int
    sites: tuple[str, ...]
    attention: tuple[str, ...]
    d_sae: int
    wider: dict[str, int]
    sparsities: dict[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    lr: float
    attention_l1: tuple[float, ...]
    attention_lr: float
    attention_rows: int
    config: Config


def _schedule(tokens: int, batch: int) -> Config:
    """Gemma Scope's recipe in so few steps: shorter warm-ups, thresholds that move faster, a wider kernel."""
    steps = tokens // batch
    return Config(
        steps,
        lr_warmup=steps // 20,
        sparsity_warmup=steps // 5,
        cooldown=0.2,
        bandwidth=0.03,
        threshold_rate=5.0,
        dead_after=200_000,
    )


LAB = Plan(
    model="lab",
    rows=4000,
    length=256,
    batch=1024,
    sites=("blocks.2.hook_mlp_out", "blocks.2.hook_resid_post"),
    attention=tuple(f"blocks.{layer}.attn.hook_z" for layer in range(5)),
    d_sae=1024,
    wider={"standard": 1536},
    sparsities={
        "standard": (0.03, 0.05, 0.08, 0.13, 0.22, 0.4),
        "gated": (0.05, 0.08, 0.12, 0.18, 0.28, 0.45),
        "jumprelu": (0.0004, 0.0008, 0.0015, 0.003, 0.006, 0.012),
        "topk": (64, 32, 16, 12, 8, 4),
    },
    seeds=(0, 1, 2),
    lr=5e-3,
    attention_l1=(0.03, 0.09, 0.2, 0.2, 0.18),
    attention_lr=2e-3,
    attention_rows=12_000,
    config=_schedule(4000 * 255, 1024),
)
PAPER = replace(
    LAB,
    model="gpt2",
    rows=400_000,
    length=1024,
    batch=4096,
    sites=("blocks.8.hook_mlp_out", "blocks.8.hook_resid_post"),
    attention=tuple(f"blocks.{layer}.attn.hook_z" for layer in range(12)),
    d_sae=24_576,
    wider={"standard": 36_864},
    lr=3e-4,
    attention_lr=1.2e-3,
    attention_l1=(1.8, 0.8, 1.0, 0.9, 1.1, 1.0, 1.1, 1.1, 1.3, 1.2, 1.3, 3.0),
    attention_rows=300_000,
    config=Config(400_000 * 1023 // 4096, bandwidth=0.01),
)
PLANS: dict[ScaleName, Plan] = {"lab": LAB, "paper": PAPER}
ABLATIONS: tuple[tuple[str, str], ...] = (
    ("gated", "no auxiliary loss"),
    ("gated", "unfrozen decoder"),
    ("gated", "no r_mag"),
    ("jumprelu", "gradient to pre"),
)
BANDWIDTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
SWEEPS = (
    "frontier mlp",
    "frontier resid",
    "ablations",
    "attention",
    "width",
    *(f"bandwidth {eps:g}" for eps in BANDWIDTHS),
)


def _for_rows(plan: Plan, rows: int) -> Config:
    """The plan's schedule, stretched over other rows of text."""
    steps = rows * (plan.length - 1) // plan.batch
    return replace(plan.config, steps=steps, lr_warmup=steps // 20, sparsity_warmup=steps // 5)


@dataclass(frozen=True)
class Sweep:
    """SAEs that are trained together: which, for how long, on how much text."""

    specs: tuple[Spec, ...]
    config: Config
    rows: int
    hooks: tuple[str, ...]


def sweep(name: str, scale: ScaleName) -> Sweep:
    """A named sweep.

    Errors: `ValueError` for an unknown name or scale.

    >>> found = sweep("frontier mlp", "lab")
    >>> len(found.specs), found.specs[0].kind
    (72, 'standard')
    """
    if scale not in PLANS or name not in SWEEPS:
        raise ValueError(f"no sweep {name!r} at scale {scale!r}; sweeps {', '.join(SWEEPS)}, scales lab, paper")
    plan = PLANS[scale]
    if name == "attention":
        specs = [
            Spec("standard", hook, plan.d_sae, l1, lr=plan.attention_lr)
            for hook, l1 in zip(plan.attention, plan.attention_l1, strict=True)
        ]
        return Sweep(tuple(specs), _for_rows(plan, plan.attention_rows), plan.attention_rows, plan.attention)
    mlp, resid = plan.sites
    if name.startswith("bandwidth"):
        levels = plan.sparsities["jumprelu"][1::2]
        specs = [Spec("jumprelu", mlp, plan.d_sae, level, lr=plan.lr) for level in levels]
        return Sweep(tuple(specs), replace(plan.config, bandwidth=float(name.split()[1])), plan.rows, plan.sites)
    if name == "width":
        k = plan.sparsities["topk"][2]
        specs = [
            Spec("topk", mlp, width, k, seed, plan.lr)
            for width in (plan.d_sae // 4, plan.d_sae // 2, plan.d_sae, 2 * plan.d_sae, 4 * plan.d_sae)
            for seed in plan.seeds[:2]
        ]
        return Sweep(tuple(specs), plan.config, plan.rows, plan.sites)
    if name == "ablations":
        specs = [
            Spec(kind, mlp, plan.d_sae, level, seed, plan.lr, variant)
            for seed in plan.seeds[:2]
            for kind, variant in ABLATIONS
            for level in plan.sparsities[kind][1::2]
        ]
        return Sweep(tuple(specs), plan.config, plan.rows, plan.sites)
    site = mlp if name == "frontier mlp" else resid
    specs = [
        Spec(kind, site, plan.wider.get(kind, plan.d_sae), level, seed, plan.lr)
        for kind, levels in plan.sparsities.items()
        for level in levels
        for seed in plan.seeds
    ]
    return Sweep(tuple(specs), plan.config, plan.rows, plan.sites)


def text_rows(scale: ScaleName, n: int, text: str) -> Int[Tensor, "row pos"]:
    """Rows to train on: half real text, half generated documents at lab scale, as the lab model was trained.

    The last ones are kept for the next sweep, as long as the files stay as they are.

    Args:
        text: a folder with files `train*.txt` or `train*.txt.xz`, or a dataset of the hub.
    """
    found = hashlib.sha256()
    for path in sorted(Path(text).glob("train*.txt*")) if Path(text).is_dir() else ():
        found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return _text_rows(scale, PLANS[scale].model, PLANS[scale].length, n, text, found.hexdigest())


@lru_cache(maxsize=1)
def _text_rows(scale: ScaleName, model: str, length: int, n: int, text: str, content: str) -> Tensor:
    from mechinterp.lab.mixture import read_texts
    from mechinterp.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    if not Path(text).is_dir():
        return packed_rows(tokenizer, from_hub(text, documents=n), n, length)
    generated = n // 2 if scale == "lab" else 0
    texts = list(read_texts(Path(text)))
    real = packed_rows(tokenizer, texts, n - generated, length, per_text=-(-n // max(1, len(texts))))
    rows = torch.cat([real, generated_rows(tokenizer, generated, length, seed=1)]) if generated else real
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def run_sweep(name: str, scale: ScaleName, text: str, out: Path, *, device: str | None = None) -> Trained:
    """Train a named sweep, or go on with it, in `out/scale/name`; activations are kept in `out/scale/cache`."""
    from mechinterp.models import load

    plan, wanted = PLANS[scale], sweep(name, scale)
    model = load(plan.model, device=device)
    folder = out / scale / name.replace(" ", "_")
    rows = text_rows(scale, wanted.rows, text)
    block = 800 if scale == "lab" else 256
    store = Store(model, rows, wanted.hooks, batch=plan.batch, block=block, cache=out / scale / "cache")
    return train(wanted.specs, store, wanted.config, folder=folder, save_every=240)


def held_out_rows(model: Any, scale: ScaleName) -> Int[Tensor, "row pos"]:
    """Rows that neither the model nor the SAEs have seen: the package's sample, and as many generated ones."""
    real = packed_rows(model.tokenizer, sample(), 24 if scale == "lab" else 16, 256)
    return torch.cat([real, generated_rows(model.tokenizer, 24, 256, seed=99)]) if scale == "lab" else real


def sweep_sites(trained: Trained) -> list[str]:
    """The hooks of a sweep's SAEs, each once."""
    return list(dict.fromkeys(spec.hook for spec in trained.specs))


def summary(trained: Trained, model: Any, sites: Mapping[str, Site]) -> dict[str, Any]:
    """A sweep as it stands in the package: its settings, and the quality of every SAE on held-out text.

    For each SAE: its spec, the measures of `metrics.Quality` with intervals over rows, and of its latents the share
    that fires on more than 1 % and on more than 10 % of the tokens, and a histogram of log10 density from -5 to 0 in
    steps of a quarter.
    """
    saes = []
    for spec, sae in tqdm(list(zip(trained.specs, trained.saes, strict=True)), desc="evaluating", unit="SAE"):
        found = evaluate(model, sae, sites[spec.hook])
        density = found.density
        bins = density[density > 0].log10().clamp(-4.99, -0.01).histc(20, min=-5, max=0)
        saes.append(
            asdict(spec)
            | {name: _digits(value) for name, value in found.facts().items()}
            | {"interval": {name: [_digits(x) for x in found.estimate(name).interval or ()] for name in INTERVALS}}
            | {"over_1": _digits((density > 0.01).float().mean().item())}
            | {"over_10": _digits((density > 0.1).float().mean().item())}
            | {"density": bins.int().tolist()}
        )
    losses = {
        hook: {name: _digits(float(getattr(at, name).sum() / at.predicted.sum())) for name in ("clean", "zero", "mean")}
        for hook, at in sites.items()
        if hook in sweep_sites(trained)
    }
    facts = trained.saes[0].facts
    return {"config": facts["config"], "tokens": facts["tokens"], "loss": losses, "saes": saes}


def _digits(x: float) -> float | None:
    return float(f"{x:.5g}") if math.isfinite(x) else None


def export(scale: ScaleName, names: Sequence[str], text: str, out: Path, *, device: str | None = None) -> Path:
    """Summarise finished sweeps into the package's file of a scale (others in it stay), and ship some SAEs."""
    from mechinterp.models import load

    path = MEASURED / f"{scale}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    model = load(PLANS[scale].model, device=device)
    rows = held_out_rows(model, scale)
    sites: dict[str, Site] = {}
    for name in names:
        trained = run_sweep(name, scale, text, out, device=device)
        sites |= {hook: site(model, rows, hook) for hook in sweep_sites(trained) if hook not in sites}
        found[name] = summary(trained, model, sites)
        if scale == "lab":
            for folder, sae in _worth_shipping(name, trained):
                save(sae, SHIPPED / folder, dtype=torch.float16)
    ordered = {name: found[name] for name in SWEEPS if name in found}
    path.parent.mkdir(exist_ok=True)
    lines = json.dumps(ordered, separators=(",", ":")).replace('{"kind"', '\n{"kind"')
    atomic_write(path, (lines + "\n").encode())
    return path


def _worth_shipping(name: str, trained: Trained) -> Iterator[tuple[str, SAE]]:
    """The attention SAEs, and of the frontier at the MLP one of each kind, seed 0, with an L0 near 16."""
    if name == "attention":
        for i, sae in enumerate(trained.saes):
            yield f"attention-{i}", sae
    if name == "frontier mlp":
        l0 = trained.history["l0"][-5:].mean(0)
        for kind in dict.fromkeys(spec.kind for spec in trained.specs):
            own = [i for i, spec in enumerate(trained.specs) if spec.kind == kind and spec.seed == 0]
            yield f"mlp-{kind}", trained.saes[min(own, key=lambda i: abs(math.log(float(l0[i]) / 16)))]


def shipped(name: str) -> SAE:
    """An SAE of the lab model that comes with the package: "attention-0" … "attention-4", or "mlp-gated" and its like.

    Errors: `ValueError` naming those there are.

    >>> shipped("attention-2").hook
    'blocks.2.attn.hook_z'
    """
    if not (SHIPPED / name / "cfg.json").is_file():
        there = ", ".join(sorted(p.parent.name for p in SHIPPED.glob("*/cfg.json")))
        raise ValueError(f"no SAE {name!r} in the package; there are {there or 'none'}")
    return load_sae(SHIPPED / name)


@dataclass(frozen=True)
class Measured:
    """A committed sweep. `saes` are dictionaries as `summary` makes them; `loss`: of the model, by hook."""

    config: dict[str, Any]
    tokens: int
    loss: dict[str, dict[str, float]]
    saes: list[dict[str, Any]]

    def choose(self, **where: Any) -> list[dict[str, Any]]:
        """The SAEs that agree with `where`.

        Errors: `ValueError` if there are none.
        """
        found = [sae for sae in self.saes if all(sae[key] == value for key, value in where.items())]
        if not found:
            raise ValueError(f"no SAE of this sweep has {where}")
        return found


def measured(name: str, scale: ScaleName) -> Measured:
    """A sweep that comes with the package, made by `python -m mechinterp.sae.study`.

    Errors: `ValueError` if that sweep has not been run at that scale.
    """
    sweep(name, scale)
    path = MEASURED / f"{scale}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if name not in found:
        raise ValueError(
            f"sweep {name!r} has not been run at {scale} scale: python -m mechinterp.sae.study {scale} "
            f"--only {name!r} --text FOLDER --out FOLDER --export"
        )
    return Measured(**found[name])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train the sweeps of a scale, resumable."""
    parser = argparse.ArgumentParser("python -m mechinterp.sae.study", description=main.__doc__)
    parser.add_argument("scale", choices=list(PLANS))
    parser.add_argument("--text", required=True, help="folder with train*.txt[.xz], or a dataset of the hub")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and activations")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--device", default=None)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--export", action="store_true", help="evaluate, and write the results into the package")
    args = parser.parse_args(arguments)
    with arithmetic(threads=args.threads):
        for name in args.only:
            run_sweep(name, args.scale, args.text, args.out, device=args.device)
        if args.export:
            print(export(args.scale, args.only, args.text, args.out, device=args.device))
