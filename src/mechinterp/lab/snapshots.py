"""When did what emerge? Behaviours of the lab model along its training.

    python -m mechinterp.lab.snapshots RUN [--json FILE]

measures every snapshot of a run of `mechinterp models train lab`. The table that ships with the package was made from
the shipped model's own run.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from mechinterp.datasets.ordinals import TASKS
from mechinterp.files import atomic_write
from mechinterp.lab.export import save
from mechinterp.lab.training import Config
from mechinterp.models.load import LAB, load
from mechinterp.successor import successor_scores

TABLE = LAB / "emergence.json"


def measure(model: Any) -> dict[str, float]:
    """What one snapshot can do, and its best successor head by weights: mean score over the eight tasks."""
    from mechinterp.lab import behaviours

    scores = successor_scores(model)
    return {
        "IOI accuracy": behaviours.indirect_objects(model, n=200)["accuracy"],
        "induction accuracy": behaviours.induction(model, n=16)["accuracy"],
        "succession, item adjacent": behaviours.succession(model, "adjacent")["all"],
        "succession, item some tokens back": behaviours.succession(model, "fetched")["all"],
        "best successor score": torch.stack([scores.score(name) for name in TASKS]).mean(0).max().item(),
        "share of mass on repeated items": behaviours.no_repetition(model)["repeated"],
    }


def snapshots(run: Path) -> Iterator[tuple[int, Any]]:
    """(tokens seen, model) of every snapshot of a run, in order.

    Errors: `ValueError` if the folder has none.
    """
    from safetensors import safe_open

    paths = sorted((run / "snapshots").glob("*.safetensors"))
    if not paths:
        raise ValueError(f"no snapshots in {run}; give the folder of a run of 'mechinterp models train lab'")
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    for path in paths:
        with safe_open(path, "pt") as file:
            config = Config(**json.loads(file.metadata()["config"]))
            weights = {name: file.get_tensor(name).float() for name in file.keys()}
            step = int(file.metadata()["step"])
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), weights, config, tokenizer, largest=None)
            yield step * config.batch * config.n_ctx, load(folder, device="cpu")


def lab() -> list[dict[str, float]]:
    """The shipped table: one row a snapshot, with `tokens`, the number of tokens seen."""
    rows: list[dict[str, float]] = json.loads(TABLE.read_text(encoding="utf8"))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    rows = []
    for tokens, model in snapshots(options.run):
        rows.append({"tokens": tokens, **{name: round(value, 4) for name, value in measure(model).items()}})
        print(rows[-1], flush=True)
    if options.json:
        atomic_write(options.json, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
