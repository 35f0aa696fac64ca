"""Circuits as the files of MIB and EAP-IG: scores of edges, and which edges are in the circuit.

The format (arXiv:2504.13151; EAP-IG 2.0's `Graph.to_json`, `to_pt`) names edges `input->a0.h1<q>`, `a0.h1->m0`,
`m11->logits` and has keys and values for every query head. Here heads that share a key or a value share the edge into
it. A change of the shared key changes it for all of its heads, and to first order the effects add up: reading sums the
scores of an edge's repeats, and it is in the circuit if any of them is; writing gives each repeat an equal part.
"""

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.discovery.curves import check_mask
from mechinterp.discovery.graph import Graph, Receiver
from mechinterp.discovery.scores import Scores
from mechinterp.files import atomic_write


@dataclass(frozen=True)
class CircuitFile:
    """What a file holds.

    Attributes:
        scores: the edges' scores, as those of a single prompt; None if the file has none.
        circuit: the edges that it marks as in the circuit; None if it does not say.
    """

    scores: Scores | None
    circuit: Bool[Tensor, "sender receiver"] | None


def write_circuit(
    path: str | Path,
    graph: Graph,
    *,
    d_model: int,
    scores: Scores | None = None,
    circuit: Bool[Tensor, "sender receiver"] | None = None,
) -> None:
    """Write a circuit file that MIB's evaluation and EAP-IG read, `.json` or `.pt`.

    Args:
        d_model: the model's width, which the format wants.
        scores: their mean is written. None: 1 for edges of the circuit and 0 for others.
        circuit: None: no edge is marked.

    Errors: `ValueError` for neither scores nor circuit, another ending, scores with positions, of some edges only, not
        finite or of another graph, or a model that has parallel blocks and serial ones.
    """
    if scores is None and circuit is None:
        raise ValueError("nothing to write: give scores, a circuit, or both")
    if scores is not None and (scores.graph != graph or scores.values.ndim != 3):
        raise ValueError(f"the format has one score an edge of {graph}, without positions")
    if scores is not None and scores.scored is not None and not scores.scored.cpu()[graph.mask].all():
        raise ValueError("the format wants a score for every edge, and some edges were not scored")
    marked = graph.mask & False if circuit is None else check_mask(graph, circuit)
    if marked.ndim != 2:
        raise ValueError("the format has no positions: give a circuit [sender receiver]")
    values = marked.float() if scores is None else scores.mean.float().cpu()
    if not values.isfinite().all():
        raise ValueError("some scores are NaN or infinite, which a circuit file cannot hold")
    columns, share = _columns(graph), _shares(graph)
    spread, flags, there = ((part)[:, columns] for part in (values / share, marked, graph.mask))
    data = {"cfg": _config(graph) | {"d_model": int(d_model)}}
    path, senders, receivers = Path(path), _senders(graph), _receivers(graph)
    if path.suffix == ".json":
        says = marked.any(1).tolist()
        data["nodes"] = {name: {"in_graph": on} for name, on in zip([*senders, "logits"], [*says, True], strict=True)}
        data["edges"] = {
            f"{senders[s]}->{receivers[r]}": {"score": float(spread[s, r]), "in_graph": bool(flags[s, r])}
            for s, r in there.nonzero().tolist()
        }
        atomic_write(path, json.dumps(data).encode())
    elif path.suffix == ".pt":
        buffer = io.BytesIO()
        tensors = {"edges_scores": spread * there, "edges_in_graph": flags, "nodes_in_graph": marked.any(1)}
        torch.save(data | {"src_nodes": senders, "dst_nodes": receivers} | tensors, buffer)
        atomic_write(path, buffer.getvalue())
    else:
        raise ValueError(f"a circuit file ends in .json or .pt, not {path.name!r}")


def read_circuit(path: str | Path, graph: Graph, *, d_model: int | None = None) -> CircuitFile:
    """Read a circuit file of this model, `.json` or `.pt`; scores of single nodes and neurons are left aside.

    An edge that the file does not name (or of which it lacks a repeat) counts as not scored and not in the circuit.
    A pickle that holds anything but tensors and plain values is not opened.

    Args:
        d_model: to be checked, too, if given.

    Errors: `ValueError` for a file that is not such a one or holds code, of a model of other sizes, with edges that the
        model does not have, or with scores that are not finite.
    """
    path = Path(path)
    if path.suffix == ".json":
        data = _parsed(path)
        _check_config(path, data, graph, d_model)
        scores, scored, flags, told = _from_names(path, data, graph)
    elif path.suffix == ".pt":
        data = _unpickled(path)
        _check_config(path, data, graph, d_model)
        scores, scored, flags, told = _from_tensors(path, data, graph)
    else:
        raise ValueError(f"a circuit file ends in .json or .pt, not {path.name!r}")
    if not scores[scored].isfinite().all():
        raise ValueError(f"{path.name}: some scores are NaN or infinite")
    # From a repeat for every query head to the edge that they share.
    columns = _columns(graph)
    empty = torch.zeros(len(graph.senders), len(graph.receivers))
    values = empty.index_add(1, columns, scores.masked_fill(~scored, 0.0))
    counts = empty.index_add(1, columns, scored.float())
    known = (counts == _shares(graph)) & graph.mask
    circuit = (empty.index_add(1, columns, flags.float()) > 0) & graph.mask
    found = Scores(path.name, graph, (values * known)[None], None if known[graph.mask].all() else known)
    return CircuitFile(found if known.any() else None, circuit if told else None)


