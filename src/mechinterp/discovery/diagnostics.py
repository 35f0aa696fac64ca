"""Whether scores of nodes can be trusted: a bound on what they missed, and what finding the truth with them costs.

Kramár et al., arXiv:2403.00745.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from mechinterp.discovery.node_effects import KINDS, check_table, effects_of_table
from mechinterp.discovery.nodes import Node, check_nodes_of
from mechinterp.patching.checks import Metric

FEWEST = 5
"""Sets with a node, and sets without it, that a test needs."""


@dataclass(frozen=True)
class Missed:
    """How large the effects of nodes that nobody verified can be.

    Attributes:
        nodes: those in question. `sets`: how many random sets of them were patched.
        confidence: that no effect of any of them, on any prompt, is larger than its bound.
        estimate: mean effect of the sets with the node, less that of the sets without.
        bound: on the size of the effect.
    """

    nodes: tuple[Node, ...]
    sets: int
    confidence: float
    estimate: Float[Tensor, "prompt node"]
    bound: Float[Tensor, "prompt node"]

    @property
    def contribution(self) -> Float[Tensor, " node"]:
        """A bound on c(n), the mean over prompts of the effect's size."""
        return self.bound.mean(0)

    @property
    def largest(self) -> float:
        """No contribution of any of the nodes is larger than this."""
        return float(self.contribution.max())


def missed(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "prompt pos"],
    nodes: Sequence[Node],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    sets: int = 200,
    share: float = 0.1,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Missed:
    """Bound the effects of nodes that have not been verified, by patching random sets of them together.

    It takes effects to add up but for noise that does not depend on the node. They do not quite: a node that another
    one of its set overrides (a query, where its head's z is patched) counts for less, by about `share`, and what
    several nodes do together counts for each. Smaller sets are less biased and say less.

    Args:
        nodes: those in question: all but the verified ones.
        sets: how many random sets; the bound falls with its square root.
        share: the probability with which a set includes a node.
        confidence: see `Missed`; the union over nodes and prompts is Bonferroni's.
        batch_size: (set, prompt) pairs at a time; changes no result. Memory: as of `node_effects`.

    Errors: `ValueError` for no nodes, a share or confidence that is not between 0 and 1, too few sets for each node to
        be in 5 and out of 5; else as of `node_effects`.
    """
    nodes = tuple(Node(*node) for node in nodes)
    if not nodes or len(set(nodes)) < len(nodes):
        raise ValueError(f"nodes must be some nodes, each once; got {len(nodes)}, {len(set(nodes))} of them different")
    if not (0 < share < 1 and sets > 0):
        raise ValueError(f"share must lie between 0 and 1 and sets be positive, not {share} and {sets}")
    anatomy = check_nodes_of(model, clean, corrupt, at, batch_size, dict.fromkeys(node.kind for node in nodes))
    each = torch.tensor([[KINDS.index(node.kind), node.layer, node.pos, node.unit] for node in nodes])
    check_table(anatomy, torch.nn.functional.pad(each, (1, 0)), clean.shape[1])
    members = torch.rand(sets, len(nodes), generator=torch.Generator().manual_seed(seed)) < share
    _check_members(members, confidence)
    which, node = members.nonzero().T
    table = torch.cat([which[:, None], each[node]], 1)
    found = effects_of_table(anatomy, clean, corrupt, table, sets, metric, at, batch_size, progress)
    return Missed(nodes, sets, confidence, *(x.T.to(found) for x in subset_bound(found.T, members, confidence)))


