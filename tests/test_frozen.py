"""Frozen pages: what is up to date, what a reader is told, what is refused."""

import json
from pathlib import Path

import nbformat
import pytest

from mechinterp import frozen
from mechinterp.claims.results import Results, write_results
from mechinterp.frozen import KEY, code_hash, freeze, modules, outputs_hash, package_hash, page_path, stale

ROOT = Path(__file__).resolve().parents[1]
RECORD = """
import sys

from mechinterp import scales, stats
from mechinterp.claims import Ledger

run = scales.setup("ioi", scale=scale, models={"laptop": "smollm2"}, device="cpu")
ledger = Ledger("ioi", scale=run.scale, model={"name": "smollm2", "sha256": "00" * 32})
print("a bar", file=sys.stderr)
print(ledger.record("IOI-1", stats.Estimate(5.0, (4.0, 6.0), 15, "templates"), null=stats.population(0.0, 1, "run")))
"""


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one chapter whose page has been made."""
    (tmp_path / "chapters").mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements.lock").write_text("torch==2\n")
    cells = [nbformat.v4.new_code_cell("scale = None", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_markdown_cell("words"), nbformat.v4.new_code_cell(RECORD)]
    path = tmp_path / "chapters" / "01_ioi.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    monkeypatch.chdir(tmp_path)
    for name in ("MECHINTERP_SITE", "MECHINTERP_RESULTS", "MECHINTERP_SCALE"):
        monkeypatch.setenv(name, "")
    freeze(path)
    return path


def change(path: Path, edit) -> None:  # type: ignore[no-untyped-def]
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_a_page_has_the_outputs_and_results_of_the_laptop_and_says_what_made_it(notebook: Path) -> None:
    page = nbformat.read(page_path(notebook), 4)
    assert "IOI-1 reproduced" in page.cells[2].outputs[0].text
    assert [o.name for o in page.cells[2].outputs] == ["stdout"], "bars are not for the page"
    made = page.metadata[KEY]
    assert made["code"] == code_hash(nbformat.read(notebook, 4))
    assert made["outputs"] == outputs_hash(page)
    assert (made["model"], made["package"]) == ("00" * 32, package_hash(RECORD, "ioi"))
    assert json.loads(Path("results/laptop/ioi.json").read_text())["claims"]["IOI-1"]["verdict"] == "reproduced"
    assert stale(notebook) == ""
    change(notebook, lambda data: data["cells"][1].update(source="other words"))
    assert stale(notebook) == "", "words are not code"


def test_code_that_did_not_run_is_refused(notebook: Path) -> None:
    change(notebook, lambda data: data["cells"][2].update(source="print(1)"))
    with pytest.raises(ValueError, match=r"shows code that is not the notebook's; run python -m mechinterp.frozen ioi"):
        stale(notebook)


def test_outputs_that_no_run_gave_are_refused(notebook: Path) -> None:
    change(page_path(notebook), lambda data: data["cells"][2]["outputs"][0].update(text="IOI-1 reproduced twice"))
    with pytest.raises(ValueError, match="other outputs than its run had"):
        stale(notebook)


def test_results_of_another_model_are_refused(notebook: Path) -> None:
    write_results(Results("ioi", "laptop", "1", {"name": "smollm2", "sha256": "11" * 32}, "cpu", 0), Path("results"))
    with pytest.raises(ValueError, match="its results are of different models"):
        stale(notebook)


def test_no_page_names_the_command(notebook: Path) -> None:
    page_path(notebook).unlink()
    with pytest.raises(ValueError, match=r"01_ioi.ipynb has no frozen page; run python -m mechinterp.frozen ioi"):
        stale(notebook)


def test_a_package_that_has_changed_is_told(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "package_hash", lambda code, chapter: "other")
    assert "the package changed since" in stale(notebook)
    Path("requirements.lock").write_text("torch==3\n")
    assert "the package and other packages changed since" in stale(notebook)


def test_what_is_up_to_date_is_passed_over(notebook: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(frozen, "CLAIMS", {"ioi": frozen.CLAIMS["ioi"]})
    before = page_path(notebook).stat().st_mtime_ns
    assert frozen.main([]) == 0
    assert capsys.readouterr().out == "ioi: up to date\n"
    assert page_path(notebook).stat().st_mtime_ns == before
    change(notebook, lambda data: data["cells"][2].update(source=RECORD + "\nprint('more')"))
    assert frozen.main([]) == 0
    assert "01_ioi.ipynb (0.0 MB" in capsys.readouterr().out


def test_a_cell_that_fails_leaves_the_page_as_it_was(notebook: Path) -> None:
    before = page_path(notebook).read_bytes()
    change(notebook, lambda data: data["cells"][2].update(source="raise RuntimeError('broken')"))
    with pytest.raises(ValueError, match=r"01_ioi.ipynb failed(.|\n)*broken"):
        freeze(notebook)
    assert page_path(notebook).read_bytes() == before


def test_comments_and_docstrings_are_no_code(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    hashes = []
    for text in ('"""Words."""\nx = 1\n', "x = 1  # other words\n", "x = 2\n"):
        file.write_text(text)
        hashes.append(package_hash("from mechinterp.a import x", "ioi", tmp_path))
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_a_chapter_does_not_import_is_not_its_code(tmp_path: Path) -> None:
    papers = tmp_path / "claims" / "papers"
    papers.mkdir(parents=True)
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "claims" / "__init__.py").write_text("from mechinterp.claims.papers import grokking, ioi\n")
    for path in (papers / "__init__.py", papers / "ioi.py", papers / "grokking.py", tmp_path / "b.py"):
        path.write_text("")
    (tmp_path / "a.py").write_text("def late():\n    import mechinterp.b\n")
    code = "if True:\n    %pip install it\nfrom mechinterp import a\n"
    assert {path.relative_to(tmp_path).as_posix() for path in modules(code, "ioi", tmp_path)} == {
        "__init__.py",
        "a.py",
        "b.py",
    }
    found = modules("from mechinterp import claims", "ioi", tmp_path)
    assert [path.name for path in found] == ["__init__.py", "__init__.py", "__init__.py", "ioi.py"]


def test_a_page_knows_the_scale_it_ran_at(notebook: Path) -> None:
    assert nbformat.read(page_path(notebook), 4).metadata[KEY]["scale"] == "laptop"
    change(notebook, lambda data: data["cells"][2].update(source=RECORD.replace('models={"laptop": "smollm2"}, ', "")))
    freeze(notebook)
    assert nbformat.read(page_path(notebook), 4).metadata[KEY]["scale"] == "lab"
    assert stale(notebook) == ""
    change(notebook, lambda data: data["cells"][2].update(source="print(1)"))
    with pytest.raises(ValueError, match="chapter ioi ran and recorded no claim"):
        freeze(notebook)


@pytest.mark.parametrize("path", sorted((ROOT / "chapters").glob("*.ipynb")), ids=lambda p: p.stem)
def test_the_committed_pages_show_the_committed_code(path: Path) -> None:
    assert "changed since" in (stale(path) or "changed since")
    assert page_path(path).stat().st_size <= frozen.LARGEST
    assert "site-packages" not in page_path(path).read_text(encoding="utf8"), "folders of a machine are no result"
