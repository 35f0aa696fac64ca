"""Nulls keep sizes and layers and nothing else."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.discovery import Graph, Scores, permuted, random_edges

GRAPHS = st.builds(lambda n, g, s, p: Graph(n, g * s, g, (p,) * n), st.integers(1, 3), st.integers(1, 3),
                   st.integers(1, 2), st.booleans())  # fmt: skip


def kinds(graph, mask):
    return Counter((e.sender.layer, e.receiver.layer, e.receiver.kind) for e in graph.edges(mask))


@settings(max_examples=40, deadline=None)
@given(GRAPHS, st.integers(0, 10**6))
def test_random_edges_keep_layers(graph, seed):
    mask = (torch.rand(2, *graph.mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.3) & graph.mask
    drawn = random_edges(graph, mask, seed=seed)
    assert not (drawn & ~graph.mask).any()
    for before, after in zip(mask, drawn, strict=True):
        assert kinds(graph, before) == kinds(graph, after)
    assert torch.equal(drawn, random_edges(graph, mask, seed=seed))


@settings(max_examples=40, deadline=None)
@given(GRAPHS, st.integers(0, 10**6), st.booleans())
def test_permuted_scores_are_dealt_within_layers(graph, seed, some):
    generator = torch.Generator().manual_seed(seed)
    scored = (torch.rand(graph.mask.shape, generator=generator) < 0.7) & graph.mask if some else None
    there = graph.mask if scored is None else scored
    values = torch.randn(3, *graph.mask.shape, generator=generator) * there
    dealt = permuted(Scores("x", graph, values, scored), seed=seed)
    assert not dealt.values[:, ~there].any()
    columns = {tuple(v): e for e, v in zip(graph.edges(there), values[:, there.T.nonzero()[:, 1],
               there.T.nonzero()[:, 0]].T.tolist(), strict=True)}  # fmt: skip
    for edge in graph.edges(there):
        old = columns[tuple(dealt.of(edge).tolist())]
        assert old.sender.layer == edge.sender.layer
        assert (old.receiver.layer, old.receiver.kind) == (edge.receiver.layer, edge.receiver.kind)
    n = int(there.sum()) // 2
    assert kinds(graph, dealt.top(n)) == kinds(graph, Scores("x", graph, values, scored).top(n))


def test_every_edge_of_its_kind_is_as_likely():
    graph = Graph(2, 3, 3, (False, False))
    mask = graph.masked(["a0.0→a1.1.q"])
    drawn = Counter(str(graph.edges(random_edges(graph, mask, seed=seed))[0]) for seed in range(600))
    assert len(drawn) == 12, "three heads and an MLP, into three queries"
    assert min(drawn.values()) > 20
    assert max(drawn.values()) < 90
