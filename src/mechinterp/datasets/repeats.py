"""Tokens that come back: what an induction head is asked about. Nothing here loads a model."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def repeated_tokens(vocab: int, n: int, length: int, seed: int, bos: int | None = None) -> Int[Tensor, "prompt pos"]:
    """`n` rows of `length` random tokens followed by the same again (AA), after `bos` if one is given.

    Tokens are drawn uniformly, with repetition, from 1 to `vocab` − 1: token 0 is left to the BOS of most tokenizers.

    Errors: `ValueError` for a vocabulary without such tokens, no rows, or an empty block.

    >>> repeated_tokens(8, 1, 3, seed=0, bos=0)
    tensor([[0, 5, 4, 1, 5, 4, 1]])
    """
    if vocab < 2 or n < 1 or length < 1:
        raise ValueError(f"{n} rows of {length} tokens from a vocabulary of {vocab}: at least 1, 1 and 2 are needed")
    block = torch.randint(1, vocab, (n, length), generator=torch.Generator().manual_seed(seed))
    return torch.cat([block, block] if bos is None else [torch.full((n, 1), bos), block, block], 1)


@dataclass(frozen=True)
class Repeats:
    """Rows of different tokens, but for a passage that stands twice.

    Attributes:
        tokens: the rows. `query`: the last token of the second passage. `source`: the token behind the first.
    """

    tokens: Int[Tensor, "prompt pos"]
    query: Int[Tensor, " prompt"]
    source: Int[Tensor, " prompt"]

    @property
    def answer(self) -> Int[Tensor, " prompt"]:
        """The token behind the first passage, which induction promises again."""
        return self.tokens.gather(1, self.source[:, None])[:, 0]

    def to(self, device: torch.device | str) -> "Repeats":
        """The same with every tensor on `device`."""
        return Repeats(self.tokens.to(device), self.query.to(device), self.source.to(device))


def passage_twice(
    vocabulary: Int[Tensor, " token"], passage: int, n: int, *, length: int = 128, bos: int | None = None, seed: int = 0
) -> Repeats:
    """`n` rows of different tokens in which `passage` of them stand at two places (Kissane et al., long prefixes).

    Args:
        vocabulary: different token ids to draw from.
        passage: tokens in the passage. At least one token lies between its copies.
        bos: put this token in front; else the row starts with a drawn one.

    Errors: `ValueError` for a passage that does not fit twice, or fewer tokens to draw from than positions.

    >>> rows = passage_twice(torch.arange(1, 100), 2, 1, length=12, bos=0)
    >>> q, s = int(rows.query), int(rows.source)
    >>> bool((rows.tokens[0, q - 1 : q + 1] == rows.tokens[0, s - 2 : s]).all())
    True
    """
    if passage < 1 or 2 * passage + 2 > length:
        raise ValueError(f"a passage of {passage} tokens does not fit twice into rows of {length}")
    if len(vocabulary) < length:
        raise ValueError(f"{len(vocabulary)} tokens are too few for rows of {length} different ones")
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.stack([vocabulary[torch.randperm(len(vocabulary), generator=rng)[:length]] for _ in range(n)])
    if bos is not None:
        tokens[:, 0] = bos
    first = torch.randint(1, length - 2 * passage, (n,), generator=rng)
    room = length - 2 * passage - first
    second = first + passage + 1 + (torch.rand(n, generator=rng) * room).long().clamp(max=room - 1)
    step = torch.arange(passage)
    tokens.scatter_(1, second[:, None] + step, tokens.gather(1, first[:, None] + step))
    return Repeats(tokens, second + passage - 1, first + passage)


def text_twice(
    tokens: Int[Tensor, " token"], n: int, *, length: int = 128, gap: int = 15, bos: int | None = None, seed: int = 0
) -> Int[Tensor, "prompt pos"]:
    """`n` rows: BOS, a passage of the given text, `gap` tokens from elsewhere in it, and the passage again.

    Args:
        bos: the token in front, `mechinterp.datasets.text.bos_id` of the tokenizer; None for a model without one.

    Errors: `ValueError` for a text shorter than a row, or a row that has no room for the gap.

    >>> text_twice(torch.arange(10, 99), 1, length=12, gap=3, bos=0).shape
    torch.Size([1, 12])
    """
    start = tokens.new_tensor([] if bos is None else [bos])
    size = (length - gap - len(start)) // 2
    if gap < 1 or size < 1 or len(tokens) < length:
        raise ValueError(f"rows of {length} tokens, {gap} of them in between, cannot be cut from {len(tokens)}")
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        a, b = torch.randint(len(tokens) - length + 1, (2,), generator=rng).tolist()
        passage = tokens[a : a + size]
        rows.append(torch.cat([start, passage, tokens[b : b + gap], passage]))
    return torch.stack(rows)


def behind_pairs(words: Int[Tensor, "prompt pos"]) -> Bool[Tensor, "prompt query key"]:
    """Whether a key stands behind an earlier copy of the pair (token before the query, query).

    The first token of a row, which is BOS, is part of no pair.

    >>> behind_pairs(torch.tensor([[0, 5, 6, 7, 5, 6]]))[0].nonzero().tolist()
    [[5, 3]]
    """
    equal = words[:, :, None] == words[:, None, :]
    found = torch.zeros_like(equal)
    found[:, 2:, 3:] = equal[:, 2:, 2:-1] & equal[:, 1:-1, 1:-2]
    return found.tril()


def followers(tokens: Int[Tensor, "prompt pos"]) -> Int[Tensor, "prompt pos"]:
    """What stood behind the last earlier copy of each token; -1 for a token that is new.

    >>> followers(torch.tensor([[5, 6, 5, 5, 6]]))
    tensor([[-1, -1,  6,  5,  5]])
    """
    size = tokens.shape[1]
    equal = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    last = (equal * torch.arange(size, device=tokens.device)).amax(-1)
    after = tokens.gather(1, (last + 1).clamp(max=size - 1))
    return torch.where(equal.any(-1), after, -1)
