"""Running text as rows of tokens: a sample inside the package, or a dataset of the Hugging Face hub."""

import itertools
from collections.abc import Iterable
from importlib.resources import files

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mechinterp.datasets.generated import MIXTURE, VOCABULARY, no_repeats, shuffled_rows


def sample() -> list[str]:
    """48 passages of English books in the public domain, of some 1500 characters; the lab model has not read them.

    >>> len(sample()), sample()[1].endswith(".")
    (48, True)
    """
    text = files("mechinterp.datasets").joinpath("sample.txt").read_text(encoding="utf8")
    return text.strip().split("\n\n")


def dialogue(least: int = 12) -> tuple[list[str], list[str]]:
    """The passages of `sample` that are mostly talk (at least so many quotation marks), and the other ones.

    >>> [len(part) for part in dialogue()]
    [19, 29]
    """
    texts = sample()
    talk = [text for text in texts if sum(text.count(mark) for mark in ('"', "“", "”")) >= least]
    return talk, [text for text in texts if text not in talk]


def lists(n: int, *, items: int = 300, seed: int = 0) -> list[str]:
    """`n` texts that are nothing but lists: items of one class drawn without repetition, and rows that permute a set.

    Args:
        items: how many a text has at least; repetition is frequent between its lists and absent within them.

    >>> lists(1)[0][:60]
    'eighth, seventh, third, sixth, fifth, first, fourth, second;'
    """
    rng, texts = np.random.default_rng(seed), []
    for _ in range(n):
        text = ""
        while text.count(",") < items:
            kind = (no_repeats, shuffled_rows)[rng.integers(2)]
            text += "".join(str(piece) for piece in kind(rng, lambda k: [])) + "\n"
        texts.append(text.strip())
    return texts


def from_hub(name: str, *, column: str = "text", documents: int = 1000) -> list[str]:
    """The first documents of a text dataset on the hub, streamed.

    Errors: `ValueError` naming the columns if there is none of that name.
    """
    import datasets

    rows = itertools.islice(datasets.load_dataset(name, split="train", streaming=True), documents)
    texts = []
    for row in rows:
        if column not in row:
            raise ValueError(f"dataset {name} has no column {column!r}; it has {', '.join(row)}")
        texts.append(row[column])
    return texts


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a text starts with, or None if the tokenizer has none.

    A chat model's BOS token can be the mark of a turn, as `<|im_start|>` is SmolLM2's: running text never follows
    it. It is taken for one if the chat template writes it and the tokenizer does not add it by itself.

    >>> from mechinterp.models import load_tokenizer
    >>> bos_id(load_tokenizer("lab"))
    0
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    writes = str(tokenizer.bos_token) in str(getattr(tokenizer, "chat_template", None) or "")
    return None if writes and tokenizer.encode("a")[:1] != [bos] else int(bos)


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bos = bos_id(tokenizer)
    return [] if bos is None else [bos]


def token_rows(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], n: int, length: int) -> Int[Tensor, "doc pos"]:
    """The first `n` texts that are long enough, each cut to `length` tokens, among them the BOS token (see `bos_id`).

    Errors: `ValueError` if fewer texts than `n` are long enough, saying how many.
    """
    if n < 1 or length < 2:
        raise ValueError(f"a row needs at least two tokens and there must be one row, got n={n}, length={length}")
    start = _start(tokenizer)
    rows = []
    for text in texts:
        ids = [*start, *tokenizer.encode(text, add_special_tokens=False, verbose=False)]
        if len(ids) >= length:
            rows.append(ids[:length])
        if len(rows) == n:
            return torch.tensor(rows)
    raise ValueError(f"only {len(rows)} of the texts have {length} tokens, {n} were asked for; ask for shorter rows")


def packed_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], n: int, length: int, *, per_text: int | None = None
) -> Int[Tensor, "row pos"]:
    """`n` rows of consecutive tokens, at most `per_text` from the start of each text, every row after a BOS token.

    What is left of a text behind its last whole row is not used.

    Errors: `ValueError` if the texts do not fill `n` rows, saying how many they fill.
    """
    if n < 1 or length < 2:
        raise ValueError(f"a row needs at least two tokens and there must be one row, got n={n}, length={length}")
    start = _start(tokenizer)
    body, rows = length - len(start), []
    for text in texts:
        some = text if per_text is None else text[: 10 * body * per_text]  # English has 4 to 5 characters a token
        ids = tokenizer.encode(some, add_special_tokens=False, verbose=False)
        whole = range(0, len(ids) - body + 1, body)
        rows += [[*start, *ids[i : i + body]] for i in whole[:per_text]]
        if len(rows) >= n:
            return torch.tensor(rows[:n])
    raise ValueError(f"the texts fill only {len(rows)} rows of {length} tokens, {n} were asked for")


def generated_rows(tokenizer: PreTrainedTokenizerBase, n: int, length: int, *, seed: int = 0) -> Int[Tensor, "doc pos"]:
    """Rows of generated documents as in the lab model's training, quoting the sample; each after a BOS token.

    Errors: `ValueError` if the tokenizer has no BOS token to put between documents, or fewer than 8192 tokens.
    """
    bos = bos_id(tokenizer)
    if bos is None:
        raise ValueError("generated documents stand after a BOS token and this tokenizer has none; use packed_rows")
    if len(tokenizer) < VOCABULARY:
        raise ValueError(f"generated documents draw from {VOCABULARY} tokens, this tokenizer has {len(tokenizer)}")
    rng = np.random.default_rng(seed)
    pool = tokenizer.encode(" ".join(sample()), add_special_tokens=False, verbose=False)
    kinds, weights = list(MIXTURE), np.array(list(MIXTURE.values()))

    def quote(k: int) -> list[int]:
        start = int(rng.integers(len(pool) - k))
        return pool[start : start + k]

    rows = []
    for _ in range(n):
        row: list[int] = []
        while len(row) < length:
            row.append(bos)
            for piece in kinds[rng.choice(len(kinds), p=weights / weights.sum())](rng, quote):
                row += tokenizer.encode(piece, add_special_tokens=False) if isinstance(piece, str) else piece
        rows.append(row[:length])
    return torch.tensor(rows)
