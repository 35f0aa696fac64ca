"""Pairs of prompts that mirror each other, and what a tokenizer takes of them."""

from collections import Counter

import pytest

from mechinterp.datasets.contrasts import contrasts
from mechinterp.datasets.task import aligned, from_rows
from mechinterp.models import load_tokenizer


@pytest.mark.parametrize("name", contrasts())
def test_every_pair_is_there_both_ways_round_so_that_no_answer_is_favoured(name):
    rows = contrasts()[name]
    there = Counter((r["clean"], r["corrupted"], r["answer"], r["wrong"]) for r in rows)
    back = Counter((r["corrupted"], r["clean"], r["wrong"], r["answer"]) for r in rows)
    assert there == back
    assert Counter(r["answer"] for r in rows) == Counter(r["wrong"] for r in rows)


@pytest.mark.parametrize("name", contrasts())
def test_the_answer_follows_from_the_clean_prompt_alone(name):
    answers: dict[str, set[str]] = {}
    for row in contrasts()[name]:
        answers.setdefault(row["clean"], set()).add(row["answer"])
    assert {len(a) for a in answers.values()} == {1}


def test_aligned_keeps_what_can_be_a_task_and_leaves_out_the_rest():
    tokenizer = load_tokenizer("lab")
    for rows in contrasts().values():
        kept = aligned(tokenizer, rows, prepend_bos=True)
        assert all(row in rows for row in kept)
        if kept:
            assert len(from_rows(tokenizer, kept, prepend_bos=True)) == len(kept)
        for row in rows:
            if row not in kept:
                with pytest.raises(ValueError, match="row 1"):
                    from_rows(tokenizer, [row, row], prepend_bos=True)
