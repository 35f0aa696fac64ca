"""The circuits of compiled programs: against the literature's counts, and against the interpreter run on two inputs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.discovery import Edge, Graph, Receiver, Sender, patched_logits, said
from mechinterp.rasp import (
    Aggregate,
    LinearSequenceMap,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    compile_program,
    indices,
    programs,
    tokens,
    trace,
)
from mechinterp.rasp import library as lib
from mechinterp.rasp.circuits import EdgeAt, dataflow, truth, truth_by_position, works
from mechinterp.rasp.language import applied, number
from mechinterp.rasp.layout import is_input

LIBRARY = programs()


def rows(compiled, length, n=3):
    return list(itertools.product(compiled.vocabulary[:n], repeat=length))


@pytest.mark.parametrize(
    ("name", "length", "resample", "zero"),
    [("reverse", 3, 2, 10), ("frac_prevs", 3, 3, 5)],
)
def test_circuits_are_as_large_as_auto_circuit_says(name, length, resample, zero):
    compiled = compile_program(**LIBRARY[name])
    found = {a: truth(compiled, a, rows(compiled, length)) for a in ("resample", "zero")}
    assert [[len(c) for c in found[a].circuits] for a in ("resample", "zero")] == [[resample], [zero]]
    if name == "reverse":
        assert {str(e) for e in found["resample"].needed} == {"input→a3.0.v", "a3.0→logits"}


def test_a_pattern_that_is_uniform_needs_no_score():
    """Queries of zero and keys of zero both select everything: length needs neither; its value and reader it needs."""
    compiled = compile_program(**LIBRARY["length"])
    found = truth(compiled, "zero", rows(compiled, 3))
    assert {str(e) for e in found.needed} == {"input→a0.0.v", "input→m0", "a0.0→m0", "m0→logits"}
    assert truth(compiled, "resample", rows(compiled, 3)).circuits == (frozenset(),)
    both = [[*x, *"ab"][:4] for x in rows(compiled, 2)]
    assert truth(compiled, "mean", both).circuits == (frozenset(),)


def test_the_truth_depends_on_what_is_corrupted():
    """With positions as they are, hist cares for tokens; a corrupted input like the input leaves nothing to do."""
    compiled = compile_program(**LIBRARY["hist"])
    assert truth(compiled, "resample", ["aab"], ["aab"]).circuits == (frozenset(),)
    renamed = truth(compiled, "resample", ["aab", "bba"], ["ccd", "ddc"])
    assert renamed.circuits == (frozenset(),), "other tokens, the same counts"
    assert {str(e) for e in renamed.needed} == {"input→a0.0.q", "input→a0.0.k"}, "one by one, tokens no longer match"
    assert renamed.exhaustive
    moved = truth(compiled, "resample", ["aab", "bba"], ["abb", "baa"])
    assert {"a0.0→m0", "m0→logits"} <= {str(e) for e in moved.circuits[0]}
    assert len(truth(compiled, "resample", rows(compiled, 3)).needed) == 4


def test_all_minimal_circuits_are_found():
    """An OR gate: a flag that comes by two ways, one of them longer; either is enough."""
    flag = (lib.tokens == "a").named("flag")
    long_way = Map(lambda x: x, flag, name="long way", numerical=True)
    either = LinearSequenceMap(flag.as_numerical(), long_way, 1, 1)
    compiled = compile_program(Map(lambda x: x > 0.3, either), "ab", 2)
    found = truth(compiled, "zero", rows(compiled, 2))
    ways = [{str(e) for e in c - found.needed} for c in found.circuits]
    assert ways == [{"m0→m2"}, {"m0→m1", "m1→m2"}]
    assert {str(e) for e in found.needed} == {"input→m0", "m2→m3", "input→m3", "m3→logits"}


def mixed(compiled, on, clean, corrupt):
    """The program on one input, what flows along edges that are off coming from another: on values, without weights.

    `on` holds edges, or edges at positions.
    """
    layout, other = compiled.layout, trace(compiled.program, corrupt, causal=compiled.causal)
    head_of = {id(sop): Sender("head", *head) for head, sop in compiled.heads.items()}
    found, widths = {}, {}

    def widths_of(sop, values):
        n = len(values[0][0])
        return [
            sum(
                all(s.holds(k[j], q[i]) for s, (k, q) in zip(sop.selector.selects, values, strict=True))
                for j in range(n)
                if not (compiled.causal and j > i)
            )
            for i in range(n)
        ]  # fmt: skip

    def sender(sop):
        if is_input(sop):
            return Sender("input")
        return head_of[id(sop)] if isinstance(sop, Aggregate) else Sender("mlp", layout.half[sop] // 2)

    def heard(sender, receiver, here, there):
        edge = (sender, receiver)
        return [x if edge in on or (edge, i) in on else y for i, (x, y) in enumerate(zip(here, there, strict=True), 1)]

    def read(sop, receiver):
        values = heard(sender(sop), receiver, found[sop], other[sop])
        return [number(v) for v in values] if sop.numerical else values

    for sop in layout.program:
        n = len(clean)
        if is_input(sop):
            found[sop] = list(clean) if sop is lib.tokens else list(range(n))
            continue
        if isinstance(sop, Aggregate | SelectorWidth):
            at = head_of[id(sop)]
            q, k, v = (Receiver(x, at.layer, at.head) for x in "qkv")
            pairs = [(read(s.keys, k), read(s.queries, q)) for s in sop.selector.selects]
        if isinstance(sop, SelectorWidth):
            widths[sop] = widths_of(sop, pairs)
            found[sop] = heard(head_of[id(sop)], Receiver("mlp", layout.half[sop] // 2), widths[sop], other[sop])
            continue
        if isinstance(sop, Aggregate):
            values = read(sop.of, v)
            out = []
            for i in range(n):
                here = [
                    values[j] for j in range(n)
                    if not (compiled.causal and j > i)
                    and all(s.holds(a[j], b[i]) for s, (a, b) in zip(sop.selector.selects, pairs, strict=True))
                ]  # fmt: skip
                if not sop.numerical and len(set(here)) > 1:
                    raise ValueError("two categories at once")
                out.append(sum(here) / len(here) if here and sop.numerical else here[0] if here else None)
        else:
            at = Receiver("mlp", layout.half[sop] // 2)
            ins = [read(x, at) for x in sop.inputs]
            if isinstance(sop, LinearSequenceMap):
                out = [number(sop.a) * x + number(sop.b) * y for x, y in zip(*ins, strict=True)]
            else:
                assert isinstance(sop, Map | SequenceMap)
                out = [applied(sop.f, *x) for x in zip(*ins, strict=True)]
        found[sop] = [float(v or 0) for v in out] if sop.numerical else out
    return [float(x) if compiled.program.numerical else x for x in read(compiled.program, Receiver("logits"))]


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(LIBRARY)),
    seed=st.integers(0, 10**6),
    causal=st.booleans(),
    keep=st.floats(0.3, 0.95),
    placed=st.booleans(),
)
def test_patched_programs_say_what_the_interpreter_says_on_two_inputs(name, seed, causal, keep, placed):
    compiled = compile_program(**LIBRARY[name], causal=causal)
    graph, generator = Graph.of(compiled.model), torch.Generator().manual_seed(seed)
    length = int(torch.randint(2, compiled.max_len + 1, (), generator=generator))
    ids = torch.randint(len(compiled.vocabulary), (2, length), generator=generator)
    clean, corrupt = ([compiled.vocabulary[i] for i in row] for row in ids.tolist())
    shape = (1, length + 1, *graph.mask.shape) if placed else graph.mask.shape
    on = (torch.rand(shape, generator=generator) < keep) & graph.mask
    edges = [(e, i) for i, at in enumerate(on[0]) for e in graph.edges(at)] if placed else graph.edges(on)
    try:
        expected = mixed(compiled, set(edges), clean, corrupt)
    except ValueError:
        return
    elsewhere = said(compiled.model, compiled.tokens([corrupt]))
    logits = patched_logits(compiled.model, compiled.tokens([clean]), on, elsewhere)
    got = compiled.decode(logits)[0]
    assert got == (pytest.approx(expected, abs=1e-3) if compiled.program.numerical else expected)


def right_on_values(compiled, on, inputs):
    """Whether the interpreter, run on every pair of inputs, says with these edges what it says with all."""
    expected = {x: [*map(float, v)] if compiled.program.numerical else v
                for x in inputs for v in [trace(compiled.program, x)[compiled.program]]}  # fmt: skip
    return all(
        mixed(compiled, on, x, y)
        == (pytest.approx(expected[x], abs=1e-9) if compiled.program.numerical else expected[x])
        for x in inputs
        for y in inputs
    )


@pytest.mark.parametrize(
    "name", ["reverse", "hist", "count", "frac_prevs", "pair_balance", "shift_by", "detect_pattern"]
)
def test_resampled_truth_is_the_interpreters(name):
    """The minimal circuits by brute force on weights are minimal on values, too."""
    compiled = compile_program(**LIBRARY[name])
    inputs = rows(compiled, 3, 2 if name != "detect_pattern" else 3)
    found = truth(compiled, "resample", inputs)
    assert found.circuits
    for circuit in found.circuits:
        assert right_on_values(compiled, circuit, inputs)
        assert not any(right_on_values(compiled, circuit - {edge}, inputs) for edge in circuit)


def places(text):
    """`"a→b@1,2 …"` as the set of what is printed of each edge at a position."""
    pairs = [part.split("@") for part in text.split()]
    return {f"{edge}@{position}" for edge, positions in pairs for position in positions.split(",")}


@pytest.mark.parametrize(
    ("name", "ablation", "expected"),
    [
        # Position p copies p - 1: nobody reads the last value, and the first position has nothing to say.
        ("shift_by", "resample", "input→a0.0.v@1,2 a0.0→logits@2,3"),
        # A query of zero looks everywhere. A key of zero leaves its reader with <bos>; nobody looks for the last one.
        # Without that of <bos> a query that selects nothing looks everywhere. <bos> has no value that could be missed.
        ("shift_by", "zero", "input→a0.0.q@1,2,3 input→a0.0.k@0,1,2 input→a0.0.v@1,2 a0.0→logits@2,3"),
        ("reverse", "resample", "input→a3.0.v@1,2,3 a3.0→logits@1,2,3"),
        # The first token counts at all positions, the last at its own.
        ("frac_prevs", "resample", "input→m0@1,2,3 m0→a1.0.v@1,2,3 a1.0→logits@1,2,3"),
        # Positions ask for their own token among those of all.
        ("hist", "resample", "input→a0.0.q@1,2,3 input→a0.0.k@1,2,3 a0.0→m0@1,2,3 m0→logits@1,2,3"),
    ],
)
def test_circuits_by_position_are_what_the_program_says(name, ablation, expected):
    """Written down from the program's definition, for inputs of three tokens."""
    compiled = compile_program(**LIBRARY[name])
    found = truth_by_position(compiled, ablation, rows(compiled, 3, 2))
    assert [{str(item) for item in circuit} for circuit in found.circuits] == [places(expected)]
    assert found.needed == found.circuits[0]


