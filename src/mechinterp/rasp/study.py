"""The compressions of the chapter on compiled transformers: one resumable command a scale, results in the package.

    python -m mechinterp.rasp.study paper --out FOLDER --export     # about half an hour on 2 CPU cores

trains a matrix for every size and seed; kill it and start it again at any moment. `--export` writes what the chapter
reads: each run's matrix, and how its model does on all inputs of the longest length.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from mechinterp.arithmetic import arithmetic
from mechinterp.files import atomic_write, read_parts, sha256_of, write_parts
from mechinterp.rasp.compiled import Compiled, compile_program
from mechinterp.rasp.compression import Compression, Quality, all_inputs, begin, quality, train
from mechinterp.rasp.library import programs

MEASURED = Path(__file__).with_name("measured")
SAVE_EVERY = 500
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class Plan:
    """One program's compressions.

    Attributes:
        dims, seeds: a run for each pair. `steps`, `lr`, `batch`: of the training; the rate falls to zero.
    """

    dims: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    lr: float = 5e-3
    batch: int = 64


PLANS: dict[str, dict[str, Plan]] = {
    "lab": {"frac_prevs": Plan((2, 6, 10, 14), (0, 1, 2), 1500)},
    "paper": {
        "frac_prevs": Plan((2, 4, 6, 8, 10, 12, 14), (0, 1, 2, 3, 4), 8000),
        "sort_unique": Plan((3, 6, 9, 12, 15, 18, 21), (0, 1, 2), 8000),
    },
}


def compiled(name: str) -> Compiled:
    """A library program as it is compressed."""
    return compile_program(**programs()[name])


def run(scale: str, name: str, folder: Path) -> Compression:
    """Train a program's compressions, or go on with them, in `folder/scale/name.safetensors`."""
    plan, model, path = PLANS[scale][name], compiled(name), folder / scale / f"{name}.safetensors"
    found = begin(model, plan.dims, plan.seeds)
    if path.exists():
        kept = load_file(path)
        state = (kept["first"], kept["second"])
        found = replace(found, W=kept["W"], step=int(kept["step"]), state=state)
    path.parent.mkdir(parents=True, exist_ok=True)
    while found.step < plan.steps:
        steps = min(SAVE_EVERY, plan.steps - found.step)
        found = train(model, found, steps, lr=plan.lr, batch=plan.batch, total=plan.steps)
        assert found.state is not None
        first, second = found.state
        parts = {"W": found.W, "first": first, "second": second, "step": torch.tensor(found.step)}
        atomic_write(path, save(parts))
    return found


def export(scale: str, folder: Path, names: Sequence[str]) -> Path:
    """Write the trained matrices of some programs into the package's file of a scale; others in it stay."""
    path = MEASURED / f"{scale}.json"
    found = read_parts(path)
    for name in names:
        done = run(scale, name, folder)
        found[name] = [
            {"d": d, "seed": seed, "W": [[round(x, 4) for x in row] for row in W[:d].tolist()]}
            for d, seed, W in zip(done.dims, done.seeds, done.W, strict=True)
        ]
    write_parts(path, dict(sorted(found.items())), first="d")
    return path


@dataclass(frozen=True)
class Measured:
    """A program's compressions that come with the package.

    Attributes:
        dims, seeds: of each run. `W`: [run d_max d_model]; rows from a run's own d on are zero.
    """

    dims: tuple[int, ...]
    seeds: tuple[int, ...]
    W: Float[Tensor, "run d d_model"]

    def quality(self, model: Compiled) -> Quality:
        """How each does on all inputs of the longest length."""
        return quality(model, self.W, all_inputs(model, model.max_len))

    def at(self, d: int, seed: int = 0) -> Float[Tensor, "d d_model"]:
        """One run's matrix; `ValueError` if there is none."""
        if (d, seed) not in zip(self.dims, self.seeds, strict=True):
            raise ValueError(f"no compression to {d} dimensions with seed {seed}; sizes {sorted(set(self.dims))}")
        return self.W[list(zip(self.dims, self.seeds, strict=True)).index((d, seed)), :d]


def measured(name: str, scale: str) -> Measured:
    """Compressions that come with the package.

    Errors: `ValueError` if this program has not been compressed at this scale.
    """
    found = read_parts(MEASURED / f"{scale}.json")
    if name not in found:
        raise ValueError(
            f"{name} has not been compressed at {scale} scale: python -m mechinterp.rasp.study {scale} --only {name} "
            "--out FOLDER --export"
        )
    runs = found[name]
    W = torch.zeros(len(runs), max(one["d"] for one in runs), len(runs[0]["W"][0]))
    for row, one in zip(W, runs, strict=True):
        row[: one["d"]] = torch.tensor(one["W"])
    return Measured(tuple(one["d"] for one in runs), tuple(one["seed"] for one in runs), W)


def describe(scale: str) -> dict[str, str]:
    """Name and hash of the measurements of a scale, in the place of a model's in a chapter's results."""
    return {"name": "compiled here", "sha256": sha256_of(MEASURED / f"{scale}.json")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train the compressions of a scale, resumable; `--export` writes the package's file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("scale", choices=list(PLANS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--only", nargs="+", help="programs, by default all of the scale")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--export", action="store_true", help="write the matrices into the package")
    args = parser.parse_args(arguments)
    names = args.only or list(PLANS[args.scale])
    if unknown := sorted(set(names) - set(PLANS[args.scale])):
        parser.error(f"no such program: {', '.join(unknown)}; there are {', '.join(PLANS[args.scale])}")
    with arithmetic(threads=args.threads, matmul="highest"):
        for name in names:
            run(args.scale, name, args.out)
        if args.export:
            print(export(args.scale, args.out, names))


if __name__ == "__main__":
    main()
