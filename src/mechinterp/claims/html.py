"""Verdict cards and tables as HTML that reads well in light and dark."""

from collections.abc import Sequence
from html import escape

MARKS = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "undecided": "?",
    "absent here": "∅",
    "not asked here": "○",
    "not run yet": "…",
}
# Dark enough for white text (4.5 to 1), light enough to stand out from a black page (3 to 1). What is absent counts as
# red, and has stripes on the board. What was not measured has no colour.
HUES = {
    "reproduced": "#1a7f52",
    "not reproduced": "#c0322b",
    "undecided": "#956400",
    "absent here": "#c0322b",
    "not asked here": "#75797f",
    "not run yet": "#75797f",
}


def _ink(verdict: str) -> str:
    """The hue as text: mixed with the page's own colour, so that it keeps its contrast on both grounds."""
    return f"color-mix(in srgb, {HUES[verdict]} 60%, currentColor)"


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _chosen(value: str, board: str = ".mi-board") -> str:
    return f'{board}:has(input[value="{_slug(value)}"]:checked)'


def badge(verdict: str) -> str:
    """A verdict with its mark: never told by colour alone."""
    return (
        f'<span style="color:{HUES[verdict]};color:{_ink(verdict)};font-weight:600;white-space:nowrap">'
        f"{MARKS[verdict]} {escape(verdict)}</span>"
    )


def card_html(id: str, statement: str, verdict: str, rows: Sequence[tuple[str, str]], note: str) -> str:
    """One claim as a card: id, statement and verdict above, name–value rows below."""
    body = "".join(
        f'<dt style="opacity:.75;font-weight:400">{escape(name)}</dt>'
        f'<dd style="margin:0;overflow-wrap:anywhere">{escape(text)}</dd>'
        for name, text in rows
    )
    foot = f'<div style="margin-top:.4em;opacity:.85">{escape(note)}</div>' if note else ""
    return (
        f'<div class="claim-card" style="border:1px solid color-mix(in srgb, currentColor 25%, transparent);'
        f"border-left:.35em solid {HUES[verdict]};border-radius:.35em;padding:.6em .9em;margin:.8em 0;"
        f'font-size:.92em;line-height:1.45;max-width:100%;color:inherit">'
        f'<div style="display:flex;flex-wrap:wrap;gap:.2em 1em;justify-content:space-between">'
        f"<span><b>{escape(id)}</b> {escape(statement)}</span>{badge(verdict)}</div>"
        f'<dl style="display:grid;grid-template-columns:minmax(7em,max-content) 1fr;gap:.1em .9em;margin:.5em 0 0">'
        f"{body}</dl>{foot}</div>"
    )


