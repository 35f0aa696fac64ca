"""The files around the package agree with each other."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mechinterp
from mechinterp.claims.results import shipped_results

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def test_the_lock_pins_every_line_and_names_no_machine():
    assert len(LOCK) > 100
    assert [line for line in LOCK if not re.fullmatch(r"[a-z0-9-]+==[\w.]+", line)] == []
    assert "torch==2.13.0" in LOCK
    names = [line.split("==")[0] for line in LOCK]
    assert sorted(set(names)) == names


def test_the_lock_holds_everything_the_project_asks_for():
    pinned = dict(line.split("==") for line in LOCK)
    wanted = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    for requirement in map(Requirement, wanted):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_every_import_of_the_package_is_declared():
    declared = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]}
    # Imported inside functions: extras of the command line and the recipe, parts of declared packages.
    declared |= {"nbclient", "nbformat", "docutils", "markdown-it", "mdit-py-plugins", "pygments"}
    declared |= {"datasets", "rich", "huggingface-hub", "httpx", "ipython", "openai"}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {canonicalize_name(name.split(".")[0]) for name in names}:
                known = name in declared | {"mechinterp"} or name.replace("-", "_") in sys.stdlib_module_names
                assert known or name == "future", f"{path.relative_to(ROOT)} imports {name}"


def test_the_package_itself_pins_nothing():
    assert [r for r in PROJECT["dependencies"] if "==" in r] == []


# A pip line that names `mechinterp` without the address of this project gets another author's package.
OTHERS_PACKAGE = re.compile(r"(?<![\w./-])mechinterp(?![\w./-])")


def names_the_wrong_package(line):
    words = re.sub(r"(git\+|https?://)\S+", "", line.partition("pip")[2])
    return "pip install" in line and OTHERS_PACKAGE.search(words) is not None


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('pip install "mechinterp[book]"', True),
        ('%pip install -q \\"mechinterp @ git+https://github.com/mechinterp/mechinterp\\"', True),
        ("pip install mechinterp", True),
        ('pip install "mechinterp-book[book] @ git+https://github.com/mechinterp/mechinterp"', False),
        ("pip install git+https://github.com/mechinterp/mechinterp", False),
    ],
)
def test_what_a_wrong_pip_line_is(line, wrong):
    assert names_the_wrong_package(line) == wrong


def test_no_pip_line_names_the_package_of_somebody_else():
    assert PROJECT["name"] == "mechinterp-book"
    folders = ("src", "book", "chapters", "benchmarks", ".github", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    text = {".py", ".md", ".ipynb", ".yml", ".toml", ".cff", "", ".sh", ".html"}
    seen = 0
    for path in files:
        if path.suffix in text and path.is_file():
            for line in path.read_text(encoding="utf8", errors="replace").splitlines():
                seen += "pip install" in line
                assert not names_the_wrong_package(line), f"{path.relative_to(ROOT)}: {line.strip()}"
    assert seen >= 9, "the README, the intro, the notebooks and the command line say how to install"


def test_a_wheel_has_every_results_file_and_the_lab_model(tmp_path):
    """`mechinterp claims show` of a plain install reads the results from the package; executed pages stay outside."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    results = {f"mechinterp/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "results").glob("*/*.json")}
    assert {name for name in names if name.startswith("mechinterp/results/")} == results
    files = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/mechinterp").rglob("*.*")}
    assert {name for name in files if "__pycache__" not in name} <= names
    assert shipped_results().relative_to(Path(mechinterp.__file__).parent) == Path("results")
    assert "results" in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"], "wheels come from the sdist"


def test_the_version_is_one():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mechinterp.__version__


def test_conda_installs_what_make_installs():
    pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    makefile = (ROOT / "Makefile").read_text()
    assert pip == ["-c requirements.lock", "-e .[dev,bench]"]
    assert "install -c requirements.lock -e '.[dev,bench]'" in makefile


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_follow_githubs_schema(path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path):
    targets = re.findall(r"^([\w-]+(?: [\w-]+)*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {name for group in targets for name in group.split()}
    assert set(re.findall(r"\bmake (\w+)", path.read_text())) <= known
    called = re.findall(r"\.ci/[\w.]+", path.read_text())
    assert called or "make" in path.read_text()
    assert all((ROOT / script).is_file() for script in called)


def test_there_are_four_workflows():
    assert [path.stem for path in WORKFLOWS] == ["ci", "colab", "gpu", "pages"]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_says_in_one_line_that_python_is_missing(tmp_path):
    result = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory", "install", f"VENV={tmp_path}/none", "PYTHON=/no/python"],
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "missing: Python 3.11 or 3.12 with venv" in result.stderr
    assert not (tmp_path / "none").exists()
