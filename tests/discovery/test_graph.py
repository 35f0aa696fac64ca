"""The graph of senders and receivers: counts that peers give, names, paths."""

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.discovery import Edge, Graph, Receiver, Sender, between_heads

SHAPES = st.builds(
    lambda layers, groups, share, parallel: Graph(layers, groups * share, groups, (parallel,) * layers),
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "layers", "heads", "groups", "parallel", "edges"),
    [
        ("gpt2", 12, 12, 12, False, 32_491),
        ("pythia-70m", 6, 8, 8, True, 3_580),
        ("pythia-160m", 12, 12, 12, True, 32_347),
        ("pythia-410m", 24, 16, 16, True, 231_493),
        ("Qwen2.5-0.5B", 24, 14, 14, False, 179_749),
        ("gemma-2-2b", 26, 8, 8, False, 74_218),
        ("Llama-3.1-8B, keys for every head", 32, 32, 32, False, 1_592_881),
        ("Llama-3.1-8B", 32, 32, 8, False, 805_681),
    ],
)
def test_there_are_as_many_edges_as_peers_count(name, layers, heads, groups, parallel, edges):
    assert len(Graph(layers, heads, groups, (parallel,) * layers)) == edges, name


@given(SHAPES)
def test_edges_are_named_and_read_back(graph):
    every = list(graph)
    assert len(set(every)) == len(every) == len(graph)
    assert [Edge.parse(str(edge)) for edge in every] == every
    assert torch.equal(graph.masked(map(str, every)), graph.mask)
    assert torch.equal(graph.live(graph.mask), graph.mask)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.data())
def test_live_edges_are_those_on_a_path(graph, data):
    """Against networkx on the graph whose nodes are senders and receivers, with each part's own wires added."""
    some = data.draw(st.lists(st.sampled_from(list(graph)), max_size=25, unique=True))
    wires = networkx.DiGraph([(str(e.sender) + " says", str(e.receiver)) for e in some])
    for receiver in graph.receivers[:-1]:
        share = graph.n_heads // graph.n_kv_heads if receiver.kind in ("k", "v") else 1
        heads = range(receiver.head * share, (receiver.head + 1) * share)
        says = [f"m{receiver.layer}"] if receiver.kind == "mlp" else [f"a{receiver.layer}.{h}" for h in heads]
        wires.add_edges_from((str(receiver), f"{name} says") for name in says)
    wires.add_nodes_from(["input says", "logits"])
    after, before = (
        f(wires, x) | {x} for f, x in ((networkx.descendants, "input says"), (networkx.ancestors, "logits"))
    )
    expected = {e for e in some if f"{e.sender} says" in after and str(e.receiver) in before}
    assert set(graph.edges(graph.live(graph.masked(some)))) == expected


@pytest.mark.parametrize(
    ("circuit", "heads"),
    [
        pytest.param("input→m0 m0→m1 m1→logits input→a1.0.q", "", id="MLPs only"),
        pytest.param("input→a0.0.v a0.0→a1.1.k a1.1→logits", "a0.0→a1.1.k a1.1→logits", id="direct"),
        pytest.param("m2→logits m1→m2 a0.0→m1 m0→m1 a0.1→m0", "a0.0→logits a0.1→logits", id="MLPs in any order"),
        pytest.param(
            "a0.0→m0 a0.1→m0 m0→a1.0.q m0→a2.0.v",
            "a0.0→a1.0.q a0.1→a1.0.q a0.0→a2.0.v a0.1→a2.0.v",
            id="an MLP of two heads",
        ),
        pytest.param(
            "a0.0→a1.0.q a1.0→m1 m1→a2.0.q m1→logits", "a0.0→a1.0.q a1.0→a2.0.q a1.0→logits", id="heads end paths"
        ),
        pytest.param("a0.0→logits a0.0→m0 m0→logits", "a0.0→logits", id="two ways"),
        pytest.param("a0.0→m0 m1→logits", "", id="cut"),
    ],
)
def test_a_circuit_between_heads_is_what_they_reach_through_mlps(circuit, heads):
    assert {str(e) for e in between_heads(map(Edge.parse, circuit.split()))} == set(heads.split())


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.data())
def test_edges_between_heads_are_those_with_a_path_through_mlps(graph, data):
    """Against networkx on a graph in which MLPs pass on what they hear and heads do not."""
    some = data.draw(st.lists(st.sampled_from(list(graph)), max_size=25, unique=True))
    wires = networkx.DiGraph([(str(e.sender), str(e.receiver)) for e in some])
    expected = {
        f"{sender}→{receiver}"
        for sender in graph.senders if sender.kind == "head" and str(sender) in wires
        for receiver in graph.receivers if receiver.kind != "mlp" and str(receiver) in wires
        and networkx.has_path(wires, str(sender), str(receiver))
    }  # fmt: skip
    assert {str(edge) for edge in between_heads(some)} == expected


def test_many_masks_are_pruned_at_once():
    graph = Graph(2, 2, 1, (False, False))
    masks = torch.rand(20, *graph.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    together = graph.live(masks)
    assert all(torch.equal(graph.live(one), many) for one, many in zip(masks, together, strict=True))


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ("input", "is not an edge; write it as m0→a1.0.q"),
        ("m1→a1.0.q", "no edge of this graph of 2 layers with 2 heads, 1 of them with"),
        ("a0.0→m0→logits", "is not an edge"),
        ("input→a0.1.k", "no edge of this graph"),
        ("input→a2.0.q", "no edge of this graph"),
        (Edge(Sender("mlp", 0), Receiver("mlp", 0)), "no edge of this graph"),
    ],
)
def test_an_edge_that_cannot_exist_is_refused(edge, message):
    with pytest.raises(ValueError, match=message):
        Graph(2, 2, 1, (False, False)).masked([edge])


def test_a_parallel_block_hides_its_heads_from_its_mlp():
    with pytest.raises(ValueError, match="no edge"):
        Graph(1, 2, 2, (True,)).masked(["a0.0→m0"])
    assert Graph(1, 2, 2, (False,)).masked(["a0.0→m0"]).sum() == 1
