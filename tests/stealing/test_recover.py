"""Logits come back to the precision that was asked for, at the price that the paper names."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.stealing import Provider, Terms, bits, by_change, by_elimination, by_search, by_top
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
    for attack, top in ((by_top, 5), (by_change, 1), (by_search, 0), (by_elimination, 0)):
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
    with pytest.raises(ValueError, match="below 0"):
        by_change(served(logits_of(0), top=1), [0], [1], bias=1.0)
    with pytest.raises(ValueError, match="at_once"):
        by_elimination(served(logits_of(0), top=0), [0], [1], at_once=0)
