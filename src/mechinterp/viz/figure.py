"""A plotly figure and its caption, shown the same way in a notebook, on Colab and on the site."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from textwrap import wrap

import plotly.graph_objects as go
import plotly.io as pio

from mechinterp.heads import Head

PALETTE = ("#3b6fb6", "#d1662f", "#3d9970", "#8c5fb3", "#b5467c", "#8a7a2e", "#4a9db5", "#7f7f7f")
"""Colours of series: told apart by colour-blind readers, readable on white and on black."""
INK = "#808a98"
GRID = "rgba(128, 138, 152, 0.25)"

TEMPLATE = go.layout.Template(
    layout=go.Layout(
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13, "color": INK},
        title={"font": {"size": 16}, "x": 0, "xanchor": "left", "xref": "container", "pad": {"l": 12}},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        colorway=PALETTE,
        margin={"l": 12, "r": 12, "t": 48, "b": 12},
        xaxis={"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True},
        yaxis={"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hoverlabel={"font": {"size": 13}},
        modebar={"orientation": "v", "bgcolor": "rgba(0,0,0,0)"},
    )
)
"""The house style: transparent ground, one ink for both themes, margins that never cut a label."""


def on_site() -> bool:
    """Whether the page is being built: scripts then come from the site, once a page."""
    return os.environ.get("MECHINTERP_SITE") == "1"


@dataclass(frozen=True)
class Figure:
    """A plotly figure with a caption that says in words what there is to see.

    Attributes:
        plot: the plotly figure, to be changed at will.
        caption: one or two sentences.
    """

    plot: go.Figure
    caption: str

    def html(self, plotlyjs: bool | str = False) -> str:
        """The figure with its caption as HTML; `plotlyjs` as in `plotly.io.to_html`.

        The title stands above the plot as text, which wraps on a phone.
        """
        title = self.plot.layout.title.text or ""
        menus = self.plot.layout.updatemenus
        above = self.plot.layout.annotations or any((1 if menu.y is None else menu.y) >= 1 for menu in menus)
        plot = go.Figure(self.plot).update_layout(title=None, margin={"t": 30 if above else 12})
        body = pio.to_html(
            plot,
            full_html=False,
            include_plotlyjs=plotlyjs,
            include_mathjax=False,
            auto_play=False,
            config={"responsive": True, "displaylogo": False, "displayModeBar": "hover"},
        )
        return with_caption(f"<strong>{escape(title)}</strong>{body}", self.caption)

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        if on_site():
            display(HTML(self.html()))
        else:
            display(self.plot)
            display(HTML(with_caption("", self.caption)))


def with_caption(body: str, caption: str) -> str:
    """A figure element; the caption doubles as its accessible name."""
    text = escape(caption)
    return (
        f'<figure class="mi-figure" role="group" aria-label="{escape(caption, quote=True)}" style="margin:0 0 1rem 0">'
        f'{body}<figcaption style="font-size:0.9em">{text}</figcaption></figure>'
    )


def lines_of(title: str | None) -> list[str]:
    """A title in lines that fit beside a plot of 300 pixels; a line break of its own stays."""
    return [line for part in (title or "").split("<br>") for line in wrap(part, 34)]


def head_label(head: Head, roles: Mapping[Head, str] | None, noun: str = "head") -> str:
    """A head's name with its role, if it has one."""
    role = (roles or {}).get(head)
    return f"{noun} {head}" + (f", {role}" if role else "")


def finish(plot: go.Figure, title: str, caption: str, height: int) -> Figure:
    """Put a figure into the house style; long titles of axes are broken."""
    for axis in (*plot.select_xaxes(), *plot.select_yaxes()):
        if axis.title.text:
            axis.title.text = "<br>".join(lines_of(axis.title.text))
    plot.update_layout(template=TEMPLATE, title=title, height=height, autosize=True)
    return Figure(plot, caption)
