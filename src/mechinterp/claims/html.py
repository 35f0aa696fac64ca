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
# One hue a verdict, mixed with the page's own text colour so that it keeps its contrast on both grounds.
HUES = {
    "reproduced": "#1a9850",
    "not reproduced": "#d73027",
    "undecided": "#b8860b",
    "absent here": "#d73027",
    "not asked here": "#808080",
    "not run yet": "#808080",
}


def _ink(verdict: str) -> str:
    return f"color-mix(in srgb, {HUES[verdict]} 65%, currentColor)"


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
.mi-board { font-size: .85rem; }
.mi-filters fieldset { border: 0; padding: 0; margin: 0 0 .4em; display: flex; flex-wrap: wrap; gap: .2em .9em; }
.mi-filters legend { float: left; padding: 0; margin-right: .9em; font-weight: 600; font-size: inherit; width: auto; }
.mi-chapter h3 { margin: 1.1em 0 .3em; font-size: 1.05rem; }
.mi-row { display: grid; grid-template-columns: 3.6em 1fr; gap: .1em .5em; margin: .25em 0; }
.mi-scale { font-weight: 600; }
.mi-cells { display: flex; flex-wrap: wrap; gap: 2px; }
.mi-run { grid-column: 2; opacity: .75; font-size: .8em; line-height: 1.3; }
.mi-cell { min-width: 3.1em; padding: .1em .25em; border: 1px solid var(--hue); border-radius: .2em; cursor: pointer;
  color: inherit; font: inherit; line-height: 1.35; background: color-mix(in srgb, var(--hue) 28%, transparent); }
.mi-cell span { font-weight: 700; margin-right: .25em; }
.mi-cell.mi-trained { background-image: repeating-linear-gradient(135deg, transparent 0 3px,
  color-mix(in srgb, currentColor 14%, transparent) 3px 5px); }
.mi-popover { max-width: min(46rem, 94vw); max-height: 85vh; overflow: auto; border-radius: .4em; padding: .2em .8em;
  background: var(--pst-color-background, Canvas); color: var(--pst-color-text-base, CanvasText);
  border: 1px solid color-mix(in srgb, currentColor 35%, transparent); }
.mi-popover::backdrop { background: rgb(0 0 0 / .35); }
"""
    + "".join(f".mi-{verdict.replace(' ', '-')} {{ --hue: {hue}; }}\n" for verdict, hue in HUES.items())
    + "".join(
        f'.mi-board:has(input[value="{slug}"]:checked) .mi-cell:not(.mi-{slug}) {{ display: none; }}\n'
        for slug in (verdict.replace(" ", "-") for verdict in HUES)
    )
    + "".join(
        f'.mi-board:has(input[value="{scale}"]:checked) .mi-row:not([data-scale="{scale}"]) {{ display: none; }}\n'
        for scale in ("lab", "laptop", "paper")
    )
)
"""The board's style; colours follow the theme of the page."""
