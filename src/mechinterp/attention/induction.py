"""How much of the past an induction head wants to see again before it looks there."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.attention.heads import attention_to, patterns
from mechinterp.heads import Head


@torch.no_grad()
def broken_pairs(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    head: Head,
    behind: Bool[Tensor, "prompt query key"],
    replacements: Int[Tensor, " token"],
    *,
    least: float = 0.3,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[Float[Tensor, " place"], Float[Tensor, " place"]]:
    """A head's attention to the token behind an earlier copy of the present pair, and what is left of it once the
    earlier pair's first token is another (Kissane et al., long against short prefixes).

    Of each row the first place counts at which the attention exceeds `least`; rows without one are left out.

    Args:
        behind: which keys stand behind an earlier copy of the pair at the query, `datasets.repeats.behind_pairs`.
        replacements: token ids to draw the other token from.
        least: of the attention before.

    Errors: `ValueError` for a head that the model does not have, keys of another shape, or if no row has such a place.
    """
    if behind.shape != (*tokens.shape, tokens.shape[1]):
        raise ValueError(
            f"behind must be [prompt query key] of the tokens {tuple(tokens.shape)}: {tuple(behind.shape)}"
        )
    rng = torch.Generator().manual_seed(seed)
    before, after = [], []
    for part, keys in zip(tokens.split(batch_size), behind.split(batch_size), strict=True):
        pattern = patterns(model, part, [head])[0]
        hit = (keys.to(pattern.device) & (pattern > least)).flatten(1)
        row = hit.any(1).nonzero()[:, 0]
        if not len(row):
            continue
        place = hit[row].int().argmax(1)
        query, key = place // part.shape[1], place % part.shape[1]
        broken = part[row].clone()
        new = replacements[torch.randint(len(replacements), (len(row),), generator=rng)]
        broken[torch.arange(len(row)), key - 2] = new.to(broken)
        before.append(pattern[row, query, key])
        after.append(attention_to(model, broken, query, key)[head])
    if not before:
        raise ValueError(f"head {head} never attends by more than {least} behind an earlier copy of a pair")
    return torch.cat(before), torch.cat(after)
