"""How well circuits do for their size: faithfulness curves and the areas under them, and what a circuit leaves out.

A circuit is a mask of edges. Before it is run it is pruned to its live edges (`Graph.live`), and what is measured is
the pruned circuit, as in MIB (arXiv:2504.13151). With resample ablation the others change nothing. They would with zero
or mean ablation (a head that hears nothing still says something), and where heads share a norm (of their sum, as in
Gemma 2; of their keys, as in OLMo 2), which a head that nobody listens to can still change.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.discovery.forward import Elsewhere, patched_logits
from mechinterp.discovery.graph import Graph
from mechinterp.discovery.scores import Scores
from mechinterp.patching.checks import Metric, check_ids, check_tokens, measure
from mechinterp.stats import Estimate, mean, ratio, resampled

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes at which MIB runs circuits, as shares of all edges."""
Mask = Bool[Tensor, "*pos sender receiver"]


class NoGap(ValueError):
    """With every edge off the metric is what it is with all of them on, as far as the prompts can tell."""


@dataclass(frozen=True)
class Curve:
    """The metric of circuits of several sizes, on every prompt.

    Attributes:
        n_edges: of the graph; times positions, if circuits are position by position.
        shares, requested: sizes asked for, as shares of `n_edges` and as numbers of edges.
        realised: edges that are left after pruning: the size of what was run.
        values: the metric of each circuit. `model`: of the whole model. `empty`: with every edge off.
        unit, clusters: what intervals count, and the unit of each prompt, as in `mechinterp.stats.mean`.
    """

    n_edges: int
    shares: tuple[float, ...]
    requested: tuple[int, ...]
    realised: tuple[int, ...]
    values: Float[Tensor, "circuit prompt"]
    model: Float[Tensor, " prompt"]
    empty: Float[Tensor, " prompt"]
    unit: str = "prompts"
    clusters: Int[Tensor, " prompt"] | None = None

    def __len__(self) -> int:
        """How many circuits."""
        return len(self.requested)

    @property
    def faithfulness(self) -> tuple[Estimate, ...]:
        """f = (m(C) − m(∅)) / (m(M) − m(∅)) of each circuit, m being the mean over prompts (MIB, section 3)."""
        whole = self.model - self.empty
        return tuple(ratio(v - self.empty, whole, unit=self.unit, clusters=self.clusters) for v in self.values)


def curve(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    circuits: Scores | Sequence[Mask],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    shares: Sequence[float] = SHARES,
    batch_size: int = 64,
    unit: str = "prompts",
    clusters: Int[Tensor, " prompt"] | None = None,
    progress: bool = False,
) -> Curve:
    """Run circuits of growing size: those of the top edges by their scores, or given ones.

    Args:
        clean: prompts, best others than those the edges were scored on.
        elsewhere: what flows along edges that are off, as of `patched_logits`. Of prompts it is computed for every
            circuit anew; messages as `said` gives them cost their memory instead.
        circuits: scores, whose top int(share · edges) edges are run; or masks [sender receiver] or [pos sender
            receiver], nested or not, whose shares are their own sizes.
        metric, at: from logits at these positions to one value a prompt.
        shares: sizes for scores. Other arguments as of `patched_logits`.

    Errors: `ValueError` if the model's metric is not clearly different from that with every edge off: then f has
        nothing to be a fraction of; for scores that are not finite or not of this graph, shares out of order, masks of
        another shape or with pairs that are no edges; as of `patched_logits`.
    """
    graph = Graph.of(check_tokens(model, clean, batch_size, at, bidirectional=True))
    if isinstance(circuits, Scores):
        masks, shares, requested, n_edges = _top(graph, circuits, shares)
    else:
        masks = [check_mask(graph, mask) for mask in circuits]
        n_edges = len(graph) * (masks[0].shape[0] if masks and masks[0].ndim == 3 else 1)
        requested = [int(mask.sum()) for mask in masks]
        shares = [n / n_edges for n in requested]
    if not masks:
        raise ValueError("no circuits: give scores, or at least one mask")
    masks = [live(graph, mask) for mask in masks]
    found = run(
        model,
        clean,
        elsewhere,
        [graph.mask, graph.mask & False, *masks],
        metric=metric,
        at=at,
        batch_size=batch_size,
        progress=progress,
    )
    _check_gap(found[0], found[1], unit, clusters)
    realised = tuple(int(mask.sum()) for mask in masks)
    return Curve(
        n_edges, tuple(shares), tuple(requested), realised, found[2:], found[0], found[1], unit=unit, clusters=clusters
    )


