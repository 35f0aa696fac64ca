"""A circuit's certificate: everything that says whether a found circuit is one, measured in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp.claims.html import table_html
from mechinterp.discovery.curves import SHARES, Curve, NoGap, check_mask, cmd, cpr, curve, live
from mechinterp.discovery.exact import exact
from mechinterp.discovery.forward import Elsewhere
from mechinterp.discovery.graph import Edge, Graph
from mechinterp.discovery.nulls import permuted, random_edges
from mechinterp.discovery.scores import Scores
from mechinterp.patching.checks import Metric
from mechinterp.stats import Estimate, mean, short


@dataclass(frozen=True)
class TopEdge:
    """One of the circuit's top edges.

    `score` is what it was ranked by, and `exact` its exact effect on the prompts of the certificate; `recurs` is the
    share of half-splits both of whose halves have it among their top n.
    """

    edge: Edge
    score: float
    exact: Estimate | None
    recurs: float | None


@dataclass(frozen=True)
class Certificate:
    """What was measured about a circuit.

    Attributes:
        method: of the scores, or "a given circuit".
        circuit: its live edges, bool [(pos) sender receiver]. `requested`: how many were asked for.
        here: the circuit (first) and random circuits of its size and layers. `nulls`: those circuits.
        curve: f of the top edges by size, beside it with `permuted` scores; None for a given circuit.
        rows: the top edges. `overlaps`: Jaccard overlap of the top n of the two halves of each split.
        control: the curve of a model with random weights by the same method, or why there is none.
        missed: a bound on the effect of an edge that was not looked at (AtP*), if given.
    """

    method: str
    graph: Graph
    circuit: Tensor
    requested: int
    here: Curve
    curve: Curve | None
    permuted: Curve | None
    rows: tuple[TopEdge, ...]
    overlaps: tuple[float, ...]
    control: Curve | str
    missed: float | None

    @property
    def faithfulness(self) -> Estimate:
        """f of the circuit."""
        return self.here.faithfulness[0]

    @property
    def nulls(self) -> tuple[float, ...]:
        """f of random circuits of the same size and layers."""
        return tuple(f.value for f in self.here.faithfulness[1:])

    def lines(self) -> list[tuple[str, str]]:
        """What was measured, name and text."""
        nulls = self.nulls
        found = [
            ("circuit", f"{self.here.realised[0]} live edges of {self.requested} asked for, of {self.here.n_edges}"),
            ("found by", self.method),
            ("faithfulness", str(self.faithfulness)),
            (
                f"{len(nulls)} random circuits of its size and layers",
                f"{short(min(nulls))} to {short(max(nulls))}; {sum(f >= self.faithfulness.value for f in nulls)} as "
                "faithful as it" if nulls else "not drawn",
            ),
        ]  # fmt: skip
        for name, one in (("", self.curve), ("permuted scores: ", self.permuted), ("random weights: ", self.control)):
            if isinstance(one, Curve):
                found += [(f"{name}CPR", str(cpr(one))), (f"{name}CMD", str(cmd(one)))]
                found += [(f"{name}CPR, log size", str(cpr(one, log=True)))]
                found += [(f"{name}CMD, log size", str(cmd(one, log=True)))]
        if isinstance(self.control, str):
            found.append(("random weights", self.control))
        if self.overlaps:
            text = (
                f"Jaccard {short(np.mean(self.overlaps))} ({short(min(self.overlaps))} to {short(max(self.overlaps))})"
            )
            found.append((f"overlap of halves, {len(self.overlaps)} splits", text))
        bound = "not bounded" if self.missed is None else f"at most {short(self.missed)}"
        return [*found, ("effect of an edge that was missed", bound)]

    def __str__(self) -> str:
        texts = [f"{name}: {text}" for name, text in self.lines()]
        return "\n".join([*texts, "top edges:", *("  " + ", ".join(cells) for cells in self._cells())])

    def _repr_html_(self) -> str:
        lines = [[escape(name), escape(text)] for name, text in self.lines()]
        edges = [[escape(cell) for cell in cells] for cells in self._cells(named=False)]
        return table_html("A circuit's certificate", ["", ""], lines) + table_html(
            "Its top edges", ["edge", "score", "exact effect", "recurs in halves"], edges
        )

    def _cells(self, named: bool = True) -> list[list[str]]:
        score, effect, recurs = ("score ", "exact ", "recurs ") if named else ("", "", "")
        return [
            [
                str(row.edge),
                score + short(row.score),
                effect + ("not measured" if row.exact is None else str(row.exact)),
                recurs + ("not known" if row.recurs is None else f"{row.recurs:.0%}"),
            ]
            for row in self.rows
        ]


def certify(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    found: Scores | Bool[Tensor, "*pos sender receiver"],
    n: int | None = None,
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    effects: Scores | None = None,
    top: int = 10,
    shares: Sequence[float] = SHARES,
    control: tuple[Any, Scores] | None = None,
    missed: float | None = None,
    splits: int = 20,
    nulls: int = 20,
    unit: str = "prompts",
    clusters: Int[Tensor, " prompt"] | None = None,
    groups: Int[Tensor, " scored"] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Certificate:
    """Measure a circuit: for its size, against nulls, edge by edge, and on halves of the prompts that found it.

    Args:
        clean: prompts, others than those that `found` was scored on, or the circuit is judged by what chose it.
        found: scores, of which the top `n` edges are the circuit; or a circuit, which has no curve and no splits.
        n: how many edges; needed with scores.
        effects: exact effects on `clean`, if they are known; else those of the top edges are measured.
        top: for how many edges.
        control: a model of the same kind with random weights, and its scores by the same method.
        missed: a bound to be printed (AtP*).
        splits: half-splits of the scored prompts, by `groups` (their units) if given.
        nulls: random circuits. Other arguments and errors as of `curve`.

    Errors: also `ValueError` for scores without `n`, `n` beyond the scored edges, fewer than two scored prompts, or
        exact effects that are not of these prompts.
    """
    graph = Graph.of(model)
    options: dict[str, Any] = {"metric": metric, "at": at, "batch_size": batch_size}
    counted: dict[str, Any] = {"unit": unit, "clusters": clusters}
    if isinstance(found, Scores) and n is None:
        raise ValueError("say how many edges the circuit has: certify(…, scores, n)")
    mask = check_mask(graph, found.top(n or 0) if isinstance(found, Scores) else found)
    drawn = [random_edges(graph, mask, seed=seed + i) for i in range(nulls)]
    how = options | counted | {"progress": progress}
    here = curve(model, clean, elsewhere, [mask, *drawn], **how)
    own = null = None
    overlaps: tuple[float, ...] = ()
    recurs: dict[Edge, float] = {}
    beside: Curve | str = "not measured"
    if isinstance(found, Scores):
        own = curve(model, clean, elsewhere, found, shares=shares, **how)
        null = curve(model, clean, elsewhere, permuted(found, seed=seed), shares=shares, **how)
        overlaps, recurs = half_splits(found, int(mask.sum()), splits=splits, groups=groups, seed=seed)
    if control is not None:
        try:
            beside = curve(control[0], clean, elsewhere, control[1], shares=shares, **how)
        except NoGap as error:
            beside = str(error)
    ranked = _ranked(graph, mask, found)[:top]
    if effects is None:
        asked = graph.masked(edge for edge, _ in ranked)
        effects = exact(model, clean, elsewhere, edges=asked, **options, progress=progress)
    elif len(effects) != len(clean):
        raise ValueError(f"exact effects of {len(effects)} prompts, expected those of the {len(clean)} prompts given")
    rows = tuple(
        TopEdge(edge, score, mean(effects.of(edge), **counted), recurs.get(edge, 0.0) if recurs else None)
        for edge, score in ranked
    )
    method = found.method if isinstance(found, Scores) else "a given circuit"
    return Certificate(
        method, graph, live(graph, mask), int(mask.sum()), here, own, null, rows, overlaps, beside, missed
    )


def half_splits(
    scores: Scores, n: int, *, splits: int = 20, groups: Int[Tensor, " prompt"] | None = None, seed: int = 0
) -> tuple[tuple[float, ...], dict[Edge, float]]:
    """How much of a circuit two random halves of the prompts agree on.

    Returns: of each split the Jaccard overlap of the top n edges of its halves; and of every edge that is in both, in
    what share of the splits.

    Args:
        groups: the unit of each prompt (its template, say); a unit is in one half.

    Errors: `ValueError` for fewer than two units or splits below 1.
    """
    labels = torch.arange(len(scores)) if groups is None else torch.as_tensor(groups).unique(return_inverse=True)[1]
    units = int(labels.max()) + 1
    if labels.shape != (len(scores),) or units < 2 or splits < 1:
        raise ValueError(f"half-splits need at least two units among the {len(scores)} scored prompts, and one split")
    generator = torch.Generator().manual_seed(seed)
    overlaps, counts = [], torch.zeros(len(scores.graph.senders), len(scores.graph.receivers))
    for _ in range(splits):
        first = (torch.randperm(units, generator=generator) < units // 2)[labels].to(scores.values.device)
        one, other = scores.some(first).top(n).cpu(), scores.some(~first).top(n).cpu()
        both = one & other
        overlaps.append(int(both.sum()) / max(1, int((one | other).sum())))
        counts += both if both.ndim == 2 else both.any(0)
    edges = scores.graph.edges(counts > 0)
    values = counts.T[(counts.T > 0) & scores.graph.mask.T] / splits
    return tuple(overlaps), dict(zip(edges, values.tolist(), strict=True))


def _ranked(graph: Graph, mask: Tensor, found: Any) -> list[tuple[Edge, float]]:
    """The circuit's edges with their scores, largest first; of given ones 1, in the order of the graph."""
    flat = mask if mask.ndim == 2 else mask.any(0)
    edges = graph.edges(flat)
    if not isinstance(found, Scores):
        return [(edge, 1.0) for edge in edges]
    weight = found.mean.cpu() if found.values.ndim == 3 else found.mean.cpu().sum(0)
    values = weight.T[flat.T & graph.mask.T].tolist()
    return sorted(zip(edges, values, strict=True), key=lambda pair: -abs(pair[1]))
