"""A file is whole or not there, whatever fails while it is written."""

import os
from pathlib import Path

import pytest

from mechinterp.files import atomic_write, check_writable


def test_writes_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, b"one")
    atomic_write(path, b"two, longer")
    assert path.read_bytes() == b"two, longer"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, b"old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left on device"):
        atomic_write(path, b"new" * 10_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_write_that_the_kernel_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, b"old")
    plain_fdopen = os.fdopen

    def on_a_full_device(descriptor: int, mode: str) -> object:
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
        return plain_fdopen(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", on_a_full_device)
    with pytest.raises(OSError, match="No space left on device"):
        atomic_write(path, b"new" * 10_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "missing" / "a.json", b"x")


def test_what_can_be_written_is_told_without_making_anything(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c.json", "way out")
    check_writable(tmp_path / "a.json", "way out")
    (tmp_path / "a.json").touch()
    check_writable(tmp_path / "a.json", "way out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_is_told_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"is a folder, a file was expected; way out"):
        check_writable(tmp_path, "way out")
    for below in ("x.json", "y/x.json"):
        with pytest.raises(ValueError, match=r"file is not a folder, so .*x\.json cannot be written; way out"):
            check_writable(tmp_path / "file" / below, "way out")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="dangling is not a folder"):
        check_writable(tmp_path / "dangling" / "x.json", "way out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"no permission to write in .*; way out"):
        check_writable(tmp_path / "new" / "x.json", "way out")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="no permission"):
        check_writable(tmp_path / "x.json", "way out")
    tmp_path.chmod(0o700)
