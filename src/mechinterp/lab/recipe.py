"""From a folder of text to a model folder: tokenizer, encoded corpus, training, weights and card.

Every stage leaves a file in the run's folder and is skipped when the file is there, so a run that was
killed goes on where it stopped.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from mechinterp.files import atomic_write
from mechinterp.lab.export import save
from mechinterp.lab.mixture import Mixture, encode_corpus, fit_tokenizer, read_texts
from mechinterp.lab.training import Config, train

FIT_CHARACTERS = 60_000_000
"""How much of the corpus the tokenizer is fitted on."""
GENERATED_IDS = 8192
"""Repeated random tokens are drawn below this id."""


@dataclass(frozen=True)
class Source:
    """Text to learn from and, if there is any, text to be tested on.

    Attributes:
        train, held_out: each call starts the texts again.
        origin: what the model card says about it, files with their hashes.
    """

    train: Callable[[], Iterator[str]]
    held_out: Callable[[], Iterator[str]] | None
    origin: list[dict[str, str]]


def from_folder(folder: Path) -> Source:
    """Files `train*` and, if there are any, `held_out*` of a folder, as `.txt` or `.txt.xz`.

    Errors: `ValueError` if there is nothing to learn from.
    """
    next(read_texts(folder, "train*"))  # refuses an empty folder
    paths = sorted(path for path in folder.glob("*") if path.name.endswith((".txt", ".txt.xz")))
    held = any(path.name.startswith("held_out") for path in paths)
    origin = [{"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths]
    return Source(
        lambda: read_texts(folder, "train*"), (lambda: read_texts(folder, "held_out*")) if held else None, origin
    )


def from_hub(name: str, column: str = "text", documents: int = 20_000, *, held_out: int = 200) -> Source:
    """The first documents of a text dataset on the Hugging Face hub, streamed; the first few are held out."""
    import datasets

    stream = datasets.load_dataset(name, split="train", streaming=True)

    def texts(start: int, stop: int) -> Iterator[str]:
        for row in itertools.islice(stream, start, stop):
            if column not in row:
                raise ValueError(f"dataset {name} has no column {column!r}; it has {', '.join(row)}")
            yield row[column]

    origin = [{"dataset": name, "column": column, "documents": str(documents)}]
    return Source(lambda: texts(held_out, documents), lambda: texts(0, held_out), origin)


def train_lab(config: Config, source: Source, out: Path, *, generated: float = 0.5) -> Path:
    """Tokenizer, corpus, training and export, each resumable; returns the model's folder, `out/model`.

    Args:
        config: shape and schedule; its `vocab_size` is what the tokenizer is fitted to.
        source: real text.
        out: folder of the run.
        generated: share of rows that are generated documents.

    Errors: `ValueError` if the vocabulary is smaller than the generated documents need.
    """
    tokenizer = _tokenizer(out / "tokenizer.json", source, config.vocab_size)
    config = replace(config, vocab_size=tokenizer.get_vocab_size())
    if generated and config.vocab_size < GENERATED_IDS:
        raise ValueError(
            f"the text gives {config.vocab_size} tokens and generated documents draw from {GENERATED_IDS}: "
            "give more text, a larger vocabulary, or no generated documents"
        )
    real = _encoded(out / "train.npy", tokenizer, source.train)
    weights = train(config, Mixture(tokenizer, real, generated), out)
    card: dict[str, Any] = {
        "config": asdict(config),
        "generated": generated,
        "tokens_seen": config.steps * config.batch * config.n_ctx,
        "real_tokens": len(real),
        "text": source.origin,
    }
    folder = out / "model"
    save(folder, weights, config, tokenizer, largest=None)
    atomic_write(folder / "card.json", _json(card))
    if source.held_out is not None:
        held_out = _encoded(out / "held_out.npy", tokenizer, source.held_out)
        card |= {"measured": _measure(folder, held_out)}
        atomic_write(folder / "card.json", _json(card))
    return folder


def _tokenizer(path: Path, source: Source, vocab_size: int) -> Tokenizer:
    if not path.exists():
        budget = itertools.accumulate(map(len, source.train()))
        texts = (text for text, total in zip(source.train(), budget, strict=True) if total < FIT_CHARACTERS + len(text))
        fitted = fit_tokenizer(texts, vocab_size).to_str()
        path.parent.mkdir(parents=True, exist_ok=True)  # not before there is something to write
        atomic_write(path, fitted.encode())
    return Tokenizer.from_file(str(path))


def _encoded(path: Path, tokenizer: Tokenizer, texts: Callable[[], Iterator[str]]) -> Int[np.ndarray, " token"]:
    if not path.exists():
        buffer = io.BytesIO()
        np.save(buffer, encode_corpus(tokenizer, texts()))
        atomic_write(path, buffer.getvalue())
    return np.load(path, mmap_mode="r")


def _measure(folder: Path, held_out: Int[np.ndarray, " token"]) -> dict[str, Any]:
    from mechinterp.lab.behaviours import card
    from mechinterp.models import load

    return card(load(str(folder)), held_out)


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()
