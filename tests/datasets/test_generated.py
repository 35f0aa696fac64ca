"""What is held out of the generated documents stays out, and each kind of document is what it says."""

import itertools
import re

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from mechinterp.datasets import generated, ioi
from mechinterp.datasets.ordinals import HELD_OUT_TASK, TASKS

DOCUMENTS = 3000


def quote(n: int) -> list[int]:
    return list(range(1, n + 1))


def documents(kind: object, n: int = DOCUMENTS, seed: int = 0) -> list[list[generated.Piece]]:
    rng = np.random.default_rng(seed)
    return [kind(rng, quote) for _ in range(n)]  # type: ignore[operator]


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Generated IOI sentences, as text."""
    return ["".join(p for p in pieces if isinstance(p, str)) for pieces in documents(generated.ioi)]


def people(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in ioi.NAMES]


def test_one_of_two_people_is_named_twice_before_the_answer_and_a_third_at_most_once(sentences: list[str]) -> None:
    with_third = 0
    for text in sentences:
        *mentions, answer = people(text)
        counts = sorted(mentions.count(name) for name in set(mentions))
        assert counts in ([1, 2], [1, 1, 2]), text
        assert mentions.count(answer) == 1, text
        with_third += len(counts) == 3
        if len(counts) == 3:
            assert mentions.count(mentions[-1]) == 1, "the third gives"
            assert mentions[-1] != answer
    assert 0.05 < with_third / len(sentences) < 0.5


def test_the_last_name_does_not_tell_the_answer(sentences: list[str]) -> None:
    last = np.mean([people(text)[-2] == people(text)[-1] for text in sentences])
    assert 0.05 < last < 0.5, "the answer is sometimes the last name mentioned, more often not"


def test_both_orders_are_equally_common(sentences: list[str]) -> None:
    first = np.mean([people(text)[0] == people(text)[-1] for text in sentences if len(people(text)) == 4])
    assert 0.25 < first < 0.6


def test_no_held_out_pair(sentences: list[str]) -> None:
    held_out = {frozenset(pair) for pair in ioi.held_out_pairs()}
    seen = {frozenset(pair) for text in sentences for pair in itertools.combinations(set(people(text)), 2)}
    assert not seen & held_out
    assert len(seen) > 1500, "most of the other pairs do occur"
    assert {name for pair in seen for name in pair} == set(ioi.NAMES)


@pytest.mark.parametrize("template", ioi.TEMPLATES)
def test_no_template_of_the_paper(sentences: list[str], template: str) -> None:
    pattern = re.escape(template)
    for slot in ("0", "1", "2", "place", "object"):
        pattern = pattern.replace(re.escape("{" + slot + "}"), r"\w+")
    whole = re.compile(pattern)
    example = template.format("Mary", "John", "John", place="store", object="ring")
    assert whole.search(example), "the pattern would find it"
    assert not [text for text in sentences if whole.search(text)]


def test_no_clause_of_the_paper_before_the_subject(sentences: list[str]) -> None:
    """Not only the whole templates: their first clauses do not occur either."""
    for template in ioi.TEMPLATES:
        clause = re.escape(template.split("{2}")[0].strip(" ,."))
        for slot in ("0", "1", "place", "object"):
            clause = clause.replace(re.escape("{" + slot + "}"), r"\w+")
        assert not [text for text in sentences if re.search(clause + r"[,.] ", text)], template


def test_roman_numerals_are_never_counted() -> None:
    runs = itertools.chain(
        documents(generated.plain_run, 500),
        documents(generated.labelled_list, 500),
        documents(generated.succession_pairs, 200),
    )
    text = " ".join(p for pieces in runs for p in pieces if isinstance(p, str))
    assert not re.search(r"\b(II|III|IV|VI|VII|VIII|IX|XI|XII)\b", text)
    assert HELD_OUT_TASK.name not in TASKS


def test_runs_count_upwards() -> None:
    for pieces in documents(generated.plain_run, 300):
        words = re.findall(r"\w+", "".join(pieces))  # type: ignore[arg-type]
        words = [w for w in words if w not in ("and", "then")]
        assert any(
            all(w in task.words for w in words) and all(task.successor(a) == b for a, b in itertools.pairwise(words))
            for task in TASKS.values()
        ), words


def test_repetitions_repeat() -> None:
    for [ids] in documents(generated.repeated_tokens, 200):
        assert any(len(ids) % k == 0 and ids == ids[: len(ids) // k] * k for k in (2, 3))
    for passage, _, again in documents(generated.repeated_passage, 100):
        assert passage == again


def test_lists_without_repetition_have_none() -> None:
    for [text] in documents(generated.no_repeats, 300):
        items = text.rstrip(".").split(":")[-1].removeprefix(" We have").split(",")
        assert len(items) == len(set(items)) >= 7
    for [text] in documents(generated.shuffled_rows, 300):
        rows = [row for row in re.split(r"[\n.;]", text) if row]
        contents = {frozenset(row.replace(",", "").split()) for row in rows}
        assert len(contents) == 1, "every row is a permutation of the same set"
        assert all(len(row.replace(",", "").split()) == len(next(iter(contents))) for row in rows)


def test_same_generator_same_documents() -> None:
    for kind in generated.MIXTURE:
        assert documents(kind, 20, seed=4) == documents(kind, 20, seed=4)
        assert documents(kind, 20, seed=4) != documents(kind, 20, seed=5)


def test_every_word_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert [w for w in generated.vocabulary() if len(tokenizer.encode(" " + w, add_special_tokens=False)) != 1] == []


def test_tasks_have_their_pairs() -> None:
    assert {name: len(task.pairs()) for name, task in TASKS.items()} == {
        "numbers": 199,
        "number words": 19,
        "ordinals": 9,
        "days": 7,
        "day prefixes": 7,
        "months": 12,
        "month prefixes": 12,
        "letters": 25,
    }
    assert TASKS["letters"].successor("Z") is None
    assert TASKS["months"].successor("December") == "January"
    with pytest.raises(ValueError, match="not in tuple"):
        TASKS["days"].successor("Someday")
