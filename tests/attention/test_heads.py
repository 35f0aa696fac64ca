"""What heads look at and write: against slow loops, on organisms whose heads are known, on random weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.attention import (
    attention_to,
    copy_scores,
    direct_projection,
    duplicate_token_scores,
    induction_scores,
    patterns,
    previous_token_scores,
    repeated_tokens,
)
from mechinterp.heads import Head, all_heads
from mechinterp.models import organisms

SCORES: dict[str, Callable[..., Tensor]] = {
    "previous token": previous_token_scores,
    "duplicate token": duplicate_token_scores,
    "induction": induction_scores,
}


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 8192, (7, 12), generator=torch.Generator().manual_seed(0))


def test_patterns_are_those_of_the_cache(tiny: Any, tokens: Tensor) -> None:
    heads = [Head(2, 1), Head(0, 3)]
    ours = patterns(tiny, tokens, heads, batch_size=3)
    _, cache = tiny.run_with_cache(tokens)
    for row, (layer, head) in zip(ours, heads, strict=True):
        torch.testing.assert_close(row, cache[f"blocks.{layer}.attn.hook_pattern"][:, head])


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 9), seed=st.integers(0, 1000))
def test_attention_to_one_position_a_prompt(tiny: Any, tokens: Tensor, batch_size: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    query, key = (torch.randint(0, 12, (len(tokens),), generator=g) for _ in range(2))
    ours = attention_to(tiny, tokens, query, key, batch_size=batch_size)
    every = patterns(tiny, tokens, all_heads(tiny))
    expected = every[:, torch.arange(len(tokens)), query, key].unflatten(0, (3, 4))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (ours[..., key > query] == 0).all(), "nothing attends forward"
    both = attention_to(tiny, tokens, query, torch.stack([key, query]), batch_size=batch_size)
    assert both.shape == (2, *ours.shape)
    torch.testing.assert_close(both[0], ours)
    torch.testing.assert_close(both[1], attention_to(tiny, tokens, query, query))


@pytest.mark.parametrize("kind", SCORES)
def test_scores_equal_a_loop_over_positions(tiny: Any, kind: str) -> None:
    n, length = 3, 10
    sequence = repeated_tokens(tiny, n=n, length=length, seed=4)
    bos = sequence.shape[1] - 2 * length
    pattern = patterns(tiny, sequence, all_heads(tiny)).unflatten(0, (3, 4))
    start = 1 if kind == "previous token" else bos + length
    back = {"previous token": 1, "duplicate token": length, "induction": length - 1}[kind]
    expected = torch.stack([pattern[..., q, q - back] for q in range(start, bos + 2 * length)]).mean((0, -1))
    torch.testing.assert_close(SCORES[kind](tiny, n=n, length=length, seed=4), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["duplicate token", "induction"])
def test_without_a_repetition_there_is_nothing_to_find(kind: str) -> None:
    organism = organisms.duplicate_token() if kind == "duplicate token" else organisms.induction()
    [head] = organism.heads(kind)
    options = {"n": 8, "length": 10, "seed": 1}
    assert SCORES[kind](organism.model, **options)[head] > 0.8
    assert SCORES[kind](organism.model, **options, repeat=False)[head] < 0.3


def test_repeated_tokens_are_seeded_and_repeat(tiny: Any) -> None:
    a = repeated_tokens(tiny, n=5, length=8, seed=1)
    assert torch.equal(a, repeated_tokens(tiny, n=5, length=8, seed=1))
    assert not torch.equal(a, repeated_tokens(tiny, n=5, length=8, seed=2))
    assert torch.equal(a[:, -8:], a[:, -16:-8])
    assert repeated_tokens(tiny, length=1000).shape[1] <= tiny.cfg.n_ctx


def best(scores: Tensor) -> Head:
    return Head(*divmod(int(scores.argmax()), scores.shape[1]))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (organisms.previous_token, "previous token"),
        (organisms.duplicate_token, "duplicate token"),
        (organisms.induction, "previous token"),
        (organisms.induction, "induction"),
    ],
)
def test_the_organism_s_head_is_found_and_no_other(make: Any, kind: str) -> None:
    organism = make()
    scores = SCORES[kind](organism.model, length=12, n=10)
    [head] = organism.heads(kind)
    assert best(scores) == head
    assert scores[head] > 0.8
    rest = scores.clone()
    rest[head] = 0
    assert rest.max() < 0.4


@pytest.mark.parametrize("kind", SCORES)
def test_random_weights_have_no_such_head(kind: str) -> None:
    control = organisms.control(organisms.induction())
    assert SCORES[kind](control.model, length=12, n=10).max() < 0.3


def test_direct_projection_is_what_each_head_adds_along_the_unembedding(tiny: Any, tokens: Tensor) -> None:
    at = torch.tensor([3, 11, 7, 5, 0, 9, 2])
    ids = torch.randint(0, 8192, (len(tokens),), generator=torch.Generator().manual_seed(3))
    ours = direct_projection(tiny, tokens, at, ids, batch_size=4)
    _, cache = tiny.run_with_cache(tokens)
    for layer, head in all_heads(tiny):
        for p in range(len(tokens)):
            written = cache[f"blocks.{layer}.attn.hook_z"][p, at[p], head] @ tiny.W_O[layer, head]
            assert ours[layer, head, p] == pytest.approx((written @ tiny.W_U[:, ids[p]]).item(), abs=1e-4)


def slow_copy_score(model: Any, tokens: Tensor, positions: list[Tensor], head: Head, k: int, sign: int) -> float:
    hits = []
    _, cache = model.run_with_cache(tokens)
    for where in positions:
        for p, position in enumerate(where.tolist()):
            x = cache["blocks.0.hook_resid_post"][p, position]
            normal = model.blocks[head.layer].ln1(x[None, None])[0, 0]
            out = sign * (normal @ model.W_V[head.layer, head.head] @ model.W_O[head.layer, head.head])
            logits = model.ln_final(out[None, None])[0, 0] @ model.W_U
            hits.append(int((logits > logits[tokens[p, position]]).sum()) < k)
    return sum(hits) / len(hits)


@pytest.mark.parametrize("sign", [1, -1])
def test_copy_scores_equal_a_loop(tiny: Any, tokens: Tensor, sign: int) -> None:
    positions = [torch.tensor([3, 11, 7, 5, 0, 9, 2]), torch.arange(7)]
    ours = copy_scores(tiny, tokens, positions, k=2000, sign=sign, batch_size=3)
    assert ours.std() > 0
    for head in all_heads(tiny):
        assert ours[head] == pytest.approx(slow_copy_score(tiny, tokens, positions, head, 2000, sign))


def test_copy_scores_tell_name_movers_from_negative_ones() -> None:
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(32)
    positions = [data.positions["IO"], data.positions["S2"]]
    positive = copy_scores(organism.model, data.tokens, positions, k=1)
    negative = copy_scores(organism.model, data.tokens, positions, k=1, sign=-1)
    for head in all_heads(organism.model):
        role = organism.roles.get(head)
        assert (positive[head] > 0.95) == (role in ("name mover", "backup name mover")), head
        assert (negative[head] > 0.95) == (role == "negative name mover"), head


def test_random_weights_copy_nothing() -> None:
    data, model = organisms.ioi_prompts(32), organisms.control(organisms.ioi_circuit()).model
    for sign in (1, -1):
        assert copy_scores(model, data.tokens, [data.positions["IO"]], k=1, sign=sign).max() < 0.5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, t: patterns(m, t, [Head(12, 3)]), "no head 12.3"),
        (lambda m, t: patterns(m, t, []), "no heads given"),
        (lambda m, t: patterns(m, t, [Head(0, 0)], batch_size=0), "batch_size must be at least 1"),
        (lambda m, t: patterns(m, t[0], [Head(0, 0)]), "must have shape"),
        (lambda m, t: patterns(m, t[:0], [Head(0, 0)]), "not be empty"),
        (lambda m, t: patterns(m, t.repeat(1, 6), [Head(0, 0)]), "do not fit into the model's context of 64"),
        (lambda m, t: copy_scores(m, t, [t[:, 0] * 0], sign=2), "sign must be 1 or -1"),
    ],
)
def test_bad_input(tiny: Any, tokens: Tensor, call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(tiny, tokens)
