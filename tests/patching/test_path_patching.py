"""Path patching against the paper's procedure done literally, hook by hook."""

from dataclasses import replace as with_
from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp.heads import Head, all_heads
from mechinterp.models import organisms
from mechinterp.patching import PathPatch, path_patch, record

RECEIVERS = {
    "logits": "logits",
    "a query": [(Head(2, 1), "q")],
    "queries of two layers": [(Head(2, 1), "q"), (Head(1, 0), "q"), (Head(2, 3), "q")],
    "values and keys": [(Head(2, 1), "v"), (Head(1, 3), "k")],
    "everything of one head": [(Head(2, 2), "q"), (Head(2, 2), "k"), (Head(2, 2), "v")],
    "an early value": [(Head(1, 2), "v")],
    "the last layer's keys": [(Head(2, 0), "k")],
}


def patch(model: Any, prompts: Any, **options: Any) -> PathPatch:
    return path_patch(model, prompts.clean, prompts.corrupt, metric=prompts.metric, at=prompts.at, **options)


@pytest.mark.parametrize("where", ["everywhere", "at", "receiver"])
@pytest.mark.parametrize("receivers", RECEIVERS.values(), ids=RECEIVERS)
def test_equals_the_literal_procedure(tiny: Any, prompts: Any, slow_path: Any, receivers: Any, where: str) -> None:
    positions = {"everywhere": None, "at": prompts.at, "receiver": prompts.receiver}[where]
    if receivers == "logits" and positions is not None:
        pytest.skip("the logits are read at one position")
    ours = patch(tiny, prompts, receivers=receivers, receiver_positions=positions)
    for head in all_heads(tiny):
        slow = slow_path(tiny, prompts, head, receivers, positions)
        torch.testing.assert_close(ours.patched[head], slow, atol=1e-4, rtol=0)
    assert (ours.patched - ours.clean).abs().max() > 1e-2  # there is something to agree on
    rows = torch.arange(len(prompts.clean))
    torch.testing.assert_close(ours.clean, prompts.metric(tiny(prompts.clean)[rows, prompts.at]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 25])
@pytest.mark.parametrize("receivers", ["logits", RECEIVERS["values and keys"]])
def test_batch_size_does_not_matter(tiny: Any, prompts: Any, receivers: Any, batch_size: int) -> None:
    options = {"receivers": receivers, "receiver_positions": None if receivers == "logits" else prompts.receiver}
    whole, parts = patch(tiny, prompts, **options), patch(tiny, prompts, batch_size=batch_size, **options)
    torch.testing.assert_close(parts.patched, whole.patched, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.clean, whole.clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("receivers", RECEIVERS.values(), ids=RECEIVERS)
def test_patching_with_itself_changes_nothing(tiny: Any, prompts: Any, receivers: Any) -> None:
    result = patch(tiny, with_(prompts, corrupt=prompts.clean), receivers=receivers)
    torch.testing.assert_close(result.patched, result.clean.expand_as(result.patched), atol=1e-5, rtol=0)


def test_a_sender_that_does_not_come_before_the_receivers_has_exactly_no_effect(tiny: Any, prompts: Any) -> None:
    result = patch(tiny, prompts, receivers=[(Head(1, 2), "q")], receiver_positions=prompts.at)
    assert (result.patched[1:] == result.clean).all()
    assert (result.effect()[1:] == 0).all()
    assert (result.effect()[0] != 0).all()
    none = patch(tiny, prompts, receivers=[(Head(0, 0), "q"), (Head(0, 1), "v")])
    assert (none.patched == none.clean).all()


def test_receivers_after_the_position_that_is_read_have_no_effect(tiny: Any, prompts: Any) -> None:
    later = torch.full_like(prompts.at, prompts.clean.shape[1] - 1)
    early = with_(prompts, at=torch.full_like(prompts.at, 4))
    result = patch(tiny, early, receivers=[(Head(2, 1), "v"), (Head(1, 0), "q")], receiver_positions=later)
    torch.testing.assert_close(result.patched, result.clean.expand_as(result.patched), atol=1e-5, rtol=0)


@pytest.mark.parametrize("receivers", ["logits", RECEIVERS["values and keys"], RECEIVERS["a query"]])
def test_padding_on_the_right_does_not_matter(tiny: Any, prompts: Any, receivers: Any) -> None:
    pad = torch.zeros(len(prompts.clean), 3, dtype=torch.long)
    padded = with_(prompts, clean=torch.cat([prompts.clean, pad], 1), corrupt=torch.cat([prompts.corrupt, pad + 7], 1))
    expected = patch(tiny, prompts, receivers=receivers).patched
    torch.testing.assert_close(patch(tiny, padded, receivers=receivers).patched, expected, atol=1e-5, rtol=0)
    garbage = padded.clean.clone()  # what follows the position that is read, prompt by prompt
    garbage[torch.arange(garbage.shape[1]) > prompts.at[:, None]] = 4321
    changed = patch(tiny, with_(padded, clean=garbage), receivers=receivers).patched
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)


