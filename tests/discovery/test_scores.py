"""Scores of edges: exact ones against plain hooks, gradients against finite differences of these."""

import itertools

import pytest
import torch
from families import FAMILIES, HEADS, Raw, bridge
from one_edge import by_hooks, native

from mechinterp.anatomy import Anatomy
from mechinterp.discovery import Edge, Graph, Scores, eap, eap_ig, exact, gim, patched_logits, said
from mechinterp.rasp import compile_program, programs

EDGES = [
    "input→a0.1.q", "input→a1.1.q", "a0.1→a1.0.k", "m0→a1.1.v", "m0→a2.2.k", "a0.0→m1", "m0→m1", "a0.2→m0",
    "a1.1→a2.3.q", "a1.3→a2.2.v", "a0.1→logits", "m1→logits",
]  # fmt: skip


def metric(logits):
    """Centred, since a bridge's unembedding may be; curved, so that scores are no exact effects."""
    values = logits.log_softmax(-1)
    return values[:, 3] - values[:, 5] + 0.1 * values[:, 7] ** 2


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    model = bridge(request.param)
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.randint(model.cfg.d_vocab, (3, 7), generator=generator) for _ in range(2))
    corrupt[:, :2] = clean[:, :2]
    return request.param, model, clean, corrupt, torch.tensor([6, 4, 5])


def naming(edge):
    return lambda message: f"{edge}: {message}"


def edges_of(model):
    """Edges that the model has, with what hooks can say of them."""
    graph, post = Graph.of(model), bool(Anatomy.of(model).layers[0].post1)
    for text in EDGES:
        edge = Edge.parse(text)
        own = edge.sender.layer == edge.receiver.layer and edge.receiver.kind == "mlp"
        if not (post and edge.sender.kind == "head") and not (own and graph.parallel[0]):
            yield edge, native(graph, edge)


def differences(raw, clean, corrupt, edge, at, share):
    rows = torch.arange(len(clean))
    there, back = (metric(by_hooks(raw, clean, corrupt, edge, x)[rows, at]) for x in (share, -share))
    return (there - back) / (2 * share)


def test_exact_is_what_hooks_say(case):
    name, model, clean, corrupt, at = case
    raw, rows = Raw(name), torch.arange(3)
    before = metric(raw.run(clean)[0][rows, at])
    every = list(edges_of(model))
    wanted = Graph.of(model).masked([ours for _, ours in every])
    found = exact(model, clean, corrupt, metric=metric, at=at, edges=wanted)
    for edge, ours in every:
        theirs = metric(by_hooks(raw, clean, corrupt, edge)[rows, at]) - before
        torch.testing.assert_close(found.of(ours), theirs, atol=2e-3, rtol=2e-3, msg=naming(edge))
    assert max(found.of(ours).abs().max() for _, ours in every) > 0.05


def test_exact_is_one_patched_pass_for_each_edge(case):
    """All edges, whatever flows along the patched one."""
    _, model, clean, corrupt, at = case
    graph, rows = Graph.of(model), torch.arange(3)
    told = said(model, corrupt)
    before = metric(model(clean)[rows, at])
    generator = torch.Generator().manual_seed(0)
    for elsewhere in (corrupt, told.mean(0), None):
        found = exact(model, clean, elsewhere, metric=metric, at=at, batch_size=7)
        for i in torch.randperm(len(graph), generator=generator)[:25].tolist():
            edge = list(graph)[i]
            on = graph.mask & ~graph.masked([edge])
            theirs = metric(patched_logits(model, clean, on, elsewhere, at=at)) - before
            torch.testing.assert_close(found.of(edge), theirs, atol=1e-3, rtol=1e-3, msg=naming(edge))


def test_eap_is_the_slope_of_one_edge(case):
    name, model, clean, corrupt, at = case
    raw, found = Raw(name, torch.float64), eap(model, clean, corrupt, metric=metric, at=at)
    some = [pair for i, pair in enumerate(edges_of(model)) if i % 2 == 0]
    for edge, ours in some:
        theirs = differences(raw, clean, corrupt, edge, at, 3e-3).float()
        torch.testing.assert_close(found.of(ours), theirs, atol=1e-3, rtol=2e-3, msg=naming(edge))
    assert max(found.of(ours).abs().max() for _, ours in some) > 0.05


