"""Frozen pages: chapters executed on a real model take minutes each, so their outputs are committed.

    python -m mechinterp.frozen [CHAPTER ...]

executes every chapter, one by one, as whoever opens it would: at laptop scale, or where it runs instead. It writes
`results/laptop/pages/NN_name.ipynb` with what made it. A page that is up to date is passed over, so an interrupted run
goes on where it stopped. The website shows these outputs under the notebook's own words. If the notebook's code is
another, the page would show code that did not run, and is refused; if only the package has changed since, the page
says so. A hash shows that a page is out of date, not that it is true: only executing it again shows that.
"""

import argparse
import ast
import datetime
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mechinterp
from mechinterp.claims import CLAIMS
from mechinterp.claims.results import project_root, read_results, results_path
from mechinterp.files import atomic_write
from mechinterp.notebooks import chapter_name, find_chapter, read, run

KEY = "mechinterp"
LARGEST = 3_000_000
"""Bytes that a page may have."""


def code_hash(notebook: Any) -> str:
    """sha256 of a notebook's code cells, in their order."""
    return _sha([cell.source for cell in notebook.cells if cell.cell_type == "code"])


def outputs_hash(notebook: Any) -> str:
    """sha256 of what the code cells have printed and shown."""
    return _sha([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])


def modules(code: str, chapter: str, folder: Path | None = None) -> list[Path]:
    """The package's files that some code imports, directly or through others; of the claims, the chapter's only.

    >>> [path.name for path in modules("from mechinterp.files import atomic_write", "ioi")]
    ['__init__.py', 'anatomy.py', 'architectures.py', 'files.py', 'heads.py', 'modules.py', 'scales.py']
    """
    folder = Path(mechinterp.__file__).parent if folder is None else folder
    found: set[Path] = set()
    new = _imported(ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.MULTILINE)), folder)
    while new := {
        path for path in new if not (path.parent.name == "papers" and path.stem not in ("__init__", chapter))
    }:
        found |= new
        new = {path for one in new for path in _imported(ast.parse(one.read_text(encoding="utf8")), folder)} - found
    return sorted(found)


def package_hash(code: str, chapter: str, folder: Path | None = None) -> str:
    """sha256 of `modules` as syntax trees without docstrings: comments, words and what does not run do not count."""
    folder = Path(mechinterp.__file__).parent if folder is None else folder
    return _sha([[path.relative_to(folder).as_posix(), _bare(path)] for path in modules(code, chapter, folder)])


def page_path(notebook: Path) -> Path:
    """Where a chapter's frozen page is: `results/laptop/pages/01_ioi.ipynb`."""
    return notebook.resolve().parents[1] / "results" / "laptop" / "pages" / notebook.name


