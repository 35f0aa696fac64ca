"""Every organism does what its roles say, its knock-outs say the same, and random weights do none of it."""

import pytest
import torch
from torch import Tensor

from mechinterp.datasets.ioi import IOIDataset
from mechinterp.heads import Head, all_heads
from mechinterp.models import organisms
from mechinterp.models.handmade import Wiring, build, spaces
from mechinterp.models.organisms import Organism


def patterns(organism: Organism, tokens: Tensor) -> dict[Head, Tensor]:
    """Attention [prompt query key] of every head."""
    _, cache = organism.model.run_with_cache(tokens)
    return {h: cache[f"blocks.{h.layer}.attn.hook_pattern"][:, h.head] for h in all_heads(organism.model)}


def previous_scores(attention: Tensor) -> Tensor:
    return attention.diagonal(-1, dim1=-2, dim2=-1)


def is_repeat(tokens: Tensor) -> Tensor:
    """Whether the token stood earlier in its sequence."""
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    return same.any(-1)


def between(data: IOIDataset, attention: Tensor, query: str, key: str) -> Tensor:
    return attention[torch.arange(len(data)), data.positions[query], data.positions[key]]


def knock_out(data: IOIDataset, heads: list[Head]) -> float:
    """Mean logit difference with heads replaced by their mean over prompts of three different names, per group."""
    model = organisms.ioi_circuit().model
    _, cache = model.run_with_cache(data.abc(1).tokens)
    hooks = []
    for layer, head in heads:
        z = cache[f"blocks.{layer}.attn.hook_z"][:, :, head]
        mean = torch.stack([z[data.group == g].mean(0) for g in data.group.tolist()])

        def replace(value: Tensor, hook: object, head: int = head, mean: Tensor = mean) -> Tensor:
            value = value.clone()
            value[:, :, head] = mean
            return value

        hooks.append((f"blocks.{layer}.attn.hook_z", replace))
    return data.logit_diff(model.run_with_hooks(data.tokens, fwd_hooks=hooks)).mean().item()


@pytest.fixture(scope="module")
def data() -> IOIDataset:
    return organisms.ioi_prompts(64)


def test_previous_token_head_looks_back_and_copies() -> None:
    organism = organisms.previous_token()
    tokens = organism.tokens(16)
    [head] = organism.heads("previous token")
    attention = patterns(organism, tokens)
    assert previous_scores(attention[head]).min() > 0.9
    assert all(previous_scores(a).mean() < 0.3 for h, a in attention.items() if h != head)
    assert (organism.model(tokens).argmax(-1)[:, 1:] == tokens[:, :-1]).all()


def test_duplicate_token_head_finds_copies_and_nothing_else() -> None:
    organism = organisms.duplicate_token()
    tokens = organism.tokens(16)
    repeat = is_repeat(tokens)
    assert 0.2 < repeat.float().mean() < 0.8
    [head] = organism.heads("duplicate token")
    attention = patterns(organism, tokens)[head]
    to_copy = (attention * (tokens[:, :, None] == tokens[:, None, :]).tril(-1)).sum(-1)
    assert to_copy[repeat].min() > 0.9
    assert attention[..., 0][~repeat].min() > 0.9
    said = [organism.vocabulary[i] for i in organism.model(tokens).argmax(-1).flatten()]
    assert said == ["yes" if r else "no" for r in repeat.flatten()]


