"""MIB's circuit files: round trips, files as EAP-IG writes them, and what must not be read."""

import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.discovery import Graph, Scores, read_circuit, write_circuit

GRAPHS = st.builds(lambda n, g, s, p: Graph(n, g * s, g, (p,) * n), st.integers(1, 3), st.integers(1, 3),
                   st.integers(1, 3), st.booleans())  # fmt: skip
ROOT = Path(__file__).parents[2]
CHECKOUT = os.environ.get("MECHINTERP_EAP_IG")
PYTHON = Path(os.environ.get("MECHINTERP_AUTO_CIRCUIT_PYTHON", ROOT / ".venv-auto-circuit" / "bin" / "python"))
SMALL = Graph(1, 2, 1, (False,))


def some(graph, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, *graph.mask.shape, generator=generator) * graph.mask
    return Scores("x", graph, values), (torch.rand(graph.mask.shape, generator=generator) < 0.4) & graph.mask


@settings(max_examples=25, deadline=None)
@given(GRAPHS, st.sampled_from([".json", ".pt"]), st.integers(0, 10**6))
def test_what_is_written_is_read(tmp_path_factory, graph, ending, seed):
    path = tmp_path_factory.mktemp("circuit") / f"c{ending}"
    scores, circuit = some(graph, seed)
    write_circuit(path, graph, d_model=16, scores=scores, circuit=circuit)
    found = read_circuit(path, graph, d_model=16)
    torch.testing.assert_close(found.scores.mean, scores.mean)
    assert found.scores.scored is None
    assert torch.equal(found.circuit, circuit)
    write_circuit(path, graph, d_model=16, circuit=circuit)
    alone = read_circuit(path, graph)
    torch.testing.assert_close(alone.scores.mean, circuit.float())


