"""AtP and AtP*, against plain Hugging Face hooks with autograd on every family, and on models where they are exact."""

from collections import Counter

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, Raw, bridge
from hypothesis import given, settings
from hypothesis import strategies as st
from question import AT, CLEAN, CORRUPT, LENGTH, ROWS, N, metric
from scipy.stats import spearmanr

from mechinterp.discovery import Node, atp, node_effects, nodes
from mechinterp.discovery.diagnostics import mean_cost, verification_cost
from mechinterp.models import organisms
from mechinterp.models.handmade import native
from mechinterp.patching import activation_patch

KINDS = ("q", "k", "v", "z", "attn_out", "mlp_out")


def score(model, **options):
    return atp(model, CLEAN, CORRUPT, metric=metric, at=AT, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return bridge(request.param), Raw(request.param)


def groups(model):
    return getattr(model.cfg, "n_key_value_heads", None) or HEADS


def slopes(raw, tokens, dropped=None):
    """The metric's gradient with respect to everything, with a layer's outputs held fixed if asked; and all values."""
    values = Raw.run(raw, tokens)[1]
    names = [(name, layer) for name in KINDS for layer in range(LAYERS)]
    leaves = {name: torch.zeros_like(values[name], requires_grad=True) for name in names}
    base = torch.zeros_like(values["resid_pre", 0], requires_grad=True)
    edits = {("resid_pre", 0): lambda x: x + base}
    for name in names:
        hold = name[0].endswith("_out") and name[1] == dropped
        edits[name] = lambda x, leaf=leaves[name], hold=hold: (x + leaf).detach() if hold else x + leaf
    logits, got = Raw.run.__wrapped__(raw, tokens, edits)
    patterns = {("pattern", layer): got["pattern", layer] for layer in range(LAYERS)}
    inputs = leaves | patterns
    found = torch.autograd.grad(metric(logits[ROWS, AT]).sum(), list(inputs.values()), allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs.values(), found, strict=True)]
    return dict(zip(inputs, found, strict=True)), values | {k: x.detach() for k, x in patterns.items()}


def slow(raw, kind, n_groups, dropped=None):
    """Equation 4 of the paper, [prompt pos layer unit]."""
    gradient, here = slopes(raw, CLEAN, dropped)
    there = Raw.run(raw, CORRUPT)[1]
    each = torch.stack([(there[kind, i] - here[kind, i]) * gradient[kind, i] for i in range(LAYERS)], 2).sum(-1)
    if kind.endswith("_out"):
        return each[..., None]
    return each.unflatten(-1, (n_groups if kind in "kv" else HEADS, -1)).sum(-1)


def test_atp_is_the_gradient_times_the_change(family):
    model, raw = family
    ours = score(model, kinds=KINDS)
    assert ours.method == "AtP"
    for kind in KINDS:
        theirs = slow(raw, kind, groups(model))
        torch.testing.assert_close(ours.values[kind], theirs, atol=1e-4, rtol=2e-3)
        assert theirs.abs().max() > 1e-2
        torch.testing.assert_close(ours.contribution[kind], theirs.abs().mean(0), atol=1e-4, rtol=2e-3)


def test_graddrop_holds_one_layer_fixed_at_a_time(family):
    model, raw = family
    ours = score(model, kinds=KINDS, graddrop=True)
    assert ours.method == "AtP + GradDrop"
    plain = score(model, kinds=KINDS)
    for kind in KINDS:
        theirs = sum(slow(raw, kind, groups(model), dropped).abs() for dropped in range(LAYERS)) / (LAYERS - 1)
        torch.testing.assert_close(ours.values[kind], theirs, atol=1e-4, rtol=2e-3)
        assert (theirs - plain.values[kind].abs()).abs().max() > 1e-2


