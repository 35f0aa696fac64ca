"""Verdict cards and tables as HTML that reads well in light and dark."""

from collections.abc import Sequence
from html import escape

MARKS = {"reproduced": "✓", "not reproduced": "✗", "paper scale only": "○", "not run yet": "…"}
# One hue a verdict, mixed with the page's own text colour so that it keeps its contrast on both grounds.
_HUES = {"reproduced": "#1a9850", "not reproduced": "#d73027", "paper scale only": "#808080", "not run yet": "#808080"}


def _ink(verdict: str) -> str:
    return f"color-mix(in srgb, {_HUES[verdict]} 65%, currentColor)"


def badge(verdict: str) -> str:
    """A verdict with its mark: never told by colour alone."""
    return (
        f'<span style="color:{_HUES[verdict]};color:{_ink(verdict)};font-weight:600;white-space:nowrap">'
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
        f"border-left:.35em solid {_HUES[verdict]};border-radius:.35em;padding:.6em .9em;margin:.8em 0;"
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
