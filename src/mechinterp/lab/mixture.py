"""What the lab model reads: real text and generated documents, mixed by a function of (seed, step)."""

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from mechinterp.datasets.generated import MIXTURE, Piece, vocabulary

EOT = "<|endoftext|>"


def read_texts(source: Path, pattern: str = "train*") -> Iterator[str]:
    """Texts of a folder: every `.txt` or `.txt.xz` matching `pattern`, split at NUL characters."""
    paths = sorted(p for p in source.glob(pattern) if p.name.endswith((".txt", ".txt.xz")))
    if not paths:
        raise ValueError(f"no .txt or .txt.xz files matching {pattern!r} in {source}")
    for path in paths:
        opener = lzma.open if path.suffix == ".xz" else open
        with opener(path, "rt", encoding="utf8") as file:
            yield from file.read().split("\0")


def fit_tokenizer(texts: Iterator[str], vocab_size: int = 8192, *, emphasis: int = 20_000) -> Tokenizer:
    """Byte-level BPE in which every word of the generated documents is one token.

    The words are read `emphasis` times, enough to win their merges; the rest of the vocabulary is the text's.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    forced = "".join(f" {word}" for word in vocabulary()) * emphasis

    def everything() -> Iterator[str]:
        yield from texts
        yield forced

    tokenizer.train_from_iterator(everything(), trainer)
    return tokenizer


def encode_corpus(tokenizer: Tokenizer, texts: Iterator[str], chunk: int = 100_000) -> Int[np.ndarray, " token"]:
    """All texts as one array of token ids, each text preceded by the end-of-text token."""
    out = []
    for text in texts:
        pieces = [text[i : i + chunk] for i in range(0, len(text), chunk)]
        out.append([0])
        out += [encoding.ids for encoding in tokenizer.encode_batch_fast(pieces)]
    return np.concatenate([np.asarray(ids, dtype=np.uint16) for ids in out])


@dataclass(frozen=True)
class Mixture:
    """Real tokens and the share of rows given to generated documents."""

    tokenizer: Tokenizer
    real: Int[np.ndarray, " token"]
    generated: float = 0.5

    def batch(self, step: int, rows: int, length: int, seed: int) -> Int[Tensor, "row pos"]:
        """The batch of one step; every row starts with the end-of-text token."""
        rng = np.random.default_rng([seed, step])
        n = round(rows * self.generated)
        made = [self._generated_row(rng, length) for _ in range(n)]
        return torch.tensor(np.stack([*made, *(self._real_row(rng, length) for _ in range(rows - n))]))

    def quote(self, rng: np.random.Generator, n: int) -> list[int]:
        """`n` consecutive tokens of real text."""
        start = rng.integers(len(self.real) - n)
        return self.real[start : start + n].tolist()

    def _real_row(self, rng: np.random.Generator, length: int) -> np.ndarray:
        return np.array([0, *self.quote(rng, length - 1)])

    def _generated_row(self, rng: np.random.Generator, length: int) -> np.ndarray:
        kinds, weights = list(MIXTURE), np.array(list(MIXTURE.values()))
        row: list[int] = []
        while len(row) < length:
            kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
            row += [0, *self.encode(kind(rng, lambda n: self.quote(rng, n)))]
        return np.array(row[:length])

    def encode(self, pieces: list[Piece]) -> list[int]:
        """Token ids of a document."""
        ids: list[int] = []
        for piece in pieces:
            ids += self.tokenizer.encode(piece, add_special_tokens=False).ids if isinstance(piece, str) else piece
        return ids
