"""Run a chapter's notebook from top to bottom without a browser.

Needs the `book` extra; the rest of the package does not:

    pip install "mechinterp-book[book] @ git+https://github.com/mechinterp/mechinterp"
"""

import asyncio
import contextlib
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mechinterp.claims.results import project_root


class Interrupted(KeyboardInterrupt):
    """A run was stopped from outside; `number` is the signal. Its kernel is gone too."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def find_chapter(name: str, folder: Path | None = None) -> Path:
    """The notebook of a chapter: `chapters/01_ioi.ipynb` for `ioi`.

    Args:
        folder: where to look; by default `chapters` of the nearest project folder upwards.

    Errors: `ValueError` naming the chapters that are there.
    """
    if folder is None:
        root = project_root()
        if root is None:
            raise ValueError(
                "no chapters here: run this inside a clone of the book, or name a notebook with --notebook FILE"
            )
        folder = root / "chapters"
    known = {chapter_name(path): path for path in sorted(folder.glob("*.ipynb"))}
    if name not in known:
        raise ValueError(f"no chapter {name!r} in {folder}; there are: {', '.join(known) or 'none'}")
    return known[name]


def chapter_name(path: Path) -> str:
    """The chapter's name without its number.

    >>> chapter_name(Path("chapters/01_ioi.ipynb"))
    'ioi'
    """
    return re.sub(r"^\d+[_-]", "", path.stem)


def inject(notebook: Any, parameters: Mapping[str, Any]) -> Any:
    """A copy of the notebook with the parameters set in a cell of their own after the parameters cell.

    Errors: `ValueError` if no cell is tagged `parameters`, or a parameter is not set there.
    """
    import copy

    import nbformat

    notebook = copy.deepcopy(notebook)
    places = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    if not places:
        raise ValueError("the notebook has no cell tagged 'parameters'")
    source = notebook.cells[places[0]].source
    unknown = [name for name in parameters if not re.search(rf"^{re.escape(name)}\b", source, re.MULTILINE)]
    if unknown:
        raise ValueError(f"the parameters cell does not set {', '.join(unknown)}")
    text = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cell = nbformat.v4.new_code_cell(text, metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(places[0] + 1, cell)
    return notebook


def read(path: Path) -> Any:
    """Read a notebook. `ValueError` naming the file if it is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError) as error:
        raise ValueError(f"{path} is not a notebook: {error}") from error


def run(path: Path, parameters: Mapping[str, Any], *, progress: bool = True) -> Any:
    """Run a notebook with these parameters, in its own folder; returns it with its outputs.

    Errors: `nbclient.exceptions.CellExecutionError` with the traceback of the cell that failed; `Interrupted` for
        SIGINT (Ctrl-C) or SIGTERM, `RuntimeError` if the kernel died by itself. The kernel is stopped in every case.
    """
    from nbclient import NotebookClient
    from nbclient.util import run_sync

    notebook = inject(read(path), parameters) if parameters else read(path)
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    with tqdm(total=len(code), unit="cell", desc=path.stem, disable=not progress) as bar:
        client.on_cell_executed = lambda cell, cell_index, **_: bar.update()
        stopped_by = run_sync(_execute)(client)
    if stopped_by is not None:
        raise Interrupted(stopped_by)
    return notebook


async def _execute(client: Any) -> int | None:
    """Run the notebook to its end, or to a signal, which is returned."""
    loop, caught = asyncio.get_running_loop(), []
    task = asyncio.ensure_future(client.async_execute())
    # One turn of the loop, in which nbclient sets handlers that kill the kernel and let the run end in an error about
    # its death. Ours come after them.
    await asyncio.sleep(0)

    def stop(number: int) -> None:
        caught.append(number)
        client.shutdown_kernel = "immediate"
        task.cancel()

    with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread, or Windows
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
    try:
        await task
    except BaseException:
        kernel = client.km  # still there if the signal came while it was starting
        if kernel is not None and kernel.has_kernel:
            await kernel.shutdown_kernel(now=True)
        if not caught:
            raise
    return caught[0] if caught else None
