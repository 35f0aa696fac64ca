"""Whether scores of nodes can be trusted: exact effects, a bound on what was missed, what finding the truth costs.

Kramár et al., arXiv:2403.00745, sections on verification and diagnostics.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy
from mechinterp.discovery.nodes import Node, NodeKind, check_nodes_of
from mechinterp.patching.checks import Metric, measure
from mechinterp.patching.engine import Cache, reach, trace

KINDS = get_args(NodeKind)
FEWEST = 5
"""Sets with a node, and sets without it, that a test needs."""


def effects(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "prompt pos"],
    nodes: Sequence[Node | Collection[Node]],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    batch_size: int = 256,
    progress: bool = False,
) -> Float[Tensor, "prompt set"]:
    """By how much the metric changes if a node, or a set of nodes together, is what it is on the corrupted prompt.

    One pass a node from its layer on. `patching.activation_patch` measures all nodes of a kind faster, but a key or
    value that several heads share for each head by itself.

    Args:
        clean, corrupt: prompts of equal shape, aligned position by position.
        nodes: each by itself, or sets. In a set, what lies behind a patched node of the same head is overridden: with
            a head's z patched, its query does nothing.
        metric: from logits at `at` of all prompts to one value a prompt.
        batch_size: (set, prompt) pairs at a time; changes no result. Memory: the clean stream and the corrupted nodes
            of all layers and prompts, and a batch's activations of one layer.

    Errors: `ValueError` for a node that the model or the prompts do not have; else as of `atp`.
    """
    sets = [[node] if isinstance(node, Node) else [Node(*x) for x in node] for node in nodes]
    given = [(s, node) for s, some in enumerate(sets) for node in some]
    kinds = list(dict.fromkeys(node.kind for _, node in given)) or ["z"]
    anatomy = check_nodes_of(model, clean, corrupt, at, batch_size, kinds)
    rows = [[s, KINDS.index(node.kind), node.layer, node.pos, node.unit] for s, node in given]
    table = torch.tensor(rows, dtype=torch.long).view(-1, 5)
    _check_table(anatomy, table, clean.shape[1])
    return _effects(anatomy, clean, corrupt, table, len(sets), metric, at, batch_size, progress)


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
        batch_size: (set, prompt) pairs at a time; changes no result. Memory: as of `effects`.

    Errors: `ValueError` for no nodes, a share or confidence that is not between 0 and 1, too few sets for each node to
        be in 5 and out of 5; else as of `effects`.
    """
    nodes = tuple(Node(*node) for node in nodes)
    if not nodes or len(set(nodes)) < len(nodes):
        raise ValueError(f"nodes must be some nodes, each once; got {len(nodes)}, {len(set(nodes))} of them different")
    if not (0 < share < 1 and sets > 0):
        raise ValueError(f"share must lie between 0 and 1 and sets be positive, not {share} and {sets}")
    anatomy = check_nodes_of(model, clean, corrupt, at, batch_size, dict.fromkeys(node.kind for node in nodes))
    each = torch.tensor([[KINDS.index(node.kind), node.layer, node.pos, node.unit] for node in nodes])
    _check_table(anatomy, torch.nn.functional.pad(each, (1, 0)), clean.shape[1])
    members = torch.rand(sets, len(nodes), generator=torch.Generator().manual_seed(seed)) < share
    _check_members(members, confidence)
    which, node = members.nonzero().T
    table = torch.cat([which[:, None], each[node]], 1)
    found = _effects(anatomy, clean, corrupt, table, sets, metric, at, batch_size, progress)
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


def _check_table(anatomy: Anatomy, table: Int[Tensor, "row 5"], length: int) -> None:
    """`ValueError` for the first node that model or prompts do not have."""
    sizes = anatomy.size
    heads = {"q": sizes.n_heads, "z": sizes.n_heads, "k": sizes.n_kv_heads, "v": sizes.n_kv_heads}
    for code, kind in enumerate(KINDS):
        rows = table[table[:, 1] == code]
        if not len(rows):
            continue
        neurons = [len(x.neurons.up.weight) for x in anatomy.layers]
        layer = rows[:, 2].clamp(0, sizes.n_layers - 1)
        units = torch.tensor(neurons)[layer] if kind == "neurons" else torch.tensor(heads.get(kind, 1))
        ends = torch.stack([torch.tensor(sizes.n_layers), torch.tensor(length)]).expand(len(rows), 2)
        ends = torch.cat([ends, units.expand(len(rows))[:, None]], 1)
        wrong = ((rows[:, 2:] < 0) | (rows[:, 2:] >= ends)).any(1)
        if wrong.any():
            i = int(wrong.int().argmax())
            there = f"{ends[i, 0]} layers, {ends[i, 1]} positions and {ends[i, 2]} of {kind} in a layer"
            raise ValueError(f"{Node(kind, *rows[i, 2:].tolist())} is no node: there are {there}")


