"""Sphinx extension of the book: pages made from results, and scripts that the site serves itself."""

import json
import re
import shutil
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import plotly.graph_objects as go
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mechinterp import frozen, notebooks, viz
from mechinterp.claims.beside import beside
from mechinterp.claims.scoreboard import scoreboard, summary
from mechinterp.grokking import sweeps

SCRIPTS = {
    "plotly.min.js": ("plotly", "package_data/plotly.min.js", "plotly-graph-div"),
    "circuitsvis.js": ("circuitsvis", "dist/cdn/iife.js", "mi-circuitsvis"),
}
"""Script served by the site: (package that carries it, where in the package, what a page that needs it contains)."""


class Scoreboard(SphinxDirective):
    """All claims and their verdicts, from the committed results; with `:small:` counts and a line a chapter."""

    option_spec: ClassVar = {"small": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Read `results/` beside the source tree."""
        source = Path(self.env.srcdir)
        for path in (source / "results").rglob("*.json"):
            self.env.note_dependency(str(path))
        if "small" in self.options:
            return [nodes.raw("", summary(source / "results"), format="html")]
        html = scoreboard(source / "results", pages=chapter_pages(source))
        return [nodes.raw("", html, format="html")]


class Beside(SphinxDirective):
    """`{beside} ioi IOI-1 IOI-4`: some claims of a chapter, for every model whose results are committed."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Read `results/` beside the source tree."""
        chapter, *ids = self.arguments[0].split()
        folder = Path(self.env.srcdir) / "results"
        for path in folder.glob(f"*/{chapter}.json"):
            self.env.note_dependency(str(path))
        return [nodes.raw("", beside(chapter, ids, folder), format="html")]


def chapter_pages(source: Path) -> dict[str, str]:
    """Each chapter's page, as seen from a page of `book/`."""
    return {
        path.stem.partition("_")[2]: f"../chapters/{path.stem}.html" for path in (source / "chapters").glob("*.ipynb")
    }


class FirstFigure(SphinxDirective):
    """The live figure of the first page.

    It is what a cell tagged `first-screen` shows in one of the executed notebooks in `results/laptop/pages/`, the
    first in reading order that has one. Until there is one, it is the learning curve of the networks of the grokking
    chapter, from the runs that come with the package.
    """

    TAG = "first-screen"

    def run(self) -> list[nodes.Node]:
        """Find the figure, or draw the other one."""
        pages = Path(self.env.srcdir) / "results" / "laptop" / "pages"
        for path in sorted(pages.glob("*.ipynb"), key=self._order):
            self.env.note_dependency(str(path))
            for cell in json.loads(path.read_text(encoding="utf8"))["cells"]:
                if self.TAG in cell["metadata"].get("tags", []):
                    found = [html for output in cell["outputs"] if (html := _html(output))]
                    if not found:
                        raise self.error(f"{path}: the cell tagged {self.TAG} shows no figure")
                    return [nodes.raw("", "".join(found), format="html")]
        return [nodes.raw("", _grokking().html(), format="html")]

    def _order(self, path: Path) -> str:
        """Pages may be named like the notebook, or like the chapter."""
        names = sorted(notebook.stem for notebook in (Path(self.env.srcdir) / "chapters").glob("*.ipynb"))
        return next((name for name in names if name.endswith(path.stem)), path.stem)


def _html(output: dict[str, Any]) -> str:
    """A figure or caption among a cell's outputs, as the site shows it."""
    data = output.get("data", {})
    if "application/vnd.plotly.v1+json" in data:
        plot = data["application/vnd.plotly.v1+json"]
        return viz.Figure(go.Figure(plot["data"], plot["layout"], skip_invalid=True), "").html()
    return "".join(data.get("text/html", ""))


def _grokking() -> viz.Figure:
    made = sweeps.measured("mainline", "paper")
    names = {"train_accuracy": "examples it was trained on", "test_accuracy": "sums it has never seen"}
    series, groups = {}, {}
    for run in made.runs:
        for key, name in names.items():
            points = [(x, y) for x, y in zip(made.epochs, run["curve"][key], strict=True) if x and y is not None]
            series[f"{name}, seed {run['seed']}"] = tuple(zip(*points, strict=True))
            groups[f"{name}, seed {run['seed']}"] = name
    shape, size = made.config["shape"], made.runs[0]["size"]
    figure = viz.curves(
        series,
        x="training step",
        y="accuracy",
        title="It memorises at once and generalises much later",
        caption=f"{len(made.runs)} one-layer transformers learn to add modulo {shape['p']} from {size} of "
        f"{shape['p'] ** 2} sums, the setting of the grokking papers. Chapter 4 finds out why.",
        groups=groups,
        log_x=True,
    )
    figure.plot.update_traces(mode="lines").update_yaxes(tickformat=".0%", range=[0, 1.04]).update_layout(height=330)
    return figure


class ModelCard(SphinxDirective):
    """The lab model's card: what it was trained on and what it can do."""

    def run(self) -> list[nodes.Node]:
        """Read the card that ships with the package."""
        path = files("mechinterp").joinpath("lab/model/card.json")
        if not path.is_file():
            return [nodes.paragraph(text="The lab model has not been trained yet.")]
        return [nodes.raw("", _card(json.loads(path.read_text(encoding="utf8"))), format="html")]


def _card(card: dict[str, Any]) -> str:
    config, loss = card["config"], card["measured"]["held-out text"]
    losses = {"the lab model": f"{loss['loss']:.3f} ± {loss['standard_error']:.3f}"}
    losses |= {name: f"{value:.3f}" for name, value in card.get("baseline", {}).items()}
    training = {
        "shape": "GPT-2 with {n_layers} layers, {n_heads} heads a layer, d_model {d_model}, context {n_ctx}".format(
            **config
        ),
        "vocabulary": f"{config['vocab_size']} tokens, byte-level BPE",
        "tokens seen": f"{card['tokens_seen'] / 1e6:.1f} M, {1 - card['generated']:.0%} of them real text",
        "text": f"{card['real_tokens'] / 1e6:.1f} M tokens of {len(card['text'])} files",
        "schedule": "{steps} steps of {batch} rows, Muon {muon_lr} and AdamW {lr}, seed {seed}".format(**config),
    }
    files = {str(next(iter(source.values()))): source.get("sha256", "") for source in card["text"]}
    return (
        _table("Behaviour", {k: v for k, v in card["measured"].items() if k != "held-out text"})
        + _table("Loss on held-out text, nats per token", losses)
        + _table("Training", training)
        + f"<details><summary>sha256 of the texts</summary>{_table('', files)}</details>"
    )


def _table(title: str, rows: dict[str, Any]) -> str:
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>" for name, value in rows.items())
    return (f"<h3>{escape(title)}</h3>" if title else "") + f"<table>{body}</table>"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name.replace('_', ' ')} {_text(item)}" for name, item in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def say_when_it_ran(app: Sphinx, page: str, source: list[str]) -> None:
    """Under the title of a chapter with a frozen page: when and with what it was executed, and what changed since."""
    notebook = Path(app.srcdir) / f"{page}.ipynb"
    if notebook.parent.name != "chapters" or not frozen.page_path(notebook).is_file():
        return
    made = notebooks.read(frozen.page_path(notebook)).metadata[frozen.KEY]
    note = frozen.stale(notebook) or f"Executed on {made['date']} with version {made['version']}"
    minutes = f"{made['seconds'] / 60:.0f} minutes on two CPU cores"
    data = json.loads(source[0])
    words = f":::{{note}}\n{note.rstrip('.')}; {minutes}.\n:::"
    data["cells"].insert(1, {"cell_type": "markdown", "id": "executed", "metadata": {}, "source": words})
    source[0] = json.dumps(data)


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Give a page the scripts that its figures need, once, and no others."""
    for name, (_, _, mark) in SCRIPTS.items():
        if mark in context.get("body", ""):
            app.add_js_file(name, priority=100)
    # Live kernels are off, and their script would reach for a CDN. Last, since this leaves Sphinx's own list.
    context["script_files"] = [s for s in context["script_files"] if "thebe" not in _source(s)]


def _source(script: Any) -> str:
    return f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', '')}".lower()


def escape_bars(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A bar in a docstring is a norm or a table, never a substitution; a letter may follow a name, as in `Head`s."""
    lines[:] = [re.sub(r"(?<=\w`)(?=[a-z])", r"\\ ", line.replace("|", "\\|")) for line in lines]


def no_type(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Words before a colon in a constant's docstring are not its type, for which napoleon takes the first line's."""
    if what in ("data", "attribute"):
        lines[:0] = ["..", ""]


def collect_scripts(app: Sphinx) -> None:
    """Copy the packages' scripts into a folder that Sphinx takes as static."""
    folder = Path(app.outdir).parent / "scripts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (package, path, _) in SCRIPTS.items():
        source = files(package).joinpath(path)
        with source.open("rb") as read, (folder / name).open("wb") as write:
            shutil.copyfileobj(read, write)
    # A class-level variable of the bundle is not a window property when loaded as a module; this makes it one.
    with (folder / "circuitsvis.js").open("a", encoding="utf8") as write:
        write.write("\nwindow.CircuitsVis = CircuitsVis;\n")
    app.config.html_static_path.append(str(folder))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and hooks."""
    app.add_directive("beside", Beside)
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("model-card", ModelCard)
    app.add_directive("first-figure", FirstFigure)
    app.connect("builder-inited", collect_scripts)
    app.connect("source-read", say_when_it_ran)
    app.connect("html-page-context", add_scripts, priority=900)
    app.connect("autodoc-process-docstring", no_type, priority=400)
    app.connect("autodoc-process-docstring", escape_bars)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