def freeze(notebook: Path) -> Path:
    """Execute a chapter as the website would and write its page, with its results beside it.

    Errors: `ValueError` for a page of more than 3 MB, a cell that fails (with its traceback), or a run without claims.
    """
    from nbclient.exceptions import CellExecutionError

    page, name = page_path(notebook), chapter_name(notebook)
    began, before = time.perf_counter(), stamps(name, page.parents[2])
    os.environ.pop("MECHINTERP_MODEL", None)
    os.environ |= {"MECHINTERP_SITE": "1", "MECHINTERP_RESULTS": str(page.parents[2]), "MECHINTERP_SCALE": "laptop"}
    try:
        executed = run(notebook, {})
    except CellExecutionError as error:
        raise ValueError(f"{notebook.name} failed\n{error}") from error
    for cell in executed.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # bars and warnings are for whoever runs it, and may name folders of the machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    scale = written(name, page.parents[2], before)
    if scale is None:
        raise ValueError(f"chapter {name} ran and recorded no claim: a page shows what its results file says")
    executed.metadata[KEY] = {
        **made_of(notebook),
        "outputs": outputs_hash(executed),
        "version": mechinterp.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - began),
        "scale": scale,
        "model": read_results(results_path(name, scale)).model["sha256"],
    }
    text = json.dumps(executed, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if len(text.encode()) > LARGEST:
        raise ValueError(f"{page.name} would have {len(text.encode()) / 1e6:.1f} MB; {LARGEST / 1e6:.0f} are allowed")
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(page, text.encode())
    return page


def made_of(notebook: Path) -> dict[str, str]:
    """Hashes of what a page depends on: the notebook's code, the package's that it imports, the lock file."""
    root, read_in = project_root(), read(notebook)
    lock = b"" if root is None else (root / "requirements.lock").read_bytes()
    code = "\n".join(cell.source for cell in read_in.cells if cell.cell_type == "code")
    package = package_hash(code, chapter_name(notebook))
    return {"code": code_hash(read_in), "package": package, "lock": hashlib.sha256(lock).hexdigest()}


def stale(notebook: Path) -> str:
    """What a reader should be told of a chapter's frozen page; empty if nothing has changed since it was made.

    Errors: `ValueError` if there is no page, its code is not the notebook's, its outputs are not those that were
        written, or the results beside it are of another model. The message names the command that mends it.
    """
    page, again = page_path(notebook), f"run python -m mechinterp.frozen {chapter_name(notebook)}"
    if not page.is_file():
        raise ValueError(f"{notebook.name} has no frozen page; {again}")
    frozen, now = read(page), made_of(notebook)
    made = frozen.metadata.get(KEY, {})
    if made.get("code") != now["code"] or code_hash(frozen) != now["code"]:
        raise ValueError(f"the frozen page of {notebook.name} shows code that is not the notebook's; {again}")
    if made.get("outputs") != outputs_hash(frozen):
        raise ValueError(f"the frozen page of {notebook.name} has other outputs than its run had; {again}")
    results = read_results(page.parents[2] / made["scale"] / f"{chapter_name(notebook)}.json")
    if results.model["sha256"] != made.get("model"):
        raise ValueError(f"the frozen page of {notebook.name} and its results are of different models; {again}")
    changed = [word for key, word in (("package", "the package"), ("lock", "other packages")) if made[key] != now[key]]
    if not changed:
        return ""
    return f"Executed with version {made['version']} on {made['date']}; {' and '.join(changed)} changed since."


def stamps(chapter: str, results: Path) -> dict[str, tuple[int, int]]:
    """Of each results file of a chapter, by its folder, what changes when it is written anew: time and inode."""
    files = {path.parent.name: path.stat() for path in results.glob(f"*/{chapter}.json")}
    return {place: (file.st_mtime_ns, file.st_ino) for place, file in files.items()}


def written(chapter: str, results: Path, before: dict[str, tuple[int, int]]) -> str | None:
    """The folder (`laptop`) that a run has written results to since `stamps` gave `before`; None if to none.

    Not every chapter has a laptop scale of its own, so that the scale which was asked for may be another.
    """
    new = {place: stamp for place, stamp in stamps(chapter, results).items() if before.get(place) != stamp}
    return max(new, key=lambda place: new[place], default=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Freeze what is out of date."""
    parser = argparse.ArgumentParser(prog="python -m mechinterp.frozen", description=__doc__.split("\n")[0])
    parser.add_argument("chapter", nargs="*", help="by default all that are not up to date")
    chosen = parser.parse_args(arguments).chapter
    for name in chosen or CLAIMS:
        notebook = find_chapter(name)
        try:
            fresh = not chosen and not stale(notebook)
        except ValueError:
            fresh = False
        if fresh:
            print(f"{name}: up to date")
            continue
        page = freeze(notebook)
        print(f"{name}: {page} ({page.stat().st_size / 1e6:.1f} MB, {read(page).metadata[KEY]['seconds']} s)")
    return 0


def _imported(tree: ast.AST, folder: Path) -> set[Path]:
    """The files of the package that a syntax tree imports, those of the packages around them included."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    found = set()
    for name in names:
        first, *rest = name.split(".")
        if first == mechinterp.__name__:
            for place in (folder.joinpath(*rest[:i]) for i in range(len(rest) + 1)):
                found |= {path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()}
    return found


def _bare(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            node.body = kept  # type: ignore[attr-defined]
    return ast.dump(tree)


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
