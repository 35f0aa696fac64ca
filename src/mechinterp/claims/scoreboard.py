"""The scoreboard: a cell a claim, coloured by its verdict, a row a chapter and scale; behind every cell its card.

Fourteen chapters must fit two screens: a title stands beside its rows, scales without a measurement are folded, and
whose runs these are is told once, below all of them and on the cards.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mechinterp.claims.expectations import describe
from mechinterp.claims.html import HUES, MARKS, STYLE, badge
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
    "compiled_transformers": "Compiled transformers (Lindner et al., 2023)",
    "acdc": "ACDC (Conmy et al., 2023)",
    "attribution": "Attribution patching (Syed et al., 2024; Kramár et al., 2024)",
    "model_stealing": "Model stealing (Carlini et al., 2024)",
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

    def silent(self, scale: Scale) -> bool:
        """Whether no claim has been measured at this scale."""
        return all(self.verdict(claim, scale) in ("not asked here", "not run yet") for claim in self.claims)

    def fullest(self) -> Scale:
        """The scale at which most claims have been run; of two alike, the one nearer to the paper's."""
        run = {scale: sum(self.verdict(claim, scale) != "not run yet" for claim in self.claims) for scale in SHOWN}
        return max(SHOWN, key=lambda scale: (self.runs[scale] is not None, run[scale], SHOWN.index(scale)))

    def counts(self, scale: Scale) -> str:
        """How many claims got which verdict."""
        counts = Counter(self.verdict(claim, scale) for claim in self.claims)
        return ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if counts[verdict])

    def caption(self, scale: Scale) -> str:
        """What was run, by whom, and how many claims got which verdict."""
        run = self.runs[scale]
        if run is None:
            return "not run yet"
        told = self.counts(scale)
        trained = sum(scale == "lab" and claim.trained_for for claim in self.claims)
        told += f"; {trained} trained for, no evidence" if trained else ""
        by = f", run by {run.contributor}" if run.contributor else ""
        where = f"{run.model['name']} {run.model['sha256'][:12]}, {run.device}, {run.date}, version {run.version}"
        return f"{where}{by}: {told}"


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


def scoreboard(
    folder: Path | None = None, chapters: Sequence[str] | None = None, pages: Mapping[str, str] | None = None
) -> str:
    """The board as HTML that needs no script and no style sheet of the page: filters are CSS, cards are popovers.

    Args:
        folder, chapters: as `board`, with its errors.
        pages: where a chapter's page is, by the chapter's name.
    """
    parts, pages = board(folder, chapters), pages or {}
    total = Counter(part.verdict(c, scale) for part in parts for scale in SHOWN for c in part.claims)
    verdicts = {
        verdict: f'<b class="mi-{_slug(verdict)}">{mark}</b> {verdict} {total[verdict]}'
        for verdict, mark in MARKS.items()
    }
    filters = _filter("verdict", verdicts) + _filter("scale", {scale: str(scale) for scale in SHOWN})
    rows = "".join(_chapter(part, pages.get(part.name)) for part in parts)
    runs = "".join(_run(part, scale) for part in parts for scale in SHOWN if part.runs[scale])
    cards = "".join(_card(part, claim, pages.get(part.name)) for part in parts for claim in part.claims)
    return (
        f'<style>{STYLE}</style><div class="mi-board">{_bars(parts)}<form class="mi-filters">{filters}{LEGEND}</form>'
        f'{rows}<p class="mi-none">No claim has this verdict here.</p>'
        f'<details class="mi-runs"><summary>Whose runs these are</summary>{runs}</details>{cards}</div>\n'
    )


def summary(folder: Path | None = None, chapters: Sequence[str] | None = None, page: str = "scoreboard.html") -> str:
    """The board in small: how many claims of each scale got which verdict, and a chapter's fullest run, a dot a claim.

    Args:
        folder, chapters: as `board`, with its errors.
        page: where the board is.
    """
    parts = board(folder, chapters)
    rows = "".join(
        f'<div class="mi-part"><a href="{escape(page, quote=True)}#board-{part.name}">'
        f"{escape(part.title.split(' (')[0])}</a>{_dots(part, part.fullest())}</div>"
        for part in parts
    )
    return f'<style>{STYLE}</style><div class="mi-small">{_bars(parts)}{rows}</div>\n'


LEGEND = (
    '<p class="mi-legend">A hollow <span class="mi-reproduced mi-trained">&nbsp;✓&nbsp;</span> was trained for: the '
    "lab model's training text contains the behaviour, so it is no evidence. Choose a cell to read its card.</p>"
)


def _bars(parts: Sequence[Chapter]) -> str:
    """Counts of each scale, as a bar."""
    bars = ""
    for scale in SHOWN:
        counts = Counter(
            (verdict, _trained(claim, scale, verdict))
            for part in parts
            for claim in part.claims
            for verdict in [part.verdict(claim, scale)]
        )
        pieces = "".join(
            f'<span class="{_class(verdict, trained)}" style="flex-grow:{n}" '
            f'title="{n} {verdict}{", trained for: no evidence" * trained}">{MARKS[verdict]} {n}</span>'
            for verdict in MARKS
            for trained in (False, True)
            if (n := counts[verdict, trained])
        )
        told = ", ".join(f"{n} {verdict}{' but trained for' * trained}" for (verdict, trained), n in counts.items())
        bars += f'<b>{scale}</b><div class="mi-bar" role="img" aria-label="{scale}: {told}">{pieces}</div>'
    return f'<div class="mi-bars">{bars}</div>'