@pytest.mark.parametrize("graddrop", [False, True])
@pytest.mark.parametrize("kind", ["q", "k"])
def test_the_qk_fix_takes_patterns_from_the_patched_model(family, kind, graddrop):
    """Queries and keys are put into a run one by one; how all of the layer's patterns change, times their gradient."""
    model, raw = family
    ours = score(model, kinds=[kind], fix_qk=True, graddrop=graddrop)
    assert ours.method == ("AtP*" if graddrop else "AtP + QK fix")
    there, layer, n = Raw.run(raw, CORRUPT)[1], 1, HEADS if kind == "q" else groups(model)
    runs = [slopes(raw, CLEAN, dropped) for dropped in (range(LAYERS) if graddrop else [None])]
    here = runs[0][1]
    for unit in range(n):
        for pos in (0, 2, 5, 8):

            def put(x, unit=unit, pos=pos):
                x[:, pos].unflatten(1, (n, -1))[:, unit] = there[kind, layer][:, pos].unflatten(1, (n, -1))[:, unit]
                return x

            change = Raw.run(raw, CLEAN, {(kind, layer): put})[1]["pattern", layer] - here["pattern", layer]
            each = [(change * gradient["pattern", layer]).sum((1, 2, 3)) for gradient, _ in runs]
            theirs = sum(x.abs() for x in each) / (LAYERS - 1) if graddrop else each[0]
            torch.testing.assert_close(ours.values[kind][:, pos, layer, unit], theirs, atol=1e-4, rtol=2e-3)
    assert (ours.values[kind] - score(model, kinds=[kind], graddrop=graddrop).values[kind]).abs().max() > 1e-3


DOWN = {"GPT-2": "mlp.c_proj", "Pythia": "mlp.dense_4h_to_h", "Llama": "mlp.down_proj", "Gemma 2": "mlp.down_proj"}


