"""Patterns, projections, circuits and scores on every family, against the raw model's activations and matrices."""

from typing import Any

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, VOCAB, WIDTH, Raw, Weights, bridge
from torch import Tensor

from mechinterp import attention
from mechinterp.attention import HeadWeights, chance_level, composition
from mechinterp.heads import Head

G = torch.Generator().manual_seed(6)
TOKENS = torch.randint(1, VOCAB, (4, 9), generator=G)
AT = torch.tensor([8, 3, 7, 5])
KEY = torch.tensor([2, 3, 6, 0])
ROWS = torch.arange(4)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Raw]:
    return bridge(request.param), Raw(request.param)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_patterns(family: tuple[Any, Raw]) -> None:
    model, raw = family
    _, got = raw.run(TOKENS)
    heads = [Head(0, 1), Head(2, 3)]
    ours = attention.patterns(model, TOKENS, heads, batch_size=3)
    looks = attention.attention_to(model, TOKENS, AT, KEY, batch_size=3)
    for i, (layer, head) in enumerate(heads):
        close(ours[i], got["pattern", layer][:, head])
        close(looks[layer, head], got["pattern", layer][ROWS, head, AT, KEY])


def test_scores_of_head_types(family: tuple[Any, Raw]) -> None:
    """Means over diagonals, written out."""
    model, raw = family
    n, length = 2, 6
    block = torch.randint(1, VOCAB, (n, length), generator=torch.Generator().manual_seed(3))
    bos = model.tokenizer.bos_token_id
    tokens = torch.cat([block, block] if bos is None else [torch.full((n, 1), bos), block, block], 1)
    first, total = tokens.shape[1] - length, tokens.shape[1]
    _, got = raw.run(tokens)
    for layer in range(LAYERS):
        p = got["pattern", layer]
        previous = torch.stack([p[:, :, i, i - 1] for i in range(1, total)]).mean((0, 1))
        duplicate = torch.stack([p[:, :, i, i - length] for i in range(first, total)]).mean((0, 1))
        induction = torch.stack([p[:, :, i, i - length + 1] for i in range(first, total)]).mean((0, 1))
        options = {"n": n, "length": length, "seed": 3}
        close(attention.previous_token_scores(model, **options)[layer], previous)
        close(attention.duplicate_token_scores(model, **options)[layer], duplicate)
        close(attention.induction_scores(model, **options)[layer], induction)


def test_direct_projection(family: tuple[Any, Raw]) -> None:
    """Along the difference of two tokens, which no constant of processing changes."""
    model, raw = family
    weights, (_, got) = Weights(raw), raw.run(TOKENS)
    a, b = torch.tensor([3, 9, 11, 150]), torch.tensor([8, 8, 77, 2])
    ours = attention.direct_projection(model, TOKENS, AT, a) - attention.direct_projection(model, TOKENS, AT, b)
    rows = weights.W_U.T * weights.gain(raw.final)
    for layer in range(LAYERS):
        z, m = weights.z(got, layer)[ROWS, AT], weights.folded(layer)
        post = weights.post_scale(layer, got["z", layer])[ROWS, AT]
        for h in range(HEADS):
            out = z[:, h] @ m["O"][h] / post
            out = out - out.mean(-1, keepdim=True) if weights.centres else out
            close(ours[layer, h], (out * (rows[a] - rows[b])).sum(-1))


def test_circuits_are_products_of_the_raw_matrices(family: tuple[Any, Raw]) -> None:
    model, raw = family
    weights = Weights(raw)
    x, y = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    if weights.centres:
        x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    for head in [Head(1, 1), Head(2, 2), Head(0, 3)]:
        m = weights.folded(head.layer)
        ov = x @ m["V"][head.head] @ m["O"][head.head]
        ov = ov - ov.mean(-1, keepdim=True) if weights.centres else ov
        close(x @ attention.ov_circuit(model, head).AB, ov)
        qk = (x @ m["Q"][head.head]) @ (y @ m["K"][head.head]).T
        close(x @ attention.qk_circuit(model, head).AB @ y.T, qk)


