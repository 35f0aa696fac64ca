"""From edges to heads: which are in a circuit, as an object that chapter 1's criteria judge, and as a drawing."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.circuits import Circuit, Node
from mechinterp.discovery.curves import check_mask, live
from mechinterp.discovery.graph import Edge, Graph, Sender
from mechinterp.heads import Head

KINDS = {"q": "into queries", "k": "into keys", "v": "into values", "mlp": "into MLPs", "logits": "into the logits"}


def heads_of(graph: Graph, mask: Bool[Tensor, "*pos sender receiver"]) -> list[Head]:
    """The heads of a circuit: those on a path of its edges from the input to the logits.

    >>> graph = Graph(2, 2, 2, (False, False))
    >>> mask = graph.masked(["input→a0.1.v", "a0.1→logits", "input→a1.0.q"])
    >>> [str(head) for head in heads_of(graph, mask)]
    ['0.1']
    """
    kept = live(graph, check_mask(graph, mask))
    says = (kept if kept.ndim == 2 else kept.any(0)).any(1).tolist()
    return [Head(s.layer, s.head) for s, on in zip(graph.senders, says, strict=True) if on and s.kind == "head"]


def head_scores(graph: Graph, values: Float[Tensor, "sender receiver"]) -> Float[Tensor, "layer head"]:
    """How large the largest value of the edges that leave each head is; a head ranked by the best of its edges.

    Args:
        values: scores, such as `Scores.mean`; or of every edge the threshold at which it falls.

    Errors: `ValueError` for values of another graph.

    >>> graph = Graph(1, 2, 2, (False,))
    >>> head_scores(graph, -2.0 * graph.masked(["a0.1→m0"])).tolist()
    [[0.0, 2.0]]
    """
    if values.shape != graph.mask.shape:
        raise ValueError(f"values are {[*values.shape]}, the edges of this graph {[*graph.mask.shape]}")
    there = graph.mask.to(values.device)
    best = values.abs().masked_fill(~there, 0).amax(1)
    return best[1:].view(graph.n_layers, graph.n_heads + 1)[:, :-1]


def to_circuit(
    graph: Graph,
    mask: Bool[Tensor, "*pos sender receiver"],
    positions: Sequence[str],
    roles: Mapping[Head, str] | None = None,
) -> Circuit:
    """The heads of a circuit of edges as `circuits.Circuit`, for faithfulness, completeness and minimality by heads.

    Args:
        positions: names of positions at which every head is kept, such as all of a `Setting`'s: edges without
            positions do not say where.
        roles: what each head does; the others are "found".

    Errors: `ValueError` for a circuit without heads or no positions.
    """
    return Circuit({head: Node((roles or {}).get(head, "found"), tuple(positions)) for head in heads_of(graph, mask)})


def drawing(
    graph: Graph, mask: Bool[Tensor, "sender receiver"], weights: Float[Tensor, "sender receiver"]
) -> dict[str, Any]:
    """A circuit as the plain data that `viz.edge_graph` draws: `viz.edge_graph(**drawing(…), title=…, caption=…)`.

    Args:
        weights: such as `Scores.mean`: edges are drawn as wide as theirs is large, and sorted by it.
    """
    mask = check_mask(graph, mask)
    weighed = [(e, float(weights[graph.row[e.sender], graph.column[e.receiver]])) for e in graph.edges(mask)]
    edges = [
        (str(edge.sender), _readers(graph, mask, edge), KINDS[edge.receiver.kind], weight)
        for edge, weight in sorted(weighed, key=lambda pair: -abs(pair[1]))
    ]
    levels = {str(s): s.layer + (0.5 if s.kind == "mlp" else 0.0) for s in graph.senders} | {
        "logits": float(graph.n_layers)
    }
    drawn = {name for writer, readers, *_ in edges for name in (writer, *readers)}
    return {"levels": {name: level for name, level in levels.items() if name in drawn}, "edges": edges}


def _readers(graph: Graph, mask: Bool[Tensor, "sender receiver"], edge: Edge) -> tuple[str, ...]:
    """The nodes that an edge leads to: of a group's key or value those heads that anybody hears, or all if none."""
    kind, layer, head = edge.receiver
    if kind in ("mlp", "logits"):
        return (str(edge.receiver),)
    share = 1 if kind == "q" else graph.n_heads // graph.n_kv_heads
    heads = [Sender("head", layer, h) for h in range(head * share, (head + 1) * share)]
    return tuple(map(str, [h for h in heads if mask[graph.row[h]].any()] or heads))
