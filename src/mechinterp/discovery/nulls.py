"""What a discovered circuit must beat: edges drawn at random with the same numbers between the same layers.

A layer's heads and its MLP are dealt together as senders: were MLPs kept apart, every edge between two of them would
stay where it is. The top n of permuted scores are n such edges, nested for growing n; both nulls say the same at a
single size. Where layers have few heads there is little to deal, and the null is close to the circuit itself.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp.discovery.graph import Graph
from mechinterp.discovery.scores import Scores


def permuted(scores: Scores, *, seed: int = 0) -> Scores:
    """The scores dealt out anew among the scored edges from the same layer into the same layer and kind of input.

    An edge's scores on all prompts and positions stay together.
    """
    there = scores.graph.mask if scores.scored is None else scores.scored.cpu()
    order = _shuffled(scores.graph, there, torch.Generator().manual_seed(seed)).to(scores.values.device)
    values = scores.values.flatten(-2)[..., order].view(scores.values.shape)
    return replace(scores, method=f"{scores.method}, permuted", values=values)


def random_edges(
    graph: Graph, mask: Bool[Tensor, "*pos sender receiver"], *, seed: int = 0
) -> Bool[Tensor, "*pos sender receiver"]:
    """As many random edges as a circuit has from each layer into each layer and kind of input, at each position.

    >>> graph = Graph(2, 3, 3, (False, False))
    >>> print(*graph.edges(random_edges(graph, graph.masked(["a0.0→a1.1.q"]), seed=1)))
    m0→a1.0.q
    """
    generator = torch.Generator().manual_seed(seed)
    flat = mask.flatten(-2)
    rows = flat if flat.ndim == 2 else flat[None]
    drawn = torch.stack([row[_shuffled(graph, graph.mask, generator).to(row.device)] for row in rows])
    return drawn.view(mask.shape)


def strata(graph: Graph) -> Int[Tensor, "sender receiver"]:
    """A number for every pair of a sender's layer and a receiver's layer and kind."""
    senders = torch.tensor([sender.layer + 1 for sender in graph.senders])
    kinds = list(dict.fromkeys((receiver.layer, receiver.kind) for receiver in graph.receivers))
    receivers = torch.tensor([kinds.index((receiver.layer, receiver.kind)) for receiver in graph.receivers])
    return senders[:, None] * len(kinds) + receivers


def _shuffled(graph: Graph, there: Bool[Tensor, "sender receiver"], generator: torch.Generator) -> Int[Tensor, " pair"]:
    """For every pair the pair of its stratum that takes its place; pairs that are not there keep theirs."""
    at = there.flatten().nonzero()[:, 0]
    labels = strata(graph).flatten()[at]
    mixed = torch.randperm(len(at), generator=generator)
    order = torch.arange(there.numel())
    order[at[labels.argsort(stable=True)]] = at[mixed[labels[mixed].argsort(stable=True)]]
    return order
