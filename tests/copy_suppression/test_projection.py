"""Attention from the query's projections: against a slow reference, least squares by numpy, organisms."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mechinterp.copy_suppression import fit_scores, qk_projection
from mechinterp.heads import Head
from mechinterp.models import organisms, to_bridge


@pytest.fixture(scope="module")
def small(make_gpt2: Any, tokenizer: Any) -> Any:
    return to_bridge(make_gpt2(n_layer=2, vocab_size=200, seed=4), tokenizer, name="small", device="cpu")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 12, (3, 20), generator=torch.Generator().manual_seed(1))


def slow_scores(model: Any, tokens: Tensor, head: Head, similar: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """One destination and one source at a time, the span by a pseudo-inverse: true and projected scores."""
    _, cache = model.run_with_cache(tokens)
    true, projected = [], []
    for doc, row in enumerate(tokens):
        x = model.blocks[1].ln1(cache["blocks.1.hook_resid_pre"][doc][None])[0]
        a, b = torch.zeros(len(row), len(row)), torch.zeros(len(row), len(row))
        for s in range(len(row)):
            ids = similar[row[s]]
            u = model.W_U[:, ids[ids >= 0]]
            onto = u @ torch.linalg.pinv(u)
            key = x[s] @ model.W_K[head] + model.b_K[head]
            for d in range(s, len(row)):
                a[d, s] = (x[d] @ model.W_Q[head] + model.b_Q[head]) @ key / 4.0
                b[d, s] = (onto @ x[d] @ model.W_Q[head] + model.b_Q[head]) @ key / 4.0
        true.append(a)
        projected.append(b)
    return true, projected


def some_similar() -> Tensor:
    similar = torch.full((200, 3), -1)
    similar[:, 0] = torch.arange(200)
    similar[::2, 1] = torch.arange(200).roll(1)[::2]
    similar[::4, 2] = torch.arange(200).roll(7)[::4]
    return similar


def test_the_patterns_are_those_of_the_definition(small: Any, tokens: Tensor) -> None:
    head, similar = Head(1, 1), some_similar()
    _, cache = small.run_with_cache(tokens)
    _, scores = slow_scores(small, tokens, head, similar)
    got = qk_projection(small, tokens, head, similar=similar, progress=False)
    logits = small(tokens)
    for doc, score in enumerate(scores):
        causal = torch.ones_like(score).triu(1).bool()
        pattern = score.masked_fill(causal, -torch.inf).softmax(-1)
        z = cache["blocks.1.attn.hook_z"][doc, :, 1]
        written = (pattern @ cache["blocks.1.attn.hook_v"][doc, :, 1] - z) @ small.W_O[head]
        end = cache["blocks.1.hook_resid_post"][doc]
        scale = ((end - end.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + small.cfg.eps).sqrt()
        after = logits[doc] + (written - written.mean(-1, keepdim=True)) / scale @ small.W_U
        clean, after = logits[doc].log_softmax(-1), after.log_softmax(-1)
        kl = (clean.exp() * (clean - after)).sum(-1)
        torch.testing.assert_close(got.kl["qk"][doc], kl, atol=1e-5, rtol=1e-2)


def test_without_a_prior_the_fit_is_least_squares(small: Any, tokens: Tensor) -> None:
    head, similar = Head(1, 2), some_similar()
    fit = fit_scores(small, tokens, head, similar=similar, prior=0.0)
    true, projected = slow_scores(small, tokens, head, similar)
    for token in tokens.unique().tolist():
        x, y = [], []
        for row, a, b in zip(tokens, true, projected, strict=True):
            for s in (row == token).nonzero()[:, 0].tolist():
                x += b[s:, s].tolist()
                y += a[s:, s].tolist()
        if len(x) > 3:
            scale, bias = np.polyfit(x, y, 1)
            assert fit.scale[token].item() == pytest.approx(scale, abs=5e-3, rel=5e-3)
            assert fit.bias[token].item() == pytest.approx(bias, abs=5e-3, rel=5e-3)


def test_a_strong_prior_gives_every_token_the_common_line(small: Any, tokens: Tensor) -> None:
    fit = fit_scores(small, tokens, Head(1, 2), prior=1e9)
    assert fit.scale.std() < 1e-4 * fit.scale.abs().mean()
    assert fit.bias.std() < 1e-3
    rare = fit_scores(small, tokens, Head(1, 2))
    unseen = torch.ones(200, dtype=torch.bool)
    unseen[tokens.unique()] = False
    torch.testing.assert_close(rare.scale[unseen], fit.scale[unseen], atol=1e-4, rtol=1e-3)


def test_the_suppressor_s_attention_is_explained_by_what_is_predicted() -> None:
    organism = organisms.copy_suppression()
    head, text = Head(1, 0), organism.tokens(24)
    assert qk_projection(organism.model, text[:8], head, progress=False).explained("qk").value > 0.9
    fit = fit_scores(organism.model, text[8:], head)
    assert qk_projection(organism.model, text[:8], head, fit=fit, progress=False).explained("qk").value > 0.99


def test_a_head_that_looks_at_positions_is_not_explained() -> None:
    """The anti-copier attends to the previous word; predictions cannot tell where that is, with or without a fit."""
    organism = organisms.copy_suppression("anti-copier")
    head, text = Head(1, 0), organism.tokens(24)
    fit = fit_scores(organism.model, text[8:], head)
    for some in (None, fit):
        assert qk_projection(organism.model, text[:8], head, fit=some, progress=False).explained("qk").value < 0.3
