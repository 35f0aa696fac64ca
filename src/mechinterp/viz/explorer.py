"""A text whose words can be chosen: what happens at a word is shaded on the others and listed below."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from uuid import uuid4

from mechinterp.viz.figure import with_caption

_SCRIPT = """
(() => {
  const root = document.getElementById("NAME"), views = VIEWS;
  const words = [...root.querySelectorAll("button")], list = root.querySelector("dl");
  const number = x => typeof x === "number" ? x.toFixed(2) : x;
  const show = i => {
    words.forEach((word, j) => {
      word.style.background = "none";
      word.setAttribute("aria-pressed", j === i);
      word.style.outline = j === i ? "2px solid currentColor" : "none";
    });
    list.replaceChildren();
    for (const [label, items] of Object.entries(views[i])) {
      const term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = label;
      text.style.margin = "0 0 .3em 1em";
      text.textContent = items.map(item => {
        if (!Array.isArray(item)) return item;
        const [what, size] = item;
        if (Number.isInteger(what)) words[what].style.background = `rgba(209, 102, 47, ${Math.min(0.9, size)})`;
        return `${Number.isInteger(what) ? words[what].textContent : what} (${number(size)})`;
      }).join(",  ");
      list.append(term, text);
    }
  };
  words.forEach((word, i) => ["mouseenter", "focus", "click"].forEach(e => word.addEventListener(e, () => show(i))));
  show(START);
})();
"""


@dataclass(frozen=True)
class TokenExplorer:
    """Words as buttons, and for each what to show when it is chosen."""

    tokens: tuple[str, ...]
    views: tuple[Mapping[str, Sequence[Any]], ...]
    caption: str
    start: int

    def _repr_html_(self) -> str:
        name = f"explorer-{uuid4().hex[:12]}"
        style = "all:unset;cursor:pointer;white-space:pre-wrap;border-radius:3px;padding:1px 0"
        words = "".join(f'<button type="button" style="{style}">{escape(t)}</button>' for t in self.tokens)
        # "</" would end the script element early.
        views = json.dumps([dict(view) for view in self.views]).replace("</", "<\\/")
        script = _SCRIPT.replace("NAME", name).replace("START", str(self.start)).replace("VIEWS", views)
        body = (
            f'<div id="{name}" class="mi-explorer"><div style="line-height:1.9;font-family:monospace">{words}</div>'
            f'<dl style="min-height:9em;margin:.8em 0 0"></dl><script>{script}</script></div>'
        )
        return with_caption(body, self.caption)


_MENU = """
(() => {
  const root = document.getElementById("NAME"), menu = root.querySelector("select");
  const parts = [...root.querySelectorAll(":scope > div")];
  menu.addEventListener("change", () => parts.forEach((part, i) => { part.hidden = i !== menu.selectedIndex; }));
})();
"""


@dataclass(frozen=True)
class Menu:
    """Several explorers, one of them on the page."""

    parts: Mapping[str, TokenExplorer]
    label: str

    def _repr_html_(self) -> str:
        name = f"menu-{uuid4().hex[:12]}"
        options = "".join(f"<option>{escape(title)}</option>" for title in self.parts)
        parts = "".join(
            f"<div{' hidden' if i else ''}>{part._repr_html_()}</div>" for i, part in enumerate(self.parts.values())
        )
        chooser = f'<select style="max-width:100%">{options}</select>'
        return (
            f'<div id="{name}" class="mi-menu"><label>{escape(self.label)} {chooser}</label>{parts}'
            f"<script>{_MENU.replace('NAME', name)}</script></div>"
        )


def menu(parts: Mapping[str, TokenExplorer], *, label: str = "Text:") -> Menu:
    """Explorers of several texts behind a menu; the first one is shown. Needs no kernel and no network.

    Args:
        parts: by what the menu calls them.

    Errors: `ValueError` for no parts.
    """
    if not parts:
        raise ValueError("a menu needs at least one explorer")
    return Menu(dict(parts), label)


def token_explorer(
    tokens: Sequence[str], views: Sequence[Mapping[str, Sequence[Any]]], *, caption: str, start: int | None = None
) -> TokenExplorer:
    """A text to be explored with pointer or keyboard; needs no network and works in both themes.

    Args:
        tokens: the text, token by token.
        views: for each token lists by label. An item is a text, a pair (text, number), or a pair (position, number):
            then the token at that position is shaded by the number, 0 to 1.
        start: the token chosen at first; by default the last.

    Errors: `ValueError` if there is not one view a token.
    """
    if len(tokens) != len(views) or not tokens:
        raise ValueError(f"give one view a token: {len(tokens)} tokens, {len(views)} views")
    texts = tuple(t.replace("\n", "⏎") for t in tokens)
    return TokenExplorer(texts, tuple(views), caption, len(tokens) - 1 if start is None else start)
