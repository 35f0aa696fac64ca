"""Sphinx extension: the pages of the API, made from the package's docstrings.

A page `book/api/NAME.md` lists modules. Each becomes a table of its functions with their first lines, and below it
their docstrings, each in one place: on the page that lists its module, else on that of a package that exports it.
"""

import importlib
import inspect
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from sphinx.application import Sphinx

MODULE = re.compile(r"^```\{module\} (\S+)\n```$", re.MULTILINE)
FOLDER = "book/api"


def expand(app: Sphinx, docname: str, source: list[str]) -> None:
    """Write out what stands for a module, for the list of pages, or for the table of families."""
    folder = Path(app.srcdir) / FOLDER
    if docname.startswith(f"{FOLDER}/"):
        listed = MODULE.findall(source[0])
        source[0] = MODULE.sub(lambda found: _module(found[1], len(listed) > 1, folder), source[0])
    if docname == FOLDER:
        table = (folder.parent / "families.html").read_text(encoding="utf8")
        source[0] = source[0].replace("```{packages}\n```", _packages(folder))
        source[0] = source[0].replace("```{families}\n```", f"```{{raw}} html\n{linked(table, folder)}\n```")
        app.env.note_dependency(str(folder.parent / "families.html"))
        for path in folder.glob("*.md"):
            app.env.note_dependency(str(path))


def pages(folder: Path) -> dict[str, list[str]]:
    """The modules of every page."""
    return {path.stem: MODULE.findall(path.read_text(encoding="utf8")) for path in sorted(folder.glob("*.md"))}


def members(name: str) -> list[str]:
    """What a module offers: its `__all__`, or the functions and classes that it defines."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return [item for item in module.__all__ if not item.startswith("__")]
    public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    return [
        key
        for key, value in public.items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == name
    ]


@cache
def homes(folder: Path) -> dict[int, str]:
    """Where each function and class is documented: once.

    By the first package that exports it, unless its module has a page without that package; else by its module.
    """
    listed = pages(folder)
    found: dict[int, str] = {}

    def take(names: Iterable[str]) -> None:
        for name in names:
            module = importlib.import_module(name)
            for item in members(name):
                thing = getattr(module, item)
                if inspect.isfunction(thing) or inspect.isclass(thing):
                    found.setdefault(id(thing), f"{name}.{item}")

    every = [name for names in listed.values() for name in names]
    packages = {name for name in every if hasattr(importlib.import_module(name), "__all__")}
    take(name for names in listed.values() if packages.isdisjoint(names) for name in names)
    take(sorted(every, key=lambda name: (name not in packages, name)))
    return found


def home(name: str, item: str, folder: Path) -> str:
    """Under which name something is documented."""
    return homes(folder).get(id(getattr(importlib.import_module(name), item)), f"{name}.{item}")


def linked(table: str, folder: Path) -> str:
    """The table of families, with a link from each function to its docstring."""
    where = {
        home(module, item, folder): page
        for page, names in pages(folder).items()
        for module in names
        for item in members(module)
    }

    def link(found: re.Match[str]) -> str:
        module, _, item = f"mechinterp.{found[1]}".rpartition(".")
        name = home(module, item, folder)
        if name not in where:
            return found[0]
        return f'<th><a href="api/{where[name]}.html#{name}"><code>{found[1]}</code></a>{found[2] or ""}</th>'

    return re.sub(r"<th><code>([\w.]+)(, [^<]*)?</code></th>", link, table)


def _module(name: str, several: bool, folder: Path) -> str:
    left_out = [item for item in members(name) if home(name, item, folder) != f"{name}.{item}"]
    body = [f".. automodule:: {name}", "   :members:"]
    body += ["   :imported-members:"] * hasattr(importlib.import_module(name), "__all__")
    body += [f"   :exclude-members: {', '.join(left_out)}"] * bool(left_out)
    heading = f"## {name}\n\n" if several else ""
    return heading + "\n".join(["```{eval-rst}", *body, "```"])


def add_table(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """After a module's docstring, its functions with their first lines."""
    if what != "module":
        return
    folder, rows = Path(app.srcdir) / FOLDER, []
    for item in sorted(members(name), key=str.lower):
        thing, full = getattr(obj, item), f"{name}.{item}"
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and home(name, item, folder) == full:
            rows += [f"   * - :py:obj:`{item} <{full}>`", f"     - {_first_line(thing)}"]
    if rows:
        lines += ["", ".. list-table::", "   :class: mi-functions", "   :widths: 30 70", "", *rows, ""]


def _first_line(thing: object) -> str:
    """What a function does, as reStructuredText in which nothing but `names` is markup."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(f"`{p}`" if p.startswith("`") else re.sub(r"([|*_\\])", r"\\\1", p) for p in parts)


def _packages(folder: Path) -> str:
    """A line for each page, in the order of the table of contents."""
    order = re.findall(rf"file: {FOLDER}/(\S+)", (folder.parents[1] / "_toc.yml").read_text(encoding="utf8"))
    lines = ["| page | what is there | documented |", "|---|---|---|"]
    for page in order:
        text = (folder / f"{page}.md").read_text(encoding="utf8").split("\n\n")
        count = sum(len(members(name)) for name in MODULE.findall("\n\n".join(text)))
        lines.append(f"| [{text[0].removeprefix('# ')}](api/{page}.md) | {text[1].strip()} | {count} |")
    return "\n".join(lines)


def setup(app: Sphinx) -> dict[str, object]:
    """Register the hooks."""
    app.connect("source-read", expand)
    app.connect("autodoc-process-docstring", add_table, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