def test_messages_and_positions_add_up(case):
    """Receiver by receiver, all senders' scores are that of the whole change of its input; positions add up, too."""
    _, model, clean, corrupt, at = case
    graph = Graph.of(model)
    found = eap(model, clean, corrupt, metric=metric, at=at)
    placed = eap(model, clean, corrupt, metric=metric, at=at, positions=True, batch_size=2)
    assert placed.values.shape == (3, 7, *graph.mask.shape)
    torch.testing.assert_close(placed.values.sum(1), found.values, atol=1e-4, rtol=1e-3)
    assert placed.values[:, :2].abs().max() < 1e-4, "prompts are the same there"
    assert not found.values[:, ~graph.mask].any()
    late = placed.values[1, 5:, :, graph.receivers.index(Edge.parse("m0→logits").receiver)]
    assert not late.any(), "after the position that is read"
    mean = eap(model, clean, said(model, corrupt).mean(0), metric=metric, at=at)
    none = eap(model, clean, None, metric=metric, at=at)
    halves = eap(model, clean, said(model, corrupt).mean(0) / 2, metric=metric, at=at)
    torch.testing.assert_close((mean.values + none.values) / 2, halves.values, atol=1e-3, rtol=1e-3)


def test_integrated_gradients_are_means_of_slopes_on_the_way(case):
    """With the input's message mixed by hand, the slopes of edges at the runs in between, averaged."""
    _, model, clean, corrupt, at = case
    here, there = said(model, clean), said(model, corrupt)
    found = eap_ig(model, clean, corrupt, metric=metric, at=at, steps=3)
    again = eap_ig(model, clean, corrupt, metric=metric, at=at, steps=3, batch_size=2)
    torch.testing.assert_close(again.values, found.values, atol=1e-4, rtol=1e-3)
    graph, slopes = Graph.of(model), torch.zeros(3, 3)
    anatomy = Anatomy.of(model)
    receiver = graph.receivers.index(Edge.parse("m0→logits").receiver)
    senders = [0, 2, graph.senders.index(Edge.parse("m1→logits").sender)]
    for k in range(3):
        x = there[:, :, 0] + k / 3 * (here[:, :, 0] - there[:, :, 0])
        for layer in anatomy.layers:
            x = layer(x)
        x = x[torch.arange(3), at]
        for i, sender in enumerate(senders):
            change = (there - here)[torch.arange(3), at, sender]
            up, down = (metric(anatomy.unembed(x + e * change)) for e in (0.01, -0.01))
            slopes[:, i] += (up - down) / 0.02 / 3
    torch.testing.assert_close(found.values[:, senders, receiver], slopes, atol=4e-3, rtol=2e-2)


def test_gradients_by_sender_reach_the_exact_effects_where_eap_does_not(case):
    """Along the message's own way the mean slope is the effect of an edge into the logits."""
    _, model, clean, corrupt, at = case
    graph = Graph.of(model)
    last = graph.masked([e for e in graph if e.receiver.kind == "logits" and e.sender.layer == 2])
    true = exact(model, clean, corrupt, metric=metric, at=at, edges=last)
    ours = eap_ig(model, clean, corrupt, metric=metric, at=at, steps=16, along="sender")
    rough = eap(model, clean, corrupt, metric=metric, at=at)

    def error(scores):
        return (scores.values - true.values)[:, last].abs().mean()

    assert error(ours) < 0.5 * error(rough), (error(ours), error(rough))
    assert torch.isfinite(ours.values).all()


def test_gim_changes_the_backward_pass_only(case):
    """Into the logits: only the final norm's scale is frozen there, by hand."""
    _, model, clean, corrupt, at = case
    found, plain = (f(model, clean, corrupt, metric=metric, at=at) for f in (gim, eap))
    assert (found.values - plain.values).abs().max() > 1e-3
    anatomy, graph, rows = Anatomy.of(model), Graph.of(model), torch.arange(3)
    here, there = said(model, clean)[rows, at], said(model, corrupt)[rows, at]
    x = anatomy.embed(clean)
    for layer in anatomy.layers:
        x = layer(x)
    x, scale = x[rows, at], anatomy.final.scale(x[rows, at])
    for sender in (1, len(graph.senders) - 1):
        bend = (there - here)[:, sender]

        def frozen(e, bend=bend):
            return metric(anatomy.cap(anatomy.read(anatomy.final(x) + e * anatomy.final.frozen(bend, scale))))

        theirs = (frozen(0.02) - frozen(-0.02)) / 0.04
        torch.testing.assert_close(found.values[:, sender, -1], theirs, atol=4e-3, rtol=2e-2)


