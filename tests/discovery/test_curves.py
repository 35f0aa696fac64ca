"""Faithfulness curves: against passes made edge set by edge set, compiled programs, and numbers by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from families import FAMILIES, bridge
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.anatomy import Anatomy
from mechinterp.discovery import Curve, Graph, Scores, cmd, completeness, cpr, curve, patched_logits, said
from mechinterp.rasp import compile_program, programs
from mechinterp.rasp.circuits import truth


def setting(model, n=8, length=6, seed=1):
    """Prompts, others, where logits are read, and the logits along the line from what is said there to what is said."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = (torch.randint(model.cfg.d_vocab, (n, length), generator=generator) for _ in range(2))
    at, rows = torch.randint(1, length, (n,), generator=generator), torch.arange(n)
    change = model(clean)[rows, at] - model(corrupt)[rows, at]
    return clean, corrupt, at, lambda logits: (logits * change / change.norm(dim=-1, keepdim=True)).sum(-1)


def random_scores(graph, n=4, seed=2, pos=()):
    values = torch.randn(n, *pos, *graph.mask.shape, generator=torch.Generator().manual_seed(seed))
    return Scores("random", graph, values * graph.mask)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return bridge(request.param)


def test_a_curve_is_what_each_circuit_does_alone(family):
    clean, corrupt, at, metric = setting(family)
    graph = Graph.of(family)
    scores = random_scores(graph)
    found = curve(family, clean, corrupt, scores, metric=metric, at=at, shares=(0, 0.3, 0.7, 1), batch_size=3)
    assert found.requested == (0, int(0.3 * len(graph)), int(0.7 * len(graph)), len(graph))
    assert found.realised[0] == 0
    assert found.realised[-1] == len(graph)
    f = [float(x) for x in found.faithfulness]
    assert (f[0], f[-1]) == (0.0, pytest.approx(1.0))
    layer, some = Anatomy.of(family).layers[0], scores.mean.abs()
    for i in (1, 2):
        least = some[graph.mask].sort(descending=True).values[found.requested[i] - 1]
        mask = graph.mask & (some >= least)
        assert found.realised[i] == graph.live(mask).sum()
        # With resample ablation what is pruned changes nothing, unless heads share a norm.
        kept = graph.live(mask) if layer.post1 or layer.joint else mask
        alone = metric(patched_logits(family, clean, kept, said(family, corrupt), at=at))
        torch.testing.assert_close(found.values[i], alone, atol=2e-3, rtol=1e-3)
        assert f[i] == pytest.approx(float((alone - found.empty).mean() / (found.model - found.empty).mean()), abs=1e-3)
    assert found.realised[1] < found.requested[1], "something was pruned"
    torch.testing.assert_close(found.model, metric(family(clean)[torch.arange(8), at]), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(found.empty, metric(family(corrupt)[torch.arange(8), at]), atol=2e-3, rtol=1e-3)


def test_masks_are_run_as_scores_would_have_them_and_by_position():
    model = bridge("Llama")
    clean, corrupt, at, metric = setting(model)
    graph = Graph.of(model)
    scores = random_scores(graph)
    n = int(0.6 * len(graph))
    ours = curve(model, clean, corrupt, scores, metric=metric, at=at, shares=(0.6, 1))
    masks = [scores.top(n), scores.top(n).expand(6, -1, -1), graph.mask]
    given = curve(model, clean, said(model, corrupt), masks, metric=metric, at=at)
    torch.testing.assert_close(given.values[0], ours.values[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(given.values[1], ours.values[0], atol=1e-4, rtol=1e-4)
    assert given.realised[:2] == (ours.realised[0], 6 * ours.realised[0])
    each = random_scores(graph, pos=(6,))
    found = curve(model, clean, corrupt, each, metric=metric, at=at, shares=(0.9, 1))
    assert found.n_edges == 6 * len(graph)
    assert found.realised[1] == found.requested[1] == found.n_edges
    alone = patched_logits(model, clean, each.top(found.requested[0])[None], corrupt, at=at)
    torch.testing.assert_close(found.values[0], metric(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "ablation"), [("frac_prevs", "resample"), ("sort_unique", "zero")])
def test_true_edges_of_a_program_are_all_it_needs(name, ablation):
    compiled = compile_program(**programs()[name])
    rows = list(itertools.permutations(compiled.vocabulary, 3))
    [true] = truth(compiled, ablation, rows).circuits
    graph, tokens = Graph.of(compiled.model), compiled.tokens(rows)
    shuffled = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    elsewhere = None if ablation == "zero" else shuffled
    expected = compiled.answers(compiled.model(tokens))[:, 1]

    def right(logits):
        both = torch.stack([logits, logits], 1)  # `answers` leaves the first position out
        return ((compiled.answers(both)[:, 0] - expected).abs() < 0.02).double()

    scores = Scores("truth", graph, graph.masked(true)[None].double())
    options = {"metric": right, "at": torch.full((len(rows),), 2)}
    share = (len(true) + 0.5) / len(graph)
    found = curve(compiled.model, tokens, elsewhere, scores, shares=(share / 2, share, 1), **options)
    f = [float(x) for x in found.faithfulness]
    assert found.realised[1] == len(true), "every true edge is live"
    assert f[0] < 1
    assert f[1:] == [1, 1]
    [none] = completeness(compiled.model, tokens, elsewhere, graph.mask, **options)
    assert none.removed == len(graph)
    assert float(none.gap) == 0, "nothing is left of either"
    alone, both = completeness(
        compiled.model, tokens, elsewhere, graph.masked(true),
        [graph.masked(list(true)[:1]), graph.mask & ~graph.masked(true)], **options,
    )  # fmt: skip
    assert float(alone.model) < float(found.model.mean()), "each true edge is needed"
    assert (float(both.model), float(both.circuit)) == (1, 1), "without all others the model is the circuit"


def test_completeness_is_two_passes_and_their_difference():
    model = bridge("Llama")
    clean, corrupt, at, metric = setting(model)
    graph = Graph.of(model)
    circuit, k = random_scores(graph).top(len(graph) * 3 // 4), random_scores(graph, seed=5).top(len(graph) // 3)
    own, given = completeness(model, clean, corrupt, circuit, [graph.live(circuit), k], metric=metric, at=at)
    assert own == completeness(model, clean, corrupt, circuit, metric=metric, at=at)[0]
    m, c, rest, whole, none = (
        metric(patched_logits(model, clean, mask, corrupt, at=at)).mean().item()
        for mask in (graph.mask & ~k, circuit & ~k, graph.mask & ~circuit, graph.mask, graph.mask & False)
    )
    assert float(given.gap) == pytest.approx((c - m) / (whole - none), abs=1e-4)
    assert (float(given.model), float(given.circuit)) == (pytest.approx(m, abs=1e-3), pytest.approx(c, abs=1e-3))
    assert float(own.gap) == pytest.approx((none - rest) / (whole - none), abs=1e-4)
    assert given.removed == int(k.sum())


def by_hand(f, shares, realised, n_edges=1000, noise=0.0):
    """A curve of four prompts whose m(∅) is −1 and m(M) is 3."""
    jitter = noise * torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.5])
    values = torch.tensor(f, dtype=torch.float64)[:, None] * 4 - 1 + jitter
    requested = tuple(int(s * n_edges) for s in shares)
    whole = torch.full((6,), 3.0, dtype=torch.float64)
    return Curve(n_edges, tuple(shares), requested, tuple(realised), values, whole, whole - 4)


def test_areas_by_hand():
    one = by_hand([0, 0.5, 1.5, 1], [0.01, 0.1, 0.5, 1], [0, 10, 100, 1000])
    assert float(cpr(one)) == pytest.approx(0.09 * 0.25 + 0.4 * 1 + 0.5 * 1.25)
    assert float(cmd(one)) == pytest.approx(0.09 * 0.75 + 0.4 * 0.5 + 0.5 * 0.25)
    # .5 at 10, 1.5 at 100, 1 at 1000: two decades.
    assert float(cpr(one, log=True)) == pytest.approx((1 + 1.25) / 2)
    assert float(cmd(one, log=True)) == pytest.approx((0.5 + 0.25) / 2)
    late = by_hand([0, 1, 1], [0.01, 0.1, 1], [0, 100, 1000])
    assert float(cpr(late, log=True)) == pytest.approx(0.75), "nothing is left at 10, everything is there at 100"
    assert float(cmd(late, log=True)) == pytest.approx(0.25)
    early = by_hand([0, 0.5], [0.1, 0.5], [10, 500])
    start = math.log(100 / 10) / math.log(500 / 10)
    assert float(cpr(early, log=True)) == pytest.approx(
        ((start + 1) / 4 * math.log(5) + 0.75 * math.log(2)) / math.log(10)
    ), "from the smallest requested size, to the whole model, whose f is 1"


@pytest.mark.parametrize("log", [False, True])
def test_a_curve_that_is_always_1_has_the_best_areas(log):
    shares = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    best = by_hand([1.0] * 10, shares, [1, 1, 3, 9, 20, 40, 90, 150, 400, 1000])
    assert float(cpr(best, log=log)) == pytest.approx(1.0 if log else 0.999)
    assert float(cmd(best, log=log)) == pytest.approx(0, abs=1e-12)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8),
    st.lists(st.integers(1, 1000), min_size=9, max_size=9, unique=True),
    st.booleans(),
)
def test_below_1_what_one_area_lacks_the_other_has(f, sizes, log):
    sizes = [*sorted(set(sizes) - {1000})[: len(f) - 1], 1000]
    f = [*f[: len(sizes) - 1], 1.0]
    one = by_hand(f, [s / 1000 for s in sizes], [s // 2 if s < 1000 else s for s in sizes])
    one = Curve(1000, one.shares, tuple(sizes), one.realised, one.values, one.model, one.empty)
    width = 1 if log else one.shares[-1] - one.shares[0]
    assert float(cpr(one, log=log)) + float(cmd(one, log=log)) == pytest.approx(width)
    assert -1e-9 <= float(cpr(one, log=log)) <= width + 1e-9


def test_intervals_are_over_units():
    one = by_hand([0.2, 0.8, 1], [0.01, 0.1, 1], [10, 100, 1000], noise=0.3)
    assert cpr(one).interval[0] < float(cpr(one)) < cpr(one).interval[1]
    f = one.faithfulness[1]
    values = ((one.values[1] - one.empty) / 4).numpy()
    half = 2.5706 * values.std(ddof=1) / math.sqrt(6)
    np.testing.assert_allclose(f.interval, (values.mean() - half, values.mean() + half), rtol=1e-4)
    units = Curve(
        1000, one.shares, one.requested, one.realised, one.values, one.model, one.empty, "lists",
        torch.tensor([0, 0, 1, 1, 2, 2]),
    )  # fmt: skip
    assert (units.faithfulness[1].n, units.faithfulness[1].unit) == (3, "lists")
    assert cpr(units).n == 3


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("area", [cpr, cmd])
def test_the_difference_of_two_curves_varies_less_than_they_do(area, log):
    better = by_hand([0.4, 0.9, 1], [0.01, 0.1, 1], [10, 100, 1000], noise=0.3)
    worse = by_hand([0.2, 0.8, 1], [0.01, 0.1, 1], [10, 100, 1000], noise=0.3)
    gap = area(better, log=log, minus=worse)
    assert float(gap) == pytest.approx(float(area(better, log=log)) - float(area(worse, log=log)))
    both = [area(one, log=log).interval for one in (better, worse)]
    assert gap.interval[1] - gap.interval[0] < 0.1 * min(hi - lo for lo, hi in both)
    nothing = area(better, log=log, minus=better)
    assert (float(nothing), *nothing.interval) == (0, 0, 0)
    others = by_hand([0.2, 1], [0.1, 1], [100, 1000])
    others = Curve(
        1000, others.shares, others.requested, others.realised, others.values, others.model + 1, others.empty
    )
    with pytest.raises(ValueError, match="of other prompts"):
        area(better, minus=others)


def test_nothing_to_measure_and_what_does_not_fit_is_refused():
    model = bridge("Llama")
    clean, corrupt, at, metric = setting(model)
    graph = Graph.of(model)
    scores, options = random_scores(graph), {"metric": metric, "at": at}
    with pytest.raises(ValueError, match="the metric is not clearly another than the model's"):
        curve(model, clean, clean, scores, **options)
    with pytest.raises(ValueError, match="the metric is not clearly another than the model's"):
        curve(model, clean, corrupt, scores, metric=lambda x: x[:, 0] - x[:, 1], at=at)
    with pytest.raises(ValueError, match=r"shares must rise within 0\.\.1"):
        curve(model, clean, corrupt, scores, shares=(0.5, 0.2), **options)
    other = Graph(1, 1, 1, (False,))
    with pytest.raises(ValueError, match=r"the scores are of Graph\(n_layers=1.*the model is"):
        curve(model, clean, corrupt, random_scores(other), **options)
    with pytest.raises(ValueError, match="NaN or infinite"):
        curve(model, clean, corrupt, Scores("x", graph, scores.values * torch.nan), **options)
    few = Scores("x", graph, scores.values, graph.masked(["input→m0", "m0→logits"]))
    with pytest.raises(ValueError, match=f"2 of {len(graph)} edges were scored"):
        curve(model, clean, corrupt, few, **options)
    with pytest.raises(ValueError, match="no circuits"):
        curve(model, clean, corrupt, [], **options)
    with pytest.raises(ValueError, match="pairs that are no edges"):
        curve(model, clean, corrupt, [~graph.mask], **options)
    with pytest.raises(ValueError, match="at least two circuits"):
        cpr(curve(model, clean, corrupt, [graph.mask], **options))
    with pytest.raises(ValueError, match="no circuit of fewer than all edges"):
        cpr(by_hand([1, 1], [1, 1], [1000, 1000]), log=True)
    with pytest.raises(ValueError, match=r"elsewhere: id .* is not in the model's vocabulary"):
        curve(model, clean, corrupt + 10**6, scores, **options)


@pytest.mark.usefixtures("unchecked")
def test_masks_of_another_shape_are_refused():
    model = bridge("Llama")
    clean, corrupt, at, metric = setting(model)
    for wrong in (torch.ones(2, 2, dtype=torch.bool), Graph.of(model).mask.float(), "m0→logits"):
        with pytest.raises(ValueError, match="a circuit of this graph is a mask, bool"):
            curve(model, clean, corrupt, [wrong], metric=metric, at=at)