def test_some_senders_only_in_any_order(tiny: Any, prompts: Any) -> None:
    every = patch(tiny, prompts)
    some = patch(tiny, prompts, senders=[Head(2, 0), Head(0, 3), Head(2, 0)])
    for head in all_heads(tiny):
        expected = every.patched[head] if head in (Head(2, 0), Head(0, 3)) else every.clean
        torch.testing.assert_close(some.patched[head], expected, atol=1e-5, rtol=0)


def test_into_the_last_layer_norm_the_effect_is_the_change_of_what_the_head_writes(tiny: Any, prompts: Any) -> None:
    """For the last layer's heads only its MLP and the final norm lie between: frozen by hand here."""
    _, clean = tiny.run_with_cache(prompts.clean)
    z, other = record(tiny, prompts.clean).z[2], record(tiny, prompts.corrupt).z[2]
    rows = torch.arange(len(prompts.clean))
    result = patch(tiny, prompts)
    for head in range(tiny.cfg.n_heads):
        mid = clean["blocks.2.hook_resid_mid"] + (other - z)[:, :, head] @ tiny.W_O[2, head]
        final = mid + tiny.blocks[2].mlp(tiny.blocks[2].ln2(mid))
        logits = (tiny.ln_final(final) @ tiny.W_U + tiny.b_U)[rows, prompts.at]
        torch.testing.assert_close(result.patched[2, head], prompts.metric(logits), atol=1e-4, rtol=0)


def test_the_metric_sees_all_prompts_at_once(tiny: Any, prompts: Any) -> None:
    seen = []

    def metric(logits: Tensor) -> Tensor:
        seen.append(logits.shape)
        return logits[:, 0]

    path_patch(tiny, prompts.clean, prompts.corrupt, metric=metric, at=prompts.at, batch_size=2)
    assert set(seen) == {(6, tiny.cfg.d_vocab)}
    assert len(seen) == 1 + len(all_heads(tiny))


def test_recovers_the_name_movers_of_the_ioi_organism() -> None:
    organism = organisms.ioi_circuit()
    data = organisms.ioi_prompts(32)
    other, end = data.abc(1), data.positions["END"]
    to_logits = path_patch(organism.model, data.tokens, other.tokens, metric=data.logit_diff, at=end).effect()
    movers = organism.heads("name mover")
    strongest = to_logits.flatten().abs().argsort(descending=True)[: len(movers)].tolist()
    assert {Head(*divmod(i, organism.model.cfg.n_heads)) for i in strongest} == set(movers)
    assert all(to_logits[h] < -0.05 for h in movers)
    to_queries = path_patch(
        organism.model,
        data.tokens,
        other.tokens,
        metric=data.logit_diff,
        at=end,
        receivers=[(h, "q") for h in movers],
        receiver_positions=end,
    ).effect()
    inhibition = organism.heads("S-inhibition")
    strongest = to_queries.flatten().abs().argsort(descending=True)[: len(inhibition)].tolist()
    assert {Head(*divmod(i, organism.model.cfg.n_heads)) for i in strongest} == set(inhibition)


def test_inert_heads_have_no_path() -> None:
    organism = organisms.ioi_circuit()
    data = organisms.ioi_prompts(16)
    result = path_patch(
        organism.model,
        data.tokens,
        data.abc(1).tokens,
        metric=data.logit_diff,
        at=data.positions["END"],
        senders=[h for h in all_heads(organism.model) if h not in organism.roles],
    )
    assert result.effect().abs().max() < 1e-3