@torch.no_grad()
def _effects(
    anatomy: Anatomy,
    clean: Tensor,
    corrupt: Tensor,
    table: Int[Tensor, "row 5"],
    sets: int,
    metric: Metric,
    at: Tensor,
    batch_size: int,
    progress: bool,
) -> Float[Tensor, "prompt set"]:
    """As `effects`; a row of the table is set, kind, layer, position, unit."""
    at, layers = at.to(clean.device), anatomy.size.n_layers
    length = int(reach(anatomy, at, clean.shape[1]).max()) + 1
    table = table[table[:, 3] < length]  # what comes later cannot be seen
    kinds = {KINDS[code] for code in table[:, 1].unique().tolist()}
    blocks = [
        (
            trace(anatomy, clean[some, :length], lambda name, _, x: x if name == "resid_pre" else None),
            trace(anatomy, corrupt[some, :length], lambda name, _, x: x if name in kinds else None),
            at[some],
        )
        for some in torch.arange(len(clean), device=clean.device).split(batch_size)
    ]
    rows = min(len(clean), batch_size)
    ends = [block["resid_pre", layers][torch.arange(len(end)), end] for block, _, end in blocks]
    before = measure(metric, torch.cat([anatomy.unembed(end) for end in ends]))
    found = before.new_zeros(len(clean), sets)
    first = torch.full((sets,), layers).scatter_reduce(0, table[:, 0], table[:, 2], "amin")
    order = [s for s in torch.argsort(first, descending=True, stable=True).tolist() if first[s] < layers]
    chunks = [order[i : i + max(1, batch_size // rows)] for i in range(0, len(order), max(1, batch_size // rows))]
    by_set = table[torch.argsort(table[:, 0], stable=True)]
    starts = torch.searchsorted(by_set[:, 0].contiguous(), torch.arange(sets + 1)).tolist()
    for some in tqdm(chunks, desc="patching nodes", disable=not progress):
        parts = [by_set[starts[s] : starts[s + 1]] for s in some]
        places = torch.repeat_interleave(torch.arange(len(some)), torch.tensor([len(part) for part in parts]))
        mine = torch.cat([places[:, None], torch.cat(parts)[:, 1:]], 1).to(clean.device)
        layer = int(first[some].min())
        logits = [_patched(anatomy, *block, mine, len(some), layer) for block in blocks]
        for s, row in zip(some, torch.cat(logits, 1), strict=True):
            found[:, s] = measure(metric, row) - before
    return found


def _patched(
    anatomy: Anatomy, clean: Cache, corrupt: Cache, at: Tensor, table: Int[Tensor, "row 5"], sets: int, first: int
) -> Float[Tensor, "set prompt vocab"]:
    """Logits of one block of prompts with each set of nodes patched, from the first layer that has one."""

    def change(name: str, layer: int, x: Tensor) -> Tensor:
        if (name, layer) not in corrupt:
            return x
        mine = table[(table[:, 1] == KINDS.index(name)) & (table[:, 2] == layer)]
        if not len(mine):
            return x
        s, _, _, pos, unit = mine.T
        x, new = x.unflatten(0, (sets, -1)).clone(), corrupt[name, layer]
        if name.endswith("_out"):
            x[s, :, pos] = new[:, pos].transpose(0, 1)
        else:
            x[s, :, pos, unit] = new[:, pos, unit].transpose(0, 1)
        return x.flatten(0, 1)

    end, stream = anatomy.size.n_layers, clean["resid_pre", first]
    start = first, stream.expand(sets, *stream.shape).flatten(0, 1)
    tokens = at.new_zeros(len(start[1]), stream.shape[1])  # only their number matters
    got = trace(
        anatomy, tokens, lambda name, i, x: x if (name, i) == ("resid_pre", end) else None, start=start, change=change
    )["resid_pre", end].unflatten(0, (sets, -1))
    return anatomy.unembed(got[:, torch.arange(len(at), device=at.device), at])