def _from_names(path: Path, data: Mapping[str, Any], graph: Graph) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Scores, which there are, which edges are in the circuit, and whether any says so; columns as of the format."""
    senders, receivers = ({name: i for i, name in enumerate(names(graph))} for names in (_senders, _receivers))
    there = graph.mask[:, _columns(graph)]
    scores, scored, flags, told = torch.zeros(there.shape), there & False, there & False, False
    for name, edge in _mapping(path, data, "edges").items():
        writer, _, reader = name.partition("->")
        at = senders.get(writer, -1), receivers.get(reader, -1)
        if min(at) < 0 or not there[at]:
            raise ValueError(f"{path.name}: {name!r} is no edge of a model of {_words(_config(graph))}")
        if not isinstance(edge, Mapping):
            raise ValueError(f"{path.name}: {name!r} has {edge!r}, expected score and in_graph")
        if edge.get("score") is not None:
            scores[at], scored[at] = float(edge["score"]), True
        if "in_graph" in edge:
            flags[at], told = bool(edge["in_graph"]), True
    return scores, scored, flags, told


def _from_tensors(path: Path, data: Mapping[str, Any], graph: Graph) -> tuple[Tensor, Tensor, Tensor, bool]:
    """The same from tensors."""
    there = graph.mask[:, _columns(graph)]
    for key, names in (("src_nodes", _senders(graph)), ("dst_nodes", _receivers(graph))):
        if key in data and list(data[key]) != names:
            wrong = next((a for a in data[key] if a not in names), "the same in another order")
            raise ValueError(f"{path.name}: {key} are not those of this model: {wrong!r}")
    found = [data.get("edges_scores"), data.get("edges_in_graph")]
    for key, part in zip(("edges_scores", "edges_in_graph"), found, strict=True):
        if part is not None and (not isinstance(part, Tensor) or part.shape != there.shape):
            raise ValueError(f"{path.name}: {key} should be a tensor {list(there.shape)}")
    scores, flags = found
    if scores is None and flags is None:
        raise ValueError(f"{path.name} has neither edges_scores nor edges_in_graph")
    stray = [] if flags is None else (flags.bool() & ~there).nonzero().tolist()
    for s, r in stray:
        name = f"{_senders(graph)[s]}->{_receivers(graph)[r]}"
        raise ValueError(f"{path.name}: {name!r} is no edge of a model of {_words(_config(graph))}")
    return (
        torch.zeros(there.shape) if scores is None else scores.float(),
        there & (scores is not None),
        there & False if flags is None else flags.bool(),
        flags is not None,
    )


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from None


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path.name} holds more than tensors and plain values, or is no file of torch.save: it is not opened"
        ) from error


def _check_config(path: Path, data: Any, graph: Graph, d_model: int | None) -> None:
    """`ValueError` unless the file is of a model of these sizes."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{path.name} is no circuit file: it holds a {type(data).__name__}")
    theirs = _mapping(path, data, "cfg")
    ours: dict[str, Any] = _config(graph) | ({} if d_model is None else {"d_model": d_model})
    missing = [key for key in ours if key not in theirs and key != "d_model"]
    if missing:
        raise ValueError(f"{path.name} does not say its model's {', '.join(missing)}")
    theirs = {key: theirs[key] for key in ours if key in theirs}
    if any(theirs[key] != ours[key] for key in theirs):
        raise ValueError(f"{path.name} is of another model: {_words(theirs)}; this one has {_words(ours)}")


def _mapping(path: Path, data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = data.get(key)
    if not isinstance(part, Mapping):
        raise ValueError(f"{path.name} is no circuit file: it has no {key}")
    return part


def _config(graph: Graph) -> dict[str, Any]:
    """The model as the format describes it."""
    if len(set(graph.parallel)) > 1:
        raise ValueError("the format has one flag for all blocks, and this model has parallel ones and serial ones")
    return {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": any(graph.parallel)}


def _words(config: Mapping[str, Any]) -> str:
    words = [f"{config[key]} {word}" for key, word in (("n_layers", "layers"), ("n_heads", "heads")) if key in config]
    words += [f"width {config['d_model']}"] if "d_model" in config else []
    return ", ".join([*words, "parallel blocks" if config.get("parallel_attn_mlp") else "serial blocks"])


def _senders(graph: Graph) -> list[str]:
    """Their names of senders, in their order, which is that of the graph."""
    return [f"a{s.layer}.h{s.head}" if s.kind == "head" else str(s) for s in graph.senders]


def _theirs(graph: Graph) -> list[tuple[str, Receiver]]:
    """Their receivers, in their order, and whose repeat each is."""
    found: list[tuple[str, Receiver]] = []
    share = graph.n_heads // graph.n_kv_heads
    for layer in range(graph.n_layers):
        for kind in ("q", "k", "v"):
            for head in range(graph.n_heads):
                own = Receiver(kind, layer, head if kind == "q" else head // share)
                found.append((f"a{layer}.h{head}<{kind}>", own))
        found.append((f"m{layer}", Receiver("mlp", layer)))
    return [*found, ("logits", Receiver("logits"))]


def _receivers(graph: Graph) -> list[str]:
    return [name for name, _ in _theirs(graph)]


def _columns(graph: Graph) -> Tensor:
    """For each of their receivers, ours."""
    return torch.tensor([graph.column[receiver] for _, receiver in _theirs(graph)])


def _shares(graph: Graph) -> Float[Tensor, " receiver"]:
    """How many of their receivers each of ours is."""
    return _columns(graph).bincount(minlength=len(graph.receivers)).float()
