"""The width of a model from its logits (Carlini et al. 2024).

All logits are W h with one matrix W, so that those of many prompts span no more dimensions than the stream has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.stealing.api import Ask, patiently

LAST = 5


@dataclass(frozen=True)
class Width:
    """Where the singular values of logits fall.

    Attributes:
        size: how many are above the largest gap.
        ratio: the value before the gap over the one after it.
        values: all of them, falling.
    """

    size: int
    ratio: float
    values: Float[np.ndarray, " value"]


def random_prompts(n: int, vocabulary: int, *, length: int = 8, seed: int = 0) -> list[list[int]]:
    """Prompts of random tokens."""
    if vocabulary < 1 or n < 1 or length < 1:
        raise ValueError(f"n, vocabulary and length must be at least 1, not {n}, {vocabulary} and {length}")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (n, length), generator=generator).tolist()


def collect(
    ask: Ask,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    recover: Callable[[Ask, Sequence[int], Sequence[int]], Float[Tensor, " token"]] | None = None,
    known: Float[Tensor, "asked token"] | None = None,
    keep: Callable[[Float[Tensor, "asked token"]], None] | None = None,
    progress: bool = False,
) -> Float[Tensor, "prompt token"]:
    """Logits of some tokens after many prompts, float64, without their mean over the tokens.

    A softmax shows logits up to a constant of the prompt; taking off the mean over tokens replaces it by one that is
    linear in the logits. It adds no dimension, and costs one only if all logits of some stream are equal.

    Args:
        recover: how the logits of one prompt are had; None: the API shows all log-probabilities.
        known: rows that are there already, from `keep` of a call that broke off: only the other prompts are asked.
        keep: called with all rows so far, after each prompt.

    Errors: `ValueError` if the API does not show a token that was asked for, or for known rows of another shape; as the
        API and `recover` raise them.
    """
    rows = [] if known is None else list(known)
    if known is not None and (known.ndim != 2 or known.shape[1] != len(tokens) or len(known) > len(prompts)):
        raise ValueError(f"known has the shape {tuple(known.shape)}, expected at most [{len(prompts)}, {len(tokens)}]")
    for prompt in tqdm(prompts[len(rows) :], desc="queries", disable=not progress):
        row = _all_shown(ask, prompt, tokens) if recover is None else recover(ask, prompt, tokens)
        rows.append(row - row.mean())
        if keep is not None:
            keep(torch.stack(rows))
    return torch.stack(rows)


def _all_shown(ask: Ask, prompt: Sequence[int], tokens: Sequence[int]) -> Float[Tensor, " token"]:
    answer = patiently(ask, prompt, {})
    if len(answer.tokens) <= max(tokens):
        raise ValueError(
            f"the API shows {len(answer.tokens)} log-probabilities, not all of them: give recover, by_top for instance"
        )
    row = torch.empty(len(answer.tokens), dtype=torch.float64)
    row[answer.tokens] = answer.logprobs
    return row[list(tokens)]


def singular_values(logits: Float[Tensor, "prompt token"]) -> Float[np.ndarray, " value"]:
    """In float64, falling."""
    return torch.linalg.svdvals(logits.double()).cpu().numpy()


def width(logits: Float[Tensor, "prompt token"], *, least: float = 2.0) -> Width:
    """The largest ratio between neighbouring singular values, the first and the last five left out.

    Args:
        least: a ratio that is a gap. Singular values of random matrices fall by a few percent, and by more only among
            the last ones of a square matrix.

    Errors: `ValueError` if there is none: too few prompts or tokens, or an API that adds noise or rounds.
    """
    few = min(logits.shape)
    if few < LAST + 3:
        raise ValueError(f"a gap needs {LAST + 3} prompts and tokens or more, got {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise ValueError("the logits must be finite")
    values = singular_values(logits)
    # What is smaller than rounding in the largest is rounding.
    floor = values[0] * 2.0**-52 * max(logits.shape)
    ratios = np.maximum(values[:-1], floor) / np.maximum(values[1:], floor)
    inside = ratios[1:-LAST]
    best = 1 + int(inside.argmax())
    if ratios[best] < least:
        raise ValueError(
            f"no gap: the largest ratio of neighbouring singular values is {ratios[best]:.3g}. Either the model is at "
            f"least as wide as the {few} prompts or tokens that were asked, and more of both are needed (twice as many "
            f"show any width below {2 * few}), or noise or rounding of the answers hides it"
        )
    return Width(best + 1, float(ratios[best]), values)