def _dots(part: Chapter, scale: Scale) -> str:
    dots = "".join(
        f'<span class="{_class(verdict, _trained(claim, scale, verdict))}" '
        f'title="{escape(f"{claim.id}: {verdict}. {claim.statement}", quote=True)}">{MARKS[verdict]}</span>'
        for claim in part.claims
        for verdict in [part.verdict(claim, scale)]
    )
    told = escape(part.caption(scale), quote=True)
    return f'<b>{scale}</b><span class="mi-dots" role="img" aria-label="{scale}: {told}">{dots}</span>'


def _trained(claim: Claim, scale: Scale, verdict: str) -> bool:
    return scale == "lab" and claim.trained_for and verdict == "reproduced"


def _class(verdict: str, trained: bool) -> str:
    return f"mi-{_slug(verdict)}{' mi-trained' * trained}"


def _filter(name: str, options: dict[str, str]) -> str:
    """Radio buttons; the style sheet hides what the chosen one leaves out."""
    chosen = {"": "all"} | options
    radios = "".join(
        f'<label><input type="radio" name="mi-{name}" value="{_slug(value)}"{" checked" * (not value)}>{text}</label>'
        for value, text in chosen.items()
    )
    return f"<fieldset><legend>{name}</legend>{radios}</fieldset>"


def _chapter(part: Chapter, page: str | None) -> str:
    """The title, and beside it a row a scale; scales at which nothing was measured are folded into a line below it."""
    name, _, paper = part.title.partition(" (")
    cite = f"<small>{escape(paper.removesuffix(')'))}</small>" if paper else ""
    silent = [scale for scale in SHOWN if part.silent(scale)]
    told = "; ".join(f"{scale}: {part.counts(scale)}" for scale in silent)
    fold = f'<label class="mi-fold"><input type="checkbox">{escape(told)}</label>' if silent else ""
    return (
        f'<section class="mi-chapter" id="board-{part.name}">'
        f'<div class="mi-head"><h2>{_link(name, page)}</h2>{cite}{fold}</div>'
        f'<div class="mi-rows">{"".join(_row(part, scale) for scale in SHOWN)}</div></section>'
    )


def _row(part: Chapter, scale: Scale) -> str:
    cells = "".join(_cell(part, claim, scale) for claim in part.claims)
    return (
        f'<div class="mi-row{" mi-silent" * part.silent(scale)}" data-scale="{scale}">'
        f'<div class="mi-scale" title="{escape(part.caption(scale), quote=True)}">{scale}</div>'
        f'<div class="mi-cells">{cells}</div></div>'
    )


def _run(part: Chapter, scale: Scale) -> str:
    """Whose run a row shows."""
    return (
        f'<p class="mi-run" data-chapter="{part.name}" data-scale="{scale}"><b>{escape(part.title)}, {scale}</b>: '
        f"{escape(part.caption(scale))}</p>"
    )


def _cell(part: Chapter, claim: Claim, scale: Scale) -> str:
    verdict = part.verdict(claim, scale)
    trained = _trained(claim, scale, verdict)
    words = f"{claim.id} at {scale} scale: {verdict}{', trained for' * trained}. {claim.statement}"
    return (
        f'<button type="button" class="mi-cell {_class(verdict, trained)}" popovertarget="{_id(part, claim)}" '
        f'title="{escape(words, quote=True)}" aria-label="{escape(words, quote=True)}">'
        f"<span>{MARKS[verdict]}</span><small>{escape(claim.id.rpartition('-')[2])}</small></button>"
    )


def _card(part: Chapter, claim: Claim, page: str | None) -> str:
    """The claim, and under it every scale: verdict, what was expected and measured, and whose run it was."""
    everywhere, id = card_rows(claim, {}), _id(part, claim)
    scales = "".join(
        f'<h3 style="--hue:{HUES[verdict]}">{scale} {badge(verdict)}</h3>{_list(rows)}'
        for scale in SHOWN
        for verdict, rows in [_at(part, claim, scale, everywhere)]
    )
    return (
        f'<div popover id="{id}" class="mi-popover" role="dialog" aria-label="{escape(claim.id, quote=True)}">'
        f'<button type="button" class="mi-close" popovertarget="{id}" popovertargetaction="hide" autofocus '
        f'aria-label="close">×</button>'
        f"<p><b>{escape(claim.id)}</b> {escape(claim.statement)}. <i>{_link(part.title, page)}</i></p>"
        f"{_list(everywhere)}{scales}</div>"
    )


def _at(
    part: Chapter, claim: Claim, scale: Scale, everywhere: Sequence[tuple[str, str]]
) -> tuple[str, list[tuple[str, str]]]:
    """A scale's verdict and the rows of a card that are its own."""
    entry, run, verdict = part.entry(claim, scale), part.runs[scale], part.verdict(claim, scale)
    if entry is None or run is None:
        rule, why = claim.expected(scale), claim.why_not(scale)
        rows = [("why", why)] if why else [("expected", describe(rule) if rule is not None else "not stated yet")]
        return verdict, rows
    rows = [row for row in card_rows(claim, {scale: entry}) if row not in everywhere]
    if entry.note:
        rows.append(("note", entry.note))
    took = f", {run.seconds:.0f} s" if run.seconds else ""
    whose = f"{run.model['name']} (sha256 {run.model['sha256'][:12]}) on {run.device}, {run.date}{took}"
    with_what = "".join(f", {name} {text}" for name, text in run.environment.items())
    by = f", by {run.contributor}" if run.contributor else ""
    return verdict, [*rows, ("run", f"{whose}, version {run.version}, seed {run.seed}{with_what}{by}")]


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def _link(text: str, page: str | None) -> str:
    return f'<a href="{escape(page, quote=True)}">{escape(text)}</a>' if page else escape(text)


def _id(part: Chapter, claim: Claim) -> str:
    return f"card-{part.name}-{claim.id}"


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")
