"""A certificate tells a circuit that is one from random edges and from a model without any."""

import pytest
import torch

from mechinterp.discovery import Graph, Scores, certify, half_splits, patched_logits
from mechinterp.models import organisms

EDGES = ["input→a0.1.v", "a0.1→a1.0.k", "input→a1.0.q", "input→a1.0.v", "a1.0→logits"]
"""What an induction head needs if positions stay as they are: the queries and keys of 0.1 are of positions alone."""


def exact(model, clean, elsewhere, *, metric, at, edges=None, batch_size=64, progress=False):
    """Edge by edge, a pass for each."""
    graph = Graph.of(model)
    which = graph.mask if edges is None else edges
    here = metric(patched_logits(model, clean, graph.mask, None, at=at, batch_size=batch_size))
    values = torch.zeros(len(clean), *graph.mask.shape)
    for s, r in which.nonzero().tolist():
        mask = graph.mask.clone()
        mask[s, r] = False
        patched = patched_logits(model, clean, mask, elsewhere, at=at, batch_size=batch_size)
        values[:, s, r] = metric(patched) - here
    return Scores("exact", graph, values, None if edges is None else which)


def prompts(seed, n=10):
    organism = organisms.induction()
    tokens, other = organism.tokens(n, seed=seed), organism.tokens(n, seed=seed + 100)
    at = torch.full((n,), tokens.shape[1] - 5)
    answers = tokens[torch.arange(n), at + 1]
    return tokens, other, {"at": at, "metric": lambda logits: logits[torch.arange(len(logits)), answers]}


@pytest.fixture(scope="module")
def scores():
    tokens, other, how = prompts(0)
    return exact(organisms.induction().model, tokens, other, **how)


@pytest.fixture(scope="module")
def certificate(scores):
    organism, seen, fresh = organisms.induction(), prompts(0), prompts(1)
    random = organisms.control(organism).model
    theirs = exact(random, seen[0], seen[1], **seen[2])
    return certify(
        organism.model, *fresh[:2], scores, len(EDGES), **fresh[2], control=(random, theirs), top=4,
        splits=6, nulls=8, missed=0.25,
    )  # fmt: skip


def test_a_known_circuit_is_certified(certificate):
    c = certificate
    assert {str(e) for e in c.graph.edges(c.circuit)} == set(EDGES)
    assert c.faithfulness.value == pytest.approx(1, abs=0.05)
    assert c.faithfulness.interval[0] <= c.faithfulness.value <= c.faithfulness.interval[1]
    assert len(c.nulls) == 8
    assert max(c.nulls) < 0.7
    assert sum(abs(f) < 0.05 for f in c.nulls) >= 5, "random edges of the same layers do nothing"
    assert c.curve.faithfulness[-1].value == pytest.approx(1)
    assert c.overlaps == pytest.approx([1] * 6)
    assert c.missed == 0.25


