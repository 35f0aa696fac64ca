"""A provider's answers against a softmax by hand, its terms, its bill."""

import math

import pytest
import torch

from mechinterp.stealing import Bill, Dropped, Provider, Refused, Terms, next_logits
from mechinterp.stealing.api import patiently
from tests import families

LOGITS = [0.5, -2.0, 3.0, 1.0, 0.0]


def provider(**terms) -> Provider:
    return Provider(lambda prompt: torch.tensor(LOGITS) + len(prompt), Terms(**terms))


def softmax(logits: list[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.log(math.exp(x) / total) for x in logits]


def test_all_log_probabilities_are_a_softmax_by_hand() -> None:
    answer = provider(top=None)([7, 7])
    assert answer.next == 2
    assert answer.tokens.tolist() == [2, 3, 0, 4, 1]
    assert answer.shown == pytest.approx(dict(enumerate(softmax(LOGITS))), abs=1e-12)


def test_a_bias_changes_what_is_said_and_shown() -> None:
    answer = provider(top=2)([7], {1: 5.5})
    biased = softmax([0.5, 3.5, 3.0, 1.0, 0.0])
    assert answer.next == 1
    assert answer.shown == pytest.approx({1: biased[1], 2: biased[2]}, abs=1e-12)


def test_a_bias_that_does_not_show_still_changes_what_is_said() -> None:
    answer = provider(top=2, bias_shows="never")([7], {1: 9.0})
    plain = softmax(LOGITS)
    assert answer.next == 1
    assert answer.shown == pytest.approx({2: plain[2], 3: plain[3]}, abs=1e-12)


def test_without_log_probabilities_only_the_next_token_is_told() -> None:
    answer = provider(top=0)([7], {4: 3.5})
    assert (answer.next, answer.shown) == (4, {})


def test_digits() -> None:
    assert provider(top=None, digits=2)([7]).shown == {t: round(x, 2) for t, x in enumerate(softmax(LOGITS))}


@pytest.mark.parametrize(
    ("terms", "prompt", "bias", "message"),
    [
        ({}, [], {}, "a prompt has 1 to 1024 tokens, not 0"),
        ({}, [0] * 1025, {}, "not 1025"),
        ({"most_biased": 1}, [0], {0: 1.0, 1: 1.0}, "at most 1 tokens can be biased, not 2"),
        ({}, [0], {0: -101.0}, "within ±100, not at -101"),
        ({}, [0], {0: math.nan}, "within ±100, not at nan"),
        ({"bias_shows": "forbidden"}, [0], {0: 1.0}, "do not go together"),
        ({"most_queries": 0}, [0], {}, "the budget of 0 queries is spent"),
        ({"most_tokens": 1}, [0], {}, "an answer has 1 to 1 tokens, and with its prompt 1025 at most, not 2"),
        ({}, [0] * 1024, {}, "and with its prompt 1025 at most, not 2"),
    ],
)
def test_what_the_terms_forbid_is_refused_and_costs_nothing(terms, prompt, bias, message) -> None:
    asked = provider(**terms)
    with pytest.raises(Refused, match=message):
        asked.at_length(prompt, bias, 2)
    assert asked.bill == Bill()


@pytest.mark.parametrize("token", [-1, 5])
def test_a_bias_of_no_token_is_refused(token: int) -> None:
    with pytest.raises(Refused, match=f"there is no token {token}"):
        provider()([0], {token: 1.0})


@pytest.mark.parametrize(
    "wrong",
    [
        {"top": -1},
        {"most_biased": -1},
        {"bias_limit": math.nan},
        {"bias_shows": "sometimes"},
        {"noise": -1.0},
        {"widen": (-1, 1.0)},
        {"drop": 1.0},
        {"most_tokens": 0},
    ],
)
def test_terms_that_make_no_sense(wrong) -> None:
    with pytest.raises(ValueError, match=r"must|limited"):
        Terms(**wrong)


def test_an_answer_of_several_tokens_is_one_question_after_another() -> None:
    """The next token is one more than the last one; what is shown belongs to its place."""
    asked = Provider(lambda prompt: torch.arange(8.0).roll(prompt[-1] + 2), Terms(top=3))
    answers = asked.at_length([5, 2], {7: 0.5}, 3)
    one_by_one = [asked([5, 2, *range(3, 3 + i)], {7: 0.5}) for i in range(3)]
    assert [a.next for a in answers] == [a.next for a in one_by_one] == [3, 4, 5]
    assert [a.shown for a in answers] == [a.shown for a in one_by_one]
    assert asked.bill == Bill(4, 2 + 2 + 3 + 4, 3 + 3)


def test_the_bill_counts_tokens_of_questions_and_answers() -> None:
    asked = provider()
    asked([1, 2, 3])
    before = asked.bill.copy()
    asked([1])
    assert asked.bill == Bill(2, 4, 2)
    assert asked.bill.since(before) == Bill(1, 1, 1)
    assert asked.bill.price(sent=2e6, received=1e6) == pytest.approx(10)


def test_a_dropped_question_is_billed_and_can_be_asked_again() -> None:
    asked = provider(drop=0.5)
    answers = [patiently(asked, [1], {}).next for _ in range(50)]
    assert answers == [2] * 50
    assert 70 < asked.bill.queries < 150  # 100 on average
    with pytest.raises(Dropped):
        patiently(provider(drop=0.999), [1], {}, tries=2)
    with pytest.raises(ValueError, match="tries must be at least 1"):
        patiently(asked, [1], {}, tries=0)


def test_noise_is_new_for_each_question_and_the_same_for_the_same_seed() -> None:
    def twice(seed: int) -> list[float]:
        asked = Provider(lambda prompt: torch.tensor(LOGITS), Terms(noise=0.1), seed=seed)
        return [float(asked([1]).logprobs[0]) for _ in range(2)]

    assert twice(0) == twice(0) != twice(1)
    assert twice(0)[0] != twice(0)[1]


def test_logits_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        Provider(lambda prompt: torch.tensor([0.0, math.nan]))([1])


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_a_model_answers_as_hugging_face_does(name: str, double: bool) -> None:
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        true = families.raw_model(name)(tokens).logits[0, -1].double().log_softmax(-1)
    answer = Provider.of(families.bridge(name), Terms(top=None), double=double)(tokens[0].tolist())
    assert answer.next == int(true.argmax())
    torch.testing.assert_close(answer.logprobs, true[answer.tokens], atol=1e-4, rtol=0)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_logits_after_prompts_of_many_lengths_are_hugging_faces(name: str, double: bool) -> None:
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6], [5], [3, 5, 8], [9, 7, 9, 3]]
    raw = families.raw_model(name)
    with torch.no_grad():
        true = torch.stack([raw(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    found = next_logits(families.bridge(name), prompts, double=double, batch_size=2)
    assert found.dtype == (torch.float64 if double else torch.float32)
    torch.testing.assert_close(found.double().log_softmax(-1), true.double().log_softmax(-1), atol=1e-4, rtol=0)


def test_a_batch_has_a_size() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next_logits(families.bridge("GPT-2"), [[1]], batch_size=0)
    with pytest.raises(ValueError, match="needs a prompt"):
        next_logits(families.bridge("GPT-2"), [])
