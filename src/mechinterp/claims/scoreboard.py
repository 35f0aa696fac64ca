"""The scoreboard: a cell a claim, coloured by its verdict, a row a chapter and scale; behind every cell its card."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mechinterp.claims.html import MARKS, STYLE, card_html
from mechinterp.claims.ledger import card_rows
from mechinterp.claims.registry import CLAIMS
from mechinterp.claims.results import Entry, Results, read_results, readable_folder, results_path
from mechinterp.claims.statement import Claim
from mechinterp.scales import SCALES, Scale

TITLES = {
    "ioi": "The IOI circuit (Wang et al., 2022)",
    "copy_suppression": "Copy suppression (McDougall et al., 2023)",
    "successor_heads": "Successor heads (Gould et al., 2023)",
    "grokking_efficiency": "Grokking as circuit efficiency (Varma et al., 2023)",
    "attention_output_saes": "Attention-output SAEs (Kissane et al., 2024)",
    "gated_vs_jumprelu": "Gated and JumpReLU SAEs (Rajamanoharan et al., 2024)",
}
SHOWN: tuple[Scale, ...] = tuple(scale for scale in SCALES if scale != "rehearsal")


@dataclass(frozen=True)
class Chapter:
    """One chapter of the board.

    Attributes:
        name, title: `ioi`, and what to print.
        claims: in the paper's order.
        runs: the results of each scale; None where it has not been run.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    runs: dict[Scale, Results | None]

    def entry(self, claim: Claim, scale: Scale) -> Entry | None:
        """What a scale's results say about a claim."""
        run = self.runs[scale]
        return None if run is None else run.claims.get(claim.id)

    def verdict(self, claim: Claim, scale: Scale) -> str:
        """One of the six."""
        entry = self.entry(claim, scale)
        if entry is not None:
            return entry.verdict
        return "not asked here" if claim.why_not(scale) else "not run yet"

    def caption(self, scale: Scale) -> str:
        """What was run, by whom, and how many claims got which verdict."""
        run = self.runs[scale]
        if run is None:
            return "not run yet"
        counts = Counter(self.verdict(claim, scale) for claim in self.claims)
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if counts[verdict])
        trained = sum(scale == "lab" and claim.trained_for for claim in self.claims)
        told += f"; {trained} trained for, no evidence" if trained else ""
        return (
            f"{run.model['name']} {run.model['sha256'][:12]}, {run.device}, {run.date}, version {run.version}: {told}"
        )


def board(folder: Path | None = None, chapters: Sequence[str] | None = None) -> list[Chapter]:
    """The scoreboard as data.

    Args:
        folder: the results folder; by default `results_folder()`, or where there is none, what came with the package.
        chapters: which, by default all with claims.

    Errors: `ValueError` for an unknown chapter, no such folder, or a results file that cannot be read.
    """
    folder, parts = readable_folder(folder), []
    for name in chapters or CLAIMS:
        if name not in CLAIMS:
            raise ValueError(f"unknown chapter {name!r}; one of {', '.join(CLAIMS)}")
        paths = {scale: results_path(name, scale, folder) for scale in SHOWN}
        runs = {scale: read_results(path) if path.exists() else None for scale, path in paths.items()}
        parts.append(Chapter(name, TITLES.get(name, name), tuple(CLAIMS[name].values()), runs))
    return parts


def scoreboard(folder: Path | None = None, chapters: Sequence[str] | None = None) -> str:
    """The board as HTML that needs no script and no style sheet of the page: filters are CSS, cards are popovers.

    Arguments and errors as `board`.
    """
    parts = board(folder, chapters)
    total = Counter(part.verdict(c, scale) for part in parts for scale in SHOWN for c in part.claims)
    verdicts = {_slug(verdict): f"{mark} {verdict} {total[verdict]}" for verdict, mark in MARKS.items()}
    filters = _filter("verdict", verdicts) + _filter("scale", {scale: str(scale) for scale in SHOWN})
    rows = "".join(_chapter(part) for part in parts)
    cards = "".join(_card(part, claim) for part in parts for claim in part.claims)
    return f'<style>{STYLE}</style><div class="mi-board"><form class="mi-filters">{filters}</form>{rows}{cards}</div>\n'


def _filter(name: str, options: dict[str, str]) -> str:
    """Radio buttons; the style sheet hides what the chosen one leaves out."""
    chosen = {"": "all"} | options
    radios = "".join(
        f'<label><input type="radio" name="mi-{name}" value="{value}"{" checked" * (not value)}> {text}</label>'
        for value, text in chosen.items()
    )
    return f"<fieldset><legend>{name}</legend>{radios}</fieldset>"


def _chapter(part: Chapter) -> str:
    rows = "".join(
        f'<div class="mi-row" data-scale="{scale}"><div class="mi-scale">{scale}</div><div class="mi-cells">'
        + "".join(_cell(part, claim, scale) for claim in part.claims)
        + f'</div><div class="mi-run">{escape(part.caption(scale))}</div></div>'
        for scale in SHOWN
    )
    return f'<section class="mi-chapter"><h3>{escape(part.title)}</h3>{rows}</section>'


def _cell(part: Chapter, claim: Claim, scale: Scale) -> str:
    verdict = part.verdict(claim, scale)
    trained = " mi-trained" if scale == "lab" and claim.trained_for else ""
    words = f"{claim.id} at {scale} scale: {verdict}. {claim.statement}" + (", trained for" if trained else "")
    return (
        f'<button type="button" class="mi-cell mi-{_slug(verdict)}{trained}" popovertarget="{_id(part, claim)}" '
        f'title="{escape(words, quote=True)}" aria-label="{escape(words, quote=True)}">'
        f"<span>{MARKS[verdict]}</span>{escape(claim.id.rpartition('-')[2])}</button>"
    )


def _card(part: Chapter, claim: Claim) -> str:
    found = {scale: part.entry(claim, scale) for scale in SHOWN}
    entries = {scale: entry for scale, entry in found.items() if entry is not None}
    first = next((scale for scale in ("paper", "laptop", "lab") if scale in entries), "paper")
    notes = " ".join(f"{scale}: {entry.note}" for scale, entry in entries.items() if entry.note)
    verdict = part.verdict(claim, first)  # type: ignore[arg-type]
    body = card_html(claim.id, claim.statement, verdict, card_rows(claim, entries), notes)
    return f'<div popover id="{_id(part, claim)}" class="mi-popover">{body}</div>'


def _id(part: Chapter, claim: Claim) -> str:
    return f"card-{part.name}-{claim.id}"


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")