def subset_bound(
    effects: Float[Tensor, "set prompt"], members: Bool[Tensor, "set node"], confidence: float = 0.95
) -> tuple[Float[Tensor, "node prompt"], Float[Tensor, "node prompt"]]:
    """Each node's effect from those of random sets, and what its size does not exceed, all nodes and prompts together.

    The estimate is the mean effect of sets with the node less that of sets without; the bound adds Welch's standard
    error times the one-sided t quantile at 1 − (1 − confidence) / (nodes · prompts).

    Errors: `ValueError` for a confidence that is not between 0 and 1, or a node that is in, or out of, fewer than 5
        sets.
    """
    _check_members(members, confidence)
    x = effects.double().cpu() - effects.double().cpu().mean(0)
    part = members.double().cpu()
    n_in = part.sum(0)[:, None]
    n_out = len(part) - n_in
    mean_in, mean_out = part.T @ x / n_in, (1 - part).T @ x / n_out
    spread_in = ((part.T @ x.square() / n_in - mean_in.square()) / (n_in - 1)).clamp(min=0)
    spread_out = (((1 - part).T @ x.square() / n_out - mean_out.square()) / (n_out - 1)).clamp(min=0)
    variance = spread_in + spread_out
    freedom = variance.square() / (spread_in.square() / (n_in - 1) + spread_out.square() / (n_out - 1))
    freedom = torch.where(variance > 0, freedom, 1.0)
    quantile = stats.t.isf((1 - confidence) / variance.numel(), freedom.numpy())
    estimate = mean_in - mean_out
    return estimate, estimate.abs() + torch.from_numpy(np.asarray(quantile)) * variance.sqrt()


def verification_cost(
    estimate: Float[Tensor, " node"], truth: Float[Tensor, " node"], *, most: int | None = None, passes: float = 0.0
) -> Float[Tensor, " k"]:
    """What finding the K largest true nodes costs for K = 1, 2, …, in passes, relative to knowing them beforehand.

    Nodes are verified in the order of their estimates until all K are; the cost is (passes + nodes verified) / K. All
    nodes of a tie of estimates are verified together; in a tie of the truth, those that come first count.

    Args:
        estimate, truth: contributions, nodes in the same order.
        most: the largest K; None: as many as have an effect at all.
        passes: what the estimates cost, in forward passes (a backward pass counts as two).

    Errors: `ValueError` for different lengths, values that are negative or not finite, no node with an effect, or a K
        above their number.

    >>> verification_cost(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 0.0, 2.0])).tolist()
    [1.0, 1.5]
    """
    if estimate.ndim != 1 or estimate.shape != truth.shape:
        raise ValueError(f"estimates and truth differ in shape: {tuple(estimate.shape)} and {tuple(truth.shape)}")
    for name, x in (("estimates", estimate), ("truth", truth)):
        if not (torch.isfinite(x).all() and (x >= 0).all()):
            raise ValueError(f"{name} must be contributions, finite and not below 0; take the size and the mean first")
    there = int((truth > 0).sum())
    most = there if most is None else most
    if not 1 <= most <= there:
        raise ValueError(f"K must lie in 1..{there}, the number of nodes that have an effect, not {most}")
    ascending = torch.sort(estimate).values
    verified = len(estimate) - torch.searchsorted(ascending, estimate.contiguous())  # with all of its tie
    order = np.lexsort((verified.cpu().numpy(), -truth.cpu().numpy()))[:most]
    needed = verified[torch.from_numpy(order).to(verified.device)].cummax(0).values
    return (passes + needed) / torch.arange(1, most + 1, device=needed.device)


def mean_cost(cost: Float[Tensor, " k"]) -> float:
    """The geometric mean of costs for K = 1, 2, …, weighted by 1 / K; 1 is an oracle's.

    >>> round(mean_cost(torch.tensor([1.0, 8.0])), 6)  # 8^(1/2 / (1 + 1/2))
    2.0
    """
    weight = 1 / torch.arange(1, len(cost) + 1, dtype=torch.float64)
    return math.exp(float((weight * cost.double().cpu().log()).sum() / weight.sum()))


def _check_members(members: Tensor, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    inside = members.sum(0)
    fewest = min(int(inside.min()), len(members) - int(inside.max()))
    if fewest < FEWEST:
        raise ValueError(
            f"of {len(members)} random sets, some node is in (or out of) {fewest} only; at least {FEWEST} are needed: "
            "take more sets, or a share nearer to 0.5"
        )
