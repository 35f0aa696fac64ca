"""The chapter's long runs, by name, at both scales: one resumable command each, results in the package.

`python -m mechinterp.grokking.sweeps lab --out FOLDER --export` trains every sweep of a scale; kill it and start it
again at any moment. `--export` writes what the chapter reads: for each run its settings, its thinned curves and what
its final weights are made of. Setting `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` to 4294967296 makes it a
third faster on Linux.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.arithmetic import arithmetic
from mechinterp.files import atomic_write
from mechinterp.grokking.efficiency import scaling_exponent
from mechinterp.grokking.fourier import all_logits, excluded_loss, neuron_frequencies, restricted_loss, trig_share
from mechinterp.grokking.model import Shape
from mechinterp.grokking.runs import METRICS, Run
from mechinterp.grokking.training import Config, State, Trained, join, train

ScaleName = str
RESULTS = Path(__file__).with_name("measured")


@dataclass(frozen=True)
class Plan:
    """Sizes of all sweeps at one scale. Sizes count training pairs; epochs are full-batch steps."""

    shape: Shape
    size: int
    decay: float
    decays: tuple[float, ...]
    seeds: tuple[int, ...]
    main_epochs: int
    grokked_size: int
    grokked_epochs: int
    smaller: tuple[int, ...]
    ungrokking_epochs: int
    random_sizes: tuple[int, ...]
    random_decays: tuple[float, ...]
    random_epochs: int
    random_seeds: tuple[int, ...]
    semi_sizes: tuple[int, ...]
    semi_decay: float
    semi_epochs: int
    plenty_size: int
    scratch_sizes: tuple[int, ...]
    scratch_epochs: int
    undecayed_sizes: tuple[int, ...]
    noise: tuple[float, ...] = (0.1, 0.25)


PLANS = {
    "lab": Plan(
        shape=Shape(p=53, d_model=64, n_heads=4, d_mlp=256),
        size=1124,
        decay=3.0,
        decays=(2.0, 3.0, 5.0),
        seeds=(0, 1, 2),
        main_epochs=10000,
        grokked_size=1404,
        grokked_epochs=3000,
        smaller=(150, 210, 300, 420, 590, 830, 1160, 1800),
        ungrokking_epochs=4000,
        random_sizes=(150, 300, 600, 1100, 1800),
        random_decays=(1.0, 2.0, 4.0),
        random_epochs=4000,
        random_seeds=(0, 1, 2),
        semi_sizes=(650, 750, 850, 950),
        semi_decay=5.0,
        semi_epochs=16000,
        plenty_size=2528,
        scratch_sizes=(2400,),
        scratch_epochs=4000,
        undecayed_sizes=(150, 210, 300, 420, 590),
    ),
    "paper": Plan(
        shape=Shape(),
        size=3830,
        decay=1.0,
        decays=(0.5, 1.0, 2.0),
        seeds=(0, 1, 2),
        main_epochs=20000,
        grokked_size=6384,
        grokked_epochs=3000,
        smaller=(390, 488, 610, 764, 955, 1194, 1494, 2400),
        ungrokking_epochs=5000,
        random_sizes=(200, 300, 420, 600, 1000, 1600, 2600),
        random_decays=(0.5, 1.0, 2.0),
        random_epochs=5000,
        random_seeds=(0, 1),
        semi_sizes=(1600, 2000),
        semi_decay=2.0,
        semi_epochs=20000,
        plenty_size=11492,
        scratch_sizes=(9000,),
        scratch_epochs=6000,
        undecayed_sizes=(390, 764),
    ),
}
SWEEPS = (
    "mainline",
    "plenty",
    "grokked",
    "generalising",
    "ungrokking",
    "undecayed",
    "memorising",
    "semigrokking",
    "noise",
)
FROM_GROKKED = ("ungrokking", "undecayed", "noise")
"""Sweeps that go on from the networks of "grokked"."""


def sweep(name: str, scale: ScaleName) -> tuple[list[Run], Config]:
    """Runs and configuration of a named sweep.

    Errors: `ValueError` for an unknown name or scale.

    >>> runs, config = sweep("mainline", "paper")
    >>> runs[0].size, config.shape.p
    (3830, 113)
    """
    if scale not in PLANS or name not in SWEEPS:
        raise ValueError(f"no sweep {name!r} at scale {scale!r}; sweeps {', '.join(SWEEPS)}, scales lab, paper")
    plan = PLANS[scale]
    by_decay = [(seed, decay) for decay in plan.decays for seed in plan.seeds]
    match name:
        case "mainline":
            runs = [Run(plan.size, seed, plan.decay) for seed in plan.seeds]
            config = Config(plan.main_epochs, plan.shape, stop_accuracy=0.99, stop_after=plan.main_epochs // 8)
        case "plenty":
            runs = [Run(plan.plenty_size, seed, plan.decay) for seed in plan.seeds]
            config = Config(1500, plan.shape, every=20, stop_accuracy=0.99)
        case "generalising":
            runs = [Run(size, seed, decay) for seed, decay in by_decay for size in plan.scratch_sizes]
            config = Config(plan.scratch_epochs, plan.shape)
        case "undecayed":
            runs = [Run(size, seed, 0.0) for seed in plan.seeds for size in plan.undecayed_sizes]
            config = Config(plan.ungrokking_epochs, plan.shape)
        case "grokked":
            runs = [Run(plan.grokked_size, seed, decay) for seed, decay in by_decay]
            config = Config(plan.grokked_epochs, plan.shape)
        case "ungrokking":
            runs = [Run(size, seed, decay) for seed, decay in by_decay for size in plan.smaller]
            config = Config(plan.ungrokking_epochs, plan.shape)
        case "memorising":
            runs = [
                Run(size, seed, decay, random_labels=1.0)
                for size in plan.random_sizes
                for decay in plan.random_decays
                for seed in plan.random_seeds
            ]
            config = Config(plan.random_epochs, plan.shape)
        case "semigrokking":
            runs = [Run(size, seed, plan.semi_decay) for size in plan.semi_sizes for seed in plan.seeds]
            config = Config(plan.semi_epochs, plan.shape, every=200)
        case _:
            runs = [
                Run(size, seed, plan.decay, random_labels=fraction)
                for fraction in plan.noise
                for seed in plan.seeds
                for size in plan.smaller
            ]
            config = Config(plan.ungrokking_epochs, plan.shape)
    return runs, config


def run_sweep(
    name: str,
    scale: ScaleName,
    folder: Path,
    *,
    seeds: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    device: str = "cpu",
) -> Trained:
    """Train a named sweep, or go on with it, in `folder/scale/name/seed-N`: one more seed costs one more seed.

    The sweeps of `FROM_GROKKED` go on from the networks of "grokked" with the same seed and weight decay ("undecayed"
    with the plan's), their Adam moments included; those networks are trained first where they are missing.

    Args:
        seeds, sizes: only runs of these; all by default. Other sizes need a folder of their own.

    Errors: `ValueError` for seeds or sizes that the sweep does not have.
    """
    runs, config = sweep(name, scale)
    for what, chosen in (("seed", seeds), ("size", sizes)):
        known = {getattr(run, what) for run in runs}
        if chosen is not None and not (chosen and set(chosen) <= known):
            raise ValueError(f"sweep {name!r} has the {what}s {sorted(known)}, not all of {list(chosen)}")
        runs = [run for run in runs if chosen is None or getattr(run, what) in chosen]
    if name not in FROM_GROKKED:
        return _train(runs, config, None, folder / scale / name, device)
    origins = [(run.seed, run.weight_decay or PLANS[scale].decay) for run in runs]
    firsts, first_config = sweep("grokked", scale)
    firsts = [run for run in firsts if (run.seed, run.weight_decay) in origins]
    grokked = _train(firsts, first_config, None, folder / scale / "grokked", device)
    rows = {(run.seed, run.weight_decay): i for i, run in enumerate(grokked.runs)}
    return _train(runs, config, grokked.state.rows([rows[origin] for origin in origins]), folder / scale / name, device)


def _train(runs: Sequence[Run], config: Config, start: State | None, folder: Path, device: str) -> Trained:
    """Seed by seed, each with checkpoints of its own; networks of "grokked" also by weight decay."""
    alone = folder.name == "grokked"
    keys = [(run.seed, run.weight_decay if alone else None) for run in runs]
    groups = [[i for i, key in enumerate(keys) if key == each] for each in dict.fromkeys(keys)]
    parts = []
    for group in groups:
        first = runs[group[0]]
        where = folder / f"seed-{first.seed}" / (f"decay-{first.weight_decay:g}" if alone else "")
        own = start.rows(group) if start is not None else None
        parts.append(train([runs[i] for i in group], config, start=own, folder=where, device=device))
    return join(runs, groups, parts)


def _first(epochs: Tensor, values: Tensor, threshold: float) -> int | None:
    hit = (values >= threshold).nonzero()[:, 0]
    return int(epochs[hit[0]]) if len(hit) else None


def _rounded(values: Tensor) -> list[float | None]:
    return [_number(x) for x in values.tolist()]


def _number(x: float) -> float | None:
    """Four digits; None for what JSON has no number for."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


def _fourier(flat: Tensor, shape: Shape) -> dict[str, Any]:
    table, neurons = all_logits(flat, shape), neuron_frequencies(flat, shape)
    key = neurons.key()
    return {
        "trig_share": _number(trig_share(table)),
        "key": key,
        "clustered": _number(neurons.clustered()),
        "restricted": _number(restricted_loss(table, key)),
        "excluded": _number(excluded_loss(table, key)),
    }


def summary(trained: Trained, config: Config, *, points: int = 40) -> dict[str, Any]:
    """A sweep as it stands in the package: settings, thinned curves, and what the final weights are made of.

    `trig_share`, `key` (frequencies), `clustered` (share of neurons), `restricted` and `excluded` (losses on all
    pairs) are those of `fourier`; `kappa` is the logit-scaling exponent, None where there is none; `fit` and `grok`
    are the first evaluated epochs with 99 % train and test accuracy, or None.
    """
    every = max(1, -(-len(trained.epochs) // points))
    last = len(trained.epochs) - 1
    shown = sorted({*range(0, last + 1, every), last})
    runs = []
    for i, run in enumerate(trained.runs):
        column = {name: values[:, i] for name, values in trained.history.items()}
        flat = trained.state.weights[i]
        try:
            kappa = _number(scaling_exponent(flat, config.shape, run))
        except ValueError:
            kappa = None
        runs.append(
            asdict(run)
            | {name: _rounded(trained.final(name)[i : i + 1])[0] for name in METRICS}
            | {
                **_fourier(flat, config.shape),
                "kappa": kappa,
                "fit": _first(trained.epochs, column["train_accuracy"], 0.99),
                "grok": _first(trained.epochs, column["test_accuracy"], 0.99),
                "diverged": trained.diverged[i],
                "curve": {n: _rounded(column[n][shown]) for n in ("train_accuracy", "test_accuracy", "test_loss")},
            }
        )
    return {"config": asdict(config), "epochs": trained.epochs[shown].tolist(), "runs": runs}


def export(
    scale: ScaleName,
    folder: Path,
    names: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    device: str = "cpu",
) -> Path:
    """Summarise finished sweeps of `folder` into the package's file of a scale; other sweeps in it stay.

    With `seeds` or `sizes` only their runs are new, and the others are the file's.
    """
    path = RESULTS / f"{scale}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        runs, config = sweep(name, scale)
        new = summary(run_sweep(name, scale, folder, seeds=seeds, sizes=sizes, device=device), config)
        if seeds is not None or sizes is not None:
            old = found.get(name, {"runs": [], "epochs": new["epochs"]})
            if old["epochs"] != new["epochs"]:
                raise ValueError(f"the file's runs of {name!r} have other epochs: train all of them")
            own = {tuple(asdict(run).values()): None for run in runs}
            known = {tuple(run[key] for key in asdict(runs[0])): run for run in [*old["runs"], *new["runs"]]}
            new["runs"] = [known[settings] for settings in own if settings in known]
        found[name] = new
    ordered = {name: found[name] for name in SWEEPS if name in found}
    path.parent.mkdir(exist_ok=True)
    # One run a line, so that a change of one run is one line.
    text = json.dumps(ordered, separators=(",", ":")).replace('{"size"', '\n{"size"')
    atomic_write(path, (text + "\n").encode())
    return path


@dataclass(frozen=True)
class Measured:
    """A committed sweep. `runs` are dictionaries as `summary` makes them; `epochs` belong to their curves."""

    config: dict[str, Any]
    epochs: list[int]
    runs: list[dict[str, Any]]

    def settled(self) -> list[dict[str, Any]]:
        """Runs that trained for at least one decay time, 1 / (learning rate · weight decay), after they had grokked.

        Before that their norm still falls from what it was when they memorised.
        """
        found = []
        for run in self.runs:
            if run["grok"] is None or run["weight_decay"] == 0:
                continue
            last = self.config["epochs"]
            if self.config["stop_accuracy"] is not None:
                last = min(last, run["grok"] + self.config["stop_after"])
            if last - run["grok"] >= 1 / (self.config["lr"] * run["weight_decay"]):
                found.append(run)
        return found

    def table(
        self, metric: str, *, by: str = "size", over: str = "seed", **where: Any
    ) -> tuple[list[Any], Float[Tensor, "over by"]]:
        """Values of `by`, and the metric with one row for each `over`, for the runs that agree with `where`.

        Errors: `ValueError` if the runs do not fill the table.
        """
        chosen = [run for run in self.runs if all(run[k] == v for k, v in where.items())]
        columns, rows = sorted({run[by] for run in chosen}), sorted({run[over] for run in chosen})
        cells = {(run[over], run[by]): run[metric] for run in chosen}
        if len(cells) != len(chosen) or len(cells) != len(columns) * len(rows):
            raise ValueError(
                f"{len(chosen)} runs do not fill {len(rows)} x {len(columns)} cells; choose more with where"
            )
        values = [[float("nan") if cells[r, c] is None else float(cells[r, c]) for c in columns] for r in rows]
        return columns, torch.tensor(values, dtype=torch.float64)


def made(scale: ScaleName) -> list[str]:
    """Names of the sweeps that have been run at a scale and come with the package.

    >>> "mainline" in made("paper")
    True
    """
    path = RESULTS / f"{scale}.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def measured(name: str, scale: ScaleName) -> Measured:
    """A sweep that comes with the package, made by `python -m mechinterp.grokking.sweeps`.

    Errors: `ValueError` if that sweep has not been run at that scale.

    >>> measured("mainline", "lab").runs[0]["size"]
    1124
    """
    sweep(name, scale)
    path = RESULTS / f"{scale}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if name not in found:
        raise ValueError(
            f"sweep {name!r} has not been run at {scale} scale: python -m mechinterp.grokking.sweeps {scale} "
            f"--only {name} --out FOLDER --export"
        )
    return Measured(**found[name])


def describe(scale: ScaleName) -> dict[str, str]:
    """Name and hash of the measurements of a scale, in the place of a model's in a chapter's results."""
    path = RESULTS / f"{scale}.json"
    if not path.exists():
        raise ValueError(f"no sweep has been run at {scale} scale")
    shape = PLANS[scale].shape
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": f"trained here, p = {shape.p}, d_model = {shape.d_model}", "sha256": digest}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train the sweeps of a scale, resumable; `--export` writes the package's file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("scale", choices=list(PLANS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--seeds", nargs="+", type=int, help="only these; the file's runs of other seeds stay")
    parser.add_argument("--sizes", nargs="+", type=int, help="only these; the file's runs of other sizes stay")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument(
        "--matmul",
        choices=["highest", "medium"],
        default="highest",
        help="torch.set_float32_matmul_precision: medium may round products to bfloat16 where the CPU can",
    )
    parser.add_argument("--export", action="store_true", help="write the summaries into the package")
    args = parser.parse_args(arguments)
    chosen = {"seeds": args.seeds, "sizes": args.sizes, "device": args.device}
    # Without weight decay Adam's second moments become denormal numbers, and a step takes ten times as long.
    with arithmetic(threads=args.threads, matmul=args.matmul, flush_denormal=True):
        for name in args.only:
            run_sweep(name, args.scale, args.out, **chosen)
        if args.export:
            print(export(args.scale, args.out, args.only, **chosen))


if __name__ == "__main__":
    main()
