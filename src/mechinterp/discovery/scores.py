"""What scores of edges are: how much the metric changes when an edge is patched, or an estimate of it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.discovery.graph import Edge, Graph

MOST_BYTES = 2**33
"""Of scores that are held at a time."""


@dataclass(frozen=True)
class Scores:
    """A score for every edge and prompt.

    Attributes:
        method: "exact", "EAP", "EAP-IG" …
        graph: whose edges these are.
        values: [prompt sender receiver], or [prompt pos sender receiver]: by how much the metric changes if what flows
            along the edge is what is said elsewhere; 0 where there is no edge.
        scored: which edges have been scored; None: all.
    """

    method: str
    graph: Graph
    values: Tensor
    scored: Bool[Tensor, "sender receiver"] | None = None

    def __len__(self) -> int:
        """How many prompts."""
        return len(self.values)

    @property
    def mean(self) -> Float[Tensor, "*pos sender receiver"]:
        """Mean over prompts; edges are ranked by its size."""
        return self.values.mean(0)

    def of(self, edge: Edge | str) -> Float[Tensor, " prompt"]:
        """One edge's score on every prompt, summed over positions; `ValueError` if it is no edge or was not scored."""
        at = self.graph.masked([edge])
        if self.scored is not None and not self.scored[at].all():
            raise ValueError(f"{edge} was not scored")
        values = self.values if self.values.ndim == 3 else self.values.sum(1)
        return values[:, at][:, 0]

    def top(self, n: int) -> Bool[Tensor, "*pos sender receiver"]:
        """The n edges whose mean score is largest in size, ties in the order of the graph.

        Some of them may carry nothing to the logits: `Graph.live` tells which do.

        Errors: `ValueError` for a number below 0 or above that of the scored edges.
        """
        there = self.graph.mask if self.scored is None else self.scored
        size = self.mean.abs().masked_fill(~there.to(self.values.device), -torch.inf).flatten()
        most = int((size > -torch.inf).sum())
        if not 0 <= n <= most:
            raise ValueError(f"{n} edges of {most} that are scored")
        order = torch.argsort(size, descending=True, stable=True)
        found = torch.zeros(size.shape, dtype=torch.bool, device=size.device)
        found[order[:n]] = True
        return found.view(self.mean.shape)

    def some(self, rows: Tensor) -> "Scores":
        """The scores on some of the prompts, by index or flag."""
        return replace(self, values=self.values[rows])


def check_room(graph: Graph, tokens: Tensor, positions: bool) -> None:
    """`ValueError` if scores [prompt (pos) sender receiver] would take more than `MOST_BYTES`."""
    n, length = tokens.shape
    size = 4 * n * (length if positions else 1) * graph.mask.numel()
    if size > MOST_BYTES:
        raise ValueError(
            f"scores of {len(graph):,} edges on {n} prompts{' at every position' * positions} take "
            f"{size / 2**30:.1f} GiB, more than {MOST_BYTES / 2**30:.0f}: give fewer prompts at a time"
            f"{', or positions=False' * positions}, or score nodes instead of edges (`atp`)"
        )
