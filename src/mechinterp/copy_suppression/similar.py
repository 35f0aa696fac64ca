"""Tokens that mean the same (McDougall et al., Appendix K): by case, leading space, plural, root, or BPE split."""

from collections import defaultdict

import snowballstemmer
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def root(text: str) -> str:
    """What is left of a token without case, space and inflection; empty for a token without letters.

    >>> root(" Oranges") == root("orange"), root(" 12")
    (True, '')
    """
    word = text.strip().lower()
    return str(snowballstemmer.stemmer("english").stemWord(word)) if word.isalpha() else ""


def similar_tokens(tokenizer: PreTrainedTokenizerBase, k: int = 8) -> Int[Tensor, "token k"]:
    """For every token of the vocabulary itself and up to k − 1 others of the same root, −1 to fill up.

    A token is also similar to the last piece of its form without the leading space (Berkeley and keley).

    >>> from mechinterp.models import load_tokenizer
    >>> similar_tokens(load_tokenizer("lab"), 4).shape
    torch.Size([8192, 4])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    stem = snowballstemmer.stemmer("english")
    words = [text.strip().lower() for text in texts]
    roots = [stem.stemWord(word) if word.isalpha() else "" for word in words]
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(roots):
        if name:
            groups[name].append(i)
    table = torch.full((len(texts), k), -1)
    for i, (text, name) in enumerate(zip(texts, roots, strict=True)):
        others = [j for j in groups.get(name, []) if j != i]
        if name and text.startswith(" "):
            *_, last = tokenizer.encode(text.strip(), add_special_tokens=False)
            others += [last] if last != i and last not in others else []
        row = [i, *others][:k]
        table[i, : len(row)] = torch.tensor(row)
    return table