def test_induction_needs_both_heads() -> None:
    organism = organisms.induction()
    tokens = organism.tokens(16)
    [head] = organism.heads("induction")
    attention = patterns(organism, tokens)
    assert attention[head].diagonal(-14, dim1=-2, dim2=-1)[:, 2:].min() > 0.9
    assert (organism.model(tokens).argmax(-1)[:, 16:-1] == tokens[:, 17:]).all()
    [previous] = organism.heads("previous token")
    assert previous_scores(attention[previous]).min() > 0.9

    def silence(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[:, :, previous.head] = 0
        return value

    broken = organism.model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{previous.layer}.attn.hook_z", silence)])
    assert (broken.argmax(-1)[:, 16:-1] == tokens[:, 17:]).float().mean() < 0.2


def test_ioi_circuit_solves_every_prompt(data: IOIDataset) -> None:
    logits = organisms.ioi_circuit().model(data.tokens)
    assert (data.at("END", logits).argmax(-1) == data.io).all()
    assert data.logit_diff(logits).min() > 4
    assert data.io_prob(logits).min() > 0.7


def test_ioi_circuit_is_blind_when_no_name_repeats(data: IOIDataset) -> None:
    different = data.abc(1)
    first, second = different.at("IO", different.tokens), different.at("S1", different.tokens)
    end = data.at("END", organisms.ioi_circuit().model(different.tokens))
    assert (end.gather(1, first[:, None]) - end.gather(1, second[:, None])).abs().max() < 0.02


@pytest.mark.parametrize(
    ("role", "query", "key"),
    [
        ("duplicate token", "S2", "S1"),
        ("previous token", "S1+1", "S1"),
        ("induction", "S2", "S1+1"),
        ("S-inhibition", "END", "S2"),
        ("name mover", "END", "IO"),
        ("negative name mover", "END", "IO"),
    ],
)
def test_heads_of_the_ioi_circuit_attend_as_their_roles_say(data: IOIDataset, role: str, query: str, key: str) -> None:
    organism = organisms.ioi_circuit()
    attention = patterns(organism, data.tokens)
    assert organism.heads(role)
    for head in organism.heads(role):
        assert between(data, attention[head], query, key).min() > 0.9


def test_backup_rests_until_the_name_movers_are_gone(data: IOIDataset) -> None:
    organism = organisms.ioi_circuit()
    [backup] = organism.heads("backup name mover")
    assert between(data, patterns(organism, data.tokens)[backup], "END", "IO").max() < 0.01
    movers = organism.heads("name mover")
    assert knock_out(data, [backup]) == pytest.approx(knock_out(data, []), abs=0.05)
    assert knock_out(data, movers) > 2.5
    assert knock_out(data, [*movers, backup]) < 0


def test_knock_outs_of_the_ioi_circuit(data: IOIDataset) -> None:
    organism = organisms.ioi_circuit()
    whole = knock_out(data, [])
    for role in ("duplicate token", "previous token", "induction", "S-inhibition", "name mover"):
        for head in organism.heads(role):
            assert 1 < knock_out(data, [head]) < whole - 0.5, f"{role} {head}"
    assert knock_out(data, organism.heads("negative name mover")) > whole + 1
    assert abs(knock_out(data, organism.heads("S-inhibition"))) < 0.01
    assert abs(knock_out(data, organism.heads("duplicate token") + organism.heads("induction"))) < 0.01
    idle = [h for h in all_heads(organism.model) if h not in organism.roles]
    assert len(idle) == 11
    assert knock_out(data, idle) == pytest.approx(whole, abs=0.01)


def test_position_and_token_signals_have_their_sizes(data: IOIDataset) -> None:
    """Patching the S-inhibition heads from edited prompts inverts each signal by itself (Figure 9 of the paper)."""
    organism = organisms.ioi_circuit()
    inhibition = organism.heads("S-inhibition")

    def patched(edited: IOIDataset) -> float:
        _, cache = organism.model.run_with_cache(edited.tokens)

        def swap(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            for head in inhibition:
                value[:, :, head.head] = cache["blocks.2.attn.hook_z"][:, :, head.head]
            return value

        logits = organism.model.run_with_hooks(data.tokens, fwd_hooks=[("blocks.2.attn.hook_z", swap)])
        return data.logit_diff(logits).mean().item()

    table = [[patched(data.corrupt(t, p, seed=3)) for p in ("original", "inverted")] for t in ("original", "inverted")]
    assert table[0][0] > 4
    assert table[1][1] == pytest.approx(-table[0][0], abs=0.7)
    assert table[1][0] > 0 > table[0][1], "position is the stronger signal"


def test_prompts_name_their_positions() -> None:
    data = organisms.ioi_prompts(32, seed=5)
    assert torch.equal(data.at("IO", data.tokens), data.io)
    assert torch.equal(data.at("S1", data.tokens), data.s)
    assert torch.equal(data.at("S2", data.tokens), data.s)
    words = organisms.ioi_circuit().model.tokenizer
    assert all(text.endswith(" to") for text in data.text(words))
    assert torch.equal(organisms.ioi_prompts(32, seed=5).tokens, data.tokens)
    assert not torch.equal(organisms.ioi_prompts(32, seed=6).tokens, data.tokens)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        organisms.ioi_prompts(0)


def test_random_weights_show_nothing(data: IOIDataset) -> None:
    control = organisms.control(organisms.ioi_circuit())
    assert control.roles == {}
    attention = patterns(control, data.tokens)
    for query, key in [("S2", "S1"), ("S1+1", "S1"), ("S2", "S1+1"), ("END", "S2"), ("END", "IO")]:
        assert max(between(data, a, query, key).mean() for a in attention.values()) < 0.7
    logits = control.model(data.tokens)
    assert (data.at("END", logits).argmax(-1) == data.io).float().mean() < 0.3
    assert data.logit_diff(logits).mean().abs() < 1

    repeats = organisms.control(organisms.induction())
    tokens = repeats.tokens(16)
    assert (repeats.model(tokens).argmax(-1)[:, 16:-1] == tokens[:, 17:]).float().mean() < 0.2


def test_spaces_are_orthonormal_and_centred() -> None:
    space = spaces({"tok": 5, "pos": 7}, 24)
    basis = torch.cat([space["tok"], space["pos"], space["bulk"], space["scratch"]])
    torch.testing.assert_close(basis @ basis.T, torch.eye(23), atol=1e-5, rtol=0)
    assert basis.sum(1).abs().max() < 1e-5


def test_too_many_features_are_refused() -> None:
    with pytest.raises(ValueError, match="need d_model of at least 13, not 12"):
        spaces({"tok": 10}, 12)
    s = spaces({"tok": 6, "pos": 6}, 16)
    wide = Wiring(s["tok"], s["tok"], s["tok"], s["tok"])
    with pytest.raises(ValueError, match=r"head 0\.1 uses 6 features, a head has 4"):
        build(s, {Head(0, 1): wide}, n_layers=1, n_heads=4, unembed=s["tok"], vocabulary=tuple("abcdef"))
