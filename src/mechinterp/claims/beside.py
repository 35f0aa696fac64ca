"""One chapter's claims, model beside model."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from mechinterp.claims.html import badge, table_html
from mechinterp.claims.registry import CLAIMS
from mechinterp.claims.results import Entry, Results, read_results, readable_folder
from mechinterp.claims.values import show


def beside(chapter: str, ids: Sequence[str], folder: Path | None = None) -> str:
    """A table as HTML: a row a claim, a column for the paper and for every model whose results are in the folder.

    The lab model is left out: it was trained for what the chapters look for.

    Args:
        chapter: `ioi`.
        ids: which claims, `IOI-1`.
        folder: the results folder; by default as `board`.

    Errors: `ValueError` for an unknown chapter or claim, no folder, or a results file that cannot be read.
    """
    known = CLAIMS.get(chapter, {})
    if unknown := [id for id in ids if id not in known]:
        raise ValueError(f"chapter {chapter} has no claim {', '.join(unknown)}")
    runs = models(chapter, readable_folder(folder))
    rows = [
        [id, escape(known[id].statement), escape(known[id].paper_value), *(_cell(run, id) for run in runs)]
        for id in ids
    ]
    header = ("claim", "statement", "paper", *(run.model["name"] for run in runs))
    return table_html("The same claims, model beside model.", header, rows)


def models(chapter: str, folder: Path) -> list[Results]:
    """The results of every model but the lab's, the laptop's first and the paper's own last."""
    found = [read_results(path) for path in sorted(folder.glob(f"*/{chapter}.json"))]
    order = {"laptop": 0, "paper": 2}
    return sorted((run for run in found if run.scale != "lab"), key=lambda run: order.get(run.place, 1))


def _cell(run: Results, id: str) -> str:
    entry: Entry | None = run.claims.get(id)
    if entry is None:
        return badge("not run yet")
    value = "" if entry.value is None else f"<br>{escape(show(entry.value))}"
    return badge(entry.verdict) + value
