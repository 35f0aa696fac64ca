"""IOI prompts in other words: labels and named positions stay with them (Kissane et al., the position signal)."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.datasets.ioi import IOIDataset, single_token


def with_clause(data: IOIDataset, tokenizer: Any, clause: str = " while the weather was nice") -> IOIDataset:
    """A longer first clause: `clause` goes before the first comma or full stop behind both names.

    Errors: `ValueError` for an empty clause, or a prompt without comma or full stop before S2.

    >>> from mechinterp.datasets import ioi
    >>> from mechinterp.models import load_tokenizer
    >>> data = ioi.make(load_tokenizer("lab"), 2, templates=[1], orders=["ABBA"], seed=0)
    >>> longer = with_clause(data, load_tokenizer("lab"), " at noon")
    >>> longer.positions["S2"] - data.positions["S2"]
    tensor([2, 2])
    """
    extra = _encode(tokenizer, clause, data.tokens)
    if not len(extra):
        raise ValueError("the clause is empty")
    stops = torch.cat([_encode(tokenizer, mark, data.tokens) for mark in (",", ".")])
    second = torch.maximum(data.positions["IO"], data.positions["S1"])
    where = torch.arange(data.tokens.shape[1], device=data.tokens.device)
    inside = (where > second[:, None]) & (where < data.positions["S2"][:, None])
    stop = torch.isin(data.tokens, stops) & inside
    if not stop.any(1).all():
        raise ValueError("a prompt has no comma or full stop between its first clause and S2")
    return insert(data, stop.int().argmax(1), extra)


def insert(data: IOIDataset, before: Int[Tensor, " prompt"], extra: Int[Tensor, " token"]) -> IOIDataset:
    """The same tokens put into every prompt, before one position of each; what stands behind moves on."""
    rows = [torch.cat([row[:i], extra, row[i:]]) for row, i in zip(data.tokens, before.tolist(), strict=True)]
    moved = {name: at + len(extra) * (at >= before) for name, at in data.positions.items()}
    return replace(data, tokens=torch.stack(rows), positions=moved)


def with_conjunction(data: IOIDataset, tokenizer: Any, word: str) -> IOIDataset:
    """Another word for the "and" behind the first name.

    Errors: `ValueError` for a word that is not one token, or a prompt with another word there.

    >>> from mechinterp.datasets import ioi
    >>> from mechinterp.models import load_tokenizer
    >>> data = ioi.make(load_tokenizer("lab"), 2, templates=[1], orders=["ABBA"], seed=0)
    >>> " with " in with_conjunction(data, load_tokenizer("lab"), "with").text(load_tokenizer("lab"))[0]
    True
    """
    old, new = single_token(tokenizer, "and"), single_token(tokenizer, word)
    at = torch.minimum(data.positions["IO"], data.positions["S1"])[:, None] + 1
    if not (data.tokens.gather(1, at) == old).all():
        raise ValueError('a prompt has no "and" behind its first name')
    return replace(data, tokens=data.tokens.scatter(1, at, new))


def _encode(tokenizer: Any, words: str, like: Tensor) -> Tensor:
    return torch.tensor(tokenizer.encode(words, add_special_tokens=False), dtype=like.dtype, device=like.device)