def test_only_positions_that_ask_and_are_asked_are_needed():
    """The last position copies the first; the others say nothing."""
    copy = Aggregate(Select(indices, indices, lambda key, query: key == 0 and query == 2), tokens)
    for causal in (False, True):
        compiled = compile_program(copy, "ab", 3, causal=causal)
        found = truth_by_position(compiled, "resample", rows(compiled, 3))
        assert [{str(x) for x in circuit} for circuit in found.circuits] == [places("input→a0.0.v@1 a0.0→logits@3")]


@pytest.mark.parametrize("name", ["pair_balance", "count", "nary_map"])
def test_circuits_by_position_are_minimal_on_values_too(name):
    """Right on all pairs of inputs by the interpreter, and wrong without any one edge at any one position."""
    compiled = compile_program(**LIBRARY[name])
    inputs = rows(compiled, 3, 2)
    found = truth_by_position(compiled, "resample", inputs)
    assert found.circuits
    for circuit in found.circuits:
        assert right_on_values(compiled, circuit, inputs)
        assert not any(right_on_values(compiled, circuit - {item}, inputs) for item in circuit)


def test_positions_together_are_the_edge():
    """A circuit by edges is right position by position, and what it leaves out is left out at all positions."""
    compiled = compile_program(**LIBRARY["sort_unique"])
    inputs = rows(compiled, 3)
    [by_edge] = truth(compiled, "resample", inputs).circuits
    every = {EdgeAt(edge, position) for edge in by_edge for position in range(4)}
    [by_position] = truth_by_position(compiled, "resample", inputs).circuits
    assert by_position <= every
    assert {item.edge for item in by_position} == by_edge
    less = [by_position - {item} for item in by_position]
    assert works(compiled, "resample", [every, by_position, *less], inputs).tolist() == [True, True] + [False] * len(
        less
    )
    assert works(compiled, "resample", [[], by_position], inputs).tolist() == [False, True]


