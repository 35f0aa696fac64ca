"""Nodes patched alone and together, against plain hooks on every family."""

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, Raw, bridge
from hypothesis import given, settings
from hypothesis import strategies as st
from question import AT, CLEAN, CORRUPT, LENGTH, ROWS, metric

from mechinterp.discovery import Node, node_effects
from mechinterp.discovery.diagnostics import missed
from mechinterp.models.handmade import native


def groups(model):
    return getattr(model.cfg, "n_key_value_heads", None) or HEADS


def hooked(raw, n_groups, nodes):
    """Change of the metric, by plain hooks."""
    there, edits = raw.run(CORRUPT)[1], {}
    for kind, layer in {(node.kind, node.layer) for node in nodes}:

        def put(x, kind=kind, layer=layer):
            for node in nodes:
                if (node.kind, node.layer) != (kind, layer):
                    continue
                if kind.endswith("_out"):
                    x[:, node.pos] = there[kind, layer][:, node.pos]
                    continue
                n = n_groups if kind in "kv" else HEADS
                mine = x[:, node.pos].unflatten(1, (n, -1))
                mine[:, node.unit] = there[kind, layer][:, node.pos].unflatten(1, (n, -1))[:, node.unit]
            return x

        edits[kind, layer] = put
    return metric(raw.run(CLEAN, edits)[0][ROWS, AT]) - metric(raw.run(CLEAN)[0][ROWS, AT])


@pytest.mark.parametrize("name", FAMILIES)
def test_effects_are_what_hooks_say(name):
    model, raw = bridge(name), Raw(name)
    last = groups(model) - 1
    single = [
        Node("q", 1, 5, 2), Node("k", 0, 3, last), Node("k", 2, 5, 0), Node("v", 1, 2, last), Node("z", 2, 5, 3),
        Node("attn_out", 0, 4), Node("mlp_out", 1, 5),
    ]  # fmt: skip
    together = [single[:3], [Node("z", 0, pos, head) for pos in (0, 4) for head in (1, 3)] + [single[-1]], single]
    ours = node_effects(model, CLEAN, CORRUPT, [*single, *together], metric=metric, at=AT)
    theirs = torch.stack([hooked(raw, last + 1, some) for some in [*([x] for x in single), *together]], 1)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    assert (theirs.abs().amax(0) > 3e-4).all()


def test_a_neuron_s_effect_is_what_a_hook_says():
    raw, node = Raw("GPT-2"), Node("neurons", 1, 5, 7)
    ours = node_effects(bridge("GPT-2"), CLEAN, CORRUPT, [node], metric=metric, at=AT)[:, 0]
    got, module = [], raw.module(1, "mlp.c_proj")

    def hook(module, args):
        x = args[0].clone()
        if len(got) == 1:
            x[:, 5, 7] = got[0][:, 5, 7]
        got.append(x)
        return (x,)

    handle = module.register_forward_pre_hook(hook)
    with torch.no_grad():
        _, patched = (raw.model(x, use_cache=False).logits for x in (CORRUPT, CLEAN))
    handle.remove()
    theirs = metric(patched[ROWS, AT]) - metric(raw.run(CLEAN)[0][ROWS, AT])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert theirs.abs().max() > 1e-3


@settings(max_examples=10, deadline=None)
@given(batch_size=st.integers(1, 12), order=st.permutations(range(6)))
def test_batches_and_order_change_nothing(batch_size, order):
    model = bridge("Gemma 2")
    some = [Node("q", 2, 5, 1), Node("z", 0, 1), [Node("k", 1, 3, 1), Node("v", 1, 3, 1)], [], Node("mlp_out", 1, 4)]
    some.append([Node("neurons", 1, 2, i) for i in range(48)])
    whole = node_effects(model, CLEAN, CORRUPT, some, metric=metric, at=AT)
    parts = node_effects(model, CLEAN, CORRUPT, [some[i] for i in order], metric=metric, at=AT, batch_size=batch_size)
    torch.testing.assert_close(parts, whole[:, list(order)], atol=1e-5, rtol=1e-3)
    assert whole[:, 3].abs().max() == 0, "a set of none"
    assert (whole[:, [0, 1, 2, 4, 5]].abs().amax(0) > 1e-4).all()


