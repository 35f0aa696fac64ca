"""The scoreboard page: paper, paper-scale run, lab run and verdict of every claim, from the results files."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from mechinterp.claims.expectations import show
from mechinterp.claims.html import MARKS, badge, table_html
from mechinterp.claims.registry import CLAIMS
from mechinterp.claims.results import Entry, Results, read_results, readable_folder, results_path

TITLES = {
    "ioi": "The IOI circuit (Wang et al., 2022)",
    "copy_suppression": "Copy suppression (McDougall et al., 2023)",
    "successor_heads": "Successor heads (Gould et al., 2023)",
    "grokking_efficiency": "Grokking as circuit efficiency (Varma et al., 2023)",
    "attention_output_saes": "Attention-output SAEs (Kissane et al., 2024)",
    "gated_vs_jumprelu": "Gated and JumpReLU SAEs (Rajamanoharan et al., 2024)",
}
HEADER = ("claim", "statement", "paper", "paper-scale run", "lab run", "verdict")


@dataclass(frozen=True)
class Board:
    """One chapter of the scoreboard, its cells as plain text."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def board(folder: Path | None = None, chapters: Sequence[str] | None = None) -> list[Board]:
    """The scoreboard as data, one part a chapter.

    Args:
        folder: the results folder; by default `results_folder()`, or where there is none, what came with the package.
        chapters: which, by default all with claims.

    Errors: `ValueError` for an unknown chapter, no such folder, or a results file that cannot be read.
    """
    folder = readable_folder(folder)
    parts = []
    for chapter in chapters or CLAIMS:
        if chapter not in CLAIMS:
            raise ValueError(f"unknown chapter {chapter!r}; one of {', '.join(CLAIMS)}")
        runs = {scale: _read(results_path(chapter, scale, folder)) for scale in ("paper", "lab")}
        caption = " ".join(_summary(scale, run, len(CLAIMS[chapter])) for scale, run in runs.items())
        rows = tuple(_row(chapter, id, runs) for id in CLAIMS[chapter])
        parts.append(Board(TITLES.get(chapter, chapter), caption, HEADER, rows))
    return parts


def scoreboard(
    folder: Path | None = None,
    *,
    chapters: Sequence[str] | None = None,
    style: Literal["markdown", "html"] = "markdown",
) -> str:
    """All claims of the book with what is known about each; "not run yet" where that is the truth.

    Args:
        folder, chapters: as for `board`.
        style: markdown pipe tables, or HTML that needs no style sheet.

    Errors: as `board`.
    """
    if style not in ("markdown", "html"):
        raise ValueError(f"style must be markdown or html, not {style!r}")
    return "\n\n".join((_html if style == "html" else _markdown)(part) for part in board(folder, chapters)) + "\n"


def _html(part: Board) -> str:
    cells = [[escape(cell) for cell in row[:-1]] + [_badges(row[-1])] for row in part.rows]
    return f"<h2>{escape(part.title)}</h2>\n" + table_html(part.caption, part.header, cells)


def _markdown(part: Board) -> str:
    lines = ["| " + " | ".join(_marked(cell) for cell in row) + " |" for row in part.rows]
    rule = "|" + " --- |" * len(part.header)
    return "\n".join([f"## {part.title}", "", part.caption, "", "| " + " | ".join(part.header) + " |", rule, *lines])


def _read(path: Path) -> Results | None:
    return read_results(path) if path.exists() else None


def _summary(scale: str, run: Results | None, total: int) -> str:
    name = {"paper": "Paper scale", "lab": "Lab scale"}[scale]
    if run is None:
        return f"{name}: not run yet."
    counts = [sum(entry.verdict == verdict for entry in run.claims.values()) for verdict in list(MARKS)[:3]]
    hash_ = run.model["sha256"][:12]
    return (
        f"{name} ({run.date}, version {run.version}, model {run.model['name']} {hash_}, {run.device}): "
        f"{counts[0]} reproduced, {counts[1]} not reproduced, {counts[2]} paper scale only, "
        f"{total - len(run.claims)} not run yet."
    )


def _row(chapter: str, id: str, runs: dict[str, Results | None]) -> tuple[str, ...]:
    claim = CLAIMS[chapter][id]
    entries = {scale: run.claims.get(id) if run else None for scale, run in runs.items()}
    paper = f"{claim.paper_value} ({claim.where})" + (" — unverified" if claim.unverified else "")
    verdicts = "; ".join(f"{scale}: {_verdict(entry)}" for scale, entry in entries.items())
    return id, claim.statement, paper, _value(entries["paper"]), _value(entries["lab"]), verdicts


def _verdict(entry: Entry | None) -> str:
    return "not run yet" if entry is None else entry.verdict


def _value(entry: Entry | None) -> str:
    if entry is None:
        return "not run yet"
    note = f" ({entry.note})" if entry.note else ""
    return (show(entry.value, entry.interval) if entry.value is not None else "not measured") + note


def _badges(verdicts: str) -> str:
    pairs = (part.split(": ", 1) for part in verdicts.split("; "))
    return "<br>".join(f"{escape(scale)} {badge(verdict)}" for scale, verdict in pairs)


def _marked(cell: str) -> str:
    for character in ("\\", "|", "<", ">", "*", "_", "$"):
        cell = cell.replace(character, "\\" + character)
    return cell.replace("\n", " ")