def test_names_and_fields_are_theirs(tmp_path):
    """One layer, two heads with a key and a value for both: written out by hand."""
    graph = SMALL
    values = torch.zeros(graph.mask.shape)
    for name, size in {"input→a0.1.q": 3.0, "input→a0.0.k": 4.0, "a0.1→m0": -1.0, "m0→logits": 0.5}.items():
        values[graph.masked([name])] = size
    circuit = graph.masked(["input→a0.0.k", "a0.1→m0", "m0→logits"])
    write_circuit(tmp_path / "c.json", graph, d_model=8, scores=Scores("x", graph, values[None]), circuit=circuit)
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["cfg"] == {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    on = {"input": True, "a0.h0": False, "a0.h1": True, "m0": True, "logits": True}
    assert data["nodes"] == {name: {"in_graph": is_on} for name, is_on in on.items()}
    into = [f"input->a0.h{h}<{x}>" for x in "qkv" for h in (0, 1)]
    others = ["input->m0", "a0.h0->m0", "a0.h1->m0", *(f"{n}->logits" for n in ("input", "a0.h0", "a0.h1", "m0"))]
    assert sorted(data["edges"]) == sorted(into + others)
    told = {name: edge["score"] for name, edge in data["edges"].items() if edge["score"]}
    assert told == {
        "input->a0.h1<q>": 3.0, "input->a0.h0<k>": 2.0, "input->a0.h1<k>": 2.0, "a0.h1->m0": -1.0, "m0->logits": 0.5,
    }  # fmt: skip
    assert {name for name, edge in data["edges"].items() if edge["in_graph"]} == {
        "input->a0.h0<k>", "input->a0.h1<k>", "a0.h1->m0", "m0->logits"
    }  # fmt: skip
    write_circuit(tmp_path / "c.pt", graph, d_model=8, scores=Scores("x", graph, values[None]), circuit=circuit)
    data = torch.load(tmp_path / "c.pt", weights_only=True)
    assert data["src_nodes"] == ["input", "a0.h0", "a0.h1", "m0"]
    assert data["dst_nodes"] == [*(f"a0.h{h}<{x}>" for x in "qkv" for h in (0, 1)), "m0", "logits"]
    assert data["edges_scores"][0].tolist() == [0, 3, 2, 2, 0, 0, 0, 0]
    assert data["edges_in_graph"].shape == data["edges_scores"].shape == (4, 8)
    assert data["nodes_in_graph"].tolist() == [True, False, True, True]


def theirs(**edges):
    names = [f"input->a0.h{h}<{x}>" for x in "qkv" for h in (0, 1)]
    names += ["input->m0", "a0.h0->m0", "a0.h1->m0", *(f"{n}->logits" for n in ("input", "a0.h0", "a0.h1", "m0"))]
    cfg = {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    return {"cfg": cfg, "nodes": {}, "edges": {n: {"score": 0.0, "in_graph": False} for n in names} | edges}


def written(tmp_path, data):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(data))
    return path


def test_repeats_of_a_shared_key_add_up_and_are_in_if_any_is(tmp_path):
    data = theirs(**{
        "input->a0.h0<k>": {"score": 1.5, "in_graph": True}, "input->a0.h1<k>": {"score": -0.25, "in_graph": False},
    })  # fmt: skip
    found = read_circuit(written(tmp_path, data), SMALL)
    assert [str(e) for e in SMALL.edges(found.circuit)] == ["input→a0.0.k"]
    assert found.scores.of("input→a0.0.k").tolist() == [1.25]
    assert len(found.scores.graph) == 11
    own = read_circuit(written(tmp_path, data), Graph(1, 2, 2, (False,)))
    assert [own.scores.of(f"input→a0.{h}.k").item() for h in (0, 1)] == [1.5, -0.25]


def test_what_a_file_does_not_say_is_not_made_up(tmp_path):
    data = theirs()
    del data["edges"]["input->a0.h1<k>"], data["edges"]["m0->logits"]
    found = read_circuit(written(tmp_path, data), SMALL)
    missing = SMALL.masked(["input→a0.0.k", "m0→logits"])
    assert torch.equal(found.scores.scored, SMALL.mask & ~missing)
    with pytest.raises(ValueError, match="was not scored"):
        found.scores.of("m0→logits")
    for edge in data["edges"].values():
        del edge["score"]
    assert read_circuit(written(tmp_path, data), SMALL).scores is None
    data = theirs()
    for edge in data["edges"].values():
        del edge["in_graph"]
    assert read_circuit(written(tmp_path, data), SMALL).circuit is None


def test_files_of_other_models_and_other_things_are_refused(tmp_path):
    path = written(tmp_path, theirs())
    with pytest.raises(
        ValueError, match="is of another model: 1 layers, 2 heads, serial blocks; this one has 2 layers"
    ):
        read_circuit(path, Graph(2, 2, 2, (False, False)))
    with pytest.raises(ValueError, match=r"1 layers, 2 heads, width 8, serial blocks; this one has .* width 9"):
        read_circuit(path, SMALL, d_model=9)
    with pytest.raises(ValueError, match="this one has 1 layers, 2 heads, parallel blocks"):
        read_circuit(path, Graph(1, 2, 1, (True,)))
    for name in ("m0->a0.h0<q>", "input->a0.h2<q>", "a0.h0<q>", "input->a0.h0"):
        with pytest.raises(ValueError, match=f"{name}' is no edge of a model of 1 layers, 2 heads, serial blocks"):
            read_circuit(written(tmp_path, theirs(**{name: {"score": 1.0, "in_graph": True}})), SMALL)
    with pytest.raises(ValueError, match="NaN or infinite"):
        read_circuit(written(tmp_path, theirs(**{"input->m0": {"score": float("nan"), "in_graph": True}})), SMALL)
    with pytest.raises(ValueError, match="it has no cfg"):
        read_circuit(written(tmp_path, {"edges": {}}), SMALL)
    with pytest.raises(ValueError, match="it holds a list"):
        read_circuit(written(tmp_path, []), SMALL)
    with pytest.raises(ValueError, match="does not say its model's n_heads"):
        read_circuit(written(tmp_path, {"cfg": {"n_layers": 1, "parallel_attn_mlp": False}}), SMALL)
    with pytest.raises(ValueError, match="expected score and in_graph"):
        read_circuit(written(tmp_path, theirs(**{"input->m0": 1.0})), SMALL)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_circuit(path, SMALL)
    with pytest.raises(ValueError, match=r"ends in \.json or \.pt"):
        read_circuit(tmp_path / "c.bin", SMALL)


def test_a_pickle_with_code_is_not_opened(tmp_path):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for save in (lambda p: torch.save({"cfg": Code()}, p), lambda p: p.write_bytes(pickle.dumps(Code()))):
        save(tmp_path / "c.pt")
        with pytest.raises(ValueError, match="it is not opened"):
            read_circuit(tmp_path / "c.pt", SMALL)
    assert not (tmp_path / "ran").exists()
    write_circuit(tmp_path / "c.pt", SMALL, d_model=8, circuit=SMALL.mask)
    data = torch.load(tmp_path / "c.pt", weights_only=True)
    for key, value, what in (
        ("edges_scores", torch.zeros(2, 2), r"edges_scores should be a tensor \[4, 8\]"),
        ("dst_nodes", data["dst_nodes"][::-1], "dst_nodes are not those of this model: 'the same in another order'"),
        ("src_nodes", ["x", *data["src_nodes"][1:]], "src_nodes are not those of this model: 'x'"),
        ("edges_in_graph", torch.ones(4, 8), "'a0.h0->a0.h0<q>' is no edge"),
    ):
        torch.save(data | {key: value}, tmp_path / "d.pt")
        with pytest.raises(ValueError, match=what):
            read_circuit(tmp_path / "d.pt", SMALL)
    torch.save({"cfg": data["cfg"]}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match="neither edges_scores nor edges_in_graph"):
        read_circuit(tmp_path / "d.pt", SMALL)


def test_what_the_format_cannot_hold_is_not_written(tmp_path):
    path, (scores, circuit) = tmp_path / "c.json", some(SMALL)
    with pytest.raises(ValueError, match="nothing to write"):
        write_circuit(path, SMALL, d_model=8)
    with pytest.raises(ValueError, match="some edges were not scored"):
        write_circuit(path, SMALL, d_model=8, scores=Scores("x", SMALL, scores.values, circuit))
    with pytest.raises(ValueError, match="without positions"):
        write_circuit(path, SMALL, d_model=8, scores=Scores("x", SMALL, scores.values[:, None]))
    with pytest.raises(ValueError, match="has no positions"):
        write_circuit(path, SMALL, d_model=8, circuit=circuit[None])
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_circuit(path, SMALL, d_model=8, scores=Scores("x", SMALL, scores.values / 0))
    with pytest.raises(ValueError, match=r"ends in \.json or \.pt"):
        write_circuit(tmp_path / "c.txt", SMALL, d_model=8, circuit=circuit)
    mixed = Graph(2, 2, 2, (False, True))
    with pytest.raises(ValueError, match="parallel ones and serial ones"):
        write_circuit(path, mixed, d_model=8, circuit=mixed.mask)
    assert not path.exists()


@pytest.mark.skipif(CHECKOUT is None, reason="MECHINTERP_EAP_IG does not name a checkout of hannamw/EAP-IG")
@pytest.mark.skipif(not PYTHON.is_file(), reason="`make peers` makes the environment that EAP-IG's code runs in")
@pytest.mark.parametrize(("ending", "parallel"), [("json", False), ("pt", False), ("json", True), ("pt", True)])
def test_eap_ig_reads_what_is_written_and_its_files_are_read(tmp_path, ending, parallel):
    graph = Graph(2, 4, 2, (parallel,) * 2)
    scores, circuit = some(graph)
    circuit = graph.live(circuit)
    write_circuit(tmp_path / f"ours.{ending}", graph, d_model=8, scores=scores, circuit=circuit)
    code = f"""
import sys
sys.path.append({str(Path(CHECKOUT or "", "src"))!r})
from eap.graph import Graph
g = Graph.from_{ending}({str(tmp_path / f"ours.{ending}")!r})
print(g.count_included_edges(), len(g.edges))
g.to_{ending}({str(tmp_path / f"theirs.{ending}")!r})
"""
    ran = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    repeats = torch.tensor([2 if r.kind in ("k", "v") else 1 for r in graph.receivers])
    assert ran.stdout.split() == [str(int((m * repeats).sum())) for m in (circuit, graph.mask)]
    found = read_circuit(tmp_path / f"theirs.{ending}", graph, d_model=8)
    torch.testing.assert_close(found.scores.mean, scores.mean)
    assert torch.equal(found.circuit, circuit)