def test_what_comes_after_the_logits_that_are_read_does_nothing():
    """The second prompt is read at 5, so a node at 7 touches the others only, and one at 8 only the first."""
    some = [Node("z", 0, 7, 1), Node("v", 0, 8, 1), [Node("mlp_out", 1, 7), Node("q", 1, 8)]]
    for batch_size in (1, 256):
        ours = node_effects(bridge("GPT-2"), CLEAN, CORRUPT, some, metric=metric, at=AT, batch_size=batch_size)
        assert ((ours.abs() > 1e-4) == torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 1]]).bool()).all()
    early = torch.tensor([5, 3, 6])
    assert node_effects(bridge("GPT-2"), CLEAN, CORRUPT, some, metric=metric, at=early).abs().max() < 1e-4


def test_where_positions_see_later_ones_all_of_it_counts():
    """On a model without norms, against the bridge's own hooks."""
    generator = torch.Generator().manual_seed(0)
    shape = {"n_layers": 2, "n_heads": 3, "d_head": 2, "d_model": 4, "d_mlp": 4, "n_ctx": 8, "d_vocab": 11}
    shape |= {"d_vocab_out": 2, "attention_dir": "bidirectional"}
    sizes = {"attn.q": (6, 4), "attn.k": (6, 4), "attn.v": (6, 4), "attn.o": (4, 6), "mlp.fc_in": (4, 4)}
    sizes = {f"layers.{i}.{name}": size for i in range(2) for name, size in (sizes | {"mlp.fc_out": (4, 4)}).items()}
    sizes |= {"tok_embed": (11, 4), "pos": (8, 4), "head": (2, 4)}
    weights = {f"{name}.weight": 0.7 * torch.randn(size, generator=generator) for name, size in sizes.items()}
    model = native(shape, weights, ["<bos>", *map(str, range(10))], name="bidirectional")
    clean, corrupt = (torch.randint(1, 11, (3, 7), generator=generator) for _ in range(2))
    at, first = torch.tensor([6, 1, 3]), lambda x: x[:, 0]
    _, there = model.run_with_cache(corrupt)
    for kind in "qkvz":
        largest = 0.0
        for node in (Node(kind, 0, 5, 1), Node(kind, 1, 1, 2), Node(kind, 1, 4, 0)):
            name = f"blocks.{node.layer}.attn.hook_{kind}"

            def put(x, hook, name=name, node=node):
                x = x.clone()
                x[:, node.pos, node.unit] = there[name][:, node.pos, node.unit]
                return x

            patched = model.run_with_hooks(clean, fwd_hooks=[(name, put)])
            theirs = (patched - model(clean))[torch.arange(3), at, 0]
            ours = node_effects(model, clean, corrupt, [node], metric=first, at=at)[:, 0]
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
            largest = max(largest, float(theirs.abs().max()))
        assert largest > 1e-3


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("q", LAYERS, 0), "a3.0.q@0 is no node: there are 3 layers, 9 positions and 4 of q"),
        (Node("z", 0, LENGTH), "is no node"),
        (Node("z", 0, 0, HEADS), "is no node"),
        (Node("k", 0, 0, 2), "3 layers, 9 positions and 2 of k in a layer"),
        (Node("neurons", 0, 0, 48), "and 48 of neurons"),
        (Node("mlp_out", 0, 0, 1), "and 1 of mlp_out"),
        (Node("q", 0, -1), "is no node"),
        (Node("w", 0, 0), "kinds must be some of"),
    ],
)
def test_nodes_that_are_not_there_are_refused(node, message):
    model = bridge("Llama")
    for some in ([node], [[Node("q", 0, 0), node]]):
        with pytest.raises(ValueError, match=message):
            node_effects(model, CLEAN, CORRUPT, some, metric=metric, at=AT)
    with pytest.raises(ValueError, match=message):
        missed(model, CLEAN, CORRUPT, [node], metric=metric, at=AT)
