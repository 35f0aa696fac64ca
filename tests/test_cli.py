import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

import mechinterp
from mechinterp import cli
from mechinterp.claims import Entry, Results, write_results
from mechinterp.stats import Estimate

LAB = Path(mechinterp.__file__).parent / "lab/model"
COMMANDS = (
    [],
    ["models"],
    ["models", "list"],
    ["models", "get"],
    ["models", "card"],
    ["models", "train"],
    ["chapter"],
    ["chapter", "run"],
    ["claims"],
    ["claims", "show"],
    ["claims", "compare"],
    ["claims", "spread"],
)
RESULTS = Results("ioi", "lab", "0.1.0", {"name": "lab", "sha256": "ab" * 32}, "cpu", 0).with_entry(
    "IOI-1", Entry(Estimate(1.0, (0.5, 1.5), 15, "templates"), None, [3.0, None], "not reproduced")
)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHINTERP_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("MECHINTERP_MODEL", "")  # put back afterwards, whatever a command sets
    monkeypatch.chdir(tmp_path)
    for name, value in cli.MALLOC.items():
        monkeypatch.setenv(name, value)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(run, command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_version(run):
    assert run("--version").output.strip() == mechinterp.__version__


def test_wrong_usage_is_status_2(run):
    assert run("claims", "hide").exit_code == 2
    assert run("chapter", "run", "ioi", "--scale", "huge").exit_code == 2
    assert run("models", "train", "lab").exit_code == 2


def test_models_list(run):
    result = run("models", "list")
    assert result.exit_code == 0
    assert "gpt2" in result.output


def test_an_unknown_model_is_one_line_and_status_1(run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run("models", "card", "no-such-model")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_train_wants_one_source(run, tmp_path):
    for words in ([], ["--text", tmp_path, "--dataset", "x"]):
        result = run("models", "train", "lab", "--out", tmp_path / "run", *words)
        assert result.exit_code == 2
        assert "one of them" in result.output
    result = run("models", "train", "lab", "--out", tmp_path / "run", "--text", tmp_path)
    assert result.exit_code == 1
    assert "no .txt" in result.stderr
    assert not (tmp_path / "run").exists(), "no empty folders are left"


def test_train_restarts_itself_once_for_the_allocator(monkeypatch):
    calls = []
    monkeypatch.setattr(cli.os, "execv", lambda *words: calls.append(words))
    monkeypatch.setattr(cli.sys, "platform", "linux")
    for name in cli.MALLOC:
        monkeypatch.setenv(name, "set before")
        monkeypatch.delenv(name)
    cli._restart_with_malloc()
    cli._restart_with_malloc()
    assert len(calls) == 1


def test_a_tiny_training_run_from_the_command_line(run, tmp_path):
    corpus, out = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    out.mkdir()
    (corpus / "train_0.txt").write_text("It was a dark and stormy night. " * 500)
    # Fitting a tokenizer takes half a minute; a run's folder may hold one already.
    shutil.copy(LAB / "tokenizer.json", out)
    words = ["--text", corpus, "--out", out, "--steps", 3, "--batch", 2, "--layers", 1]
    words += ["--d-model", 16, "--heads", 2, "--threads", 1]
    result = run("models", "train", "lab", *words)
    assert result.exit_code == 0, result.output
    card = json.loads((out / "model/card.json").read_text())
    assert card["text"][0]["file"] == "train_0.txt"
    assert len((out / "log.jsonl").read_text().splitlines()) == 3
    shown = json.loads(run("models", "card", out / "model").output)
    assert shown["text"] == card["text"]
    assert len(shown["sha256"]) == 64
    weights = (out / "model/model.safetensors").read_bytes()
    again = run("models", "train", "lab", *words)
    assert again.exit_code == 0, again.output
    assert (out / "model/model.safetensors").read_bytes() == weights
    assert run("models", "train", "lab", *words[:-2], "--seed", 1).exit_code == 1


def test_show_tells_the_truth_and_a_red_verdict_is_no_error(run, tmp_path):
    write_results(RESULTS, tmp_path / "results")
    result = run("claims", "show", "ioi")
    assert result.exit_code == 0
    assert "not reproduced" in result.output
    assert "not run yet" in result.output
    assert run("claims", "show").exit_code == 0
    assert str(tmp_path / "results") in result.stderr.replace("\n", "")


def test_show_says_that_there_are_no_results(run, tmp_path, monkeypatch):
    """Without a clone those of the package are shown; "not run yet" would be a lie."""
    monkeypatch.setattr("mechinterp.claims.results.shipped_results", lambda: tmp_path / "shipped")
    result = run("claims", "show")
    assert result.exit_code == 1
    assert "error: no results here" in result.stderr
    assert "is not there" in run("claims", "show", "--results", tmp_path / "none").stderr
    write_results(RESULTS, tmp_path / "shipped")
    assert "not reproduced" in run("claims", "show", "ioi").output


def test_show_refuses_what_it_cannot_read(run, tmp_path):
    assert "unknown chapter 'iou'" in run("claims", "show", "iou").stderr
    write_results(RESULTS, tmp_path / "results").write_text("{")
    result = run("claims", "show")
    assert result.exit_code == 1
    assert "not complete JSON" in result.stderr


def test_compare_fails_on_a_silent_change(run, tmp_path):
    old = write_results(RESULTS, tmp_path / "old")
    entry = Entry(Estimate(4.0, (3.5, 4.5), 15, "templates"), None, [3.0, None], "reproduced")
    new = write_results(RESULTS.with_entry("IOI-1", entry), tmp_path / "new")
    assert run("claims", "compare", old, old).exit_code == 0
    result = run("claims", "compare", old, new)
    assert result.exit_code == 1
    assert "IOI-1: was 1 [0.5, 1.5], is 4 [3.5, 4.5]" in result.output
    assert run("claims", "compare", old, tmp_path / "none.json").exit_code == 1


def test_spread_shows_what_is_too_far(run, tmp_path):
    old = write_results(RESULTS, tmp_path / "old")
    entry = Entry(Estimate(1.5, (0.5, 1.5), 15, "templates"), None, [3.0, None], "not reproduced")
    new = write_results(RESULTS.with_entry("IOI-1", entry), tmp_path / "new")
    result = run("claims", "spread", old, new)
    assert result.exit_code == 0
    assert re.search(r"IOI-1 .* 0\.5 .* 0\.333 .* 0\.004 .* too far", result.output)
    assert run("claims", "spread", old).exit_code == 1


def write_notebook(path, *sources):
    cells = [nbformat.v4.new_markdown_cell("# A chapter\n\nwith $x^2$")]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    cells[1].metadata["tags"] = ["parameters"]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


RECORD = """\
from mechinterp.claims import Ledger
from mechinterp.stats import population
ledger = Ledger("ioi", scale=scale, model={"name": "toy", "sha256": "00" * 32})
ledger.record("IOI-1", population(5.0, 9, "prompts"))
"""


def run_chapter(run, folder, code, *words):
    """In a clone with one chapter."""
    write_notebook(folder / "chapters/01_ioi.ipynb", "scale = None", code)
    (folder / "pyproject.toml").touch()
    result = run("chapter", "run", "ioi", *words)
    assert result.exit_code == 0, result.output
    return result


def test_a_chapter_runs_and_leaves_results_and_a_page(run, tmp_path):
    run_chapter(run, tmp_path, RECORD, "--scale", "paper")
    page = (tmp_path / "_build/ioi-paper.html").read_text()
    assert "reproduced" in page
    assert "<math" in page
    assert json.loads((tmp_path / "results/paper/ioi.json").read_text())["claims"]["IOI-1"]["value"]["value"] == 5.0


OTHER = """\
from mechinterp import scales
from mechinterp.claims import Ledger
from mechinterp.stats import population
chapter = scales.setup("ioi", scale=scale, models={"laptop": "smollm2"})
ledger = Ledger("ioi", scale=chapter.scale, model={"name": chapter.model_name, "sha256": "00" * 32})
ledger.record("IOI-1", population(5.0, 9, "prompts"))
"""


def test_a_chapter_runs_on_another_model_and_its_results_are_apart(run, tmp_path):
    result = run_chapter(run, tmp_path, OTHER, "--model", "Qwen/Qwen3-0.6B")
    assert (tmp_path / "_build/ioi-Qwen3-0.6B.html").is_file()
    assert "ioi on Qwen3-0.6B ran in" in result.output
    assert [path.parent.name for path in (tmp_path / "results").glob("*/*.json")] == ["Qwen3-0.6B"]
    assert run("chapter", "run", "ioi", "--model", "gpt2", "--scale", "paper").exit_code == 2


def test_a_failing_cell_is_status_1_and_leaves_no_page(run, tmp_path):
    write_notebook(tmp_path / "own.ipynb", "scale = None", "raise RuntimeError('broken cell')")
    result = run("chapter", "run", "ioi", "--notebook", tmp_path / "own.ipynb", "--html", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "broken cell" in result.stderr
    assert not (tmp_path / "page.html").exists()
    result = run("chapter", "run", "ioi", "--notebook", tmp_path / "own.ipynb")
    assert result.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.ipynb"], "no empty folders are left"


def test_a_kernel_that_dies_is_one_line(run, tmp_path):
    write_notebook(tmp_path / "own.ipynb", "scale = None", "import os; os._exit(1)")
    result = run("chapter", "run", "ioi", "--notebook", tmp_path / "own.ipynb")
    assert result.exit_code == 1
    assert "error: own.ipynb failed: its kernel died" in result.stderr


@pytest.mark.parametrize(
    ("option", "target", "message"),
    [
        ("--results", "file", "file is not a folder.*choose another results folder with --results"),
        ("--results", "file/below", "file is not a folder"),
        ("--html", "file/page.html", "file is not a folder.*choose another with --html"),
        ("--html", "folder", "folder is a folder, a file was expected"),
    ],
)
def test_targets_that_cannot_be_written_are_refused_before_the_run(run, tmp_path, option, target, message):
    write_notebook(tmp_path / "own.ipynb", "scale = None", "open('it_ran', 'w')")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    result = run("chapter", "run", "ioi", "--notebook", tmp_path / "own.ipynb", option, tmp_path / target)
    assert result.exit_code == 1
    assert re.match(f"error: .*{message}", result.stderr)
    assert not (tmp_path / "it_ran").exists()
    assert run("chapter", "run", "ioi", "--notebook", "own.ipynb", "--scale", "rehearsal", "--results", "file",
               "--html", "page.html").exit_code == 0, "a rehearsal writes no results"  # fmt: skip


SLEEP = """\
import os, pathlib, time
pathlib.Path("pid.tmp").write_text(str(os.getpid()))
os.rename("pid.tmp", "pid")
time.sleep(120)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("number", "when", "status"),
    [(signal.SIGINT, "pid", 130), (signal.SIGTERM, "pid", 143), (signal.SIGINT, "started", 130)],
)
def test_a_signal_ends_the_run_its_kernel_and_nothing_else(tmp_path, number, when, status):
    write_notebook(tmp_path / "own.ipynb", "scale = None", SLEEP)
    code = "import sys; from mechinterp.cli import main; main()"
    if when == "started":  # a kernel has been asked for and has not answered
        code = (
            "import jupyter_client.manager as m, pathlib; start = m.AsyncKernelManager._async_start_kernel\n"
            "async def slow(self, **options):\n"
            "    await start(self, **options); pathlib.Path('started').touch()\n"
            "m.AsyncKernelManager.start_kernel = slow\n"
        ) + code
    words = ["chapter", "run", "ioi", "--notebook", "own.ipynb", "--results", "results"]
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (tmp_path / when).exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert (tmp_path / when).exists()
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert error.splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    if when == "pid":
        kernel = int((tmp_path / "pid").read_text())
        assert not Path(f"/proc/{kernel}/cmdline").exists() or not Path(f"/proc/{kernel}/cmdline").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"own.ipynb", when}, "no empty folders are left"


def test_missing_chapters_say_what_to_do(run, tmp_path):
    assert "--notebook FILE" in run("chapter", "run", "ioi").stderr
    write_notebook(tmp_path / "chapters/01_ioi.ipynb", "scale = None")
    (tmp_path / "pyproject.toml").touch()
    assert "there are: ioi" in run("chapter", "run", "iou").stderr
    assert "no notebook" in run("chapter", "run", "ioi", "--notebook", tmp_path / "none.ipynb").stderr
