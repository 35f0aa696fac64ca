"""Knock-outs against one hooked forward pass each; what is recorded; how groups are averaged."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.heads import Head, all_heads
from mechinterp.models import organisms
from mechinterp.patching import Activations, group_means, logits_at, mask, mean_reference, record, replace

GROUPS = torch.tensor([0, 3, 3, 0, 1, 0])


@pytest.fixture(scope="module")
def values(tiny: Any, prompts: Any) -> Activations:
    return mean_reference(tiny, prompts.corrupt, GROUPS)


def test_record_is_what_hooks_see(tiny: Any, prompts: Any) -> None:
    _, cache = tiny.run_with_cache(prompts.clean)
    for batch_size in (64, 4):
        ours = record(tiny, prompts.clean, batch_size=batch_size)
        for layer in range(tiny.cfg.n_layers):
            torch.testing.assert_close(ours.z[layer], cache[f"blocks.{layer}.attn.hook_z"], atol=1e-5, rtol=0)
            torch.testing.assert_close(ours.mlp[layer], cache[f"blocks.{layer}.hook_mlp_out"], atol=1e-5, rtol=0)


def test_logits_at(tiny: Any, prompts: Any) -> None:
    slow = tiny(prompts.clean)[torch.arange(len(prompts.clean)), prompts.at]
    for batch_size in (64, 1, 4):
        ours = logits_at(tiny, prompts.clean, prompts.at, batch_size=batch_size)
        torch.testing.assert_close(ours, slow, atol=1e-4, rtol=0)


def test_group_means_average_within_a_group(tiny: Any, prompts: Any) -> None:
    raw = record(tiny, prompts.clean)
    means = group_means(raw, GROUPS)
    for i, group in enumerate(GROUPS.tolist()):
        same = group == GROUPS
        torch.testing.assert_close(means.z[:, i], raw.z[:, same].mean(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(means.mlp[:, i], raw.mlp[:, same].mean(1), atol=1e-5, rtol=0)
    again = group_means(means, GROUPS)
    torch.testing.assert_close(again.z, means.z, atol=1e-6, rtol=0)
    alone = group_means(raw, torch.arange(len(GROUPS)))
    assert torch.equal(alone.z, raw.z)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("batch_size", [256, 13, 1])
def test_replace_equals_hooks(
    tiny: Any, prompts: Any, values: Activations, slow_ablation: Any, density: float, batch_size: int
) -> None:
    g = torch.Generator().manual_seed(int(100 * density))
    heads = torch.rand(4, 3, 4, *prompts.clean.shape, generator=g) < density
    mlps = torch.rand(4, 3, *prompts.clean.shape, generator=g) < density / 4
    heads[1] = heads[0]  # twins, and variants that agree up to a layer
    heads[2, :2], mlps[2, :2] = heads[0, :2], mlps[0, :2]
    ours = replace(tiny, prompts.clean, values, heads=heads, mlps=mlps, at=prompts.at, batch_size=batch_size)
    for variant in range(4):
        slow = slow_ablation(tiny, prompts.clean, values, heads[variant], mlps[variant], prompts.at)
        torch.testing.assert_close(ours[variant], slow, atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_replace_of_whole_nodes_equals_hooks(
    tiny: Any, prompts: Any, values: Activations, slow_ablation: Any, data: st.DataObject
) -> None:
    """Heads and MLPs marked throughout or not at all, as in a circuit: other shortcuts than with random masks."""
    coins = st.lists(st.booleans(), min_size=12, max_size=12)
    heads = torch.tensor(data.draw(coins)).view(3, 4, 1, 1).repeat(1, 1, *prompts.clean.shape)
    kept_at = data.draw(st.lists(st.sampled_from([Head(*h) for h in all_heads(tiny)]), max_size=3))
    for h in kept_at:
        heads[h] &= ~mask(tiny, prompts.clean.shape, {h: prompts.receiver})[h]
    mlps = torch.tensor(data.draw(st.lists(st.booleans(), min_size=3, max_size=3))).view(3, 1, 1)
    mlps = mlps.repeat(1, *prompts.clean.shape)
    ours = replace(tiny, prompts.clean, values, heads=heads, mlps=mlps, at=prompts.at)
    slow = slow_ablation(tiny, prompts.clean, values, heads, mlps, prompts.at)
    torch.testing.assert_close(ours, slow, atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_variants_that_replace_a_head_throughout_and_variants_that_do_not(
    tiny: Any, prompts: Any, values: Activations, slow_ablation: Any, order: tuple[int, ...]
) -> None:
    """A head that one variant needs is computed for all, though another replaces it everywhere."""
    shape = prompts.clean.shape
    some = {Head(2, 1): None}
    variants = [{Head(0, 0): None, Head(0, 2): None} | some, {Head(0, 1): prompts.receiver} | some, some]
    heads = torch.stack([mask(tiny, shape, variants[i]) for i in order])
    ours = replace(tiny, prompts.clean, values, heads=heads, at=prompts.at)
    for variant in range(3):
        slow = slow_ablation(tiny, prompts.clean, values, heads[variant], None, prompts.at)
        torch.testing.assert_close(ours[variant], slow, atol=1e-4, rtol=0)


def test_only_mlps_and_only_heads(tiny: Any, prompts: Any, values: Activations, slow_ablation: Any) -> None:
    mlps = torch.zeros(3, *prompts.clean.shape, dtype=torch.bool)
    mlps[1] = True
    ours = replace(tiny, prompts.clean, values, mlps=mlps, at=prompts.at)
    slow = slow_ablation(tiny, prompts.clean, values, None, mlps, prompts.at)
    torch.testing.assert_close(ours, slow, atol=1e-4, rtol=0)
    heads = mask(tiny, prompts.clean.shape, {Head(2, 3): prompts.at})
    ours = replace(tiny, prompts.clean, values.zeros_like(), heads=heads, at=prompts.at)
    slow = slow_ablation(tiny, prompts.clean, values.zeros_like(), heads, None, prompts.at)
    torch.testing.assert_close(ours, slow, atol=1e-4, rtol=0)


def test_replacing_by_itself_or_nothing_changes_nothing(tiny: Any, prompts: Any) -> None:
    clean, own = logits_at(tiny, prompts.clean, prompts.at), record(tiny, prompts.clean)
    everything = mask(tiny, prompts.clean.shape, dict.fromkeys(all_heads(tiny)))
    assert everything.all()
    for heads in (everything, ~everything):
        ours = replace(tiny, prompts.clean, own, heads=heads, at=prompts.at)
        torch.testing.assert_close(ours, clean, atol=1e-4, rtol=0)


def test_with_every_output_replaced_the_logits_are_linear_in_the_values_before_the_norm(
    tiny: Any, prompts: Any, values: Activations
) -> None:
    """All heads and MLPs replaced: the final stream is embedding + biases + the values, nothing else."""
    marked = torch.ones(3, 4, *prompts.clean.shape, dtype=torch.bool)
    logits = replace(tiny, prompts.clean, values, heads=marked, mlps=marked[:, 0], at=prompts.at)
    stream = tiny.W_E[prompts.clean] + tiny.W_pos[: prompts.clean.shape[1]] + tiny.b_O.sum(0) + values.mlp.sum(0)
    stream = stream + torch.einsum("lbphd,lhdm->bpm", values.z, tiny.W_O)
    slow = (tiny.ln_final(stream) @ tiny.W_U + tiny.b_U)[torch.arange(len(stream)), prompts.at]
    torch.testing.assert_close(logits, slow, atol=1e-4, rtol=0)


def test_marks_after_the_position_that_is_read_do_not_matter(tiny: Any, prompts: Any, values: Activations) -> None:
    after = torch.arange(prompts.clean.shape[1]) > prompts.at[:, None]
    heads = after.expand(3, 4, *after.shape)
    ours = replace(tiny, prompts.clean, values, heads=heads, at=prompts.at)
    torch.testing.assert_close(ours, logits_at(tiny, prompts.clean, prompts.at), atol=1e-4, rtol=0)


def test_axes_of_variants_are_kept(tiny: Any, prompts: Any, values: Activations) -> None:
    g = torch.Generator().manual_seed(0)
    heads = torch.rand(2, 3, 3, 4, *prompts.clean.shape, generator=g) < 0.2
    grid = replace(tiny, prompts.clean, values, heads=heads, at=prompts.at)
    assert grid.shape == (2, 3, 6, tiny.cfg.d_vocab)
    for i in range(2):
        for j in range(3):
            one = replace(tiny, prompts.clean, values, heads=heads[i, j], at=prompts.at)
            torch.testing.assert_close(grid[i, j], one, atol=1e-4, rtol=0)


def test_mask_marks_what_it_is_told(tiny: Any, prompts: Any) -> None:
    marked = mask(tiny, prompts.clean.shape, {Head(1, 2): None, Head(0, 3): prompts.receiver})
    assert marked[1, 2].all()
    assert marked[0, 3].sum() == len(prompts.clean)
    assert marked[0, 3].gather(1, prompts.receiver[:, None]).all()
    assert marked.sum() == prompts.clean.numel() + len(prompts.clean)


def test_knocking_out_a_role_of_the_organism_breaks_it() -> None:
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(32)
    means = mean_reference(organism.model, data.abc(1).tokens, data.group)
    end = data.positions["END"]

    def score(heads: list[Head]) -> float:
        marked = mask(organism.model, data.tokens.shape, dict.fromkeys(heads))
        return data.logit_diff(replace(organism.model, data.tokens, means, heads=marked, at=end)).mean().item()

    whole = data.logit_diff(logits_at(organism.model, data.tokens, end)).mean().item()
    inert = [h for h in all_heads(organism.model) if h not in organism.roles]
    assert abs(score(inert) - whole) < 0.01 * whole
    assert score(organism.heads("S-inhibition")) < 0.5 * whole