def test_top_edges_come_with_their_exact_effects_on_other_prompts(certificate, scores):
    organism, fresh = organisms.induction(), prompts(1)
    own = exact(organism.model, fresh[0], fresh[1], **fresh[2])
    assert len(certificate.rows) == 4
    sizes = [abs(row.score) for row in certificate.rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in certificate.rows:
        assert str(row.edge) in EDGES
        assert row.exact.value == pytest.approx(own.of(row.edge).mean().item(), rel=1e-4)
        assert row.exact.value == pytest.approx(row.score, rel=0.3)
        assert row.score == pytest.approx(scores.of(row.edge).mean().item())
        assert row.exact.value != row.score, "measured on prompts of their own"
        assert row.recurs == 1


def test_a_model_without_a_circuit_stands_beside_it(certificate):
    """Its metric does not tell prompts apart: there is nothing to be faithful to, and that is said."""
    assert "not clearly another" in certificate.control
    text = str(certificate)
    assert "random weights: with every edge off" in text
    assert "faithfulness: 1" in text
    assert "effect of an edge that was missed: at most 0.25" in text
    assert all(str(row.edge) in text for row in certificate.rows)
    html = certificate._repr_html_()
    assert html.count("<table") == html.count("</table>") == 2
    assert "a1.0→logits" in html
    assert len(html) < 20_000


def test_a_control_with_something_to_measure_has_its_curve():
    organism, (tokens, other, how) = organisms.induction(), prompts(1, n=6)
    random = organisms.control(organism).model
    rows = torch.arange(6)
    change = (random(tokens) - random(other))[rows, how["at"]] + (organism.model(tokens) - organism.model(other))[
        rows, how["at"]
    ]
    how = how | {"metric": lambda logits: (logits * change).sum(-1)}
    own, theirs = (exact(model, tokens, other, **how) for model in (organism.model, random))
    c = certify(
        organism.model, tokens, other, own, 5, **how, effects=own, nulls=1, splits=1, shares=(0.1, 0.5, 1),
        control=(random, theirs),
    )  # fmt: skip
    assert [float(f) for f in c.control.faithfulness][-1] == pytest.approx(1)
    assert "random weights: CPR, log size: " in str(c)


def test_a_given_circuit_has_no_curve_and_no_splits():
    organism, fresh = organisms.induction(), prompts(1, n=6)
    graph = Graph.of(organism.model)
    own = exact(organism.model, *fresh[:2], **fresh[2])
    c = certify(organism.model, *fresh[:2], graph.masked(EDGES), **fresh[2], effects=own, nulls=0)
    assert (c.curve, c.permuted, c.overlaps, c.nulls, c.method) == (None, None, (), (), "a given circuit")
    assert c.faithfulness.value == pytest.approx(1, abs=0.05)
    assert {str(row.edge): row.exact.value for row in c.rows} == {
        e: pytest.approx(own.of(e).mean().item()) for e in EDGES
    }
    assert all(row.recurs is None for row in c.rows)
    text = str(c)
    assert "not drawn" in text
    assert "recurs not known" in text
    assert "random weights: not measured" in text
    # An exact effect of one edge by hand: with the last edge off the model says what it says elsewhere.
    [last] = [row for row in c.rows if str(row.edge) == "a1.0→logits"]
    tokens, other, how = fresh
    rows = torch.arange(6)
    change = (organism.model(other) - organism.model(tokens))[rows, how["at"]]
    assert last.exact.value == pytest.approx(how["metric"](change).mean().item(), rel=0.1)


def test_halves_agree_as_far_as_prompts_do():
    graph = Graph(1, 1, 1, (False,))
    a, b = graph.masked(["input→m0"]), graph.masked(["m0→logits"])
    alike = Scores("x", graph, (2.0 * a + b).expand(6, -1, -1))
    overlaps, recurs = half_splits(alike, 2, splits=5)
    assert overlaps == (1,) * 5
    assert {str(e): share for e, share in recurs.items()} == {"input→m0": 1, "m0→logits": 1}
    # Two lists of prompts that need one edge each, and both a third one.
    both = graph.masked(["input→logits"])
    split = Scores("x", graph, torch.stack([3.0 * both + (a if i < 3 else b) for i in range(6)]))
    overlaps, recurs = half_splits(split, 2, splits=5, groups=torch.tensor([7, 7, 7, 9, 9, 9]))
    assert overlaps == pytest.approx([1 / 3] * 5)
    assert {str(e): share for e, share in recurs.items()} == {"input→logits": 1}
    by_prompt, some = half_splits(split, 2, splits=40, seed=1)
    assert set(by_prompt) == {1 / 3}, "of 3 prompts in a half the majority decides"
    assert half_splits(split, 2, splits=40, seed=1) == (by_prompt, some)
    # Two lists that are alike, each of prompts that are not.
    mixed = Scores("x", graph, torch.stack([a, b, a, b]).float())
    assert half_splits(mixed, 1, splits=10, groups=torch.tensor([0, 0, 1, 1]))[0] == (1,) * 10
    assert min(half_splits(mixed, 1, splits=10)[0]) == 0
    positions = Scores("x", graph, torch.stack([a, b])[None].float().expand(4, -1, -1, -1))
    assert half_splits(positions, 2, splits=2)[0] == (1, 1)
    for wrong in ({"groups": torch.zeros(6)}, {"splits": 0}, {"groups": torch.arange(5)}):
        with pytest.raises(ValueError, match="half-splits need at least two units"):
            half_splits(alike, 2, **wrong)


def test_what_cannot_be_certified_is_refused():
    organism, fresh = organisms.induction(), prompts(1, n=4)
    scores = exact(organism.model, *fresh[:2], **fresh[2])
    with pytest.raises(ValueError, match="say how many edges"):
        certify(organism.model, *fresh[:2], scores, **fresh[2])
    with pytest.raises(ValueError, match="exact effects of 3 prompts, expected those of the 4"):
        certify(
            organism.model, *fresh[:2], scores, 5, **fresh[2], effects=scores.some(torch.arange(3)), nulls=1, splits=1
        )
    with pytest.raises(ValueError, match="half-splits need"):
        certify(organism.model, *fresh[:2], scores.some(torch.arange(1)), 5, **fresh[2], nulls=1)
    other = organisms.previous_token().model
    with pytest.raises(ValueError, match="the scores are of"):
        certify(organism.model, *fresh[:2], scores, 5, **fresh[2], nulls=1, control=(other, scores))
