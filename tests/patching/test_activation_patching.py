"""Activation patching against one hooked forward pass for every cell, and against TransformerLens' own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp.patching import ActivationPatch, activation_patch

HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_attn_out",  # a bridge's hook_resid_mid is not in the stream: it feeds ln2 only
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "z": "blocks.{}.attn.hook_z",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "pattern": "blocks.{}.attn.hook_pattern",
}
PER_HEAD = ("z", "q", "k", "v", "pattern")


def patch(model: Any, prompts: Any, **options: Any) -> ActivationPatch:
    return activation_patch(model, prompts.clean, prompts.corrupt, metric=prompts.metric, at=prompts.at, **options)


def slow(model: Any, prompts: Any, node: str, layer: int, head: int, marked: Tensor, corrupt: Any) -> Tensor:
    name = HOOKS[node].format(layer)
    _, clean = model.run_with_cache(prompts.clean)
    mid = f"blocks.{layer}.hook_resid_mid"

    def edit(x: Tensor, hook: Any) -> Tensor:
        new, x = corrupt[name], x.clone()
        if node == "pattern":
            x[:, head] = torch.where(marked[..., None], new[:, head], x[:, head])
        elif node in PER_HEAD:
            x[:, :, head] = torch.where(marked[..., None], new[:, :, head], x[:, :, head])
        elif node == "resid_mid":
            x = x + marked[..., None] * (corrupt[mid] - clean[mid])
        else:
            x = torch.where(marked[..., None], new, x)
        return x

    logits = model.run_with_hooks(prompts.clean, fwd_hooks=[(name, edit)])
    return prompts.metric(logits[torch.arange(len(logits)), prompts.at])


@pytest.mark.parametrize("node", HOOKS)
def test_equals_hooks_at_every_position(tiny: Any, prompts: Any, node: str) -> None:
    ours = patch(tiny, prompts, node=node)
    length = prompts.clean.shape[1]
    heads = (4,) if node in PER_HEAD else ()
    assert ours.patched.shape == (3, *heads, length, len(prompts.clean))
    assert ours.effect().shape == (3, *heads, length)
    _, corrupt = tiny.run_with_cache(prompts.corrupt)
    for layer in range(3):
        for head in range(0, 4, 3) if heads else [0]:
            for pos in range(0, length, 2):
                marked = (torch.arange(length) == pos).expand(len(prompts.clean), -1)
                expected = slow(tiny, prompts, node, layer, head, marked, corrupt)
                index = (layer, head, pos) if heads else (layer, pos)
                torch.testing.assert_close(ours.patched[index], expected, atol=1e-4, rtol=0)
    assert (ours.patched - ours.clean).abs().max() > 1e-2


@pytest.mark.parametrize("node", HOOKS)
def test_positions_of_each_prompt_and_sets_of_positions(tiny: Any, prompts: Any, node: str) -> None:
    _, corrupt = tiny.run_with_cache(prompts.corrupt)
    both = torch.stack([prompts.receiver, prompts.at])
    one, two = (
        patch(tiny, prompts, node=node, positions=prompts.receiver),
        patch(tiny, prompts, node=node, positions=both),
    )
    g = torch.Generator().manual_seed(3)
    sets = torch.rand(3, *prompts.clean.shape, generator=g) < torch.tensor([0.2, 0.6, 1.0])[:, None, None]
    many = patch(tiny, prompts, node=node, positions=sets)
    every = torch.arange(prompts.clean.shape[1])
    head = 2
    for layer in range(3):
        at = (layer, head) if node in PER_HEAD else (layer,)
        expected = slow(tiny, prompts, node, layer, head, every == prompts.receiver[:, None], corrupt)
        torch.testing.assert_close(one.patched[at][0], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(two.patched[at][0], expected, atol=1e-4, rtol=0)
        for i in range(3):
            expected = slow(tiny, prompts, node, layer, head, sets[i], corrupt)
            torch.testing.assert_close(many.patched[at][i], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("node", ["resid_pre", "attn_out", "z", "pattern"])
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_batch_size_does_not_matter(tiny: Any, prompts: Any, node: str, batch_size: int) -> None:
    options = {"node": node, "positions": torch.stack([prompts.receiver, prompts.at])}
    whole, parts = patch(tiny, prompts, **options), patch(tiny, prompts, batch_size=batch_size, **options)
    torch.testing.assert_close(parts.patched, whole.patched, atol=1e-5, rtol=0)


@pytest.mark.parametrize("node", HOOKS)
def test_patching_with_itself_changes_nothing(tiny: Any, prompts: Any, node: str) -> None:
    same = activation_patch(tiny, prompts.clean, prompts.clean, node=node, metric=prompts.metric, at=prompts.at)
    torch.testing.assert_close(same.patched, same.clean.expand_as(same.patched), atol=1e-5, rtol=0)


def test_after_the_position_that_is_read_nothing_matters(tiny: Any, prompts: Any) -> None:
    result = patch(tiny, prompts, node="resid_pre")
    for prompt, at in enumerate(prompts.at.tolist()):
        change = (result.patched - result.clean)[:, at + 1 :, prompt]
        assert change.numel() == 0 or change.abs().max() < 1e-5


def test_the_whole_first_stream_is_the_corrupted_run(tiny: Any, prompts: Any) -> None:
    everything = torch.ones(1, *prompts.clean.shape, dtype=torch.bool)
    result = patch(tiny, prompts, node="resid_pre", positions=everything)
    corrupt = prompts.metric(tiny(prompts.corrupt)[torch.arange(len(prompts.at)), prompts.at])
    for layer in range(3):
        torch.testing.assert_close(result.patched[layer, 0], corrupt, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("node", "theirs"),
    [("resid_pre", "get_act_patch_resid_pre"), ("z", "get_act_patch_attn_head_out_by_pos")],
)
def test_equals_transformer_lens(tiny: Any, prompts: Any, node: str, theirs: str) -> None:
    from transformer_lens import patching as peer

    rows = torch.arange(len(prompts.clean))
    _, corrupt = tiny.run_with_cache(prompts.corrupt)

    def metric(logits: Tensor) -> Tensor:
        return prompts.metric(logits[rows, prompts.at]).mean()

    table = getattr(peer, theirs)(tiny, prompts.clean, corrupt, metric)  # layer pos (head)
    ours = patch(tiny, prompts, node=node).patched.mean(-1)
    torch.testing.assert_close(ours if node == "resid_pre" else ours.movedim(1, 2), table, atol=1e-4, rtol=0)
