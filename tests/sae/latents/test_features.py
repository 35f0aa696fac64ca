"""One streaming pass against the whole table of latents; logit weights against loops; latents that are known."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.models import organisms
from mechinterp.sae import SAE, initial
from mechinterp.sae.latents import features as module
from mechinterp.sae.latents.features import (
    BINS,
    Example,
    FeatureActivations,
    _Entries,
    direct_logits,
    feature_activations,
    logit_weights,
    top_examples,
)


def topk_sae(hook: str, *, k: int = 6, seed: int = 0) -> SAE:
    return SAE("topk", initial("topk", 64, 80, seed=seed), k=k, hook=hook)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 30, (23, 9), generator=torch.Generator().manual_seed(3))


def dense(slow: Any, model: Any, sae: SAE, tokens: Tensor, skip: tuple[int, ...] = ()) -> Tensor:
    """All latents of all tokens that count: the first of a prompt never does."""
    f = slow.topk(model, sae, tokens)
    f[:, 0] = 0
    for token in skip:
        f[tokens == token] = 0
    return f


@pytest.mark.parametrize("one_per_prompt", [True, False])
@pytest.mark.parametrize("skip", [(), (5, 11)])
def test_a_record_is_what_the_whole_table_says(
    tiny: Any, slow: Any, tokens: Tensor, skip: tuple[int, ...], one_per_prompt: bool
) -> None:
    sae = topk_sae("blocks.1.attn.hook_z")
    f = dense(slow, tiny, sae, tokens, skip)
    records = [
        feature_activations(tiny, sae, tokens, top=4, skip=skip, one_per_prompt=one_per_prompt, batch_size=b)
        for b in (1, 7, 64)
    ]
    n = int(sum(int(t) not in skip for t in tokens[:, 1:].flatten()))
    for record in records:
        assert torch.equal(record.active, (f > 0).sum((0, 1)))
        torch.testing.assert_close(record.density, (f > 0).sum((0, 1)) / n)
        torch.testing.assert_close(record.maximum, f.amax((0, 1)), atol=1e-5, rtol=0)
        for i in range(80):
            places = [(-f[p, s, i].item(), p, s) for p, s in (f[..., i] > 0).nonzero().tolist()]
            if one_per_prompt:
                places = [min(q for q in places if q[1] == p) for p in {q[1] for q in places}]
            slow = sorted(places)[:4]
            assert record.value[i].tolist() == pytest.approx([-v for v, _, _ in slow] + [0] * (4 - len(slow)), abs=1e-5)
            assert record.prompt[i].tolist() == [p for _, p, _ in slow] + [-1] * (4 - len(slow))
            assert record.position[i].tolist() == [s for _, _, s in slow] + [-1] * (4 - len(slow))
            assert record.histogram[i].sum() == record.active[i]
            if len(slow):
                width = 2.0 ** int(record.exponent[i]) / BINS
                on = f[..., i][f[..., i] > 0]
                slow_bins = torch.bincount((on / width).long(), minlength=BINS)
                assert (record.histogram[i] - slow_bins).abs().sum() <= 2, "rounding may move a value on an edge"
                assert record.histogram[i, BINS // 2 :].sum() > 0


def given_activations(
    values: Tensor, batch_size: int, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> FeatureActivations:
    """A record of activations [prompt pos] of one latent, put in place of the model's, each prompt after a token."""
    values = torch.nn.functional.pad(values, (1, 0))
    tokens = 1 + torch.arange(values.numel()).view(values.shape)
    x = torch.zeros(*values.shape, 64)
    x[..., 0] = values
    params = {
        "W_enc": torch.eye(64)[:, :2],
        "W_dec": torch.eye(64)[:2],
        "b_enc": torch.zeros(2),
        "b_dec": torch.zeros(64),
    }
    sae = SAE("standard", params, hook="blocks.0.hook_mlp_out")
    with monkeypatch.context() as patch:
        patch.setattr(module, "activations", lambda m, t, hooks, **_: {hooks[0]: x[(t[:, 0] - 1) // values.shape[1]]})
        return feature_activations(tiny, sae, tokens, top=3, batch_size=batch_size)


@pytest.mark.parametrize(
    "values",
    [
        [[0.0, 0.5], [1.0, 2.0], [3.999, 4.0]],
        [[1e-12, 0.0], [1e6, 1e-3], [31.0, 64.0]],
        [[0.0, 0.0], [0.25, 0.0], [0.0, 0.1]],
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        [[1e-30, 0.0], [0.0, 1e-25], [1e-30, 0.0]],
    ],
)
def test_histograms_double_their_width_and_lose_nothing(
    tiny: Any, values: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = torch.tensor(values)
    one, *others = (given_activations(table, b, monkeypatch, tiny) for b in (1, 2, 3))
    for other in others:
        for a, b in zip(list(vars(one).values())[1:], list(vars(other).values())[1:], strict=True):
            assert torch.equal(a, b)
    on = table[table > 0]
    assert one.histogram[0].sum() == len(on)
    assert one.histogram[1].sum() == 0
    if len(on) and on.max() > 2.0**-60:
        exponent = math.floor(math.log2(on.max().item())) + 1
        assert int(one.exponent[0]) == exponent
        slow = [sum(int(v / 2.0**exponent * BINS) == b for v in on.tolist()) for b in range(BINS)]
        assert one.histogram[0].tolist() == slow


@settings(max_examples=100, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.5, 1.0, 1.5, 2.0])), max_size=30),
    n=st.integers(1, 4),
    cut=st.integers(0, 30),
)
def test_the_strongest_of_each_group_in_one_go_or_in_two(entries: list[tuple[int, float]], n: int, cut: int) -> None:
    group = torch.tensor([g for g, _ in entries], dtype=torch.long)
    whole = _Entries(group, torch.arange(len(entries)), torch.zeros_like(group), torch.tensor([v for _, v in entries]))
    best = whole.strongest(whole.latent, n)
    slow = [
        j
        for g in range(5)
        for j in sorted((j for j, e in enumerate(entries) if e[0] == g), key=lambda j: -entries[j][1])[:n]
    ]
    assert best.prompt.tolist() == slow
    first = whole[torch.arange(len(entries)) < cut]
    both = first.strongest(first.latent, n).followed_by(whole[torch.arange(len(entries)) >= cut])
    assert both.strongest(both.latent, n).prompt.tolist() == slow


