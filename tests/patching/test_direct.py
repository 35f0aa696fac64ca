"""Direct logit attribution and the logit lens on every family: exact sums, each part against the raw model's own."""

from typing import Any

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, VOCAB, Raw, Weights, bridge

from mechinterp.patching import direct_logit_attribution, logit_lens
from mechinterp.patching.recording import value_biases

G = torch.Generator().manual_seed(5)
TOKENS = torch.randint(1, VOCAB, (4, 9), generator=G)
AT = torch.tensor([8, 3, 7, 5])
RIGHT, WRONG = torch.randint(0, VOCAB, (2, 4), generator=G)
ROWS = torch.arange(4)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Raw]:
    return bridge(request.param), Raw(request.param)


def test_the_parts_add_up_to_the_logit_difference(family: tuple[Any, Raw]) -> None:
    model, raw = family
    logits = Weights(raw).uncapped(raw.run(TOKENS)[0][ROWS, AT])
    parts = direct_logit_attribution(model, TOKENS, AT, RIGHT, WRONG, batch_size=3)
    torch.testing.assert_close(parts.total(), logits[ROWS, RIGHT] - logits[ROWS, WRONG], atol=1e-4, rtol=1e-4)
    assert parts.heads.abs().max() > 0.01
    heads = [head for head, _ in parts.top(3)]
    assert abs(parts.heads[heads[0]].mean()) == parts.heads.mean(-1).abs().max()


def test_heads_and_mlps_are_what_the_raw_model_writes(family: tuple[Any, Raw]) -> None:
    model, raw = family
    weights, (_, got) = Weights(raw), raw.run(TOKENS)
    end = got["resid_pre", LAYERS][ROWS, AT]
    parts = direct_logit_attribution(model, TOKENS, AT, RIGHT, WRONG)

    def difference(change: torch.Tensor) -> torch.Tensor:
        logits = weights.to_logits(change, end)
        return logits[ROWS, RIGHT] - logits[ROWS, WRONG]

    for layer in range(LAYERS):
        z, m = weights.z(got, layer)[ROWS, AT], weights.folded(layer)
        post = weights.post_scale(layer, got["z", layer])[ROWS, AT]
        for h in range(HEADS):
            ours = parts.heads[layer, h]
            torch.testing.assert_close(ours, difference(z[:, h] @ m["O"][h] / post), atol=1e-4, rtol=1e-4)
        mlp = got["mlp_out", layer][ROWS, AT]
        torch.testing.assert_close(parts.mlps[layer], difference(mlp), atol=1e-4, rtol=1e-4)


def test_the_lens_is_the_raw_model_s_own_head_on_its_own_streams(family: tuple[Any, Raw]) -> None:
    model, raw = family
    logits, got = raw.run(TOKENS)
    ours = logit_lens(model, TOKENS, AT, batch_size=3)
    assert ours.shape == (LAYERS + 1, 4, VOCAB)
    torch.testing.assert_close(ours[-1].log_softmax(-1), logits[ROWS, AT].log_softmax(-1), atol=1e-4, rtol=1e-4)
    for layer in range(LAYERS):
        stream = got["resid_pre", layer][ROWS, AT]
        theirs, _ = raw.run(TOKENS, {("resid_pre", LAYERS): lambda x, s=stream: x.index_put((ROWS, AT), s)})
        torch.testing.assert_close(ours[layer].log_softmax(-1), theirs[ROWS, AT].log_softmax(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logit_lens(model, TOKENS, AT, layers=[1]), ours[[1]], atol=1e-5, rtol=1e-5)


def test_random_answers_have_no_attribution_on_average(family: tuple[Any, Raw]) -> None:
    """The null: over all ordered pairs of a few tokens every part is zero, since a pair and its reverse cancel."""
    model, _ = family
    one = direct_logit_attribution(model, TOKENS, AT, RIGHT, WRONG)
    other = direct_logit_attribution(model, TOKENS, AT, WRONG, RIGHT)
    torch.testing.assert_close(one.heads, -other.heads, atol=1e-5, rtol=1e-5)


def test_bad_input(tiny: Any, unchecked: None) -> None:
    tokens, at, ids = TOKENS[:2], AT[:2], RIGHT[:2]
    with pytest.raises(ValueError, match="one token id a prompt"):
        direct_logit_attribution(tiny, tokens, at, RIGHT)
    with pytest.raises(ValueError, match=r"0\.\.8191"):
        direct_logit_attribution(tiny, tokens, at, ids + 9000)
    with pytest.raises(ValueError, match="no stream before layer 4"):
        logit_lens(tiny, tokens, at, layers=[4])
    with pytest.raises(ValueError, match="are not known"):
        value_biases(torch.nn.Linear(1, 1))
