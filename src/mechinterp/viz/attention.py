"""Attention patterns through circuitsvis, wrapped so that a page loads its script once and stays whole.

circuitsvis itself asks the network at display time whether to use a CDN, inlines 1.3 MB a figure otherwise,
and leaves its div open, which swallows the text after it. Here the figure is only data and one call; on
the site the script is loaded once a page, elsewhere it comes with the figure. Nothing is fetched.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from uuid import uuid4

from jaxtyping import Float
from torch import Tensor

from mechinterp.viz.figure import on_site, with_caption


@dataclass(frozen=True)
class AttentionView:
    """An interactive view of attention patterns; `last_row` is what a page without scripts shows."""

    props: str
    last_row: str
    caption: str

    def _repr_html_(self) -> str:
        name = f"circuits-vis-{uuid4().hex[:12]}"
        bundle = "" if on_site() else f"<script>{bundle_source()}\nwindow.CircuitsVis = CircuitsVis;</script>"
        call = f"CircuitsVis.render('{name}', CircuitsVis.AttentionPatterns, {self.props})"
        body = (
            '<div class="mi-circuitsvis" style="background:#fff;color:#222;border-radius:8px;padding:8px;'
            f'overflow-x:auto">{bundle}<div id="{name}"></div><script>{call}</script>'
            f"<noscript>{self.last_row}</noscript></div>"
        )
        return with_caption(body, self.caption)


@cache
def bundle_source() -> str:
    """circuitsvis' browser script, as its package carries it."""
    text = files("circuitsvis").joinpath("dist/cdn/iife.js").read_text(encoding="utf8")
    return text.replace("</script>", "<\\/script>")


def attention(
    patterns: Float[Tensor, "head query key"], tokens: Sequence[str], labels: Sequence[str], *, caption: str
) -> AttentionView:
    """Attention patterns of some heads on one prompt, to be explored with the pointer.

    Args:
        tokens: the prompt's tokens as text. `labels`: the heads' names.

    Errors: `ValueError` if the shapes do not fit.
    """
    if patterns.shape != (len(labels), len(tokens), len(tokens)):
        raise ValueError(
            f"patterns must have shape {(len(labels), len(tokens), len(tokens))} [head query key], "
            f"got {tuple(patterns.shape)}"
        )
    rounded = [[[round(x, 3) for x in row] for row in head] for head in patterns.detach().cpu().tolist()]
    props = {
        "tokens": [t.replace("\n", "⏎") for t in tokens],
        "attention": rounded,
        "headLabels": list(labels),
        "attentionHeadNames": list(labels),
    }
    rows = "".join(
        f"<tr><th>{escape(label)}</th>"
        + "".join(
            f'<td style="background:rgba(33,102,172,{head[-1][i]:.2f})">{head[-1][i]:.2f}</td>'
            for i in range(len(tokens))
        )
        + "</tr>"
        for label, head in zip(labels, rounded, strict=True)
    )
    header = "<tr><th>last token attends to</th>" + "".join(f"<th>{escape(t)}</th>" for t in tokens) + "</tr>"
    # "</" would end the script element early.
    return AttentionView(json.dumps(props).replace("</", "<\\/"), f"<table>{header}{rows}</table>", caption)
