"""Results files: `results/<scale>/<chapter>.json`, whole or not there."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mechinterp.files import atomic_write

SCHEMA = 1
VERDICTS = ("reproduced", "not reproduced", "paper scale only")
_FIELDS = ("schema", "chapter", "scale", "version", "model", "device", "seed", "date", "seconds", "claims")
_ENTRY = ("value", "interval", "expected", "verdict", "note")


@dataclass(frozen=True)
class Entry:
    """What a results file says about one claim, in plain JSON types.

    Attributes:
        value: a number, a list of names, a table of those; None if it was not measured.
        interval: `[lo, hi]`, a table of such pairs, or None.
        expected: what `Expectation.json` gave.
        verdict: one of `VERDICTS`.
        note: a sentence on how it was measured or why it was not.
    """

    value: Any
    interval: Any
    expected: Any
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Results:
    """One results file."""

    chapter: str
    scale: str
    version: str
    model: dict[str, str]
    device: str
    seed: int
    date: str = ""
    seconds: float = 0.0
    claims: dict[str, Entry] = field(default_factory=dict)

    def with_entry(self, id: str, entry: Entry) -> "Results":
        """The same results with one claim added or replaced."""
        return replace(self, claims=self.claims | {id: entry})


def results_folder() -> Path:
    """Where results live: `MECHINTERP_RESULTS`, else `results` in the project's root, else here.

    The project's root is the nearest folder above the current one that holds `_toc.yml` and
    `chapters`; in a notebook on its own (Colab) results go beside the notebook.
    """
    chosen = os.environ.get("MECHINTERP_RESULTS")
    if chosen:
        return Path(chosen)
    return (project_root() or Path.cwd()) / "results"


def project_root() -> Path | None:
    """The nearest folder, from the current one upwards, that holds the book; None outside of it."""
    here = Path.cwd()
    return next(
        (p for p in (here, *here.parents) if (p / "chapters").is_dir() and (p / "pyproject.toml").exists()), None
    )


def results_path(chapter: str, scale: str, folder: Path | None = None) -> Path:
    """The file of one chapter at one scale."""
    return (folder or results_folder()) / scale / f"{chapter}.json"


def write_results(results: Results, folder: Path | None = None) -> Path:
    """Write a results file, atomically; returns its path.

    Errors: `OSError` naming the file if it cannot be written (a full disk); the old file is kept.
    """
    path = results_path(results.chapter, results.scale, folder)
    data = {"schema": SCHEMA} | {name: getattr(results, name) for name in _FIELDS[1:-1]}
    data["claims"] = {
        id: {name: getattr(entry, name) for name in _ENTRY}
        for id, entry in sorted(results.claims.items(), key=_natural)
    }
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
    except OSError as error:
        raise OSError(
            error.errno,
            f"results not written, the earlier file is untouched: {error.strerror}; free some space",
            str(path),
        ) from error
    return path


def read_results(path: Path) -> Results:
    """Read a results file and check its shape.

    Errors: `FileNotFoundError`; `ValueError` for a half-written file, another schema or a missing
    field, naming the file and the way out.
    """
    way_out = f"restore it with `git checkout -- {path}`, or delete it and run the chapter again"
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path} is not complete JSON ({error}); {way_out}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path} has schema {found!r}, this version reads {SCHEMA}; {way_out}")
    missing = [name for name in _FIELDS if name not in data]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {way_out}")
    entries = {}
    for id, entry in data["claims"].items():
        lacks = [name for name in _ENTRY if name not in entry]
        if lacks or entry["verdict"] not in VERDICTS:
            problem = f"lacks {', '.join(lacks)}" if lacks else f"has the verdict {entry['verdict']!r}"
            raise ValueError(f"{path}: claim {id} {problem}; {way_out}")
        entries[id] = Entry(**{name: entry[name] for name in _ENTRY})
    return Results(**{name: data[name] for name in _FIELDS[1:-1]}, claims=entries)


def _natural(item: tuple[str, Any]) -> tuple[str, int, str]:
    """Sort key: IOI-2 before IOI-10 before IOI-W1."""
    head, _, tail = item[0].rpartition("-")
    return (head, int(tail), "") if tail.isdigit() else (head, 10**6, tail)