def cpr(curve: Curve, *, log: bool = False, minus: Curve | None = None) -> Estimate:
    """The area under f: MIB's circuit performance ratio, with a bootstrap interval over units.

    By default exactly as MIB: trapezoids over the requested shares, nothing below the first; half of the area lies
    between .5 and 1, and f = 1 everywhere gives 0.999. With `log`, trapezoids over the logarithm of the realised size,
    from the smallest requested size to all edges, divided by that range, so that f = 1 everywhere gives 1; f begins at
    0 if all circuits of that size or less are empty.

    Args:
        minus: another curve on the same prompts, whose area is taken off. The interval is that of the difference: of
            two methods on one task, much narrower than their own.

    Errors: `ValueError` for a curve of one point, or of other prompts.
    """
    return _area(curve, lambda f: f, log, minus)


def cmd(curve: Curve, *, log: bool = False, minus: Curve | None = None) -> Estimate:
    """The area of |1 − f|: MIB's circuit-model distance; 0 is best. Arguments, interval and errors as of `cpr`."""
    return _area(curve, lambda f: np.abs(1 - f), log, minus)


@dataclass(frozen=True)
class Completeness:
    """The model and the circuit without the same edges (Wang et al., section 4.1), by edges.

    `removed` is the number of edges in K; `model` and `circuit` are m(M∖K) and m(C∖K); `gap` is their difference
    m(C∖K) − m(M∖K) as a share of m(M) − m(∅): near 0 for a complete circuit.
    """

    removed: int
    model: Estimate
    circuit: Estimate
    gap: Estimate


def completeness(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    circuit: Mask,
    removed: Sequence[Mask] | None = None,
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    batch_size: int = 64,
    unit: str = "prompts",
    clusters: Int[Tensor, " prompt"] | None = None,
    progress: bool = False,
) -> list[Completeness]:
    """What the model does without some edges, beside what the circuit does without them.

    Args:
        removed: sets K of edges; by default the circuit's own: then `model` is what all other edges do alone, and
            `circuit` is m(∅). Other arguments and errors as of `curve`.
    """
    graph = Graph.of(check_tokens(model, clean, batch_size, at, bidirectional=True))
    own = live(graph, check_mask(graph, circuit))
    sets = [own] if removed is None else [check_mask(graph, k) for k in removed]
    masks = [graph.mask, graph.mask & False]
    masks += [live(graph, part & ~k) for k in sets for part in (graph.mask, own)]
    options: dict[str, Any] = {"metric": metric, "at": at, "batch_size": batch_size, "progress": progress}
    whole, empty, *values = run(model, clean, elsewhere, masks, **options)
    _check_gap(whole, empty, unit, clusters)
    how: dict[str, Any] = {"unit": unit, "clusters": clusters}
    return [
        Completeness(int(k.sum()), mean(m, **how), mean(c, **how), ratio(c - m, whole - empty, **how))
        for k, m, c in zip(sets, values[::2], values[1::2], strict=True)
    ]


def run(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    masks: Iterable[Mask],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    batch_size: int,
    progress: bool = False,
) -> Float[Tensor, "circuit prompt"]:
    """The metric of each circuit as it is, without pruning; equal ones are run once."""
    if elsewhere is not None and not elsewhere.is_floating_point():
        check_ids(check_tokens(model, clean, batch_size, bidirectional=True).size, elsewhere, "elsewhere")
    found: dict[tuple[Any, ...], Tensor] = {}
    keys = []
    for mask in tqdm(list(masks), desc="circuits", disable=not progress):
        keys.append((tuple(mask.shape), mask.cpu().numpy().tobytes()))
        if keys[-1] not in found:
            on = mask if mask.ndim == 2 else mask[None]
            logits = patched_logits(model, clean, on, elsewhere, at=at, batch_size=batch_size)
            found[keys[-1]] = measure(metric, logits).cpu()
    return torch.stack([found[key] for key in keys])


def live(graph: Graph, mask: Mask) -> Mask:
    """A circuit's live edges; of one by position, edges that are live if every edge is on at all positions."""
    return graph.live(mask) if mask.ndim == 2 else mask & graph.live(mask.any(0))