def test_a_latent_that_is_never_on(tiny: Any, tokens: Tensor) -> None:
    sae = topk_sae("blocks.1.hook_mlp_out")
    off = torch.zeros(80)
    off[7] = -1e3
    sae = replace(sae, kind="standard", k=None, params=sae.params | {"b_enc": off})
    record = feature_activations(tiny, sae, tokens, top=2)
    assert (record.active[7], record.maximum[7], record.density[7]) == (0, 0, 0)
    assert record.prompt[7].tolist() == record.position[7].tolist() == [-1, -1]
    assert record.histogram[7].sum() == 0
    assert top_examples(tiny, sae, record, [7]) == {7: ()}
    assert [len(x) for x in top_examples(tiny, sae, record, [3, 7], n=1).values()] == [1, 0]


def induction_sae(model: Any) -> SAE:
    """Latent i reads what head 1.0 writes when it has copied word i + 1."""
    eye = torch.eye(192)[:31]
    params = {"W_enc": eye.T.contiguous(), "W_dec": eye, "b_enc": torch.full((31,), -0.5), "b_dec": torch.zeros(192)}
    return SAE("standard", params, hook="blocks.1.attn.hook_z")


def test_latents_of_the_induction_organism_are_on_where_the_word_comes_next() -> None:
    organism = organisms.induction()
    tokens, sae = organism.tokens(12), induction_sae(organism.model)
    record = feature_activations(organism.model, sae, tokens, top=20, one_per_prompt=False)
    for i in range(31):
        # On at a repeated word whose first occurrence was followed by word i + 1.
        places = [(p, s) for p in range(12) for s in range(16, 31) if tokens[p, s - 14] == i + 1]
        found = zip(record.prompt[i].tolist(), record.position[i].tolist(), strict=True)
        assert {place for place in found if place[0] >= 0} == set(places)
        assert record.active[i] == len(places)
    live = record.active.nonzero()[:, 0]
    torch.testing.assert_close(record.maximum[live], torch.full((len(live),), 0.5), atol=0.02, rtol=0)
    weights = logit_weights(organism.model, sae, n=1)
    assert weights.promoted[:, 0].tolist() == list(range(1, 32)), "each promotes its own word"
    logits = direct_logits(organism.model, sae, torch.arange(31))
    assert (logits.topk(2).values[:, 1] < 0.1 * logits.amax(1)).all(), "and no other"