@pytest.mark.parametrize("sign", [1, -1])
def test_copy_scores(family: tuple[Any, Raw], sign: int) -> None:
    model, raw = family
    weights, (_, got) = Weights(raw), raw.run(TOKENS)
    k = 20
    ours = attention.copy_scores(model, TOKENS, [AT, KEY], k=k, sign=sign, batch_size=3)
    x = torch.cat([got["resid_pre", 1][ROWS, AT], got["resid_pre", 1][ROWS, KEY]])
    target = torch.cat([TOKENS[ROWS, AT], TOKENS[ROWS, KEY]])
    for layer in range(LAYERS):
        m = weights.folded(layer)
        unit = weights.unit(x, weights.norm_of(layer))
        for h in range(HEADS):
            v = unit @ m["V"][h]
            out = sign * (v.clamp(-0.7, 0.7) if raw.name == "OLMo" else v) @ m["O"][h]
            logits = weights.unit(out, raw.final) * weights.gain(raw.final) @ weights.W_U
            hit = [int(t) in row.topk(k).indices.tolist() for t, row in zip(target, logits, strict=True)]
            assert ours[layer, h] == pytest.approx(sum(hit) / len(hit), abs=1e-6)


@pytest.mark.parametrize("mode", ["q", "k", "v"])
def test_composition_equals_dense_products(family: tuple[Any, Raw], mode: str) -> None:
    model, raw = family
    weights = Weights(raw)
    scores = composition(HeadWeights.of(model), mode)
    project = torch.eye(WIDTH) - 1 / WIDTH if weights.centres else torch.eye(WIDTH)
    w, r = weights.folded(0), weights.folded(2)
    for a, b in [(0, 3), (1, 1), (3, 2)]:
        ov = w["V"][a] @ w["O"][a]
        ov = project @ ov @ project
        other = r["V"][b] @ r["O"][b] if mode == "v" else r["Q"][b] @ r["K"][b].T
        other = project @ (other.T if mode == "k" else other) @ project
        product = ov @ other
        expected = product.norm() / (ov.norm() * other.norm())
        close(scores[0, a, 2, b], expected)
    if mode == "q":
        mean, (low, high) = chance_level(HeadWeights.of(model), mode)
        assert 0 < low < mean < high < 1


def test_effective_embedding_is_block_0_without_attention_and_positions(family: tuple[Any, Raw]) -> None:
    model, raw = family
    ids = torch.tensor([3, 17, 150])
    embedded = raw.model.get_input_embeddings()(ids)[None]
    edits = {("resid_pre", 0): lambda x: embedded, ("attn_out", 0): lambda x: torch.zeros_like(x)}
    theirs = raw.run(ids[None], edits)[1]["resid_pre", 1][0]
    ours = attention.effective_embedding(model, ids)
    gap = theirs - ours
    close(gap, gap.mean(-1, keepdim=True).expand_as(gap))
    assert Weights(raw).centres or gap.abs().max() < 1e-4
    without = attention.effective_embedding(model, ids, embedding=False)
    added = theirs - embedded[0] - without
    close(added, added.mean(-1, keepdim=True).expand_as(added))


def test_contextual_embedding_is_a_mean_over_places(family: tuple[Any, Raw]) -> None:
    model, raw = family
    text = torch.tensor([[5, 7, 9, 7, 11], [7, 9, 9, 2, 5]])
    mean, count = attention.contextual_embedding(model, text, 2)
    stream = raw.run(text)[1]["resid_pre", 2]
    for token, places in {7: [(0, 1), (0, 3)], 9: [(0, 2), (1, 1), (1, 2)], 5: [(1, 4)]}.items():
        gap = torch.stack([stream[p] for p in places]).mean(0) - mean[token]
        close(gap, gap.mean().expand_as(gap))
        assert count[token] == len(places)
    assert mean[100].abs().max() == 0
    assert count[100] == 0
    some = torch.tensor([9, 100, 7, 9])
    means, counts = attention.contextual_embeddings(model, text, [0, 3, 2], some)
    assert counts.tolist() == [3, 0, 2, 3]
    torch.testing.assert_close(means[2], mean[some])
    early = raw.run(text)[1]["resid_pre", 0]
    gap = torch.stack([early[0, 1], early[0, 3]]).mean(0) - means[0, 2]
    close(gap, gap.mean().expand_as(gap))
