"""Logits from an API that shows only a few log-probabilities, or none (Carlini et al. 2024, Table 4).

The logits of a prompt come back relative to that of its most probable token, which is all that a softmax shows. How
many queries an attack needs for a logit, and how many bits it gets, is what the attacks differ in.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.stealing.api import Ask, AskAtLength, patiently


@dataclass(frozen=True)
class Recovered:
    """Logits of some tokens after one prompt.

    Attributes:
        tokens: whose; `top`: the most probable token, whose logit is 0.
        logits: theirs, relative to the top token's, float64.
        queries: how many were asked.
    """

    tokens: tuple[int, ...]
    top: int
    logits: Float[Tensor, " token"]
    queries: int

    @property
    def per_logit(self) -> float:
        """Queries for each logit."""
        return self.queries / len(self.tokens)


def bits(found: Float[Tensor, "..."], true: Float[Tensor, "..."]) -> float:
    """Bits of precision: −log2 of the standard deviation of the error over that of the logits.

    A constant that is added to all logits is no error: a softmax does not show it.

    >>> true = torch.arange(8.0)
    >>> bits(true + torch.tensor([0.25, -0.25] * 4), true) > 3
    True
    """
    error = (found.double() - true.double()).std()
    return float((true.double().std() / error).log2()) if error > 0 else math.inf


def by_top(ask: Ask, prompt: Sequence[int], tokens: Sequence[int], *, bias: float = 100.0) -> Recovered:
    """From K log-probabilities, with a bias that lifts K − 1 tokens and the top one above the rest (logprob-(K−1)).

    One query in advance, then 1 / (K − 1) a logit. What is added to all K of them alike drops out of differences.

    Errors: `ValueError` for an API that shows fewer than two log-probabilities, whose answers do not depend on the
        bias, or that leaves out a token that was brought to the top; `Refused` and `Dropped` as the API raises them.
    """
    before = ask.bill.queries
    k, top = _shown_and_top(ask, prompt)
    wanted = [t for t in dict.fromkeys(tokens) if t != top]
    logits = {top: 0.0}
    for i in range(0, len(wanted), k - 1):
        some = wanted[i : i + k - 1]
        shown = patiently(ask, prompt, dict.fromkeys([*some, top], bias)).shown
        _check_shown((*some, top), shown, bias)
        logits |= {token: shown[token] - shown[top] for token in some}
    return _told(ask, before, tokens, top, logits)


def by_normaliser(
    ask: Ask, prompt: Sequence[int], tokens: Sequence[int], *, least: float = 1e-3, most: float = 100.0
) -> Recovered:
    """From K log-probabilities of K tokens, with no place for the top one (logprob-K).

    If biases b turn the tokens' probabilities p into e^y, then e^(y - b) = p / N, where N is what the biases make of
    the normaliser. The other tokens keep their mass, 1 - Σ p, and show 1 - Σ e^y of it, so that one equation gives
    N = 1 / (1 - Σ e^y + Σ e^(y - b)). That takes 1 / K queries a logit if the biases are right at once. If they are too
    small a token is not shown, and if they are too large nothing is left of the other tokens' mass: then they are
    changed, which costs a query.

    Args:
        least: how much mass must be left to the other tokens. The smaller, the fewer queries, and the fewer bits.
        most: the largest bias to ask with.

    Errors: `ValueError` for an API that shows no log-probability, or whose answers do not depend on the bias; `Refused`
        and `Dropped` as the API raises them.
    """
    if not 0 < least < 0.5:
        raise ValueError(f"least must lie between 0 and 0.5, not {least}")
    before = ask.bill.queries
    first = patiently(ask, prompt, {})
    k, top = len(first.tokens), first.next
    if not k:
        raise ValueError("logprob-K needs an API that shows log-probabilities, this one shows none")
    y = first.shown[top]
    wanted = [t for t in dict.fromkeys(tokens) if t != top]
    logits, level = {top: 0.0}, 10.0
    for i in range(0, len(wanted), k):
        some = wanted[i : i + k]
        found, biases = _with_mass_left(ask, prompt, some, level, least, most)
        level = sum(biases) / len(biases)
        logits |= {token: value - y for token, value in zip(some, found, strict=True)}
    return _told(ask, before, tokens, top, logits)


def _with_mass_left(
    ask: Ask, prompt: Sequence[int], tokens: Sequence[int], level: float, least: float, most: float, *, tries: int = 40
) -> tuple[list[float], list[float]]:
    """Log-probabilities of the tokens without a bias, and the biases that showed them."""
    hidden_with = dict.fromkeys(tokens, 0.0)
    b = dict.fromkeys(tokens, level)
    for _ in range(tries):
        shown = patiently(ask, prompt, b).shown
        hidden = [t for t in tokens if t not in shown]
        if hidden:
            if max(b[t] for t in hidden) >= most:
                break
            hidden_with |= {t: b[t] for t in hidden}
            b |= {t: min(b[t] + 4.0, most) for t in hidden}
            continue
        y = [shown[t] for t in tokens]
        left = 1.0 - min(1.0, sum(map(math.exp, y)))
        if left >= least:
            normaliser = math.log(left + sum(math.exp(shown[t] - b[t]) for t in tokens))
            return [shown[t] - b[t] - normaliser for t in tokens], list(b.values())
        if max(y) - min(y) > 0.5:  # as probable as the least probable of them, which was shown
            b = {t: b[t] - (shown[t] - min(y)) for t in tokens}
        else:
            b = {t: max(b[t] - 2.0, (b[t] + hidden_with[t]) / 2) for t in tokens}
    raise ValueError(
        f"no biases were found that show the tokens {list(tokens)} and leave a share of {least:g} to all others: the "
        "API shows probabilities without the bias, or cuts its answers"
    )


def by_repeating(
    ask: AskAtLength,
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    times: int,
    bias: float = 100.0,
    ahead: float = 30.0,
) -> list[Recovered]:
    """As `by_top`, with answers of several tokens: one query serves as many prompts.

    The top token is biased more than the others, so that it is said again and again, and every place of the answer is a
    prompt of its own: the first one, and the same with the top token once more at its end each time. That is
    1 / (times (K - 1)) queries a logit. All tokens are relative to the first prompt's top one.

    Args:
        times: tokens of an answer.
        ahead: how far the other tokens' bias stays behind the top one's.

    Errors: as of `by_top`; `ValueError` if another token comes between, and more of `ahead` is needed.
    """
    if not 0 < ahead < bias:
        raise ValueError(f"ahead must lie between 0 and the bias of {bias:g}, not {ahead:g}")
    before = ask.bill.queries
    k, top = _shown_and_top(ask, prompt)
    wanted = [t for t in dict.fromkeys(tokens) if t != top]
    logits: list[dict[int, float]] = [{top: 0.0} for _ in range(times)]
    for i in range(0, len(wanted), k - 1):
        some = wanted[i : i + k - 1]
        biases = dict.fromkeys(some, bias - ahead) | {top: bias}
        for place, answer in zip(
            logits, patiently(lambda p, b: ask.at_length(p, b, times), prompt, biases), strict=True
        ):
            if answer.next != top:
                raise ValueError(f"token {answer.next} came in place of {top}: more than {ahead:g} ahead is needed")
            _check_shown((*some, top), answer.shown, bias - ahead)
            place |= {t: answer.shown[t] - answer.shown[top] + ahead for t in some}
    spent = ask.bill.queries - before
    return [Recovered(tuple(tokens), top, _in_order(tokens, place), spent) for place in logits]


def by_change(ask: Ask, prompt: Sequence[int], tokens: Sequence[int], *, bias: float = -1.0) -> Recovered:
    """From the top token's log-probability alone: how much it gains when a bias takes mass from another (logprob-1).

    One query a logit. p = (1 − exp(y − y')) / (1 − exp(bias)), y and y' being the top token's log-probability without
    and with the bias: a token whose p is below the resolution of y is not resolved, and has the logit of the smallest p
    that is.

    Errors: `ValueError` for an API that shows no log-probability, or whose answers do not depend on the bias.
    """
    if not bias < 0:
        raise ValueError(f"the bias must be below 0, so that the top token stays at the top, not {bias}")
    before = ask.bill.queries
    first = patiently(ask, prompt, {})
    if not len(first.tokens):
        raise ValueError("logprob-1 needs an API that shows a log-probability, this one shows none")
    top, y = first.next, float(first.logprobs[0])
    gains = {}
    for token in dict.fromkeys(t for t in tokens if t != top):
        answer = patiently(ask, prompt, {token: bias})
        gains[token] = -math.expm1(y - answer.shown[top]) / -math.expm1(bias)
    seen = [p for p in gains.values() if p > 0]
    if gains and not seen:
        raise ValueError("the top token's log-probability never changes: it is shown without the bias, or rounded")
    least = min(seen, default=1.0)
    return _told(ask, before, tokens, top, {top: 0.0} | {t: math.log(max(p, least)) - y for t, p in gains.items()})


def by_search(
    ask: Ask, prompt: Sequence[int], tokens: Sequence[int], *, width: float = 100.0, precision: float = 0.1
) -> Recovered:
    """From what is said alone: the bias at which a token overtakes the top one, by bisection.

    log2(width / precision) queries a logit, one token at a time; its logit is the middle of what is left.

    Errors: `ValueError` for a token that does not win with the full width, or a precision not within (0, width).
    """
    _check_precision(precision, width)
    before = ask.bill.queries
    top = patiently(ask, prompt, {}).next
    logits = {top: 0.0}
    for token in dict.fromkeys(t for t in tokens if t != top):
        low, high = 0.0, width
        while high - low > precision:
            middle = (low + high) / 2
            if patiently(ask, prompt, {token: middle}).next == token:
                high = middle
            else:
                low = middle
        if high == width:
            raise ValueError(f"token {token} does not win with a bias of {width - precision:g}: more width is needed")
        logits[token] = -(low + high) / 2
    return _told(ask, before, tokens, top, logits)


def by_elimination(
    ask: Ask,
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    width: float = 100.0,
    precision: float = 0.1,
    at_once: int = 100,
) -> Recovered:
    """From what is said alone: many tokens are biased at once, and the one that wins bounds them all (one-of-N).

    Let d be how far a token is below the top one. If k wins with biases b, then d_k − d_j ≤ b_k − b_j for every j. All
    such differences are kept with their consequences (shortest paths), so that a query says something about every
    token. Biases are chosen so that each token, and the top one, is about as likely to win.

    Args:
        width: no logit is farther below the top one's than this.
        at_once: tokens that are biased together, at most what the API allows.

    Errors: as of `by_search`.
    """
    _check_precision(precision, width)
    if at_once < 1:
        raise ValueError(f"at_once must be at least 1, not {at_once}")
    before = ask.bill.queries
    top = patiently(ask, prompt, {}).next
    wanted = [t for t in dict.fromkeys(tokens) if t != top]
    logits = {top: 0.0}
    for i in range(0, len(wanted), at_once):
        some = wanted[i : i + at_once]
        box = _Box(len(some), width)
        while (gaps := box.high - box.low).max() > precision:
            b = box.biases(gaps > precision)
            biases = {some[j]: float(b[j]) for j in np.flatnonzero(gaps > precision)}
            winner = patiently(ask, prompt, biases).next
            if winner != top and winner not in biases:
                raise ValueError(f"token {winner}, which has no bias, beat the top one: the API's answers are noisy")
            box.won(0 if winner == top else 1 + some.index(winner), b, gaps > precision)
        for token, low, high in zip(some, box.low.tolist(), box.high.tolist(), strict=True):
            if high >= width:
                raise ValueError(f"token {token} does not win with a bias of {low:g}: more width is needed")
            logits[token] = -(low + high) / 2
    return _told(ask, before, tokens, top, logits)


class _Box:
    """What is known of distances d from the top token, which is number 0 with d = 0.

    `most[a, b]` bounds d_a − d_b from above; d_a is between −most[0, a] and most[a, 0].
    """

    def __init__(self, n: int, width: float) -> None:
        self.most = np.full((n + 1, n + 1), width)
        self.most[0] = 0.0  # nothing is above the top token
        np.fill_diagonal(self.most, 0.0)

    @property
    def low(self) -> np.ndarray:
        return -self.most[0, 1:]

    @property
    def high(self) -> np.ndarray:
        return self.most[1:, 0]

    def biases(self, open_: np.ndarray) -> np.ndarray:
        """If the d of the open tokens lay evenly between their bounds, the top token would win one time in n + 1."""
        n = int(open_.sum())
        share = -math.expm1(-math.log(n + 1) / n)
        return self.low + share * (self.high - self.low)

    def won(self, winner: int, biases: np.ndarray, open_: np.ndarray) -> None:
        """The winner's bounds against all others that were in the race, and what follows from them."""
        b = np.concatenate([[0.0], biases])
        racing = np.concatenate([[True], open_])
        new = np.where(racing, b[winner] - b, np.inf)  # d_winner − d_j ≤ b_winner − b_j
        new[winner] = 0.0
        reach = (new[:, None] + self.most).min(0)
        self.most = np.minimum(self.most, self.most[:, winner, None] + reach)


def _check_precision(precision: float, width: float) -> None:
    if not 0 < precision < width:
        raise ValueError(f"precision must lie between 0 and the width of {width:g}, not {precision:g}")


def _shown_and_top(ask: Ask, prompt: Sequence[int]) -> tuple[int, int]:
    """How many log-probabilities are shown, and the most probable token."""
    first = patiently(ask, prompt, {})
    k = len(first.tokens)
    if k < 2:
        raise ValueError(f"logprob-(K-1) needs an API that shows two log-probabilities or more, this one shows {k}")
    return k, first.next


def _check_shown(tokens: Sequence[int], shown: Mapping[int, float], bias: float) -> None:
    for token in tokens:
        if token not in shown:
            raise ValueError(
                f"token {token} is not among the {len(shown)} that were shown, though {bias:g} was added to its logit: "
                "the API shows probabilities without the bias, or cuts its answers, or more bias is needed"
            )


def _in_order(tokens: Sequence[int], logits: Mapping[int, float]) -> Float[Tensor, " token"]:
    return torch.tensor([logits[t] for t in tokens], dtype=torch.float64)


def _told(ask: Ask, before: int, tokens: Sequence[int], top: int, logits: Mapping[int, float]) -> Recovered:
    return Recovered(tuple(tokens), top, _in_order(tokens, logits), ask.bill.queries - before)
