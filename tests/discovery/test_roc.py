"""ROC curves: numbers by hand, pairs counted one by one, Mann and Whitney's U, compiled programs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from mechinterp.discovery import Edge, Graph, Scores, Sender, auc, roc
from mechinterp.rasp import compile_program, programs
from mechinterp.rasp.circuits import truth

ONE = Graph(1, 1, 1, (False,))
"""Eight edges: three into the head, two into the MLP, three to the logits."""
NAMES = [str(e) for e in ONE]


def scored(graph, sizes, scored=None):
    """Scores by name; what is not named has 0."""
    values = torch.zeros(graph.mask.shape)
    for name, size in sizes.items():
        values[graph.masked([name])] = size
    return Scores("x", graph, values[None], scored)


def test_by_hand():
    assert NAMES == ["input→a0.0.q", "input→a0.0.k", "input→a0.0.v", "input→m0", "a0.0→m0", "input→logits",
                     "a0.0→logits", "m0→logits"]  # fmt: skip
    true = [NAMES[2], NAMES[6]]
    sizes = dict(zip(NAMES, [0.0, 3.0, -5.0, 3.0, 1.0, 0.5, 3.0, 0.2], strict=True))
    [found] = roc(ONE, scored(ONE, sizes), [true])
    # First a true one; then one true and two wrong at once.
    assert found.fpr == pytest.approx((0, 0, 2 / 6, 1))
    assert found.tpr == pytest.approx((0, 0.5, 1, 1))
    assert found.auc == pytest.approx(2 / 6 * 0.5 + 4 / 6)
    assert (found.positives, found.negatives) == (2, 6)
    # ACDC's: circuits at thresholds; the second is beaten by the first.
    masks = [ONE.masked(NAMES[i] for i in some) for some in ((2, 0), (1, 2, 0), (1, 2, 3, 4, 6))]
    [found] = roc(ONE, masks, [true])
    assert found.fpr == pytest.approx((0, 1 / 6, 3 / 6, 1))
    assert found.tpr == pytest.approx((0, 0.5, 1, 1))
    assert found.auc == pytest.approx(2 / 6 * 0.5 + 3 / 6)
    [found] = roc(ONE, [ONE.masked(NAMES[i] for i in some) for some in ((0,), (0, 2), (0, 2, 6))], [true])
    assert (found.fpr, found.tpr) == (pytest.approx((0, 1 / 6, 1)), (0, 1, 1)), "of points above each other the highest"
    [nothing] = roc(ONE, [], [true])
    assert (nothing.fpr, nothing.tpr, nothing.auc) == ((0, 1), (0, 1), 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=8, max_size=8), st.sets(st.sampled_from(NAMES), min_size=1, max_size=7))
def test_the_area_counts_pairs_and_ties_are_lost(sizes, true):
    sizes = dict(zip(NAMES, map(float, sizes), strict=True))
    [found] = roc(ONE, scored(ONE, sizes), [true])
    pairs = [sizes[a] > sizes[b] for a in true for b in set(NAMES) - true]
    assert found.auc == pytest.approx(sum(pairs) / len(pairs))
    assert list(found.fpr) == sorted(found.fpr)
    assert list(found.tpr) == sorted(found.tpr)
    masks = [ONE.masked(n for n in NAMES if sizes[n] >= least) for least in range(6)]
    assert roc(ONE, masks, [true]) == [found], "a family of thresholds is the scores"


def test_without_ties_it_is_the_usual_area():
    graph = Graph(4, 4, 2, (False,) * 4)
    generator = torch.Generator().manual_seed(0)
    true = (torch.rand(graph.mask.shape, generator=generator) < 0.2) & graph.mask
    values = torch.randn(3, *graph.mask.shape, generator=generator) * graph.mask * (1 + 1.5 * true)
    [found] = roc(graph, Scores("x", graph, values), [true])
    sizes = values.mean(0).abs()
    u = mannwhitneyu(sizes[true], sizes[graph.mask & ~true]).statistic
    assert found.auc == pytest.approx(u / found.positives / found.negatives)
    noise = torch.randn(values.shape, generator=generator) * graph.mask
    [null] = roc(graph, Scores("x", graph, noise), [true])
    assert 0.3 < null.auc < 0.65 < found.auc


def test_edges_that_were_not_scored_come_last():
    true = NAMES[:2]
    every = dict.fromkeys(NAMES, 0.0) | {NAMES[0]: 1.0}
    [found] = roc(ONE, scored(ONE, every, ONE.masked(NAMES[:1])), [true])
    assert found.auc == pytest.approx(0.5), "one found first, the other with all that were not scored"
    [found] = roc(ONE, scored(ONE, every, ONE.masked(NAMES[:2])), [true])
    assert found.auc == 1, "a score of 0 is a score"


def test_the_best_of_several_truths_comes_first():
    found = roc(ONE, scored(ONE, {NAMES[1]: 1.0}), [NAMES[:1], NAMES[1:2], ONE.masked(NAMES[:2])])
    assert [one.truth for one in found] == [1, 2, 0]
    assert [one.auc for one in found] == pytest.approx([1, 0.5, 0])


def test_heads_and_nodes():
    graph = Graph(2, 4, 2, (False, False))
    true = ["input→a0.2.v", "a0.2→a1.1.k", "a1.1→m1", "m1→logits"]
    # The right head through another input, the group's key that 0.3 shares.
    found = scored(graph, {"input→a0.2.q": 3, "a0.2→a1.1.v": 2, "a1.1→m1": 1, "m1→logits": 1, "input→a0.1.v": 0.5})
    with pytest.raises(ValueError, match=r"a0\.2.*is no edge of this graph"):
        roc(graph, found, [[*true, "input→a0.2.v"]])
    true[0], true[1] = "input→a0.1.v", "a0.2→a1.0.k"  # of groups: heads 2 and 3, heads 0 and 1
    [edges] = roc(graph, found, [true])
    [heads] = roc(graph, found, [true], by="head")
    [nodes] = roc(graph, found, [true], by="node")
    # Into heads: input to 0.2 and 0.3, 0.2 to 1.0 and 1.1 (its group's), 1.1 to MLP 1, and that to the logits.
    assert (edges.positives, heads.positives, nodes.positives) == (4, 6, 3)
    assert heads.positives + heads.negatives == sum(
        4 * before if kind == "q" else before
        for kind, before in (("q", 1), ("mlp", 5), ("q", 6), ("mlp", 10), ("logits", 11))
    )
    assert nodes.positives + nodes.negatives == 10
    [given] = roc(graph, found, [{Sender("head", 0, 2), Sender("head", 1, 1), Sender("mlp", 1)}], by="node")
    assert given == nodes
    assert nodes.auc == 1
    with pytest.raises(ValueError, match=r"a7\.0 is no head or MLP"):
        roc(graph, found, [{Sender("head", 7, 0)}], by="node")


@pytest.mark.parametrize("seed", range(4))
def test_edges_into_heads_are_told_apart_as_a_plain_loop_does(seed):
    graph, generator = Graph(2, 4, 2, (False, False)), torch.Generator().manual_seed(seed)
    values = torch.randn(1, *graph.mask.shape, generator=generator) * graph.mask
    true = (torch.rand(graph.mask.shape, generator=generator) < 0.1) & graph.mask
    sizes, hits = {}, set()
    for edge in graph:
        size = float(values[0][graph.masked([edge])].abs())
        kind, layer, head = edge.receiver
        heads = {"q": [head], "k": [2 * head, 2 * head + 1], "v": [2 * head, 2 * head + 1]}.get(kind, [kind])
        for name in ((str(edge.sender), layer, h) for h in heads):
            sizes[name] = max(size, sizes.get(name, 0))
            hits |= {name} if true[graph.masked([edge])] else set()
    [found] = roc(graph, Scores("x", graph, values), [true], by="head")
    assert (found.positives, found.negatives) == (len(hits), len(sizes) - len(hits))
    pairs = [sizes[a] > sizes[b] for a in hits for b in set(sizes) - hits]
    assert found.auc == pytest.approx(sum(pairs) / len(pairs))


def test_positions_count_where_they_are_largest():
    values = torch.zeros(1, 3, *ONE.mask.shape)
    values[0, 0][ONE.masked(NAMES[:1])], values[0, 2][ONE.masked(NAMES[:1])] = 1.0, -1.0
    values[0, 1][ONE.masked(NAMES[1:2])] = 0.5
    [found] = roc(ONE, Scores("x", ONE, values), [NAMES[:1]])
    assert found.auc == 1
    assert roc(ONE, [values[0].abs() >= 1], [NAMES[:1]]) == [found]


@pytest.mark.parametrize("name", ["hist", "frac_prevs"])
def test_a_programs_truth_is_found_by_its_own_scores(name):
    compiled = compile_program(**programs()[name])
    graph = Graph.of(compiled.model)
    circuits = truth(compiled, "zero", list(itertools.permutations(compiled.vocabulary, 3))).circuits
    found = roc(graph, Scores("truth", graph, graph.masked(circuits[0])[None].float()), circuits)
    assert found[0].auc == 1
    none = roc(graph, Scores("none", graph, graph.mask[None] * 0.0), circuits)
    assert none[0].auc == 0, "all alike: the pessimistic area"


def test_what_cannot_be_told_apart_is_refused():
    found = scored(ONE, {NAMES[0]: 1.0})
    with pytest.raises(ValueError, match="true circuit 0 has nothing in it"):
        roc(ONE, found, [[]])
    with pytest.raises(ValueError, match="true circuit 1 has everything in it"):
        roc(ONE, found, [NAMES[:1], [Edge.parse(n) for n in NAMES]])
    with pytest.raises(ValueError, match="no truths"):
        roc(ONE, found, [])
    with pytest.raises(ValueError, match="the scores are of"):
        roc(Graph(2, 1, 1, (False, False)), found, [NAMES[:1]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        roc(ONE, Scores("x", ONE, found.values / 0), [NAMES[:1]])


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="by must be one of edge, head, node, not 'neuron'"):
        roc(ONE, scored(ONE, {}), [NAMES[:1]], by="neuron")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(1, 3)), min_size=2, max_size=20))
def test_a_ranking_counts_pairs_item_by_item_and_a_weight_is_as_many_items(items):
    flags = [true for _, true, _ in items]
    values, true = torch.tensor([float(x) for x, *_ in items]), torch.tensor(flags)
    if all(flags) or not any(flags):
        with pytest.raises(ValueError, match="items that are true and items that are not"):
            auc(values, true)
        return
    won = [a > b for a, t, _ in items if t for b, u, _ in items if not u]
    assert auc(values, true) == pytest.approx(sum(won) / len(won))
    weights = torch.tensor([w for *_, w in items])
    repeated = auc(values.repeat_interleave(weights), true.repeat_interleave(weights))
    assert auc(values, true, weights.float()) == pytest.approx(repeated)


def test_a_ranking_of_edges_has_the_area_of_its_staircase():
    generator = torch.Generator().manual_seed(3)
    sizes = dict(zip(NAMES, torch.randint(4, (8,), generator=generator).tolist(), strict=True))
    true = [NAMES[1], NAMES[4], NAMES[6]]
    [found] = roc(ONE, scored(ONE, sizes), [true])
    values = torch.tensor([float(sizes[name]) for name in NAMES])
    assert auc(values, torch.tensor([name in true for name in NAMES])) == pytest.approx(found.auc)
    with pytest.raises(ValueError, match="one value and one flag an item"):
        auc(values, torch.ones(3, dtype=torch.bool))