def weights_of(compiled, receiver):
    """What reads the stream there, from the state dict: [coordinate d_model]."""
    if receiver.kind == "logits":
        return compiled.weights["head.weight"]
    if receiver.kind == "mlp":
        return compiled.weights[f"layers.{receiver.layer}.mlp.fc_in.weight"]
    rows = slice(receiver.head * compiled.shape["d_head"], (receiver.head + 1) * compiled.shape["d_head"])
    return compiled.weights[f"layers.{receiver.layer}.attn.{receiver.kind}.weight"][rows]


@pytest.mark.parametrize("name", LIBRARY)
def test_something_flows_along_the_dataflow_and_nothing_elsewhere(name):
    """By the weights that read and what senders say, on some inputs."""
    compiled = compile_program(**LIBRARY[name])
    graph = Graph.of(compiled.model)
    some = list(itertools.product(compiled.vocabulary, repeat=compiled.max_len))[:: 3 if name == "nary_map" else 7]
    told = said(compiled.model, compiled.tokens(some))
    flow = set(dataflow(compiled))
    silent = {Receiver("mlp", layer) for layer in range(graph.n_layers) if layer not in compiled.neurons}
    for edge in graph:
        at = edge.receiver
        if at in silent or (at.kind in "qkv" and (at.layer, at.head) not in compiled.heads):
            assert edge not in flow
            continue
        heard = told[:, :, graph.senders.index(edge.sender)] @ weights_of(compiled, at).T
        assert (heard.abs().max() > 1e-3).item() == (edge in flow), str(edge)


