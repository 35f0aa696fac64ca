"""The chapter's long runs, by name, at both scales: one resumable command each, results in the package.

`python -m mechinterp.grokking.sweeps lab --out FOLDER --export` trains every sweep of a scale; kill it and start it
again at any moment. `--export` writes what the chapter reads: for each run its settings, its thinned curves and what
its final weights are made of. Setting `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` to 4294967296 makes it a
third faster on Linux.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.arithmetic import arithmetic
from mechinterp.files import read_parts, sha256_of, write_parts
from mechinterp.grokking.efficiency import scaling_exponent
from mechinterp.grokking.fourier import all_logits, excluded_loss, neuron_frequencies, restricted_loss, trig_share
from mechinterp.grokking.model import Shape
from mechinterp.grokking.plans import FROM_GROKKED, PLANS, SWEEPS, ScaleName, sweep
from mechinterp.grokking.runs import METRICS, Run
from mechinterp.grokking.training import Config, State, Trained, join, train

RESULTS = Path(__file__).with_name("measured")


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
    found = read_parts(path)
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
    write_parts(path, {name: found[name] for name in SWEEPS if name in found}, first="size")
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
    return list(read_parts(RESULTS / f"{scale}.json"))


def measured(name: str, scale: ScaleName) -> Measured:
    """A sweep that comes with the package, made by `python -m mechinterp.grokking.sweeps`.

    Errors: `ValueError` if that sweep has not been run at that scale.

    >>> measured("mainline", "lab").runs[0]["size"]
    1124
    """
    sweep(name, scale)
    found = read_parts(RESULTS / f"{scale}.json")
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
    return {"name": f"trained here, p = {shape.p}, d_model = {shape.d_model}", "sha256": sha256_of(path)}


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
