"""Results files: `results/<scale>/<chapter>.json`, whole or not there.

What another model than SmolLM2 gave at laptop scale is in a folder of that model's name.
"""

import errno
import json
import os
import re
from dataclasses import dataclass, field, replace
from importlib.resources import files
from numbers import Integral
from pathlib import Path
from typing import Any

from mechinterp.claims.nulls import Null
from mechinterp.claims.values import Value, from_json, to_json
from mechinterp.files import atomic_write
from mechinterp.scales import LAPTOP_MODEL, SCALES

SCHEMA = 2
VERDICTS = ("reproduced", "not reproduced", "undecided", "absent here", "not asked here")
_FIELDS = ("schema", "chapter", "scale", "version", "model", "device", "seed", "date", "seconds", "claims")
_OPTIONAL = ("environment", "contributor")
_ENTRY = ("value", "null", "expected", "verdict", "why", "note")


@dataclass(frozen=True)
class Entry:
    """What a results file says about one claim.

    Attributes:
        value: an estimate, names, a table of those; None if it was not measured.
        null: what the null or the positive control gave, or None.
        expected: what `Expectation.json` gave.
        verdict: one of `VERDICTS`.
        why: the reason of a verdict that the value alone does not explain.
        note: a sentence on how it was measured.
    """

    value: Value | None
    null: Null | None
    expected: Any
    verdict: str
    why: str = ""
    note: str = ""


@dataclass(frozen=True)
class Results:
    """One results file.

    Attributes:
        model: `name` and `sha256` of the weights, 64 hexadecimal digits.
        device: where the model ran: `cpu`, `cuda`, `cuda:1`.
        date: day of the last record, `2026-01-31`. `seconds`: from the ledger's start to it.
        environment: versions and machine by name. `contributor`: who ran it, if they want to be named.

    Errors: `ValueError` for a fact of another kind: it would be published as it stands.
    """

    chapter: str
    scale: str
    version: str
    model: dict[str, str]
    device: str
    seed: int
    date: str = ""
    seconds: float = 0.0
    claims: dict[str, Entry] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    contributor: str = ""

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"unknown scale {self.scale!r}; one of {', '.join(SCALES)}")
        if not isinstance(self.model, dict) or set(self.model) != {"name", "sha256"} or not self.model["name"]:
            raise ValueError(f"a model is given by its name and sha256, not {self.model!r}")
        if not re.fullmatch(r"[0-9a-f]{64}", str(self.model["sha256"])):
            raise ValueError(
                f"the model's sha256 is {self.model['sha256']!r}; expected 64 hexadecimal digits: "
                "give what mechinterp.models.describe returns"
            )
        if not re.fullmatch(r"[a-z]+(:\d+)?", str(self.device)):
            raise ValueError(f"the device is {self.device!r}; expected a name like cpu or cuda:0")
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise ValueError(f"the seed is {self.seed!r}; expected an integer")
        if not re.fullmatch(r"(\d{4}-\d\d-\d\d)?", str(self.date)):
            raise ValueError(f"the date is {self.date!r}; expected year-month-day")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float) or not self.seconds >= 0:
            raise ValueError(f"the seconds are {self.seconds!r}; expected a number from 0")
        words = self.environment.values() if isinstance(self.environment, dict) else [None]
        if not all(isinstance(word, str) for word in (*words, self.contributor)):
            raise ValueError(f"environment and contributor are text, not {self.environment!r}, {self.contributor!r}")

    @property
    def place(self) -> str:
        """The folder that they are in, named after the scale, or at laptop scale after a model that is not SmolLM2.

        >>> facts = dict(chapter="ioi", scale="laptop", version="1", device="cpu", seed=0)
        >>> Results(**facts, model={"name": "Qwen/Qwen3-0.6B", "sha256": "0" * 64}).place
        'Qwen3-0.6B'
        """
        return place(self.scale, self.model["name"])

    def with_entry(self, id: str, entry: Entry) -> "Results":
        """The same results with one claim added or replaced."""
        return replace(self, claims=self.claims | {id: entry})


def place(scale: str, model: str | None = None) -> str:
    """`Results.place` of a scale and a model's name, hub id, folder or file.

    >>> place("laptop", "smollm2"), place("laptop", "models/mine.gguf"), place("lab", "lab")
    ('laptop', 'mine', 'lab')
    """
    own = scale != "laptop" or model is None or model == LAPTOP_MODEL
    return scale if own else Path(str(model)).name.removesuffix(".gguf")


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


def shipped_results() -> Path:
    """The results that came with the package; a clone has none there, it has the folder `results`."""
    return Path(str(files("mechinterp"))) / "results"


def readable_folder(folder: Path | None = None) -> Path:
    """Where results are read: `folder`, else `results_folder()`, else what came with the package.

    Errors: `ValueError` if there is no such folder.
    """
    if folder is None:
        folder = results_folder() if results_folder().exists() else shipped_results()
        if not folder.exists():
            raise ValueError("no results here: run this inside a clone of the book, or give a folder with --results")
    if not folder.is_dir():
        raise ValueError(f"{folder} is {'not a folder' if folder.exists() else 'not there'}; give a results folder")
    return folder


def results_path(chapter: str, place: str, folder: Path | None = None) -> Path:
    """The file of one chapter at one scale, or of another model (`Results.place`)."""
    return (folder or results_folder()) / place / f"{chapter}.json"


def write_results(results: Results, folder: Path | None = None) -> Path:
    """Write a results file, atomically; returns its path.

    Errors: `OSError` naming the file, the cause and the way out if it cannot be written; an old file is kept.
    """
    path = results_path(results.chapter, results.place, folder)
    data = {"schema": SCHEMA} | {name: getattr(results, name) for name in _FIELDS[1:-1]}
    data |= {name: getattr(results, name) for name in _OPTIONAL if getattr(results, name)}
    data["claims"] = {
        id: {name: getattr(entry, name) for name in _ENTRY} | {"value": to_json(entry.value), "null": _null(entry.null)}
        for id, entry in sorted(results.claims.items(), key=_natural)
    }
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
    except OSError as error:
        raise OSError(
            error.errno,
            f"results not written, an earlier file is untouched: {error.strerror}{_way_out(error)}",
            str(path),
        ) from error
    return path


def _way_out(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space"
    elsewhere = "choose another folder with --results or MECHINTERP_RESULTS"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"; a file stands where a folder must be, or a folder where the file must be: {elsewhere}"
    return f"; {elsewhere}"


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
        try:
            null = entry["null"] and Null(from_json(entry["null"]["value"]), float(entry["null"]["passes"]))
            typed = {"value": from_json(entry["value"]), "null": null}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: claim {id}: {error}; {way_out}") from error
        entries[id] = Entry(**{name: entry[name] for name in _ENTRY} | typed)
    try:
        given = {name: data[name] for name in (*_FIELDS[1:-1], *_OPTIONAL) if name in data}
        return Results(**given, claims=entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {way_out}") from error


def _null(null: Null | None) -> Any:
    return None if null is None else {"value": to_json(null.value), "passes": null.passes}


def _natural(item: tuple[str, Any]) -> tuple[str, int, str]:
    """Sort key: IOI-2 before IOI-10 before IOI-W1."""
    head, _, tail = item[0].rpartition("-")
    return (head, int(tail), "") if tail.isdigit() else (head, 10**6, tail)
