"""Batches are a function of (seed, step), half real and half generated, and texts are read as they stand."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from mechinterp.datasets.generated import vocabulary
from mechinterp.lab.mixture import EOT, Mixture, encode_corpus, fit_tokenizer, read_texts
from mechinterp.models.load import LAB


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.from_file(str(LAB / "tokenizer.json"))


@pytest.fixture(scope="module")
def mixture(words: Tokenizer) -> Mixture:
    return Mixture(words, np.arange(1, 2001, dtype=np.uint16))


def is_real(row: torch.Tensor) -> bool:
    """The real text of these tests counts up by one."""
    return bool((row[1:].diff() == 1).all())


def test_a_batch_depends_on_seed_and_step_only(mixture: Mixture) -> None:
    first = mixture.batch(7, 6, 40, seed=3)
    mixture.batch(8, 6, 40, seed=3)
    assert torch.equal(mixture.batch(7, 6, 40, seed=3), first)
    assert not torch.equal(mixture.batch(8, 6, 40, seed=3), first)
    assert not torch.equal(mixture.batch(7, 6, 40, seed=4), first)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 4), (0.25, 2), (1.0, 8)])
def test_share_of_generated_rows(words: Tokenizer, share: float, expected: int) -> None:
    mixture = Mixture(words, np.arange(1, 2001, dtype=np.uint16), share)
    batch = mixture.batch(0, 8, 60, seed=0)
    assert batch.shape == (8, 60)
    assert batch.dtype == torch.int64
    assert (batch[:, 0] == 0).all(), "every row starts with the end-of-text token"
    assert sum(not is_real(row) for row in batch) == expected
    assert 0 <= batch.min() <= batch.max() < 8192


def test_quotes_are_consecutive_and_inside_the_text(mixture: Mixture) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 5, 1999):
        quote = mixture.quote(rng, n)
        assert len(quote) == n
        assert quote == list(range(quote[0], quote[0] + n))
        assert quote[0] >= 1
        assert quote[-1] <= 2000


def test_pieces_are_encoded_one_by_one(mixture: Mixture, words: Tokenizer) -> None:
    ids = mixture.encode([" Mary", [5, 6], " went"])
    assert ids == [words.token_to_id("ĠMary"), 5, 6, words.token_to_id("Ġwent")]


def test_texts_are_split_and_sorted_by_file(tmp_path: Path) -> None:
    (tmp_path / "train_1.txt").write_text("third\0fourth")
    (tmp_path / "train_0.txt.xz").write_bytes(lzma.compress("first\0sécond".encode()))
    (tmp_path / "train_2.md").write_text("not this")
    (tmp_path / "held_out.txt").write_text("nor this")
    assert list(read_texts(tmp_path)) == ["first", "sécond", "third", "fourth"]
    assert list(read_texts(tmp_path, "held_out*")) == ["nor this"]


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.txt or \.txt\.xz files matching 'train\*' in"):
        list(read_texts(tmp_path))


def test_corpus_is_encoded_text_by_text(words: Tokenizer) -> None:
    texts = ["The sea was calm. " * 10, "", "A ship came in."]
    ids = encode_corpus(words, iter(texts))
    assert ids.dtype == np.uint16
    starts = np.flatnonzero(ids == 0)
    assert len(starts) == 3
    decoded = [words.decode(part[1:].tolist()) for part in np.split(ids, starts)[1:]]
    assert decoded == texts
    pieces = encode_corpus(words, iter(texts), chunk=18)
    assert words.decode(pieces[pieces != 0].tolist()) == "".join(texts), "long texts are encoded in chunks"


def test_a_fitted_tokenizer_holds_the_words_and_any_byte() -> None:
    words = fit_tokenizer(
        iter(["some text about a ship and the sea, again and again " * 50]), vocab_size=2500, emphasis=200
    )
    assert words.token_to_id(EOT) == 0
    split = [w for w in vocabulary() if len(words.encode(" " + w).ids) != 1]
    assert split == []
    for text in ("naïve café 你好 🚢\n\t", " Mary and John"):
        assert words.decode(words.encode(text).ids) == text
