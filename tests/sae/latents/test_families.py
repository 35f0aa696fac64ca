"""Families, their test by changed text, and what latents of a head have in common, on circuits that are known."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mechinterp.models import load, organisms
from mechinterp.sae import SAE, initial
from mechinterp.sae.files.released import attention_gpt2
from mechinterp.sae.latents.attribution import dfa_by_source, head_shares
from mechinterp.sae.latents.families import ROLES, Sources, context_test, control, folded, sources
from mechinterp.sae.latents.features import FeatureActivations, feature_activations
from mechinterp.sae.latents.themes import head_kinds, themes
from mechinterp.sae.sites import activations

INDUCTION = organisms.induction()
PREVIOUS = organisms.previous_token()


def reading(organism: organisms.Organism, layer: int, head: int, tokens: torch.Tensor) -> SAE:
    """An SAE whose latents are on where one head reads one word each: directions are its mean z at the word."""
    model, hook = organism.model, f"blocks.{layer}.attn.hook_z"
    n, d = model.cfg.n_heads, model.cfg.d_head
    e = model.W_E - model.W_E.mean(0)
    values = model.blocks[layer].ln1(e[None])[0] @ model.W_V[layer, head]
    values = values[1:] - values[1:].mean(0)
    rows = torch.zeros(len(values), n, d)
    rows[:, head] = values / values.norm(dim=1, keepdim=True)
    z = activations(model, tokens, [hook])[hook].flatten(0, 1)
    projections = z @ rows.flatten(1).T
    params = {
        "W_enc": rows.flatten(1).T.contiguous(),
        "W_dec": rows.flatten(1),
        "b_enc": -(0.7 * projections.amax(0)).clamp(min=0.1),  # words that never occur stay silent
        "b_dec": torch.zeros(n * d),
    }
    return SAE("standard", params, hook=hook)


def studied(organism: organisms.Organism, layer: int, head: int) -> tuple[SAE, FeatureActivations, Sources]:
    tokens = organism.tokens(60, seed=3)
    sae = reading(organism, layer, head, tokens)
    record = feature_activations(organism.model, sae, tokens, top=8, skip=(0,))
    return sae, record, sources(organism.model, sae, record, n=4)


def test_latents_of_an_induction_head_are_induction() -> None:
    sae, record, found = studied(INDUCTION, 1, 0)
    assert len(found.latents) >= 10
    assert set(found.family) == {"induction"}
    assert set(found.role) == {"induction"}
    # The source is the word that each latent is about.
    assert (found.word == found.latents[:, None] + 1).all()
    test = context_test(INDUCTION.model, sae, record, found, seed=0)
    assert test.passed.float().mean() > 0.9
    assert test.fall.median() < 0.1


def test_latents_of_a_previous_token_head_are_local() -> None:
    sae, record, found = studied(PREVIOUS, 0, 1)
    assert set(found.family) == {"local"}
    assert set(found.role) == {"previous token"}
    assert (found.source == found.position - 1).all()
    assert context_test(PREVIOUS.model, sae, record, found).passed.float().mean() > 0.9


def test_shares_are_those_of_attribution() -> None:
    model = load("lab", device="cpu")
    tokens = torch.randint(1, 60, (10, 40), generator=torch.Generator().manual_seed(0))
    sae = SAE("topk", initial("topk", 256, 300, seed=1), 8, "blocks.3.attn.hook_z")
    record = feature_activations(model, sae, tokens, top=3)
    found = sources(model, sae, record, n=3, near=2, distant=10)
    for i, k in ((0, 0), (5, 2), (len(found.latents) - 1, 1)):
        p, d = int(found.prompt[i, k]), int(found.position[i, k])
        dfa = dfa_by_source(model, sae, tokens[p : p + 1], found.latents[i : i + 1], torch.tensor([d]))[0].sum(0)
        parts = dict.fromkeys(("induction", "itself", "previous", "local", "far"), 0.0)
        total = sum(max(x, 0.0) for x in dfa.tolist()[1:])  # the first token does not count
        for s, x in enumerate(dfa.tolist()):
            if x <= 0 or s > d or s == 0:
                continue
            if s > 0 and s - 1 < d and tokens[p, s - 1] == tokens[p, d] and s != d:
                parts["induction"] += x / total
                continue
            parts["itself"] += x / total * (s == d)
            parts["previous"] += x / total * (s == d - 1)
            parts["local"] += x / total * (d - s <= 2)
            parts["far"] += x / total * (d - s > 10)
        for name, value in parts.items():
            assert getattr(found, name)[i, k].item() == pytest.approx(value, abs=1e-4), name
        assert found.value[i, k] == record.value[found.latents[i], [0, 1, 2][k]]
        assert int(found.source[i, k]) == int(dfa.argmax())


def test_examples_go_from_the_strongest_to_the_last() -> None:
    sae, record, _ = studied(INDUCTION, 1, 0)
    found = sources(INDUCTION.model, sae, record, n=2, batch_size=3)
    assert (found.value[:, 0] == record.value[found.latents, 0]).all()
    assert (found.value[:, 1] == record.value[found.latents, -1]).all()
    other = sources(INDUCTION.model, sae, record, n=2, batch_size=60)
    assert torch.allclose(found.induction, other.induction, atol=1e-5)


def test_what_is_not_counted_is_no_source() -> None:
    sae, record, _ = studied(INDUCTION, 1, 0)
    none = replace(record, counted=torch.zeros_like(record.counted))
    found = sources(INDUCTION.model, sae, none, n=4)
    assert set(found.family) == {"mixed"}
    assert found.induction.max() == 0


def test_mixed_latents_promise_nothing() -> None:
    sae, record, found = studied(INDUCTION, 1, 0)
    nothing = replace(found, induction=found.induction * 0, local=found.local * 0, far=found.far * 0)
    test = context_test(INDUCTION.model, sae, record, nothing)
    assert not test.passed.any()
    assert (test.stay == 0).all()
    assert (test.fall == 1).all()


def test_the_test_needs_the_right_family() -> None:
    """An induction latent that is called local does not survive when the distant text is replaced."""
    sae, record, found = studied(INDUCTION, 1, 0)
    wrong = replace(found, induction=found.induction * 0, local=torch.ones_like(found.local), near=1)
    assert context_test(INDUCTION.model, sae, record, wrong).passed.float().mean() < 0.2


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.9))
@example(seed=1, share=0.811)  # 405.5 of 500, and one value that rounding lifted over its own threshold
def test_control_is_on_as_often_as_asked(seed: int, share: float) -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(seed))
    sae = SAE("standard", initial("standard", 6, 12, seed=seed))
    random = control(sae, x, torch.full((5,), share), seed=seed)
    density = (random.encode(x) > 0).float().mean(0)
    assert (density - share).abs().max() <= 1.5 / 500
    assert torch.allclose(random.W_dec.norm(dim=1), torch.ones(5), atol=1e-5)
    assert not torch.allclose(random.W_dec[0], control(sae, x, torch.full((5,), share), seed=seed + 1).W_dec[0])


def about(word: torch.Tensor) -> Sources:
    """Sources that are nothing but words."""
    shares = ("value", "induction", "itself", "previous", "local", "far")
    blank = dict.fromkeys(shares, torch.zeros(word.shape))
    places = dict.fromkeys(("prompt", "position", "source"), torch.zeros_like(word))
    return Sources("", torch.arange(len(word)), word=word, near=4, distant=16, **blank, **places)


def test_one_theme_and_none() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(200, 32, generator=generator)
    embedding[:20] += 1.5 * torch.randn(32, generator=generator)  # twenty tokens that resemble each other
    word = torch.randint(20, 200, (60, 6), generator=generator)
    word[:12] = torch.randint(0, 20, (12, 6), generator=generator)
    found = about(word)
    theme = themes(found, embedding)
    e = embedding[word] - embedding[word].mean((0, 1))
    e = e / e.norm(dim=-1, keepdim=True)
    slow = sum((e[3, a] @ e[3, b]).item() for a in range(6) for b in range(6) if a != b) / 30
    assert theme.coherence[3].item() == pytest.approx(slow, abs=1e-5)
    assert theme.coherence[:12].min() > 0.5 > theme.coherence[12:].max()
    shares = torch.rand(60, 3, generator=generator) * 0.1
    shares[:12, 0] += 1  # the first head has the theme, the second an unrelated role, the third neither
    shares[30:42, 1] += 1
    induction = torch.zeros(60, 6)
    induction[30:42] = 1
    found = replace(found, induction=induction)
    kinds = head_kinds(found, theme, shares)
    assert kinds.one_kind().tolist() == [True, True, False]
    assert kinds.role[1] == "induction"
    assert kinds.agree.tolist()[:2] == [0.0, 1.0]
    first = kinds.latents[0].tolist()
    slow = [(e[i, a] @ e[j, b]).item() for i in first for j in first if i != j for a in range(6) for b in range(6)]
    assert kinds.across[0].item() == pytest.approx(sum(slow) / len(slow), abs=1e-5)
    assert abs(kinds.likeness[0].item() - 1) < 0.2


def test_shuffled_latents_are_of_no_kind() -> None:
    generator = torch.Generator().manual_seed(1)
    word = torch.randint(0, 200, (300, 1), generator=generator).expand(-1, 6)  # every latent its own token
    found = about(word)
    theme = themes(found, torch.randn(200, 32, generator=generator))
    kinds = head_kinds(found, theme, torch.rand(300, 20, generator=generator))
    assert not kinds.one_kind().any()
    assert kinds.likeness.abs().max() < 0.2
    assert set(kinds.role) <= set(ROLES)


def test_shares_leave_out_latents_without_examples() -> None:
    sae, _, found = studied(INDUCTION, 1, 0)
    some = found[torch.arange(3, len(found.latents))]
    kinds = head_kinds(some, themes(some, INDUCTION.model.W_E), head_shares(sae, INDUCTION.model.cfg.n_heads), top=5)
    assert int(kinds.latents.max()) < len(some.latents)
    assert kinds.role[0] == "induction"
    assert kinds.agree[0] == 1


def test_words_are_folded() -> None:
    lab = load("lab", device="cpu")
    same = folded(lab.tokenizer, lab.cfg.d_vocab)
    first = {str(lab.tokenizer.decode([i])).strip().lower() for i in range(300, 400)}
    assert len(same) == lab.cfg.d_vocab
    assert (same <= torch.arange(len(same))).all()
    assert (same[same] == same).all()
    assert len(set(same[300:400].tolist())) == len(first)


@pytest.mark.parametrize(("n", "word"), [(0, "n must lie in 1..8"), (9, "n must lie in 1..8")])
def test_wrong_numbers_of_examples(n: int, word: str) -> None:
    sae, record, _ = studied(INDUCTION, 1, 0)
    with pytest.raises(ValueError, match=word):
        sources(INDUCTION.model, sae, record, n=n)


def test_records_and_sources_of_others_are_refused() -> None:
    sae, record, found = studied(INDUCTION, 1, 0)
    with pytest.raises(ValueError, match="this record is of"):
        sources(INDUCTION.model, replace(sae, hook="blocks.0.attn.hook_z"), record)
    with pytest.raises(ValueError, match="do not belong to"):
        context_test(INDUCTION.model, sae, record, replace(found, hook="blocks.0.attn.hook_z"))
    with pytest.raises(ValueError, match="top must lie in"):
        head_kinds(found, themes(found, INDUCTION.model.W_E), head_shares(sae, 4), top=10_000)
    with pytest.raises(ValueError, match="two examples"):
        themes(sources(INDUCTION.model, sae, record, n=1), INDUCTION.model.W_E)
    with pytest.raises(ValueError, match="x must be"):
        control(sae, torch.zeros(3, 5), torch.ones(2))
    with pytest.raises(ValueError, match=r"layers 0\.\.11"):
        attention_gpt2(12)
