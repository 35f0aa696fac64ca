"""Files that are either whole or not there."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to disk, then rename: a reader never sees half a file.

    On any error (a full disk, say) the old file stays as it was and the partial one is removed.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_parts(path: Path) -> dict[str, Any]:
    """What a JSON file of named parts holds; nothing if there is no such file."""
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def write_parts(path: Path, parts: Mapping[str, Any], *, first: str) -> None:
    """Write named parts as JSON, a line for every object whose first key is `first`: a change of one is one line."""
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(parts, separators=(",", ":")).replace(f'{{"{first}"', f'\n{{"{first}"')
    atomic_write(path, (text + "\n").encode())


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the contents of some files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_writable(path: Path, way_out: str) -> None:
    """Refuse a file that could not be written later, before hours of work are spent on its content. Makes nothing.

    Args:
        path: the file to be; folders above it need not be there yet.
        way_out: what to do instead, for the message.

    Errors: `ValueError` if `path` is a folder, something above it is no folder, or a folder may not be written to.

    >>> check_writable(Path("no/such/folder/yet.json"), "choose another with --html")
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a file was expected; {way_out}")
    above = next(p for p in path.absolute().parents if p.exists() or p.is_symlink())
    if not above.is_dir():
        raise ValueError(f"{above} is not a folder, so {path} cannot be written; {way_out}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"no permission to write in {above}, so {path} cannot be written; {way_out}")
