"""From edges to heads: an organism's known circuit comes out, and is judged as any other."""

import pytest
import torch

from mechinterp import viz
from mechinterp.circuits import Circuit, Setting, completeness, faithfulness, minimality
from mechinterp.discovery import Graph, Sender, drawing, head_scores, heads_of, patched_logits, to_circuit
from mechinterp.heads import Head
from mechinterp.models import organisms
from mechinterp.patching import mean_reference


def found_by_brute_force(organism, tokens, other, at, metric):
    """How much the metric changes if one edge is off, edge by edge."""
    graph = Graph.of(organism.model)
    here = metric(patched_logits(organism.model, tokens, graph.mask, None, at=at)).mean()
    values = torch.zeros(graph.mask.shape)
    for s, r in graph.mask.nonzero().tolist():
        mask = graph.mask.clone()
        mask[s, r] = False
        values[s, r] = metric(patched_logits(organism.model, tokens, mask, other, at=at)).mean() - here
    return graph, values


def test_an_organisms_heads_are_found_and_judged():
    organism = organisms.induction()
    tokens, other = organism.tokens(12, seed=0), organism.tokens(12, seed=1)
    rows, at = torch.arange(12), torch.full((12,), tokens.shape[1] - 5)
    answers = tokens[rows, at + 1]

    def metric(logits):
        return logits[torch.arange(12), answers]

    graph, values = found_by_brute_force(organism, tokens, other, at, metric)
    mask = values.abs() > 0.02 * values.abs().max()
    assert heads_of(graph, mask) == sorted(organism.roles), "the previous-token head and the induction head"
    every = {str(i): torch.full_like(at, i) for i in range(tokens.shape[1])}
    circuit = to_circuit(graph, mask, tuple(every), organism.roles)
    assert {head: circuit.role(head) for head in circuit} == organism.roles
    means = mean_reference(organism.model, other, torch.zeros(12, dtype=torch.long))
    setting = Setting(organism.model, tokens, every, at, metric, means)
    assert faithfulness(setting, circuit).recovered.value == pytest.approx(1, abs=0.05)
    [gap] = completeness(setting, circuit, [list(circuit)])
    assert abs(gap.gap.value) < 0.05 * gap.model.value + 1
    change = minimality(setting, circuit)
    assert all(one.share > 0.1 for one in change.values())


def test_heads_are_those_on_a_path():
    graph = Graph(2, 4, 2, (False, False))
    mask = graph.masked(["input→a0.1.v", "a0.2→a1.0.k", "a1.1→logits", "a0.3→logits", "a0.0→a1.0.q"])
    assert heads_of(graph, mask) == [Head(0, 2), Head(0, 3), Head(1, 1)], "0.3 shares its value with 0.2"
    by_position = torch.stack([graph.masked(["input→a0.1.v", "a1.1→logits"]), graph.masked(["a0.2→a1.0.k"])])
    assert heads_of(graph, by_position) == [Head(0, 2), Head(1, 1)]
    found = to_circuit(graph, mask, ["END"])
    assert isinstance(found, Circuit)
    assert found.roles == ["found"]
    with pytest.raises(ValueError, match="at least one head"):
        to_circuit(graph, graph.masked(["input→logits"]), ["END"])
    with pytest.raises(ValueError, match="kept at no position"):
        to_circuit(graph, mask, [])


def test_a_drawing_has_every_edge_once_the_largest_first():
    graph = Graph(2, 4, 2, (False, False))
    mask = graph.masked(["input→a0.1.v", "a0.1→a1.1.q", "a1.1→m1", "m1→logits"])
    weights = torch.zeros(graph.mask.shape)
    for name, size in {"input→a0.1.v": 0.1, "a0.1→a1.1.q": -3.0, "a1.1→m1": 1.0, "m1→logits": 2.0}.items():
        weights[graph.masked([name])] = size
    with pytest.raises(ValueError, match="no edges"):
        viz.edge_graph(**drawing(graph, graph.mask & False, weights), title="t", caption="c")
    with pytest.raises(ValueError, match="no edge of this graph"):
        graph.masked(["input→a0.2.v"])  # a group's value is named by its group
    found = drawing(graph, mask, weights)
    assert found["edges"] == [
        ("a0.1", ("a1.1",), "into queries", -3.0),
        ("m1", ("logits",), "into the logits", 2.0),
        ("a1.1", ("m1",), "into MLPs", 1.0),
        ("input", ("a0.2", "a0.3"), "into values", pytest.approx(0.1)),
    ]
    assert found["levels"] == {"input": -1, "a0.1": 0, "a0.2": 0, "a0.3": 0, "a1.1": 1, "m1": 1.5, "logits": 2}
    assert len(viz.edge_graph(**found, title="t", caption="c").plot.data) == 4 + 1 + 4


def test_a_head_is_ranked_by_the_largest_of_its_edges():
    graph = Graph(2, 3, 1, (False, True))
    values = torch.randn(graph.mask.shape, generator=torch.Generator().manual_seed(0))
    found = head_scores(graph, values)
    for layer in range(2):
        for head in range(3):
            leaving = [
                abs(float(values[graph.row[e.sender], graph.column[e.receiver]]))
                for e in graph
                if e.sender == Sender("head", layer, head)
            ]
            assert float(found[layer, head]) == pytest.approx(max(leaving))
    with pytest.raises(ValueError, match="the edges of this graph"):
        head_scores(graph, values[:2])


def test_a_drawing_leaves_out_heads_of_a_group_that_nobody_hears():
    graph = Graph(2, 4, 2, (False, False))
    mask = graph.masked(["input→a0.1.v", "a0.2→logits"])
    assert drawing(graph, mask, mask * 1.0)["edges"][0] == ("input", ("a0.2",), "into values", 1.0)
