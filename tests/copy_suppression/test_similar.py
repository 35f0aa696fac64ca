"""Tokens that mean the same."""

from typing import Any

import pytest

from mechinterp.copy_suppression import root, similar_tokens


@pytest.mark.parametrize(("a", "b"), [(" House", "houses"), ("walk", " walked"), (" WALK", "walking")])
def test_case_space_and_inflection_do_not_matter(a: str, b: str) -> None:
    assert root(a) == root(b) != ""


def test_numbers_and_signs_have_no_root() -> None:
    assert root(" 12") == root("!") == root(" ") == ""


def test_every_token_comes_first_and_groups_are_mutual(tokenizer: Any) -> None:
    table = similar_tokens(tokenizer, 6)
    assert table.shape == (len(tokenizer), 6)
    assert table[:, 0].tolist() == list(range(len(tokenizer)))
    name = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    pairs = same = 0
    for i in range(0, len(table), 7):
        for j in table[i, 1:].tolist():
            if j >= 0:
                pairs += 1
                same += root(name[i]) == root(name[j])
    assert pairs > 200
    assert same / pairs > 0.5, "what is left is pieces of words"
    with pytest.raises(ValueError, match="k must be at least 1"):
        similar_tokens(tokenizer, 0)
