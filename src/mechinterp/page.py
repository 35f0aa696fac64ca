"""One executed notebook as one HTML file that needs nothing but a browser.

Prose is rendered with markdown-it, formulas become MathML, code is highlighted with Pygments, plotly's
script is written into the file once. Needs the `book` extra.
"""

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 22%, transparent); }
body { font: 17px/1.6 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; padding: .7rem .9rem; border: 1px solid var(--line); border-radius: .35rem;
  font-size: .85rem; line-height: 1.45; }
code, pre { font-family: ui-monospace, monospace; }
.output { margin: .6rem 0 1.2rem; overflow-x: auto; }
.output pre { border: 0; padding: 0 .9rem; }
aside, details { border-left: .3rem solid var(--line); padding: .3rem 1rem; margin: 1rem 0; }
aside > b:first-child { display: block; }
img, svg { max-width: 100%; }
table { border-collapse: collapse; } td, th { padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
math[display=block] { margin: .8rem 0; overflow-x: auto; }
"""
PLOTLY = "application/vnd.plotly.v1+json"


def to_html(notebook: Any, title: str) -> str:
    """The page as text. Output of cells tagged `remove-cell` or `remove-output` is left out.

    Errors: `ValueError` if the notebook has a code cell that was never run.
    """
    from pygments.formatters import HtmlFormatter

    body = _once([_cell(cell) for cell in notebook.cells])
    scripts = _plotly_script() if any('class="plotly-graph-div"' in part for part in body) else ""
    light, dark = (HtmlFormatter(style=name).get_style_defs("pre") for name in ("default", "monokai"))
    dark = re.sub(r"background[^;}]*;?", "", dark)
    light = re.sub(r"background[^;}]*;?", "", light)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}{light}\n'
        f"@media (prefers-color-scheme: dark) {{ {dark} }}</style>\n{scripts}</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _once(parts: list[str]) -> list[str]:
    """Keep the first of every large script that several figures bring along."""
    seen: set[str] = set()

    def first(script: re.Match[str]) -> str:
        if len(script[0]) < 100_000:
            return script[0]
        known = script[0] in seen
        seen.add(script[0])
        return "" if known else script[0]

    return [re.sub(r"<script\b[^>]*>.*?</script>", first, part, flags=re.DOTALL) for part in parts]


def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>\n"


def _cell(cell: Any) -> str:
    tags = set(cell.metadata.get("tags", []))
    if "remove-cell" in tags:
        return ""
    if cell.cell_type == "markdown":
        return markdown(cell.source, cell.get("attachments", {}))
    if cell.cell_type != "code" or not cell.source.strip():
        return ""
    if cell.execution_count is None:
        raise ValueError(f"a code cell was not run: {cell.source[:60]!r}")
    code = "" if "remove-input" in tags else _code(cell.source, "python")
    if tags & {"hide-input", "hide-cell"} and code:
        code = f"<details><summary>Show code</summary>{code}</details>"
    outputs = "" if "remove-output" in tags else "".join(_output(output) for output in cell.outputs)
    if outputs:
        outputs = f'<div class="output">{outputs}</div>'
    if tags & {"hide-output", "hide-cell"} and outputs:
        outputs = f"<details><summary>Show output</summary>{outputs}</details>"
    return code + outputs


def _code(source: str, language: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language or "text")
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    return f"<pre><code>{highlight(source, lexer, HtmlFormatter(nowrap=True))}</code></pre>\n"


def _output(output: Any) -> str:
    if output.output_type == "stream":
        # Progress bars redraw their line on stderr; they say nothing once the run is over.
        return "" if output.name == "stderr" else f"<pre>{escape(_plain(output.text))}</pre>"
    if output.output_type == "error":
        return f"<pre>{escape(_plain(chr(10).join(output.traceback)))}</pre>"
    data = output.data
    if PLOTLY in data and "text/html" not in data:
        return _figure(data[PLOTLY])
    if "text/html" in data:
        return str(data["text/html"])
    if "image/svg+xml" in data:
        return str(data["image/svg+xml"])
    if "image/png" in data:
        alt = escape(data.get("text/plain", "figure"), quote=True)
        return f'<img alt="{alt}" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/markdown" in data:
        return markdown(data["text/markdown"])
    return f"<pre>{escape(_plain(data.get('text/plain', '')))}</pre>"


def _figure(spec: dict[str, Any]) -> str:
    import plotly.io as pio

    figure = {key: spec[key] for key in ("data", "layout", "frames") if key in spec}
    html = pio.to_html(
        json.loads(json.dumps(figure)),
        include_plotlyjs=False,
        include_mathjax=False,
        full_html=False,
        config={"responsive": True, "displaylogo": False},
        validate=False,
    )
    return str(html)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def markdown(source: str, attachments: Any = None) -> str:
    """Markdown with formulas and MyST's directives and roles as HTML.

    A directive becomes a box with its title (one with the class `dropdown` a folded one), a role its text.
    """
    return str(_parser().render(source))


def _parser() -> Any:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.colon_fence import colon_fence_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.myst_blocks import myst_block_plugin
    from mdit_py_plugins.myst_role import myst_role_plugin

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, double_inline=True, renderer=_math)
    parser.use(colon_fence_plugin).use(myst_role_plugin).use(myst_block_plugin)
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule("colon_fence", _fence)
    parser.add_render_rule("myst_role", _role)
    parser.add_render_rule("myst_target", lambda *_: "")
    parser.add_render_rule("myst_line_comment", lambda *_: "")
    return parser


def _math(tex: str, options: dict[str, Any]) -> str:
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml

    display = bool(options.get("display_mode"))
    try:
        return str(tex2mathml(tex.strip(), as_block=display))
    except (MathError, SyntaxError):
        return f"<code>{escape(tex)}</code>"


def _role(self: Any, tokens: Sequence[Any], idx: int, options: Any, env: Any) -> str:
    name, content = tokens[idx].meta["name"], tokens[idx].content
    if name == "math":
        return _math(content, {})
    text = re.sub(r"\s*<[^<>]*>$", "", content)
    return f"<code>{escape(text.lstrip('~'))}</code>" if name.startswith("py:") else escape(text)


def _fence(self: Any, tokens: Sequence[Any], idx: int, options: Any, env: Any) -> str:
    token = tokens[idx]
    directive = re.match(r"\{([\w:-]+)\}\s*(.*)", token.info.strip())
    if directive is None:
        return _code(token.content, token.info.strip().split(" ")[0])
    name, title = directive[1], directive[2]
    lines = token.content.splitlines()
    settings = {}
    while lines and (option := re.match(r":([\w-]+):\s*(.*)", lines[0])):
        settings[option[1]] = option[2]
        lines.pop(0)
    text = "\n".join(lines)
    if name == "math":
        return _math(text, {"display_mode": True})
    if name in ("image", "figure"):
        return _image(title, settings.get("alt", ""), text)
    if name in ("code", "code-block", "code-cell"):
        return _code(text, title or "python")
    if name in ("bibliography", "tableofcontents", "contents", "solution-start", "solution-end"):
        return ""
    heading = escape(title or name.replace("-", " ").capitalize())
    inner = markdown(text)
    if "dropdown" in settings.get("class", "") or name in ("dropdown", "solution", "toggle"):
        return f"<details><summary>{heading}</summary>{inner}</details>\n"
    return f"<aside><b>{heading}</b>{inner}</aside>\n"


def _image(source: str, alt: str, caption: str) -> str:
    import base64
    import mimetypes

    path = Path(source)
    if not path.exists():
        return f"<figure><figcaption>{escape(alt or path.name)}</figcaption></figure>\n"
    data = base64.b64encode(path.read_bytes()).decode()
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    image = f'<img alt="{escape(alt, quote=True)}" src="data:{kind};base64,{data}">'
    return f"<figure>{image}<figcaption>{markdown(caption)}</figcaption></figure>\n"