@pytest.mark.parametrize("name", DOWN)
def test_neurons_are_what_the_last_projection_reads(name):
    raw, ours = Raw(name), score(bridge(name), kinds=["neurons"]).values["neurons"]

    def run(tokens):
        got, handles = [], []

        def keep(module, args):
            x = args[0].detach().clone().requires_grad_() if not got else args[0]
            got.append(x)
            x.requires_grad or x.requires_grad_()
            return (x,)

        try:
            handles = [raw.module(i, DOWN[name]).register_forward_pre_hook(keep) for i in range(LAYERS)]
            logits = raw.model(tokens, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return torch.autograd.grad(metric(logits[ROWS, AT]).sum(), got), got

    (gradient, here), (_, there) = run(CLEAN), run(CORRUPT)
    theirs = torch.stack([(b - a).detach() * g for a, b, g in zip(here, there, gradient, strict=True)], 2)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=2e-3)
    assert theirs.abs().max() > 1e-2


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["GPT-2", "Gemma 2", "OLMo 2", "Falcon"]),
    batch_size=st.integers(1, 2),
    fix_qk=st.booleans(),
    graddrop=st.booleans(),
)
def test_batches_change_nothing(name, batch_size, fix_qk, graddrop):
    options = {"kinds": ("q", "k", "z", "neurons"), "fix_qk": fix_qk, "graddrop": graddrop}
    whole, parts = (score(bridge(name), **options, batch_size=b) for b in (N, batch_size))
    for kind, x in whole.values.items():
        torch.testing.assert_close(parts.values[kind], x, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("graddrop", [False, True])
def test_how_many_passes_it_takes(monkeypatch, graddrop):
    """AtP: two forward and one backward. GradDrop: (layers − 1) / 2 backward passes more. Batches: one forward more."""
    layers, real, count = LAYERS, (nodes.trace, torch.autograd.grad, nodes.final_streams), Counter()

    def traced(anatomy, tokens, keep, *, start=None, stop=None, **options):
        first, last = 0 if start is None else start[0], layers if stop is None else stop
        count["forward"] += (last - first) * len(tokens)
        return real[0](anatomy, tokens, keep, start=start, stop=stop, **options)

    def back(outputs, inputs, *args, **options):
        if isinstance(outputs, torch.Tensor) and outputs.ndim == 3:
            count["backward"] += len(outputs)
        return real[1](outputs, inputs, *args, **options)

    def read(anatomy, tokens, at):
        count["forward"] += layers * len(tokens)
        return real[2](anatomy, tokens, at)

    monkeypatch.setattr(nodes, "trace", traced)
    monkeypatch.setattr(torch.autograd, "grad", back)
    monkeypatch.setattr(nodes, "final_streams", read)
    model = bridge("GPT-2")
    score(model, fix_qk=True, graddrop=graddrop)
    passes = 1 + graddrop * (layers - 1) / 2
    assert {k: x / (layers * N) for k, x in count.items()} == {"forward": 2, "backward": passes}
    count.clear()
    score(model, fix_qk=True, graddrop=graddrop, batch_size=1)
    assert {k: x / (layers * N) for k, x in count.items()} == {"forward": 3, "backward": passes}


def handmade(weights, *, layers=1, heads=1, d_head=4, vocabulary=6, **shape):
    sizes = {"n_layers": layers, "n_heads": heads, "d_head": d_head, "d_model": 4, "d_mlp": 4, "n_ctx": 8}
    sizes |= {"d_vocab": vocabulary, "d_vocab_out": 2} | shape
    return native(sizes, weights, ["<bos>", *(f"w{i}" for i in range(vocabulary - 1))], name="by hand")


def attention_only(seed, sharpness=1.0, **shape):
    """One layer of three heads without MLP and norms, at random: the metric is linear in each pattern."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"layers.0.attn.q": (6, 4), "layers.0.attn.k": (6, 4), "layers.0.attn.v": (6, 4), "layers.0.attn.o": (4, 6)}
    sizes |= {"tok_embed": (11, 4), "pos": (8, 4), "head": (2, 4)}
    weights = {f"{name}.weight": torch.randn(size, generator=generator) for name, size in sizes.items()}
    weights["layers.0.attn.q.weight"] *= sharpness
    return handmade(weights, heads=3, d_head=2, vocabulary=11, **shape)


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("kind", ["q", "k", "v", "z"])
def test_where_all_is_linear_after_the_pattern_the_fix_is_exact(kind, direction):
    model = attention_only(0, attention_dir=direction)
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.randint(1, 11, (5, 7), generator=generator) for _ in range(2))
    options = {"metric": lambda x: x[:, 0] - x[:, 1], "at": torch.tensor([6, 5, 2, 0, 4])}
    exact = activation_patch(model, clean, corrupt, node=kind, **options)
    exact = (exact.patched - exact.clean).permute(3, 2, 0, 1)  # prompt pos layer head
    fixed = atp(model, clean, corrupt, kinds=[kind], fix_qk=True, **options).values[kind]
    torch.testing.assert_close(fixed, exact, atol=1e-4, rtol=1e-4)
    assert exact.abs().max() > 0.1
    plain = atp(model, clean, corrupt, kinds=[kind], **options).values[kind]
    assert ((plain - exact).abs().max() > 0.1) == (kind in ("q", "k"))


def matrix(rows, columns, **entries):
    """Zeros but for entries, named r0c1."""
    found = torch.zeros(rows, columns)
    for name, x in entries.items():
        row, column = name[1:].split("c")
        found[int(row), int(column)] = x
    return found


def test_a_saturated_head_is_missed_by_atp_and_not_with_the_fix():
    """w2 attends to w0, worth 1, and w3 to w1, worth −1, each with a score of 8 among zeros: a query or a key moves it.

    The linear estimates are the softmax's slope times the change of scores: some hundredths.
    Width: two features that keys read, the value, the logit, two features that queries read.
    """
    tokens = matrix(6, 6, r1c0=1.0, r1c2=1.0, r2c1=1.0, r2c2=-1.0, r3c4=1.0, r4c5=1.0)
    attn = "layers.0.attn."
    weights = {
        "tok_embed.weight": tokens,
        attn + "q.weight": matrix(4, 6, r0c4=16.0, r1c5=16.0),
        attn + "k.weight": matrix(4, 6, r0c0=1.0, r1c1=1.0),
        attn + "v.weight": matrix(4, 6, r0c2=1.0),
        attn + "o.weight": matrix(6, 4, r3c0=1.0),
        "head.weight": matrix(2, 6, r0c3=1.0),
    }
    model = handmade(weights, d_model=6)
    clean = torch.tensor([[0, 1, 2, 3]])
    options = {"metric": lambda x: x[:, 0], "at": torch.tensor([3])}
    weight = torch.tensor(8.0).exp() / (torch.tensor(8.0).exp() + 3)
    rest = (1 - weight) / 3
    # Another query: from w0 to w1. Another key in place of w0's: the four are seen alike, and the values cancel.
    for node, corrupt, truth in (
        (Node("q", 0, 3), torch.tensor([[0, 1, 2, 4]]), -2 * (weight - rest)),
        (Node("k", 0, 1), torch.tensor([[0, 5, 2, 3]]), -(weight - rest)),
    ):
        exact = node_effects(model, clean, corrupt, [node], **options)
        assert float(exact) == pytest.approx(float(truth), abs=1e-5)
        plain, fixed = (
            atp(model, clean, corrupt, fix_qk=fix, kinds=[node.kind], **options).of([node]) for fix in (False, True)
        )
        assert abs(float(plain)) < 0.05
        assert float(fixed) == pytest.approx(float(truth), abs=1e-5)


def test_paths_that_cancel_are_missed_by_atp_and_not_with_graddrop():
    """Layer 0 copies x to the logit; layer 1 adds −relu(x) + relu(x − 2). At x = 1 slopes cancel; at x = 4 it is 2.

    With layer 1 held fixed the estimate is what goes directly, 4 − 1.
    """
    weights = {
        "tok_embed.weight": matrix(6, 4, r1c0=1.0, r2c0=4.0),
        "layers.0.attn.v.weight": matrix(4, 4, r0c0=1.0),
        "layers.0.attn.o.weight": matrix(4, 4, r1c0=1.0),
        "layers.1.mlp.fc_in.weight": matrix(4, 4, r0c1=1.0, r1c1=1.0),
        "layers.1.mlp.fc_in.bias": torch.tensor([0.0, -2.0, 0.0, 0.0]),
        "layers.1.mlp.fc_out.weight": matrix(4, 4, r1c0=-1.0, r1c1=1.0),
        "head.weight": matrix(2, 4, r0c1=1.0),
    }
    model = handmade(weights, layers=2)
    clean, corrupt = torch.tensor([[1]]), torch.tensor([[2]])
    options = {"metric": lambda x: x[:, 0], "at": torch.tensor([0])}
    node = Node("z", 0, 0)
    assert float(node_effects(model, clean, corrupt, [node], **options)) == pytest.approx(2.0, abs=1e-5)
    plain, dropped = (atp(model, clean, corrupt, kinds=["z"], graddrop=drop, **options) for drop in (False, True))
    assert float(plain.of([node])) == pytest.approx(0.0, abs=1e-5)
    assert float(dropped.of([node])) == pytest.approx(3.0, abs=1e-5)


def test_the_fix_finds_the_heads_of_the_ioi_circuit_that_atp_misses():
    """The backup name mover rests, its softmax saturated, for the name is written; another name's key moves it."""
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    options = {"metric": data.logit_diff, "at": data.positions["END"]}
    pair = data.tokens, data.abc(1).tokens
    plain, fixed = (atp(organism.model, *pair, fix_qk=fix, **options) for fix in (False, True))
    some = [node for node in plain.nodes if node.layer > 1]
    truth = node_effects(organism.model, *pair, some, **options).abs().mean(0)
    plain, fixed = (scores.of(some).abs().mean(0) for scores in (plain, fixed))
    missed = (truth > 0.5) & (plain < 0.1 * truth)
    assert missed.sum() >= 3
    assert {some[i].kind for i in missed.nonzero().flatten().tolist()} <= {"q", "k"}
    assert not ((truth > 0.5) & (fixed < 0.1 * truth)).any()
    costs = [mean_cost(verification_cost(x, truth, most=30)) for x in (plain, fixed)]
    assert costs[1] < costs[0] / 3


def test_estimates_follow_the_truth_and_not_that_of_other_nodes():
    """On random weights; the null is the truth of nodes of the same kind and layer, in another order."""
    model = bridge("Llama")
    scores = score(model, kinds=("q", "k", "v", "z"), fix_qk=True)
    some = scores.nodes[::5]
    truth = node_effects(model, CLEAN, CORRUPT, some, metric=metric, at=AT).flatten()
    ours = scores.of(some).flatten()
    felt = truth.abs() > 1e-4
    assert felt.sum() > 50
    assert spearmanr(ours[felt], truth[felt])[0] > 0.7
    order = torch.randperm(int(felt.sum()), generator=torch.Generator().manual_seed(0))
    assert abs(spearmanr(ours[felt], truth[felt][order])[0]) < 0.3


def test_nothing_is_corrupted_and_nothing_comes_after_what_is_read():
    model = bridge("Gemma 2")
    same = atp(model, CLEAN, CLEAN, metric=metric, at=AT, fix_qk=True, graddrop=True)
    assert all(x.abs().max() < 1e-4 for x in same.values.values())
    early = atp(model, CLEAN, CORRUPT, metric=metric, at=torch.tensor([3, 5, 2]), kinds=["z", "k"], fix_qk=True)
    assert early.values["z"].shape == (N, LENGTH, LAYERS, HEADS)
    for prompt, at in enumerate([3, 5, 2]):
        for x in early.values.values():
            assert x[prompt, at + 1 :].abs().max() == 0
            assert x[prompt, : at + 1].abs().max() > 1e-3


def test_the_top_is_sorted_by_contribution():
    scores = score(bridge("GPT-2"), kinds=("z", "mlp_out"))
    sizes = [float(scores.values[n.kind][:, n.pos, n.layer, n.unit].abs().mean()) for n in scores.nodes]
    assert len(sizes) == LENGTH * LAYERS * (HEADS + 1) == len(set(scores.nodes))
    best = scores.top(len(sizes))
    assert set(best) == set(scores.nodes)
    found = scores.of(best).abs().mean(0)
    assert (found.diff() <= 1e-6).all()
    assert float(found[0]) == pytest.approx(max(sizes), rel=1e-5)


def test_nodes_have_names():
    names = [str(Node(kind, 3, 5, 1)) for kind in ("q", "z", "neurons")] + [str(Node("mlp_out", 2, 0))]
    assert [*names, str(Node("attn_out", 2, 7))] == ["a3.1.q@5", "a3.1.z@5", "m3.1@5", "m2@0", "a2@7"]


def divergence(model):
    target = model(CLEAN)[ROWS, AT].log_softmax(-1)
    return lambda x: (target.exp() * (target - x.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["q", "w"]}, "kinds must be some of q, k, v, z, neurons"),
        ({"kinds": []}, "kinds must be some of"),
        ({"kinds": ["q", "q"]}, "each once"),
        ({"corrupt": CORRUPT[:, :5]}, "differ in shape"),
        ({"at": torch.tensor([8, 9, 1])}, "at must lie in 0..8"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"metric": lambda x: x.argmax(-1).float()}, "cannot be differentiated"),
        ({"metric": lambda x: x.sum()}, "one value a prompt"),
        ({"metric": lambda x: 0 * x[:, 0]}, "gradient is zero at the clean prompts"),
        ({"metric": lambda x: (x[:, 0] - x[:, 0]).sqrt()}, "contains NaN or infinity"),
        ({"metric": "KL"}, "eap_ig.*measure effects"),
    ],
)
@pytest.mark.parametrize("batches", [1, N])
def test_bad_input_is_refused(options, message, batches):
    model = bridge("GPT-2")
    if options.get("metric") == "KL":
        options = {"metric": divergence(model)}
    given = {"metric": metric, "at": AT, "corrupt": CORRUPT, "batch_size": batches} | options
    with pytest.raises(ValueError, match=message):
        atp(model, CLEAN, **given)


def test_graddrop_needs_two_layers():
    model = attention_only(0)
    tokens = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="this model has one; use graddrop=False"):
        atp(model, tokens, tokens, metric=lambda x: x[:, 0], at=torch.tensor([1]), graddrop=True)


def test_what_was_not_scored_is_not_found():
    scores = score(bridge("GPT-2"), kinds=["z"])
    for node in (Node("q", 0, 0), Node("z", 0, LENGTH), Node("z", -1, 0), Node("z", 0, 0, HEADS)):
        with pytest.raises(ValueError, match="was not scored: kinds are z"):
            scores.of([node])
    with pytest.raises(ValueError, match="nodes of 108 that are scored"):
        scores.top(109)
