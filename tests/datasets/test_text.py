"""Rows of running text."""

import pytest
import torch

from mechinterp.datasets import text


def test_the_sample_is_english_and_long_enough() -> None:
    passages = text.sample()
    assert len(passages) == len(set(passages)) == 48
    assert all(1000 < len(p) < 1800 and p.isascii() and "\n" not in p for p in passages)


def test_rows_start_with_bos_and_are_the_text(tokenizer) -> None:
    rows = text.token_rows(tokenizer, text.sample(), 3, 20)
    assert rows.shape == (3, 20)
    assert (rows[:, 0] == tokenizer.bos_token_id).all()
    for row, passage in zip(rows, text.sample(), strict=False):
        assert passage.startswith(tokenizer.decode(row[1:]))


def test_short_texts_are_passed_over(tokenizer) -> None:
    rows = text.token_rows(tokenizer, ["no", *text.sample()], 1, 10)
    assert torch.equal(rows, text.token_rows(tokenizer, text.sample(), 1, 10))


def test_what_cannot_be_had(tokenizer, monkeypatch) -> None:
    with pytest.raises(ValueError, match="only 1 of the texts have 5 tokens, 2 were asked for"):
        text.token_rows(tokenizer, ["one two three four five six", "no"], 2, 5)
    with pytest.raises(ValueError, match="at least two tokens"):
        text.token_rows(tokenizer, text.sample(), 1, 1)
    monkeypatch.setattr("datasets.load_dataset", lambda name, split, streaming: iter([{"body": "a"}]))
    assert text.from_hub("some/dataset", column="body") == ["a"]
    monkeypatch.setattr("datasets.load_dataset", lambda name, split, streaming: iter([{"body": "a"}]))
    with pytest.raises(ValueError, match="no column 'text'; it has body"):
        text.from_hub("some/dataset")


def test_packed_rows_are_the_text_in_order(tokenizer):
    texts = ["The first book. " * 40, "Too short.", "Another one, longer than the first. " * 40]
    rows = text.packed_rows(tokenizer, texts, 8, 32)
    assert rows.shape == (8, 32)
    assert (rows[:, 0] == tokenizer.bos_token_id).all()
    first = tokenizer.encode(texts[0], add_special_tokens=False)
    whole = len(first) // 31
    assert rows[:whole, 1:].flatten().tolist() == first[: whole * 31]
    assert rows[whole, 1:].tolist() == tokenizer.encode(texts[2], add_special_tokens=False)[:31]
    one_each = text.packed_rows(tokenizer, texts, 2, 32, per_text=1)
    assert torch.equal(one_each, rows[[0, whole]])


def test_texts_that_do_not_fill_the_rows_are_refused(tokenizer):
    with pytest.raises(ValueError, match="fill only 0 rows of 32 tokens, 1 were asked for"):
        text.packed_rows(tokenizer, ["short"], 1, 32)
    with pytest.raises(ValueError, match="at least two tokens"):
        text.packed_rows(tokenizer, ["short"], 1, 1)
