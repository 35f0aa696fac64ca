"""On an accelerator: the numbers of the CPU, wherever positions and token ids lie. Skipped on a machine without one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechinterp import attention, circuits, patching
from mechinterp import copy_suppression as cs
from mechinterp import successor as su
from mechinterp.datasets import ioi, text
from mechinterp.datasets.ordinals import TASKS
from mechinterp.heads import Head
from mechinterp.models import load
from mechinterp.sae.files import shipped
from mechinterp.sae.latents import families, features, interventions

HEADS = [Head(2, 1), Head(3, 3)]


def path_patch(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    return patching.path_patch(model, tokens, other, metric=data.logit_diff, at=at, senders=HEADS).patched


def path_patch_to_queries(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    to = [(Head(4, 0), "q")]
    options = {"at": at, "receivers": to, "receiver_positions": at, "senders": HEADS}
    return patching.path_patch(model, tokens, other, metric=data.logit_diff, **options).patched


def activation_patch(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    options = {"node": "z", "at": at, "positions": at}
    return patching.activation_patch(model, tokens, other, metric=data.logit_diff, **options).patched


def replace(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    marks = patching.mask(model, tokens.shape, dict.fromkeys(HEADS, at))
    return patching.replace(model, tokens, patching.record(model, other), heads=marks, at=at)


def knock_out(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    means = patching.mean_reference(model, other, data.group)
    setting = circuits.Setting(model, tokens, {"END": at}, at, data.logit_diff, means)
    return circuits.knock_out(setting, [HEADS], position="END")


def direct(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    return patching.direct_logit_attribution(model, tokens, at, data.io, data.s).heads


def self_repair(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    means = patching.mean_reference(model, other, data.group).z
    return cs.self_repair(model, tokens, at, data.io, data.s, HEADS, means).heads


def query_projection(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    means = patching.mean_reference(model, other, data.group).z
    reader = Head(4, 0)
    return cs.query_projection(model, tokens, at, data.io, data.s, HEADS, means, [reader])[reader].full


def latent_edit(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    sae = shipped("lab/attention-2").to(tokens.device)
    return interventions.spliced_logits(model, tokens, sae, interventions.ablate(3, at), at=at)


def latent_effects(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    sae = shipped("lab/attention-2").to(tokens.device)
    return interventions.ablation_effects(model, tokens, sae, torch.arange(4), at, data.logit_diff, read=at).values


def latent_sources(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    sae = shipped("lab/attention-2").to(tokens.device)
    record = features.feature_activations(model, sae, tokens, top=2)
    return families.sources(model, sae, record, n=2).value


def greater_than(model: Any, tokens: Any, other: Any, at: Any, data: Any) -> Any:
    words = su.class_of(model.tokenizer, TASKS["months"])
    return su.greater_than_bias(su.table(model, Head(3, 0), words), words.place)


CASES: list[Callable[..., Any]] = [
    lambda model, tokens, other, at, data: patching.logits_at(model, tokens, at),
    lambda model, tokens, other, at, data: patching.logit_lens(model, tokens, at, layers=[2]),
    lambda model, tokens, other, at, data: attention.direct_projection(model, tokens, at, data.io),
    lambda model, tokens, other, at, data: attention.copy_scores(model, tokens, [at]),
    lambda model, tokens, other, at, data: cs.attention_after(model, tokens, other, HEADS, Head(4, 0), at),
    lambda model, tokens, other, at, data: cs.rank_tests(model, HEADS, progress=False).ov,
    path_patch,
    path_patch_to_queries,
    activation_patch,
    replace,
    knock_out,
    direct,
    self_repair,
    query_projection,
    latent_edit,
    latent_effects,
    latent_sources,
    greater_than,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_positions_may_lie_on_the_cpu(case: Callable[..., Any], lab: Any) -> None:
    if not torch.accelerator.is_available():
        pytest.skip("no accelerator")
    there = torch.accelerator.current_accelerator()
    data = ioi.make(lab.tokenizer, 6, seed=0)
    tokens, other, at = data.tokens, data.abc(1).tokens, data.positions["END"]
    expected = case(lab, tokens, other, at, data)
    moved = load("lab", device=there.type)
    found = case(moved, tokens.to(there), other.to(there), at, data.to(there))
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-3, atol=1e-3)


def test_text_is_taken_from_the_cpu(lab: Any) -> None:
    if not torch.accelerator.is_available():
        pytest.skip("no accelerator")
    there = torch.accelerator.current_accelerator()
    rows = text.packed_rows(lab.tokenizer, text.sample(), 4, 32)
    head, moved = Head(3, 3), load("lab", device=there.type)
    expected, found = (cs.attended_pairs(m, r, [head])[head] for m, r in ((lab, rows), (moved, rows.to(there))))
    assert torch.equal(found.token, expected.token)
