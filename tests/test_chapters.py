"""What every chapter's notebook must be before it is run: without outputs, with exercises that cannot pass unseen."""

import re
from pathlib import Path

import nbformat
import pytest

CHAPTERS = sorted((Path(__file__).parent.parent / "chapters").glob("*.ipynb"))


def test_there_are_chapters():
    assert len(CHAPTERS) >= 6


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def cells(request):
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook.cells


def test_it_is_committed_without_outputs(cells):
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


def test_what_measures_can_be_read_on_the_page(cells):
    """Fifteen lines and 80 columns, or folded; exercises are as long as they need to be."""
    long = []
    for cell in cells:
        if cell.cell_type != "code" or {"hide-input", "remove-cell"} & set(cell.metadata.get("tags", [])):
            continue
        lines = cell.source.splitlines()
        if len(lines) > 15 or max(map(len, lines)) > 80:
            long.append(f"{cell.id}: {len(lines)} lines, {max(map(len, lines))} columns")
    assert not long


def test_what_draws_or_keeps_books_is_folded(cells):
    for cell in cells:
        if cell.cell_type == "code" and "hide-input" not in cell.metadata.get("tags", []):
            assert "ledger.record" not in cell.source, cell.id
            assert not re.search(r"^viz\.", cell.source, re.MULTILINE), cell.id


def test_every_exercise_has_a_stub_and_a_solution_that_must_pass(cells):
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    solved = re.findall(r"check\((test_\w+), \w+_solution(.*)\)", code)
    assert solved
    assert all(options == ", solution=True" for _, options in solved)
    tried = re.findall(r"check\((test_\w+), \w+\)", code)
    assert sorted(tried) == sorted(name for name, _ in solved)
    assert len(re.findall(r"```{solution-start}", prose)) == len(solved)
    assert len(re.findall(r"```{exercise(-start)?}", prose)) == len(solved) + 1, "one more is open, for research"