def test_circuits_of_many_edges_are_found_by_taking_edges_away():
    """Beyond `MOST` edges: right on all inputs, and wrong without any one edge; the same as by trying all sets."""
    compiled = compile_program(**LIBRARY["shuffle_dyck"])
    inputs = rows(compiled, 4)
    for ablation in ("mean", "zero"):
        found = truth(compiled, ablation, inputs)
        assert not found.exhaustive
        for circuit in found.circuits:
            less = [circuit - {edge} for edge in circuit]
            assert works(compiled, ablation, [circuit, *less], inputs).tolist() == [True] + [False] * len(less)


def test_taking_edges_away_finds_what_trying_all_sets_finds(monkeypatch):
    compiled = compile_program(**LIBRARY["pair_balance"])
    all_sets = {a: truth(compiled, a, rows(compiled, 2)) for a in ("resample", "zero")}
    monkeypatch.setattr("mechinterp.rasp.circuits.MOST", 0)
    for ablation, expected in all_sets.items():
        found = truth(compiled, ablation, rows(compiled, 2))
        assert expected.exhaustive
        assert not found.exhaustive
        assert set(found.circuits) <= set(expected.circuits)
        assert found.needed == expected.needed


def test_what_has_no_truth_is_refused():
    compiled = compile_program(**LIBRARY["hist"])
    with pytest.raises(ValueError, match="unknown ablation 'noise'; one of resample, mean, zero"):
        truth(compiled, "noise", ["ab"])
    with pytest.raises(ValueError, match="'x' is not in the vocabulary"):
        truth(compiled, "zero", ["ax"])
    with pytest.raises(ValueError, match=r"a0\.0\.q@3 lies outside: these inputs have the positions 0 \(<bos>\) to 2"):
        works(compiled, "zero", [[EdgeAt(Edge.parse("input→a0.0.q"), 3)]], ["ab"])