def table_html(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways on a phone; cells are HTML already."""
    line = "border-bottom:1px solid color-mix(in srgb, currentColor 20%, transparent);padding:.3em .6em;text-align:left"
    head = "".join(f'<th style="{line}">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{line};vertical-align:top">{cell}</td>' for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="claim-table" style="overflow-x:auto;max-width:100%" tabindex="0" role="region" '
        f'aria-label="{escape(caption, quote=True)}">'
        f'<table style="border-collapse:collapse;font-size:.9em;width:100%;color:inherit">'
        f'<caption style="caption-side:top;text-align:left;padding:.3em 0">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


STYLE = (
    """
.mi-board, .mi-small { font-size: .85rem; --line: color-mix(in srgb, currentColor 30%, transparent); }
.mi-board a, .mi-small a { color: inherit; }
.mi-reproduced, .mi-not-reproduced, .mi-undecided, .mi-absent-here {
  color: #fff; background: var(--hue); border: 1px solid var(--hue); }
.mi-absent-here { background-image: repeating-linear-gradient(135deg, var(--hue) 0 4px, #8f1d18 4px 8px); }
.mi-reproduced.mi-trained { color: inherit; background: none; border: 2px solid var(--hue); }
.mi-not-asked-here { color: inherit; border: 1px solid transparent;
  background: color-mix(in srgb, currentColor 14%, transparent); }
.mi-not-run-yet { color: inherit; background: none;
  border: 1px dashed color-mix(in srgb, currentColor 55%, transparent); }
.mi-filters { margin: 0 0 .6em; }
.mi-filters fieldset { border: 0; padding: 0; margin: 0 0 .45em; display: flex; flex-wrap: wrap; gap: .35em .4em; }
.mi-filters legend { float: left; padding: .15em 0; width: 4.6em; font-weight: 600; font-size: inherit; margin: 0; }
.mi-filters label { cursor: pointer; display: inline-flex; align-items: center; gap: .35em; margin: 0;
  padding: .15em .6em .15em .3em; border: 1px solid var(--line); border-radius: 1em; line-height: 1.4; }
.mi-filters label:has(:checked) { border-color: currentColor; box-shadow: inset 0 0 0 1px currentColor; }
.mi-filters label:has(:focus-visible) { outline: 2px solid currentColor; outline-offset: 2px; }
.mi-filters input { position: absolute; opacity: 0; pointer-events: none; }
.mi-filters b { display: inline-block; min-width: 1.5em; padding: 0 .3em; text-align: center; border-radius: .8em; }
.mi-filters label:has([value=""]) { padding-left: .6em; }
.mi-bars { display: grid; grid-template-columns: 4.6em 1fr; gap: .25em 0; align-items: center; margin: 0 0 .6em; }
.mi-bar { display: flex; gap: 2px; flex: 1; }
.mi-bar span { min-width: 2.9em; padding: .05em 0; text-align: center; border-radius: .25em; font-size: .92em;
  white-space: nowrap; }
.mi-legend { margin: 0 0 .4em; line-height: 1.4; }
.mi-filters fieldset:nth-of-type(2) { float: left; margin-right: 1.4em; }
.mi-filters + * { clear: both; }
.mi-chapter { display: grid; grid-template-columns: 13.4em 1fr; gap: 0 .6em; padding: .2em 0;
  border-top: 1px solid var(--line); }
.mi-chapter h2 { margin: 0; font-size: 1em; font-weight: 600; line-height: 1.2; }
.mi-chapter h2 a { text-decoration-color: var(--line); }
.mi-head small, .mi-fold, .mi-run { font-size: .88em; line-height: 1.2;
  color: color-mix(in srgb, currentColor 82%, transparent); }
.mi-head small { display: block; }
.mi-fold { display: block; margin: 0; cursor: pointer; }
.mi-fold input { position: absolute; opacity: 0; pointer-events: none; }
.mi-fold::before { content: "▸ "; }
.mi-fold:has(:checked)::before { content: "▾ "; }
.mi-fold:has(:focus-visible) { outline: 2px solid currentColor; outline-offset: 1px; }
.mi-row { display: grid; grid-template-columns: 3.7em 1fr; margin: 0 0 2px; }
.mi-scale { line-height: 1.65; }
.mi-cells { display: flex; flex-wrap: wrap; gap: 2px; }
.mi-runs { margin: .3em 0 .6em; padding: .3em 0 0; border-top: 1px solid var(--line); }
.mi-runs > summary { cursor: pointer; }
.mi-run { margin: .3em 0; overflow-wrap: anywhere; }
.mi-cell { width: 1.82em; height: 1.65em; padding: 0; border-radius: .2em; cursor: pointer; font: inherit;
  display: inline-flex; flex-direction: column; align-items: center; justify-content: center; line-height: 1; }
.mi-cell span { font-size: .85em; font-weight: 700; line-height: .95; }
.mi-cell small { font-size: .78em; line-height: .95; }
.mi-cell:hover { filter: brightness(1.12); }
.mi-cell:focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
.mi-board .mi-cell:focus-visible { outline-color: var(--pst-color-text-base, CanvasText); }
.mi-none { display: none; margin: 1em 0; }
.mi-popover { width: min(46rem, 94vw); max-height: 85vh; overflow: auto; border-radius: .5em; padding: 1em 1.2em;
  line-height: 1.45; background: var(--pst-color-background, Canvas); color: var(--pst-color-text-base, CanvasText);
  border: 1px solid color-mix(in srgb, currentColor 35%, transparent); }
.mi-popover::backdrop { background: rgb(0 0 0 / .45); }
.mi-popover p { margin: 0 0 .5em; }
.mi-popover h3 { display: flex; flex-wrap: wrap; gap: .2em .8em; align-items: baseline; margin: .8em 0 .3em; padding: 0;
  font-size: 1em; font-weight: 600; border-left: .35em solid var(--hue, currentColor); padding-left: .6em;
  color: inherit; }
.mi-popover > h3, .mi-popover:target > h3 { background: none; }
.mi-popover dl { display: grid; grid-template-columns: minmax(6.5em, max-content) 1fr; gap: .1em .9em; margin: 0; }
.mi-popover dt { font-weight: 400; color: color-mix(in srgb, currentColor 80%, transparent); margin: 0; }
.mi-popover dd { margin: 0; overflow-wrap: anywhere; }
.mi-close { float: right; margin: -.4em -.5em 0 .5em; padding: 0 .45em; font-size: 1.4em; line-height: 1.3;
  color: inherit; background: none; border: 1px solid transparent; border-radius: .25em; cursor: pointer; }
.mi-close:hover, .mi-close:focus-visible { border-color: currentColor; }
.mi-small .mi-part { padding: .15em 0; border-top: 1px solid var(--line); line-height: 1.2;
  display: grid; grid-template-columns: 11.2em 3.2em 1fr; gap: 0 .5em; align-items: center; }
.mi-small .mi-part > a { font-size: .95em; text-decoration-color: var(--line); }
.mi-small .mi-part b { font-weight: 400; font-size: .92em; }
.mi-small .mi-bars { margin-bottom: .4em; grid-template-columns: 4.2em 1fr; }
.mi-dots { display: flex; flex-wrap: wrap; gap: 1px; align-content: center; }
.mi-dots span { flex: 1 1 .78em; max-width: 1.45em; height: 1.4em; border-radius: .2em; font-size: .74em;
  line-height: 1.3; text-align: center; overflow: hidden; }
@media (max-width: 700px) {
  .mi-filters fieldset:nth-of-type(2) { float: none; }
  .mi-chapter { grid-template-columns: 1fr; gap: .2em; padding: .4em 0; }
  .mi-head small { display: inline; }
  .mi-chapter h2 { display: inline; margin-right: .4em; }
  .mi-row { margin: 0 0 .4em; }
  .mi-cells { gap: 3px; }
  .mi-cell { width: 2.05em; height: 1.9em; }
  .mi-small .mi-part { grid-template-columns: 1fr 3.2em; gap: .15em .5em; }
  .mi-small .mi-dots { grid-column: 1 / -1; }
  .mi-popover dl { grid-template-columns: 1fr; }
  .mi-popover dd { margin: 0 0 .3em .8em; }
}
"""
    + "".join(f".mi-{_slug(verdict)} {{ --hue: {hue}; }}\n" for verdict, hue in HUES.items())
    + '.mi-board:has([name="mi-verdict"][value=""]:checked):has([name="mi-scale"][value=""]:checked) '
    ".mi-chapter:not(:has(.mi-fold :checked)) .mi-silent { display: none; }\n"
    '.mi-board:has(.mi-filters :checked:not([value=""])) .mi-fold { display: none; }\n'
    + "".join(
        f"{_chosen(verdict)} .mi-cell:not(.mi-{_slug(verdict)}), "
        f"{_chosen(verdict)} .mi-row:not(:has(.mi-{_slug(verdict)})), "
        f"{_chosen(verdict)} .mi-chapter:not(:has(.mi-cell.mi-{_slug(verdict)})) {{ display: none; }}\n"
        f"{_chosen(verdict)}:not(:has(.mi-cell.mi-{_slug(verdict)})) .mi-none {{ display: block; }}\n"
        for verdict in HUES
    )
    + "".join(
        f'{_chosen(scale)} .mi-row:not([data-scale="{scale}"]) {{ display: none; }}\n'
        for scale in ("lab", "laptop", "paper")
    )
    + "".join(
        f"{_chosen(verdict)}{_chosen(scale, '')} "
        f'.mi-chapter:not(:has([data-scale="{scale}"] .mi-{_slug(verdict)})) {{ display: none; }}\n'
        f'{_chosen(verdict)}{_chosen(scale, "")}:not(:has([data-scale="{scale}"] .mi-{_slug(verdict)})) '
        ".mi-none { display: block; }\n"
        for verdict in HUES
        for scale in ("lab", "laptop", "paper")
    )
)
"""The board's style; colours follow the theme of the page, filters are rules."""
