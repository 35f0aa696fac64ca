"""Repeated passages and what stands behind earlier copies, against loops over positions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.datasets.repeats import behind_pairs, followers, passage_twice, repeated_tokens, text_twice

VOCABULARY = torch.arange(1, 400)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5), length=st.integers(1, 9), seed=st.integers(0, 10**6), bos=st.sampled_from([None, 0, 7]))
def test_random_tokens_stand_twice(n: int, length: int, seed: int, bos: int | None) -> None:
    rows = repeated_tokens(50, n, length, seed, bos)
    body = rows if bos is None else rows[:, 1:]
    assert rows.shape == (n, 2 * length + (bos is not None))
    assert bos is None or (rows[:, 0] == bos).all()
    assert torch.equal(body[:, :length], body[:, length:])
    assert body.min() >= 1
    assert body.max() < 50
    assert torch.equal(rows, repeated_tokens(50, n, length, seed, bos))


def test_the_stream_of_random_tokens_is_that_of_the_committed_results() -> None:
    """Induction scores and the model card were measured on these rows; another stream would change them."""
    generator = torch.Generator().manual_seed(3)
    block = torch.randint(1, 8192, (4, 10), generator=generator)
    assert torch.equal(repeated_tokens(8192, 4, 10, 3, bos=0)[:, 1:], torch.cat([block, block], 1))
    assert not torch.equal(repeated_tokens(8192, 4, 10, 3), repeated_tokens(8192, 4, 10, 4))


@pytest.mark.parametrize("sizes", [(1, 2, 3), (50, 0, 3), (50, 2, 0)])
def test_no_random_tokens_to_repeat(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1, 1 and 2 are needed"):
        repeated_tokens(*sizes, seed=0)


@settings(max_examples=60, deadline=None)
@given(passage=st.integers(1, 9), length=st.integers(20, 60), seed=st.integers(0, 10**6))
def test_only_the_passage_stands_twice(passage: int, length: int, seed: int) -> None:
    data = passage_twice(VOCABULARY, passage, 5, length=length, bos=0, seed=seed)
    assert data.tokens.shape == (5, length)
    for row, query, source, answer in zip(
        data.tokens.tolist(), data.query.tolist(), data.source.tolist(), data.answer.tolist(), strict=True
    ):
        assert row[0] == 0
        assert answer == row[source]
        assert query < length
        assert source <= query - passage, "a token lies between the copies"
        copy = row[query - passage + 1 : query + 1]
        assert copy == row[source - passage : source]
        rest = row[: query - passage + 1] + row[query + 1 :]
        assert len(set(rest)) == len(rest), "all else is different"
        assert row[query - passage] != row[source - passage - 1], "and so is the token before"


def test_every_place_of_a_passage_is_drawn() -> None:
    data = passage_twice(VOCABULARY, 2, 4000, length=9, bos=0, seed=1)
    assert sorted({(int(q), int(s)) for q, s in zip(data.query, data.source, strict=True)}) == [
        (q, s) for q in range(5, 9) for s in range(3, q - 1)
    ]


def test_same_seed_same_rows() -> None:
    a, b, c = (passage_twice(VOCABULARY, 3, 4, length=30, seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(("passage", "length", "size"), [(0, 20, 400), (10, 21, 400), (2, 30, 29)])
def test_passages_that_do_not_fit(passage: int, length: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"fit|few"):
        passage_twice(torch.arange(1, size), passage, 2, length=length)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(8, 40), gap=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_text_comes_back(length: int, gap: int, seed: int) -> None:
    text = torch.arange(1000, 1100)
    rows = text_twice(text, 4, length=length, gap=gap, bos=7, seed=seed)
    size = (length - gap - 1) // 2
    assert rows.shape == (4, 1 + 2 * size + gap)
    assert (rows[:, 0] == 7).all()
    assert torch.equal(rows[:, 1 : 1 + size], rows[:, -size:])
    assert (rows[:, 1 : 1 + size].diff(dim=1) == 1).all(), "a passage is text"
    assert (rows[:, 1 + size : 1 + size + gap].diff(dim=1) == 1).all()


def test_too_little_text() -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        text_twice(torch.arange(10), 1, length=20)
    with pytest.raises(ValueError, match="cannot be cut"):
        text_twice(torch.arange(100), 1, length=12, gap=11)


def test_text_twice_without_bos_is_passage_gap_passage() -> None:
    rows = text_twice(torch.arange(100, 200), 3, length=12, gap=4)
    assert rows.shape == (3, 12)
    assert torch.equal(rows[:, :4], rows[:, 8:])
    assert not torch.equal(rows[:, 4:8], rows[:, :4])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 12), kinds=st.integers(2, 6))
def test_pairs_and_followers_are_those_of_a_loop(seed: int, size: int, kinds: int) -> None:
    words = torch.randint(kinds, (3, size), generator=torch.Generator().manual_seed(seed))
    behind, after = behind_pairs(words), followers(words)
    for p, row in enumerate(words.tolist()):
        for q in range(size):
            for k in range(size):
                pair = k >= 3 and q >= 2 and k <= q and row[k - 1] == row[q] and row[k - 2] == row[q - 1]
                assert bool(behind[p, q, k]) == pair
            earlier = [i for i in range(q) if row[i] == row[q]]
            assert int(after[p, q]) == (row[earlier[-1] + 1] if earlier else -1)
