"""Logits come back to the precision that was asked for, at the price that the paper names."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.stealing import (
    Provider,
    Terms,
    bits,
    by_change,
    by_elimination,
    by_normaliser,
    by_repeating,
    by_search,
    by_top,
)
from mechinterp.stealing.api import Answer, Bill


def logits_of(seed: int, n: int = 40) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def served(logits: torch.Tensor, **terms) -> Provider:
    return Provider(lambda prompt: logits, Terms(**terms))


SEEDS = st.integers(0, 10_000)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 6))
def test_by_top(seed: int, k: int) -> None:
    logits, tokens = logits_of(seed), list(range(30))
    found = by_top(served(logits, top=k), [0], tokens)
    torch.testing.assert_close(found.logits, logits[:30] - logits.max(), atol=1e-9, rtol=0)
    assert found.top == int(logits.argmax())
    others = 30 - (found.top < 30)
    assert found.queries == 1 + math.ceil(others / (k - 1))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 6), st.floats(1e-4, 0.1))
def test_by_normaliser(seed: int, k: int, least: float) -> None:
    logits, tokens = logits_of(seed), list(range(30))
    found = by_normaliser(served(logits, top=k), [0], tokens, least=least)
    torch.testing.assert_close(found.logits, logits[:30] - logits.max(), atol=1e-8, rtol=0)
    others = 30 - (found.top < 30)
    assert found.queries >= 1 + math.ceil(others / k)


def test_by_normaliser_takes_one_query_for_each_k_if_the_biases_are_right() -> None:
    """All tokens but the top one are alike, so that the biases of the first five are right for all of them."""
    logits = torch.tensor([9.0] + [0.0] * 60, dtype=torch.float64)
    found = by_normaliser(served(logits, top=5), [0], list(range(61)))
    assert found.queries == 1 + 60 / 5
    torch.testing.assert_close(found.logits, logits - 9, atol=1e-9, rtol=0)


def test_the_less_mass_is_left_to_others_the_less_by_normaliser_tells() -> None:
    logits, tokens = logits_of(3, 500), list(range(400))
    runs = [by_normaliser(served(logits, top=5, digits=7), [0], tokens, least=x) for x in (1e-4, 1e-2)]
    few, many = (bits(run.logits, logits[:400]) for run in runs)
    assert many > few + 3
    assert runs[1].queries > runs[0].queries


def chain(seed: int, n: int = 40):
    """Logits that depend on the whole prompt."""

    def answer(prompt) -> torch.Tensor:
        return logits_of(seed + sum(t * 7**i for i, t in enumerate(prompt)) % 10_007, n)

    return answer


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 6), st.integers(1, 5))
def test_by_repeating(seed: int, k: int, times: int) -> None:
    """Each place of the answer is the prompt with the first token said over and over."""
    answer, tokens = chain(seed), list(range(30))
    ask = Provider(answer, Terms(top=k))
    found = by_repeating(ask, [0], tokens, times=times, ahead=50.0)
    top = int(answer([0]).argmax())
    assert [place.top for place in found] == [top] * times
    for i, place in enumerate(found):
        true = answer([0] + [top] * i)
        torch.testing.assert_close(place.logits, true[:30] - true[top], atol=1e-9, rtol=0)
    asked = math.ceil((30 - (top < 30)) / (k - 1))
    assert ask.bill.queries == found[0].queries == 1 + asked
    assert (ask.bill.sent, ask.bill.received) == (1 + asked, 1 + times * asked)


def test_by_repeating_notices_that_another_token_comes_between() -> None:
    logits = torch.tensor([0.0, -1.0, -2.0, -40.0], dtype=torch.float64)
    ask = Provider(lambda prompt: logits if len(prompt) == 1 else logits.flip(0), Terms(top=4))
    with pytest.raises(ValueError, match="more than 30 ahead is needed"):
        by_repeating(ask, [0], [0, 1, 2, 3], times=2)
    with pytest.raises(ValueError, match="ahead must lie between"):
        by_repeating(ask, [0], [0, 1], times=2, ahead=100.0)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(-5, -0.1))
def test_by_change(seed: int, bias: float) -> None:
    logits, tokens = logits_of(seed), list(range(40))
    found = by_change(served(logits, top=1), [0], tokens, bias=bias)
    torch.testing.assert_close(found.logits, logits - logits.max(), atol=1e-4, rtol=0)
    assert found.queries == 40  # one in advance, none for the top token


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0.01, 3))
def test_by_search(seed: int, precision: float) -> None:
    logits, tokens = logits_of(seed), list(range(30))
    found = by_search(served(logits, top=0), [0], tokens, precision=precision)
    assert (found.logits - (logits[:30] - logits.max())).abs().max() <= precision / 2 + 1e-9
    others = 30 - (found.top < 30)
    assert found.queries == 1 + others * math.ceil(math.log2(100 / precision))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(1e-5, 3), st.integers(1, 40))
def test_by_elimination(seed: int, precision: float, at_once: int) -> None:
    logits, tokens = logits_of(seed), list(range(40))
    found = by_elimination(served(logits, top=0), [0], tokens, precision=precision, at_once=at_once)
    assert (found.logits - (logits - logits.max())).abs().max() <= precision / 2 + 1e-9


def test_many_at_once_cost_less_than_one_at_a_time() -> None:
    logits, tokens = logits_of(0, 200), list(range(200))
    one, many = (
        by_elimination(served(logits, top=0), [0], tokens, precision=1e-3, at_once=n).per_logit for n in (1, 100)
    )
    assert one == pytest.approx(math.log2(100 / 1e-3), abs=1)
    assert many < one / 3


def test_tokens_may_come_twice_and_in_any_order() -> None:
    logits, tokens = logits_of(1), [5, 3, 5, 39, 0]
    for attack, top in ((by_top, 5), (by_normaliser, 5), (by_change, 1), (by_search, 0), (by_elimination, 0)):
        found = attack(served(logits, top=top), [0], tokens)
        torch.testing.assert_close(found.logits, logits[tokens] - logits.max(), atol=0.1, rtol=0)


def test_bits() -> None:
    true = torch.arange(1000.0, dtype=torch.float64)
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = noise / noise.std() * true.std() / 2**7
    assert bits(true + off + 3, true) == pytest.approx(7)
    assert bits(true + 1, true) == math.inf


def test_what_cannot_be_resolved_is_put_at_the_limit() -> None:
    logits = torch.tensor([10.0, 9.0, -60.0], dtype=torch.float64)
    found = by_change(served(logits, top=1), [0], [0, 1, 2]).logits
    assert found[:2].tolist() == pytest.approx([0, -1], abs=1e-6)
    assert found[2] == found[1], "the smallest that was resolved"


@pytest.mark.parametrize(
    ("attack", "terms", "message"),
    [
        (by_top, {"top": 1}, "two log-probabilities or more, this one shows 1"),
        (by_top, {"top": 5, "bias_shows": "never"}, "without the bias"),
        (by_normaliser, {"top": 0}, "shows none"),
        (by_normaliser, {"top": 5, "bias_shows": "never"}, "no biases were found"),
        (partial(by_repeating, times=2), {"top": 1}, "two log-probabilities or more, this one shows 1"),
        (partial(by_repeating, times=2), {"top": 5, "bias_shows": "never"}, "without the bias"),
        (by_change, {"top": 0}, "shows none"),
        (by_change, {"top": 1, "bias_shows": "never"}, "never changes"),
        (by_change, {"top": 1, "digits": 0}, "never changes"),
    ],
)
def test_apis_that_an_attack_cannot_use(attack, terms, message) -> None:
    with pytest.raises(ValueError, match=message):
        attack(served(logits_of(0), **terms), [0], list(range(20)))


def test_an_api_that_cuts_its_answers() -> None:
    whole = served(logits_of(0), top=5)

    class Cut:
        bill = Bill()

        def __call__(self, prompt, bias={}) -> Answer:  # noqa: B006
            answer = whole(prompt, bias)
            keep = 3 if bias else 5
            return Answer(answer.next, answer.tokens[:keep], answer.logprobs[:keep])

    with pytest.raises(ValueError, match="is not among the 3 that were shown"):
        by_top(Cut(), [0], list(range(20)))


@pytest.mark.parametrize("attack", [by_search, by_elimination])
def test_a_token_out_of_reach_and_senseless_precision(attack) -> None:
    logits = torch.tensor([0.0, -200.0, -1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="token 1 does not win"):
        attack(served(logits, top=0), [0], [1, 2])
    with pytest.raises(ValueError, match="precision must lie between"):
        attack(served(logits, top=0), [0], [1], precision=100.0)


def test_an_api_with_noise_is_noticed_by_the_elimination() -> None:
    with pytest.raises(ValueError, match="noisy"):
        by_elimination(served(logits_of(0), top=0, noise=5.0), [0], list(range(10)), at_once=2)


def test_senseless_arguments() -> None:
    with pytest.raises(ValueError, match="least must lie between"):
        by_normaliser(served(logits_of(0), top=5), [0], [1], least=0.5)
    with pytest.raises(ValueError, match="below 0"):
        by_change(served(logits_of(0), top=1), [0], [1], bias=1.0)
    with pytest.raises(ValueError, match="at_once"):
        by_elimination(served(logits_of(0), top=0), [0], [1], at_once=0)
