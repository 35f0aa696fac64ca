"""Do the found edges tell the true ones from the others? ROC curves against a known circuit.

As in ACDC (arXiv:2304.14997, section 4): the points with (0, 0) and (1, 1), those that another one beats left out, the
rest joined by the lower staircase, whose area is the pessimistic AUC. Every edge of the graph is either found or not;
one that was never scored is found last, together with all others that were not.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mechinterp.discovery.curves import check_mask
from mechinterp.discovery.graph import Edge, Graph, Receiver, Sender
from mechinterp.discovery.scores import Scores

By = Literal["edge", "head", "node"]


@dataclass(frozen=True)
class Roc:
    """A ROC curve.

    Attributes:
        truth: which of the given true circuits it is against.
        fpr, tpr: the corners that no other point beats, from (0, 0) to (1, 1).
        auc: the area under the lower staircase.
        positives, negatives: how many items are true and how many are not.
    """

    truth: int
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    auc: float
    positives: int
    negatives: int


def roc(
    graph: Graph,
    found: Scores | Sequence[Bool[Tensor, "*pos sender receiver"]],
    truths: Sequence[Bool[Tensor, "sender receiver"] | Collection[Edge | str] | Collection[Sender]],
    *,
    by: By = "edge",
) -> list[Roc]:
    """ROC curves against each of several true circuits, the best first.

    Args:
        found: scores, of which every size of the mean is a threshold; or a family of circuits, such as ACDC's for
            falling τ. With positions, an edge is found where it is found at any.
        truths: true circuits, such as the minimal ones of `rasp.circuits.truth`: masks or edges; for `by="node"` also
            heads and MLPs.
        by: what is told apart. "edge": edges as they are. "head": the edges into a head's query, key and value are one
            edge, found if any of them is (those into a group's key or value are of each of its heads). "node": heads
            and MLPs, found if any edge leaves them; the input is none of them.

    Errors: `ValueError` for an unknown `by`, no truths, a truth with nothing or everything in it, scores of another
        graph, circuits that are not of this graph.
    """
    if by not in get_args(By):
        raise ValueError(f"by must be one of {', '.join(get_args(By))}, not {by!r}")
    if not truths:
        raise ValueError("no truths: give at least one true circuit")
    if isinstance(found, Scores):
        if found.graph != graph:
            raise ValueError(f"the scores are of {found.graph}, expected {graph}")
        sizes, order = _promoted(graph, _sizes(found), by).sort(descending=True)
        last = torch.cat([sizes[1:] != sizes[:-1], torch.ones(1, dtype=torch.bool)])
    else:
        masks = [check_mask(graph, mask) for mask in found]
        circuits = [_promoted(graph, mask if mask.ndim == 2 else mask.any(0), by) for mask in masks]
    curves = []
    for i, truth in enumerate(truths):
        true = _true(graph, truth, by)
        if isinstance(found, Scores):
            hits, wrong = (part[order].cumsum(0)[last].tolist() for part in (true, ~true))
        else:
            hits, wrong = ([int((one & part).sum()) for one in circuits] for part in (true, ~true))
        curves.append(_staircase(i, hits, wrong, int(true.sum()), int((~true).sum())))
    return sorted(curves, key=lambda one: -one.auc)


def auc(
    values: Float[Tensor, " item"], true: Bool[Tensor, " item"], weights: Float[Tensor, " item"] | None = None
) -> float:
    """The pessimistic AUC of a ranking: how often a true item stands strictly above one that is not true.

    For a ranking this is the area under the lower staircase of `roc`: a tie counts as lost.

    Args:
        weights: how many items each stands for, where they are a sample.

    Errors: `ValueError` for shapes that differ, values that are not finite, or if nothing or everything is true.

    >>> auc(torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.tensor([True, True, False, False]))
    0.75
    """
    weights = torch.ones_like(values) if weights is None else weights
    if values.ndim != 1 or not values.shape == true.shape == weights.shape:
        raise ValueError(f"one value and one flag an item, got {[*values.shape]}, {[*true.shape]}, {[*weights.shape]}")
    if not values.isfinite().all() or true.all() or not true.any():
        raise ValueError("a ranking needs finite values, and items that are true and items that are not")
    above = (values[true][:, None] > values[~true]).double()
    pairs = weights[true].double()[:, None] * weights[~true].double()
    return float((above * pairs).sum() / pairs.sum())


def _sizes(scores: Scores) -> Float[Tensor, "sender receiver"]:
    """How large each edge's mean score is, at the position where it is largest; −1 if it was not scored."""
    size = scores.mean.abs().cpu()
    if not size.isfinite().all():
        raise ValueError("some scores are NaN or infinite, so edges cannot be ranked by them")
    size = size if size.ndim == 2 else size.amax(0)
    scored = scores.graph.mask if scores.scored is None else scores.scored.cpu() & scores.graph.mask
    return size.masked_fill(~scored, -1.0)


def _promoted(graph: Graph, edges: Shaped[Tensor, "sender receiver"], by: By) -> Shaped[Tensor, " item"]:
    """For each item that is told apart, the largest value of its edges."""
    if by == "node":
        return edges[1:].amax(1)
    if by == "edge":
        return edges[graph.mask]
    at = graph.column
    inputs = []
    for kind, layer, head in graph.receivers:
        if kind == "q":
            group = head * graph.n_kv_heads // graph.n_heads
            inputs.append([at[Receiver("q", layer, head)], *(at[Receiver(x, layer, group)] for x in ("k", "v"))])
        elif kind in ("mlp", "logits"):
            inputs.append([at[Receiver(kind, layer, head)]] * 3)
    columns = torch.tensor(inputs)
    return edges[:, columns].amax(-1)[graph.mask[:, columns[:, 0]]]


def _true(graph: Graph, truth: Any, by: By) -> Bool[Tensor, " item"]:
    """Which items are in a true circuit."""
    if not isinstance(truth, Tensor) and by == "node" and truth and all(isinstance(x, Sender) for x in truth):
        unknown = [str(x) for x in truth if x not in graph.senders[1:]]
        if unknown:
            raise ValueError(f"{unknown[0]} is no head or MLP of this graph")
        return torch.tensor([sender in truth for sender in graph.senders[1:]])
    mask = truth if isinstance(truth, Tensor) else graph.masked(truth)
    mask = check_mask(graph, mask)
    return _promoted(graph, mask if mask.ndim == 2 else mask.any(0), by)


def _staircase(i: int, hits: Sequence[int], wrong: Sequence[int], positives: int, negatives: int) -> Roc:
    """The lower staircase through points given as numbers of true and of wrong items found."""
    if not positives or not negatives:
        raise ValueError(
            f"true circuit {i} has {'nothing' if not positives else 'everything'} in it: there is nothing to tell apart"
        )
    corners: list[tuple[int, int]] = [(0, 0)]
    for x, y in sorted({*zip(wrong, hits, strict=True), (negatives, positives)}):
        if y > corners[-1][1]:
            if len(corners) > 1 and x == corners[-1][0]:
                corners.pop()
            corners.append((x, y))
    if corners[-1][0] < negatives:
        corners.append((negatives, positives))
    area = sum((b[0] - a[0]) * a[1] for a, b in pairwise(corners))
    fpr, tpr = tuple(x / negatives for x, _ in corners), tuple(y / positives for _, y in corners)
    return Roc(i, fpr, tpr, area / (negatives * positives), positives, negatives)