@pytest.mark.parametrize("score", [eap, eap_ig, gim, exact])
def test_a_compiled_circuit_ranks_first_and_random_scores_do_not(score):
    compiled = compile_program(**programs()["reverse"])
    rows = list(itertools.product("abcd", repeat=3))
    clean = compiled.tokens(rows)
    corrupt = clean[torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))]
    answer = compiled.model(clean)[:, 1].argmax(-1)

    def right(logits):
        return logits.gather(1, answer[:, None])[:, 0]

    found = score(compiled.model, clean, corrupt, metric=right, at=torch.ones(len(clean), dtype=torch.long))
    assert {str(e) for e in found.graph.edges(found.top(2))} == {"input→a3.0.v", "a3.0→logits"}
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        order = torch.randperm(len(found.graph), generator=generator)
        mixed = torch.zeros_like(found.mean)
        mixed[found.graph.mask] = found.mean[found.graph.mask][order]
        hits += Scores("mixed", found.graph, mixed[None]).top(2).equal(found.top(2))
    assert hits < 10


def test_scores_by_name_and_rank():
    graph = Graph(2, 2, 1, (False, False))
    values = torch.zeros(2, *graph.mask.shape)
    values[:, *graph.masked(["m0→m1"]).nonzero()[0]] = torch.tensor([3.0, -1.0])
    values[:, *graph.masked(["a0.1→logits"]).nonzero()[0]] = -2
    scores = Scores("by hand", graph, values)
    assert len(scores) == 2
    assert scores.of("m0->m1").tolist() == [3, -1]
    assert graph.edges(scores.top(1)) == [Edge.parse("a0.1→logits")]
    assert {str(e) for e in graph.edges(scores.top(2))} == {"a0.1→logits", "m0→m1"}
    assert scores.top(len(graph)).equal(graph.mask)
    assert graph.edges(scores.some(torch.tensor([0])).top(1)) == [Edge.parse("m0→m1")]
    with pytest.raises(ValueError, match="edges of"):
        scores.top(len(graph) + 1)
    with pytest.raises(ValueError, match="was not scored"):
        Scores("part", graph, values, graph.masked(["m0→m1"])).of("a0.1→logits")


def test_what_cannot_be_scored_is_refused():
    model = bridge("GPT-2")
    clean = torch.randint(model.cfg.d_vocab, (3, 7), generator=torch.Generator().manual_seed(1))
    corrupt, at = clean.flip(0), torch.tensor([6, 6, 6])
    own = model(clean)[:, -1].log_softmax(-1).detach()

    def divergence(logits):
        return (own.exp() * (own - logits.log_softmax(-1))).sum(-1)

    for score in (eap, gim):
        for batch_size in (1, 3):
            with pytest.raises(ValueError, match=r"gradient is zero at the clean prompts.*eap_ig"):
                score(model, clean, corrupt, metric=divergence, at=at, batch_size=batch_size)
    assert eap_ig(model, clean, corrupt, metric=divergence, at=at).values.abs().max() > 1e-3
    with pytest.raises(ValueError, match="are the clean ones"):
        eap(model, clean, clean.clone(), metric=metric, at=at)
    for score in (eap, eap_ig, gim, exact):
        with pytest.raises(ValueError, match="aligned token by token"):
            score(model, clean, corrupt[:, :5], metric=metric, at=at)
        with pytest.raises(ValueError, match="one value a prompt"):
            score(model, clean, corrupt, metric=lambda x: x.mean(), at=at)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        eap(model, clean, corrupt, metric=lambda x: x.argmax(-1).float(), at=at)
    with pytest.raises(ValueError, match="steps"):
        eap_ig(model, clean, corrupt, metric=metric, at=at, steps=0)
    with pytest.raises(ValueError, match="along"):
        eap_ig(model, clean, corrupt, metric=metric, at=at, along="both")
    with pytest.raises(ValueError, match="have the shape"):
        exact(model, clean, corrupt, metric=metric, at=at, edges=torch.ones(2, 2, dtype=torch.bool))


def test_too_many_scores_are_refused_with_their_size(monkeypatch):
    from mechinterp.discovery import scores

    model = bridge("GPT-2")
    clean = torch.randint(model.cfg.d_vocab, (3, 7), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(scores, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"GiB.*score nodes"):
        eap(model, clean, clean.flip(0), metric=metric, at=torch.tensor([6, 6, 6]))


def test_heads_are_named_by_group():
    assert native(Graph(2, HEADS, 2, (False, False)), Edge.parse("m0→a1.3.k")) == Edge.parse("m0→a1.1.k")
