"""The bound against effects that are known, and costs by hand."""

import math

import pytest
import torch
from families import bridge
from hypothesis import given
from hypothesis import strategies as st
from question import AT, CLEAN, CORRUPT, metric
from scipy import stats

from mechinterp.discovery import Node, atp, node_effects
from mechinterp.discovery.diagnostics import mean_cost, missed, subset_bound, verification_cost
from mechinterp.models.handmade import native


def additive(sets, prompts=2, nodes=10, share=0.3, noise=0.3, seed=0):
    """Effects that add up but for noise, known."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(nodes, prompts, generator=generator)
    members = torch.rand(sets, nodes, generator=generator) < share
    return truth, members, members.float() @ truth + noise * torch.randn(sets, prompts, generator=generator)


def test_estimate_and_error_are_welch_s():
    _, members, found = additive(60)
    estimate, bound = subset_bound(found, members, confidence=0.9)
    level = 1 - 0.1 / estimate.numel()
    for node in range(10):
        for prompt in range(2):
            x, there = found[:, prompt].double().numpy(), members[:, node].numpy()
            test = stats.ttest_ind(x[there], x[~there], equal_var=False)
            low, high = test.confidence_interval(2 * level - 1)  # both sides: each at the level
            assert float(estimate[node, prompt]) == pytest.approx((low + high) / 2, abs=1e-9)
            assert float(bound[node, prompt]) == pytest.approx(max(-low, high), abs=1e-9)


def test_no_effect_exceeds_its_bound_in_more_runs_than_confidence_allows():
    """The null is a bound without the union over nodes and prompts: it fails in most runs."""
    runs = 200
    held, alone = 0, 0
    for seed in range(runs):
        truth, members, found = additive(80, seed=seed)
        held += bool((truth.abs() <= subset_bound(found, members, confidence=0.9)[1]).all())
        alone += bool((truth.abs() <= subset_bound(found, members, confidence=1 - 0.1 * truth.numel() / 4)[1]).all())
    assert held / runs > 0.9 - 3 * math.sqrt(0.9 * 0.1 / runs)
    assert alone < held


def test_the_bound_falls_with_the_square_root_of_the_sets():
    """Without effects there is nothing but the error: slope −1/2 against the number of sets, AT-5."""
    counts = [100, 400, 1600]
    sizes = []
    for sets in counts:
        generator = torch.Generator().manual_seed(sets)
        members, noise = torch.rand(sets, 30, generator=generator) < 0.3, torch.randn(sets, 2, generator=generator)
        sizes.append(float(subset_bound(noise, members)[1].mean()))
    slope = stats.linregress([math.log(x) for x in counts], [math.log(x) for x in sizes]).slope
    assert slope == pytest.approx(-0.5, abs=0.1)


@pytest.fixture(scope="module")
def linear():
    """Attention of one layer without norms: effects of z and of values add up."""
    generator = torch.Generator().manual_seed(0)
    shape = {"n_layers": 1, "n_heads": 3, "d_head": 2, "d_model": 4, "d_mlp": 4, "n_ctx": 8, "d_vocab": 11}
    sizes = {"layers.0.attn.q": (6, 4), "layers.0.attn.k": (6, 4), "layers.0.attn.v": (6, 4), "layers.0.attn.o": (4, 6)}
    sizes |= {"tok_embed": (11, 4), "pos": (8, 4), "head": (2, 4)}
    weights = {f"{name}.weight": torch.randn(size, generator=generator) for name, size in sizes.items()}
    model = native(shape | {"d_vocab_out": 2}, weights, ["<bos>", *map(str, range(10))], name="linear")
    clean, corrupt = (torch.randint(1, 11, (4, 7), generator=generator) for _ in range(2))
    return model, clean, corrupt, {"metric": lambda x: x[:, 0] - x[:, 1], "at": torch.tensor([6, 5, 6, 6])}


def test_what_was_missed_is_bounded(linear):
    """With no node verified, all effects are below their bounds; with the large ones verified, bounds are smaller."""
    model, clean, corrupt, options = linear
    scores = atp(model, clean, corrupt, kinds=["v"], **options)
    left = scores.nodes
    truth = node_effects(model, clean, corrupt, left, **options)
    found = missed(model, clean, corrupt, left, sets=300, share=0.3, **options)
    assert found.estimate.shape == found.bound.shape == (4, len(left))
    assert (truth.abs() <= found.bound + 1e-6).all()
    assert (truth.abs().mean(0) <= found.contribution + 1e-6).all()
    assert found.largest == pytest.approx(float(found.contribution.max()))
    assert torch.corrcoef(torch.stack([found.estimate.flatten(), truth.flatten()]))[0, 1] > 0.9
    assert (found.estimate - truth).abs().mean() < 0.25 * truth.abs().max()
    small = missed(model, clean, corrupt, scores.top(len(left))[-8:], sets=300, share=0.3, **options)
    assert small.largest < 0.3 * found.largest, "without the large ones, less is left and less is noise"


def test_the_seed_is_all_that_is_random(linear):
    model, clean, corrupt, options = linear
    some = [Node("z", 0, pos, head) for pos in (5, 6) for head in range(3)]
    first, again, other = (
        missed(model, clean, corrupt, some, sets=60, share=0.4, seed=s, **options) for s in (0, 0, 1)
    )
    torch.testing.assert_close(first.bound, again.bound)
    assert (first.estimate - other.estimate).abs().max() > 1e-6
    parts = missed(model, clean, corrupt, some, sets=60, share=0.4, batch_size=3, **options)
    torch.testing.assert_close(first.bound, parts.bound, atol=1e-5, rtol=1e-4)


def test_costs_of_verification_by_hand():
    """Truth 9 > 7 > 5 > 1 and a node without effect. Estimates put them at 1, 4, 2, 5: costs 1, 4/2, 4/3, 5/4."""
    truth = torch.tensor([9.0, 7.0, 5.0, 1.0, 0.0])
    estimate = torch.tensor([10.0, 2.0, 8.0, 1.0, 4.0])
    cost = verification_cost(estimate, truth)
    torch.testing.assert_close(cost, torch.tensor([1.0, 4 / 2, 4 / 3, 5 / 4]))
    torch.testing.assert_close(verification_cost(estimate, truth, passes=3, most=2), torch.tensor([4.0, 3.5]))
    by_hand = (2.0 ** (1 / 2) * (4 / 3) ** (1 / 3) * (5 / 4) ** (1 / 4)) ** (1 / (1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert mean_cost(cost) == pytest.approx(by_hand)
    assert mean_cost(verification_cost(truth, truth)) == 1.0


def test_a_tie_is_verified_as_a_whole():
    truth = torch.tensor([0.0, 1.0, 0.0, 2.0])
    tied = torch.tensor([3.0, 3.0, 3.0, 5.0])
    torch.testing.assert_close(verification_cost(tied, truth), torch.tensor([1.0, 4 / 2]))
    torch.testing.assert_close(verification_cost(torch.zeros(4), truth), torch.tensor([4.0, 2.0]))


@given(st.lists(st.integers(1, 9).map(float), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_order_of_the_nodes_is_nothing_to_the_cost(truth, random):
    estimate = [random.choice([0.0, 1.0, 2.0, 3.0]) for _ in truth]
    order = list(range(len(truth)))
    random.shuffle(order)
    one = verification_cost(torch.tensor(estimate), torch.tensor(truth))
    other = verification_cost(torch.tensor([estimate[i] for i in order]), torch.tensor([truth[i] for i in order]))
    torch.testing.assert_close(one, other)
    assert (one >= 1).all()
    assert float(one[-1]) >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": []}, "nodes must be some nodes, each once"),
        ({"nodes": [Node("q", 0, 0)] * 2}, "each once; got 2, 1 of them different"),
        ({"share": 0.0}, "share must lie between 0 and 1"),
        ({"share": 1.0}, "share must lie between 0 and 1"),
        ({"sets": 0}, "share must lie between 0 and 1"),
        ({"sets": 9}, "at least 5 are needed: take more sets"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(options, message):
    given = {"nodes": [Node("q", 0, 0), Node("z", 1, 3, 1)], "metric": metric, "at": AT} | options
    with pytest.raises(ValueError, match=message):
        missed(bridge("GPT-2"), CLEAN, CORRUPT, given.pop("nodes"), **given)


@pytest.mark.parametrize(
    ("estimate", "truth", "options", "message"),
    [
        ([1.0], [1.0, 2.0], {}, "differ in shape"),
        ([-1.0], [1.0], {}, "estimates must be contributions, finite and not below 0"),
        ([1.0], [math.nan], {}, "truth must be contributions"),
        ([1.0], [0.0], {}, "K must lie in 1..0"),
        ([1.0, 2.0], [0.0, 1.0], {"most": 2}, "K must lie in 1..1, the number of nodes that have an effect, not 2"),
    ],
)
def test_costs_of_what_is_not_a_ranking_are_refused(estimate, truth, options, message):
    with pytest.raises(ValueError, match=message):
        verification_cost(torch.tensor(estimate), torch.tensor(truth), **options)
