"""Sphinx extension of the book: pages made from results, and scripts that the site serves itself."""

import json
import shutil
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mechinterp import claims

SCRIPTS = {
    "plotly.min.js": ("plotly", "package_data/plotly.min.js", "plotly-graph-div"),
    "circuitsvis.js": ("circuitsvis", "dist/cdn/iife.js", "mi-circuitsvis"),
}
"""Script served by the site: (package that carries it, where in the package, what a page that needs it contains)."""


class Scoreboard(SphinxDirective):
    """All claims and their verdicts, from the committed results."""

    def run(self) -> list[nodes.Node]:
        """Read `results/` beside the source tree."""
        folder = Path(self.env.srcdir) / "results"
        for path in folder.rglob("*.json"):
            self.env.note_dependency(str(path))
        return [nodes.raw("", claims.scoreboard(folder, style="html"), format="html")]


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
    """A bar in a docstring is a norm or a table, never a substitution of reStructuredText."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


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
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("model-card", ModelCard)
    app.connect("builder-inited", collect_scripts)
    app.connect("html-page-context", add_scripts, priority=900)
    app.connect("autodoc-process-docstring", escape_bars)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
