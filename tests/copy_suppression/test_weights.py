"""Rank tests in blocks through d_head against the whole vocabulary x vocabulary matrix."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.attention import effective_embedding
from mechinterp.copy_suppression import (
    composition_ranks,
    diagonal_ranks,
    diagonal_within,
    ov_ranks,
    qk_ranks,
    rank_tests,
    token_vectors,
)
from mechinterp.heads import Head
from mechinterp.models import organisms, to_bridge


@pytest.fixture(scope="module")
def small(make_gpt2: Any, tokenizer: Any) -> Any:
    """300 tokens, so that the full matrices fit easily."""
    return to_bridge(make_gpt2(n_layer=2, vocab_size=300, seed=4), tokenizer, name="small", device="cpu")


def full_ranks(matrix: Tensor, largest: bool) -> list[int]:
    own = matrix.diagonal()
    return [int(((row > d) if largest else (row < d)).sum()) + 1 for row, d in zip(matrix, own, strict=True)]


def assert_ranks(found: Tensor, matrix: Tensor, largest: bool) -> None:
    """The ranks of the diagonal, but where two products differ by less than the rounding of their sums."""
    near = 1e-5 * matrix.abs().max()
    own = matrix.diagonal()[:, None]
    ahead = matrix - own if largest else own - matrix
    other = ~torch.eye(len(matrix), dtype=torch.bool)
    low, high = (1 + ((ahead > limit) & other).sum(1) for limit in (near, -near))
    assert ((low <= found) & (found <= high)).all()
    assert (high - low).float().mean() < 0.1, "next to no ties, or this test says nothing"


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 12), block=st.integers(1, 15), seed=st.integers(0, 99), largest=st.booleans())
def test_blocks_give_the_ranks_of_the_whole_matrix(n: int, block: int, seed: int, largest: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.randint(-2, 3, (n, 3), generator=g).float() for _ in range(2))
    offset = torch.randint(-2, 3, (n,), generator=g).float()
    ranks = diagonal_ranks(left, right, offset, largest=largest, block=block)
    assert ranks.tolist() == full_ranks(left @ right.T + offset, largest)


def test_effective_embedding_is_block_0_without_attention_and_positions(small: Any) -> None:
    x = small.W_E[:7]
    expected = x + torch.stack([small.blocks[0].mlp(small.blocks[0].ln2(row[None, None]))[0, 0] for row in x])
    torch.testing.assert_close(effective_embedding(small, torch.arange(7)), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(effective_embedding(small, block=13)[:7], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        effective_embedding(small, torch.arange(7), embedding=False), expected - x, atol=1e-5, rtol=0
    )


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 6),
    block=st.integers(1, 50),
    seed=st.integers(0, 1000),
    largest=st.booleans(),
    some=st.booleans(),
)
def test_rows_that_are_given_up_early_are_those_that_the_whole_ranking_fails(n, k, block, seed, largest, some) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Small integers: many ties, and no rounding.
    left, right = torch.randint(-3, 4, (2, n, 3), generator=generator).float()
    tokens = torch.randperm(n, generator=generator)[: max(1, n // 2)] if some else torch.arange(n)
    passed = diagonal_within(left[tokens], right, k, largest=largest, tokens=tokens, block=block)
    ranks = torch.tensor(full_ranks(left @ right.T, largest))[tokens]
    assert passed.tolist() == (ranks <= k).tolist()


@pytest.mark.parametrize("head", [Head(0, 1), Head(1, 3)])
def test_ranks_are_those_of_the_full_matrices(small: Any, head: Head) -> None:
    ee, u = token_vectors(small, "W_EE"), token_vectors(small, "W_U")
    ov = ee @ small.W_V[head] @ small.W_O[head] @ small.W_U
    assert_ranks(ov_ranks(small, head, block=64), ov, largest=False)
    qk = u @ small.W_Q[head] @ small.W_K[head].T @ ee.T
    assert_ranks(qk_ranks(small, head, block=64), qk, largest=True)
    biased = (u @ small.W_Q[head] + small.b_Q[head]) @ (ee @ small.W_K[head] + small.b_K[head]).T
    assert_ranks(qk_ranks(small, head, biases=True), biased, largest=True)
    other = small.W_E @ small.W_Q[head] @ small.W_K[head].T @ small.W_E.T
    assert_ranks(qk_ranks(small, head, queries=small.W_E, keys=small.W_E), other, largest=True)


def test_token_vectors_have_the_length_of_a_normalised_stream(small: Any) -> None:
    for side in ("W_U", "W_EE", "W_E", "MLP0"):
        vectors = token_vectors(small, side)
        assert vectors.shape == (300, 64)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.full((300,), 8.0))


def test_the_suppressor_passes_both_tests_and_the_others_one() -> None:
    shares = {
        kind: rank_tests(organisms.copy_suppression(kind).model, k=1, progress=False)
        for kind in ("suppressor", "anti-copier", "copier")
    }
    head = Head(1, 0)
    assert shares["suppressor"].best() == head
    assert shares["suppressor"].ov[head] > 0.98, "every word but <bos>, which it never moves"
    assert shares["suppressor"].qk[head] > 0.98
    assert shares["anti-copier"].ov[head] > 0.98
    assert shares["anti-copier"].qk[head] < 0.1
    assert shares["copier"].ov[head] < 0.1
    assert shares["copier"].qk[head] > 0.98


def test_random_weights_pass_at_the_rate_of_chance(small: Any) -> None:
    result = rank_tests(small, k=10, progress=False)
    one = Head(1, 2)
    assert result.ov[one] == (ov_ranks(small, one) <= 10).float().mean()
    assert result.qk[one] == (qk_ranks(small, one) == 1).float().mean()
    assert result.ov.mean() == pytest.approx(10 / 300, abs=0.02)
    assert result.qk.mean() == pytest.approx(1 / 300, abs=0.02)
    some = rank_tests(small, [Head(1, 1)], k=10, progress=False)
    assert some.ov[1, 1] == result.ov[1, 1]
    assert some.ov.count_nonzero() <= 1


def test_composition_follows_the_organism_s_wiring() -> None:
    """The backup name mover reads what the name movers have written, with a negative sign."""
    organism = organisms.ioi_circuit()
    names = torch.arange(1, 17)
    [backup] = organism.heads("backup name mover")
    for mover in organism.heads("name mover"):
        assert composition_ranks(organism.model, mover, backup, names).float().median() == len(names)


def test_composition_equals_the_full_product(small: Any) -> None:
    tokens = torch.arange(20, 60)
    x = token_vectors(small, "W_EE")[tokens]
    full = x @ small.W_V[0, 2] @ small.W_O[0, 2] @ small.W_Q[1, 1] @ small.W_K[1, 1].T @ x.T
    assert_ranks(composition_ranks(small, Head(0, 2), Head(1, 1), tokens), full, largest=True)


def test_bad_input(small: Any, unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"no head 12\.3"):
        ov_ranks(small, Head(12, 3))
    with pytest.raises(ValueError, match="unknown vectors 'W_X'; one of W_U, W_EE, W_E, MLP0"):
        token_vectors(small, "W_X")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block must be at least 1"):
        diagonal_ranks(torch.eye(2), torch.eye(2), block=0)
    with pytest.raises(ValueError, match=r"1\.0 does not come before 1\.1"):
        composition_ranks(small, Head(1, 0), Head(1, 1), torch.arange(3))