def test_random_directions_promote_no_word() -> None:
    organism = organisms.induction()
    sae = SAE("standard", initial("standard", 192, 200, seed=0), hook="blocks.1.attn.hook_z")
    top = direct_logits(organism.model, sae, torch.arange(200)).topk(2).values
    assert (top[:, 1] > 0.1 * top[:, 0]).float().mean() > 0.9


@pytest.fixture(scope="module")
def raw(make_gpt2: Any, tokenizer: Any) -> Any:
    """Nothing folded, nothing centred: a final layer norm with a gain and a bias."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers("raw", hf_model=make_gpt2(), tokenizer=tokenizer, device="cpu").eval()


@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("site", ["attn.hook_z", "hook_mlp_out", "hook_resid_pre", "hook_resid_mid", "hook_resid_post"])
def test_logit_weights_are_the_change_of_the_logits_with_the_final_scale_frozen(
    tiny: Any, raw: Any, site: str, processed: bool
) -> None:
    model = tiny if processed else raw
    sae, latents = topk_sae(f"blocks.1.{site}", seed=2), torch.tensor([5, 70])
    found = direct_logits(model, sae, latents)
    assert found.mean(1).abs().max() < 1e-6
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    scale = (x - x.mean()).pow(2).mean().add(model.cfg.eps).sqrt()

    def logits(stream: Tensor) -> Tensor:
        normal = (stream - stream.mean()) / scale * model.ln_final.weight + model.ln_final.bias
        return (normal @ model.W_U + model.b_U).detach()

    torch.testing.assert_close(logits(x), (model.ln_final(x[None, None])[0, 0] @ model.W_U + model.b_U).detach())
    for row, i in zip(found, latents.tolist(), strict=True):
        written = sae.W_dec[i]
        if site == "attn.hook_z":
            written = sum(written[16 * h : 16 * (h + 1)] @ model.W_O[1, h].detach() for h in range(4))
        change = (logits(x + written) - logits(x)) * scale
        torch.testing.assert_close(row, change - change.mean(), atol=1e-4, rtol=0)


def test_the_tokens_promoted_and_suppressed(tiny: Any, slow: Any) -> None:
    sae, latents = topk_sae("blocks.1.hook_mlp_out"), torch.tensor([9, 2, 33])
    for block in (512, 2):
        found = logit_weights(tiny, sae, latents, n=5, block=block)
        for row, i in enumerate(latents.tolist()):
            logits = slow.logits(tiny, sae.W_dec[i])
            order = sorted(range(len(logits)), key=lambda t: -logits[t])
            assert found.promoted[row].tolist() == order[:5]
            assert found.suppressed[row].tolist() == order[::-1][:5]
            assert found.up[row].tolist() == pytest.approx([logits[t] for t in order[:5]], abs=1e-5)
            assert found.down[row].tolist() == pytest.approx([logits[t] for t in order[::-1][:5]], abs=1e-5)
    whole = logit_weights(tiny, sae, n=5)
    assert whole.latents.tolist() == list(range(80))
    assert torch.equal(whole.promoted[latents], found.promoted)


def check_example(example: Example, f: Tensor, tokens: Tensor, i: int) -> None:
    shown = example.positions
    assert torch.equal(example.tokens, tokens[example.prompt, shown])
    torch.testing.assert_close(example.activations, f[example.prompt, shown, i], atol=1e-5, rtol=0)
    assert example.value == pytest.approx(f[example.prompt, example.position, i].item(), abs=1e-5)
    assert shown.tolist() == sorted(set(shown.tolist()))


def test_examples_show_the_latent_around_its_strongest_places(tiny: Any, slow: Any, tokens: Tensor) -> None:
    sae = topk_sae("blocks.1.attn.hook_z")
    f = dense(slow, tiny, sae, tokens, (5,))
    record = feature_activations(tiny, sae, tokens, top=4, skip=(5,))
    for batch_size in (2, 16):
        found = top_examples(tiny, sae, record, [8, 3, 50], n=3, before=2, after=1, batch_size=batch_size)
        assert list(found) == [8, 3, 50]
        for i, examples in found.items():
            assert [(e.prompt, e.position) for e in examples] == [
                (p, s)
                for p, s in zip(record.prompt[i, :3].tolist(), record.position[i, :3].tolist(), strict=True)
                if p >= 0
            ]
            for e in examples:
                check_example(e, f, tokens, i)
                dfa = torch.from_numpy(slow.dfa(tiny, sae, tokens[e.prompt], i, e.position)).float()
                torch.testing.assert_close(e.heads, dfa.sum(1), atol=1e-5, rtol=0)
                torch.testing.assert_close(e.sources, dfa.sum(0)[e.positions], atol=1e-5, rtol=0)
                around = {s for s in range(e.position - 2, e.position + 2) if 0 <= s < 9}
                assert around <= set(e.positions.tolist())
                assert int(dfa.sum(0).argmax()) in e.positions


def test_a_source_far_back_is_shown() -> None:
    organism = organisms.induction()
    tokens, sae = organism.tokens(6), induction_sae(organism.model)
    record = feature_activations(organism.model, sae, tokens)
    latents = record.active.nonzero()[:3, 0].tolist()
    for examples in top_examples(organism.model, sae, record, latents, before=2, after=0).values():
        for e in examples:
            source = e.position - 15 + 1
            assert e.positions.tolist() == sorted(
                {*range(max(0, source - 3), source + 3), *range(e.position - 2, e.position + 1)}
            )
            assert int(e.positions[e.sources.argmax()]) == source
            assert e.heads[0] > 0.9
            assert e.heads[1].abs() < 1e-3


def test_other_sites_have_no_dfa(tiny: Any, slow: Any, tokens: Tensor) -> None:
    sae = topk_sae("blocks.1.hook_resid_mid")
    record = feature_activations(tiny, sae, tokens, top=4)
    [example, *_] = top_examples(tiny, sae, record, [3])[3]
    check_example(example, dense(slow, tiny, sae, tokens), tokens, 3)
    assert example.heads is None
    assert example.sources is None


@pytest.mark.usefixtures("unchecked")
def test_questions_that_cannot_be_answered(tiny: Any, tokens: Tensor) -> None:
    sae = topk_sae("blocks.1.attn.hook_z")
    record = feature_activations(tiny, sae, tokens)
    with pytest.raises(ValueError, match="top must be at least 1"):
        feature_activations(tiny, sae, tokens, top=0)
    with pytest.raises(ValueError, match="no token of the text counts"):
        feature_activations(tiny, sae, torch.full_like(tokens, 3), skip=[3])
    with pytest.raises(ValueError, match=r"record is of 80 latents at blocks\.1"):
        top_examples(tiny, replace(sae, hook="blocks.2.attn.hook_z"), record, [1])
    with pytest.raises(ValueError, match=r"latents must lie in 0\.\.79, got 3\.\.80"):
        top_examples(tiny, sae, record, [3, 80])
    with pytest.raises(ValueError, match=r"latents must lie in 0\.\.79"):
        direct_logits(tiny, sae, torch.tensor([-1]))
    with pytest.raises(ValueError, match="size of the vocabulary"):
        logit_weights(tiny, sae, n=9000)
    with pytest.raises(ValueError, match="depend on the whole batch"):
        feature_activations(tiny, replace(sae, kind="batchtopk"), tokens)