def check_mask(graph: Graph, mask: Any) -> Mask:
    """The mask, on the processor; `ValueError` if it is not one of this graph's edges."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape[-2:] != graph.mask.shape:
        what = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"a circuit of this graph is a mask, bool {list(graph.mask.shape)}, not {what}: Graph.masked")
    if mask.ndim not in (2, 3):
        raise ValueError(f"one circuit at a time, [sender receiver] or [pos sender receiver], got {list(mask.shape)}")
    mask = mask.cpu()
    if (mask & ~graph.mask).any():
        raise ValueError(f"the circuit marks {int((mask & ~graph.mask).sum())} pairs that are no edges of this graph")
    return mask


def _top(
    graph: Graph, scores: Scores, shares: Sequence[float]
) -> tuple[list[Mask], Sequence[float], Sequence[int], int]:
    """The circuits of the top edges, the shares, the numbers of edges, and how many there are."""
    if scores.graph != graph:
        raise ValueError(f"the scores are of {scores.graph}, the model is {graph}")
    if not scores.values.isfinite().all():
        raise ValueError("some scores are NaN or infinite, so edges cannot be ranked by them")
    if not shares or not 0 <= shares[0] <= shares[-1] <= 1 or any(a >= b for a, b in pairwise(shares)):
        raise ValueError(f"shares must rise within 0..1, got {tuple(shares)}")
    positions = scores.values.shape[1] if scores.values.ndim == 4 else 1
    n_edges = len(graph) * positions
    most = n_edges if scores.scored is None else int(scores.scored.sum()) * positions
    requested = [int(share * n_edges) for share in shares]
    if requested[-1] > most:
        raise ValueError(
            f"{most} of {n_edges} edges were scored, so there are no circuits of more than a share of "
            f"{most / n_edges:.3g}: give shares up to that, got {shares[-1]}"
        )
    return [scores.top(n).cpu() for n in requested], shares, requested, n_edges


def _check_gap(whole: Tensor, empty: Tensor, unit: str, clusters: Any) -> None:
    """`NoGap` unless the model's metric clearly differs from that with every edge off."""
    gap = mean(whole - empty, unit=unit, clusters=clusters)
    assert gap.interval is not None
    size = max(abs(float(whole.mean())), abs(float(empty.mean())))
    if gap.interval[0] <= 0 <= gap.interval[1] or abs(gap.value) <= 1e-5 * size:
        raise NoGap(
            f"with every edge off the metric is not clearly another than the model's: m(M) − m(∅) = {gap}, so "
            "faithfulness has nothing to be a fraction of; use a metric that the other prompts change, or more prompts"
        )


def _area(curve: Curve, of: Callable[[np.ndarray], np.ndarray], log: bool, minus: Curve | None) -> Estimate:
    """The area under a function of f, less that of another curve."""
    curves = [curve] if minus is None else [curve, minus]
    for one in curves:
        if len(one) < 2:
            raise ValueError(f"an area needs a curve of at least two circuits, got {len(one)}")
        if one.model.shape != curve.model.shape or not torch.allclose(one.model, curve.model, atol=1e-3):
            raise ValueError("the curve to take off is of other prompts, or of another model")
    parts = [(one, slice(i, i + len(one) + 2)) for one, i in zip(curves, (0, len(curve) + 2), strict=False)]

    def area(one: Curve, rows: np.ndarray) -> float:
        *values, whole, empty = rows.mean(0)
        f = (np.array(values) - empty) / (whole - empty)
        if not log:
            return float(np.trapezoid(of(f), one.shares))
        x, f = _log_axis(one, f)
        return float(np.trapezoid(of(f), x) / (x[-1] - x[0]))

    def difference(rows: np.ndarray) -> float:
        own, *other = (area(one, rows[:, columns]) for one, columns in parts)
        return own - sum(other)

    rows = torch.cat([torch.stack([*one.values, one.model, one.empty], 1) for one in curves], 1)
    return resampled(rows, difference, unit=curve.unit, clusters=curve.clusters)


def _log_axis(curve: Curve, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of realised sizes from the smallest requested size to all edges, and f there."""
    least = min((n for n in curve.requested if n > 0), default=curve.n_edges)
    if least >= curve.n_edges:
        raise ValueError("no circuit of fewer than all edges was asked for: there is no axis of sizes")
    sizes = np.array(curve.realised)
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    x, f = np.log([*sizes[order], curve.n_edges]), np.array([*f[order], 1.0])
    start = np.log(least)
    if x[0] > start:
        return np.array([start, *x]), np.array([0.0, *f])
    later = x > start
    return np.array([start, *x[later]]), np.array([np.interp(start, x, f), *f[later]])
