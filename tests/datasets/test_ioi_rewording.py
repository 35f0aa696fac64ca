"""Reworded IOI prompts: the words are there, names and labels stay, positions point where they did."""

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from mechinterp.datasets import ioi
from mechinterp.datasets.ioi_rewording import insert, with_clause, with_conjunction
from mechinterp.models import load_tokenizer

CLAUSE = " while the weather was nice"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("lab")


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_a_clause_moves_what_stands_behind_it(tokenizer: PreTrainedTokenizerBase, prepend_bos: bool) -> None:
    data = ioi.make(tokenizer, 60, seed=3, prepend_bos=prepend_bos)
    longer = with_clause(data, tokenizer, CLAUSE)
    for name in ("IO", "S1", "S2"):
        assert torch.equal(longer.at(name, longer.tokens), data.at(name, data.tokens))
    assert torch.equal(longer.positions["IO"], data.positions["IO"])
    moved = longer.positions["S2"] - data.positions["S2"]
    assert moved.unique().tolist() == [len(tokenizer.encode(CLAUSE, add_special_tokens=False))]
    for old, new in zip(data.text(tokenizer), longer.text(tokenizer), strict=True):
        before, _, behind = new.partition(CLAUSE)
        assert before + behind == old, "nothing but the clause has come"
        assert behind[0] in ",."


def test_inserting_leaves_the_original_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 4, seed=0)
    before = data.tokens.clone()
    at = data.positions["S2"]
    more = insert(data, at, torch.tensor([5, 6]))
    assert torch.equal(data.tokens, before)
    assert torch.equal(more.positions["S2"], at + 2)
    assert torch.equal(more.positions["S1"], data.positions["S1"])
    assert torch.equal(more.tokens.gather(1, at[:, None])[:, 0], torch.full((4,), 5))


def test_one_word_changes(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 60, seed=3)
    other = with_conjunction(data, tokenizer, "with")
    assert ((other.tokens != data.tokens).sum(1) == 1).all()
    for old, new in zip(data.text(tokenizer), other.text(tokenizer), strict=True):
        assert new == old.replace(" and ", " with ", 1)


def test_what_cannot_be_reworded(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 4, seed=0)
    with pytest.raises(ValueError, match="empty"):
        with_clause(data, tokenizer, "")
    with pytest.raises(ValueError, match='no "and"'):
        with_conjunction(with_conjunction(data, tokenizer, "with"), tokenizer, "with")
    with pytest.raises(ValueError, match="tokens for this tokenizer"):
        with_conjunction(data, tokenizer, "notwithstanding whatever")
    dots = torch.isin(data.tokens, torch.tensor(tokenizer.encode(",") + tokenizer.encode(".")))
    stopless = ioi.IOIDataset(
        **(vars(data) | {"tokens": torch.where(dots, 1000, data.tokens)}),
    )
    with pytest.raises(ValueError, match="no comma or full stop"):
        with_clause(stopless, tokenizer)
