"""Passes with edges on and off, against the model itself and against plain hooks on Hugging Face's own modules."""

import pytest
import torch
from families import FAMILIES, Raw, bridge
from hypothesis import given, settings
from hypothesis import strategies as st
from one_edge import by_hooks, native

from mechinterp.anatomy import Anatomy
from mechinterp.discovery import Edge, Graph, patched_logits, said
from mechinterp.rasp import compile_program, programs


def prompts(model, n=3, length=7):
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(model.cfg.d_vocab, (n, length), generator=generator) for _ in range(2))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, bridge(request.param)


def test_everything_on_is_the_model_and_everything_off_the_other_prompt(family):
    _, model = family
    clean, corrupt = prompts(model)
    graph, elsewhere = Graph.of(model), said(model, corrupt)
    on = patched_logits(model, clean, graph.mask, elsewhere)
    torch.testing.assert_close(on, model(clean), atol=2e-4, rtol=1e-4)
    off = patched_logits(model, clean, torch.zeros_like(graph.mask), elsewhere)
    torch.testing.assert_close(off, model(corrupt), atol=2e-4, rtol=1e-4)
    each = torch.stack([graph.mask, torch.zeros_like(graph.mask), graph.mask])
    mixed = patched_logits(model, clean, each, elsewhere)
    torch.testing.assert_close(mixed, torch.stack([on[0], off[1], on[2]]), atol=2e-4, rtol=1e-4)


def test_prompts_elsewhere_positions_read_and_batches_change_nothing(family):
    _, model = family
    clean, corrupt = prompts(model)
    graph, at = Graph.of(model), torch.tensor([6, 2, 4])
    some = torch.rand(graph.mask.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    whole = patched_logits(model, clean, some, said(model, corrupt))
    assert (whole - model(clean)).abs().max() > 1e-3
    parts = patched_logits(model, clean, some, corrupt, batch_size=2)
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=1e-4)
    read = patched_logits(model, clean, some, corrupt, at=at, batch_size=1)
    torch.testing.assert_close(read, whole[torch.arange(3), at], atol=2e-5, rtol=1e-4)
    each = patched_logits(model, clean, some.expand(3, 7, -1, -1), corrupt)
    torch.testing.assert_close(each, whole, atol=2e-5, rtol=1e-4)


def test_edges_by_position_are_those_of_prompts_that_differ_there_only(family):
    """With the other prompt the same but for a position, an edge from the input is off at that position only."""
    _, model = family
    clean, corrupt = prompts(model)
    graph = Graph.of(model)
    on = graph.mask & ~graph.masked(["input→m0", "input→a1.1.q"])
    here = torch.arange(7)[:, None, None] != 2
    ours = patched_logits(model, clean, (on | here)[None] & graph.mask, corrupt)
    other = clean.clone()
    other[:, 2] = corrupt[:, 2]
    torch.testing.assert_close(ours, patched_logits(model, clean, on, other), atol=2e-4, rtol=1e-4)
    assert (ours - model(clean)).abs().max() > 1e-3


def test_what_is_said_adds_up_to_the_stream(family):
    _, model = family
    clean, _ = prompts(model)
    anatomy, found = Anatomy.of(model), said(model, clean)
    none = patched_logits(model, clean, torch.zeros_like(Graph.of(model).mask), None)
    assert torch.isfinite(none).all(), "the biases alone"
    if all(layer.o.bias is None and not layer.post1 for layer in anatomy.layers):
        torch.testing.assert_close(anatomy.unembed(found.sum(2)), model(clean), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "edge", ["input→a1.1.q", "a0.1→a1.0.k", "m0→a1.1.v", "a0.0→m1", "m0→m1", "a1.1→logits", "m1→logits"]
)
def test_one_edge_off_is_what_hooks_say(family, edge):
    """The message's change is added to the stream, what the receiver makes of it is recorded, and put into a run."""
    name, model = family
    edge = Edge.parse(edge)
    if edge.sender.kind == "head" and Anatomy.of(model).layers[0].post1:
        pytest.skip("a head's own message under a post norm takes the norm's scale as given")
    graph = Graph.of(model)
    clean, corrupt = prompts(model)
    on = graph.mask & ~graph.masked([native(graph, edge)])
    ours = patched_logits(model, clean, on, said(model, corrupt))
    logits = by_hooks(Raw(name), clean, corrupt, edge)
    ours, theirs = ours.log_softmax(-1), logits.log_softmax(-1)  # a bridge's unembedding may be centred
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=1e-3)
    assert (ours - model(clean).log_softmax(-1)).abs().max() > 1e-3, "the edge matters"


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(programs())), seed=st.integers(0, 10**6), causal=st.booleans())
def test_compiled_programs_with_random_edges_are_what_a_plain_loop_says(name, seed, causal):
    compiled = compile_program(**programs()[name], causal=causal)
    graph, generator = Graph.of(compiled.model), torch.Generator().manual_seed(seed)
    length = compiled.max_len
    ids = torch.randint(len(compiled.vocabulary), (2, length), generator=generator)
    clean, corrupt = (compiled.tokens([[compiled.vocabulary[i] for i in row]]) for row in ids.tolist())
    mask = (torch.rand(graph.mask.shape, generator=generator) < 0.6) & graph.mask
    ours = patched_logits(compiled.model, clean, mask, said(compiled.model, corrupt))
    torch.testing.assert_close(ours[0], plainly(compiled, graph, mask, clean[0], corrupt[0]), atol=1e-4, rtol=1e-4)


def plainly(compiled, graph, mask, clean, corrupt):
    """Two runs side by side, receiver by receiver, from the weights alone."""
    inner, cfg = compiled.model.original_model, compiled.model.cfg
    weights = {name.replace("._original_component", ""): w for name, w in inner.state_dict().items()}
    everything = torch.ones_like(mask)

    def run(tokens, on, other):
        told = [weights["tok_embed.weight"][tokens] + weights["pos.weight"][: len(tokens)]]

        def hear(receiver):
            column = [str(r) for r in graph.receivers].index(receiver)
            return sum(x if on[i, column] else other[i] for i, x in enumerate(told))

        for layer in range(cfg.n_layers):
            heads = []
            for h in range(cfg.n_heads):
                rows = slice(h * cfg.d_head, (h + 1) * cfg.d_head)
                q, k, v = (
                    hear(f"a{layer}.{h}.{x}") @ weights[f"layers.{layer}.attn.{x}.weight"][rows].T for x in "qkv"
                )
                scores = q @ k.T / cfg.d_head**0.5
                if compiled.causal:
                    scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
                heads.append(scores.softmax(-1) @ v @ weights[f"layers.{layer}.attn.o.weight"][:, rows].T)
            told += heads
            hidden = (hear(f"m{layer}") @ weights[f"layers.{layer}.mlp.fc_in.weight"].T).relu()
            told.append(hidden @ weights[f"layers.{layer}.mlp.fc_out.weight"].T)
        return told, hear("logits") @ weights["head.weight"].T

    other, _ = run(corrupt, everything, None)
    return run(clean, mask, other)[1]


def test_shapes_that_do_not_fit_are_refused():
    model = bridge(next(iter(FAMILIES)))
    graph, (clean, _) = Graph.of(model), prompts(model)
    with pytest.raises(ValueError, match="the edges have the shape \\(2, 2\\); expected"):
        patched_logits(model, clean, torch.ones(2, 2, dtype=torch.bool), None)
    with pytest.raises(ValueError, match="what is said elsewhere has the shape"):
        patched_logits(model, clean, graph.mask, said(model, clean[:, :4]))
