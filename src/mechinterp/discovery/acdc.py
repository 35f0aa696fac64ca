"""Automatic circuit discovery (ACDC; Conmy et al., arXiv:2304.14997, Algorithm 1).

From the logits back to the input, every edge into every receiver is taken away in its turn, and stays away if the loss
of what is left grows by less than a threshold. The loss is the KL divergence from the full model's output, or minus a
task's metric. What flows along an edge that was taken away is what its sender says elsewhere; senders are recomputed
under what has been taken away so far.

When a receiver's turn comes nothing before it has been changed yet, so that the clean pass holds there, and after it
only those nodes compute that hear of the change along edges that are left. Verdicts depend on the ones before; several
candidates are tried at once all the same, each with all candidates before it taken away, and what comes after the first
that has to stay is tried again. Verdicts are those of one after the other.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy
from mechinterp.discovery.forward import Elsewhere, at_rows, check_question
from mechinterp.discovery.graph import Edge, Graph, Receiver, Sender
from mechinterp.discovery.sparse import Sparse, Trial
from mechinterp.patching.checks import Metric, measure
from mechinterp.patching.engine import final_streams, reach


@dataclass(frozen=True)
class Step:
    """One edge or node that was tried: the growth of the loss without it, and whether it was kept."""

    what: Edge | Sender
    change: float
    kept: bool


@dataclass(frozen=True)
class Found:
    """What ACDC has left.

    Attributes:
        mask: [sender receiver], the edges that are left; `Graph.live` of it are those on a path to the logits.
        steps: what was tried, in order. Edges into a receiver from which nothing leads on are not tried.
        loss: of the edges that are left. `threshold`: as given. `passes`: candidates computed, repeated ones included.
    """

    graph: Graph
    mask: Bool[Tensor, "sender receiver"]
    threshold: float
    loss: float
    steps: tuple[Step, ...]
    passes: int

    @property
    def edges(self) -> list[Edge]:
        """The edges that are left."""
        return self.graph.edges(self.mask)


@torch.no_grad()
def acdc(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    *,
    at: Int[Tensor, " prompt"],
    threshold: float,
    metric: Metric | None = None,
    by: Literal["edges", "heads"] = "edges",
    start: Bool[Tensor, "sender receiver"] | None = None,
    absolute: bool = False,
    seed: int | None = None,
    batch_size: int = 128,
    progress: bool = False,
) -> Found:
    """Take away every edge whose absence costs less than the threshold, from the logits back.

    Args:
        elsewhere: what flows along edges that were taken away: corrupted prompts aligned with the clean ones (resample
            ablation), messages as `said` gives them, or None, nothing.
        at: where the logits are read.
        threshold: of the growth of the loss, in its units (nats for the KL divergence).
        metric: from logits at `at` of all prompts to one value a prompt, to be kept high: the loss is minus its mean.
            None: the mean KL divergence from the full model's output.
        by: "edges" tries edges one by one; "heads" tries all edges that leave a head, an MLP or the input together.
        start: edges to begin with (EAP's best, say); None: all.
        absolute: take away what *changes* the loss by less than the threshold. Else what lowers the loss is always
            taken away, and with it heads that work against the task.
        seed: None: receivers and senders from the last to the first. A number: senders of a receiver, and receivers of
            a half-layer, in an order drawn with it.
        batch_size: (candidate, prompt) pairs at a time; changes no result. Memory: twice [prompt pos sender d_model] of
            all prompts, and [pair pos sender d_model] of the senders that still have edges.

    Errors: `ValueError` for a threshold that is not a number, for prompts that are not aligned, a `start` of another
        shape; as of `check_tokens`.

    >>> from mechinterp.rasp import compile_program, programs
    >>> reverse = compile_program(**programs()["reverse"])
    >>> clean, corrupt = reverse.tokens(["abc", "bca"]), reverse.tokens(["cca", "abd"])
    >>> found = acdc(reverse.model, clean, corrupt, at=torch.tensor([1, 1]), threshold=0.01)
    >>> [str(edge) for edge in found.edges]
    ['input→a3.0.v', 'a3.0→logits']
    """
    anatomy, graph, at = check_question(model, clean, elsewhere, at, batch_size)
    if threshold != threshold:
        raise ValueError("the threshold must be a number, not NaN")
    if by not in ("edges", "heads"):
        raise ValueError(f"by must be 'edges' or 'heads', not {by!r}")
    if start is not None and start.shape != graph.mask.shape:
        raise ValueError(f"the edges to start with have the shape {tuple(start.shape)}; expected {[*graph.mask.shape]}")
    on = graph.mask.clone() if start is None else start.cpu() & graph.mask
    length = int(reach(anatomy, at, clean.shape[1]).max()) + 1
    there = at_rows(anatomy, graph, elsewhere, torch.arange(len(clean), device=clean.device))
    clean, there = clean[:, :length], None if there is None else there[..., :length, :, :]
    state = Sparse.of(anatomy, graph, clean, there, at, on)
    loss = _loss(anatomy, clean, at, metric)
    sweep = _Sweep(threshold, absolute, max(1, batch_size // len(clean)), float(loss(state.logits())[0]))
    if by == "heads":
        _by_heads(state, sweep, loss, seed, progress)
    else:
        _by_edges(state, sweep, loss, seed, progress)
    return Found(graph, state.on, threshold, sweep.loss, tuple(sweep.steps), sweep.passes)


def _by_edges(
    state: Sparse, sweep: "_Sweep", loss: Callable[[Tensor], Tensor], seed: int | None, progress: bool
) -> None:
    graph = state.graph
    for receiver in tqdm([*_receivers(graph, seed)], desc="ACDC", disable=not progress):
        column = graph.column[receiver]
        if not state.matters(receiver):
            state.on[:, column] = False
            continue
        senders = state.on[:, column].nonzero()[:, 0].flip(0).tolist()
        if seed is not None:
            senders = [senders[i] for i in _order(len(senders), seed, column)]
        edges = {s: Edge(graph.senders[s], receiver) for s in senders}
        sweep.run(edges, state.edges(receiver), loss)


def _by_heads(
    state: Sparse,
    sweep: "_Sweep",
    loss: Callable[[Tensor], Tensor],
    seed: int | None,
    progress: bool,
) -> None:
    """All edges that leave a sender at a time; senders of one half-layer together."""
    halves = [[i] for i in range(len(state.graph.senders))]
    for layer in range(state.graph.n_layers):
        n = state.graph.n_heads
        first = 1 + layer * (n + 1)
        halves[first : first + n] = [[*range(first, first + n)], *([[]] * (n - 1))]
    for half in tqdm([h for h in reversed(halves) if h], desc="ACDC", disable=not progress):
        senders = [s for s in reversed(half) if state.on[s].any()]
        if seed is not None:
            senders = [senders[i] for i in _order(len(senders), seed, half[0])]
        sweep.run({s: state.graph.senders[s] for s in senders}, state.nodes(state.graph.senders[half[0]].layer), loss)


def _loss(
    anatomy: Anatomy, clean: Tensor, at: Tensor, metric: Metric | None
) -> Callable[[Tensor], Float[Tensor, " v"]]:
    """From logits [variant prompt vocab] to each variant's loss."""
    if metric is not None:
        return lambda logits: torch.stack([-measure(metric, x).mean() for x in logits])
    full = anatomy.unembed(final_streams(anatomy, clean, at)).log_softmax(-1)
    weight = full.exp()

    def divergence(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).neg_().add_(full).mul_(weight).sum(-1).mean(-1)

    return divergence


def _receivers(graph: Graph, seed: int | None) -> Iterator[Receiver]:
    """From the logits back; those of one half-layer, which do not hear each other, in an order drawn with the seed."""
    yield Receiver("logits")
    for layer in reversed(range(graph.n_layers)):
        yield Receiver("mlp", layer)
        inputs = [r for r in reversed(graph.receivers) if r.layer == layer and r.kind != "mlp"]
        yield from inputs if seed is None else (inputs[i] for i in _order(len(inputs), seed, -1 - layer))


def _order(n: int, seed: int, place: int) -> list[int]:
    """A random order, of its own for every place."""
    generator = torch.Generator().manual_seed(hash((seed, place)) % 2**63)
    return torch.randperm(n, generator=generator).tolist()


@dataclass
class _Sweep:
    """Verdicts one after the other, from losses of several candidates at once."""

    threshold: float
    absolute: bool
    most: int
    loss: float = 0.0
    at_once: int = 1
    passes: int = 0
    steps: list[Step] = field(default_factory=list)

    def run(self, named: Mapping[int, Edge | Sender], trial: Trial, loss: Callable[[Tensor], Tensor]) -> None:
        """Try senders' edges in order; their losses come for the first, the first two, … of some taken away."""
        items, at = list(named), 0
        while at < len(items):
            some, gone = items[at : at + self.at_once], 0
            self.passes += len(some)
            for item, value in zip(some, loss(trial.without(some)).tolist(), strict=True):
                change = value - self.loss
                kept = not (abs(change) if self.absolute else change) < self.threshold
                self.steps.append(Step(named[item], change, kept))
                if kept:
                    break
                self.loss, gone = value, gone + 1
            trial.settle(gone)
            at += min(gone + 1, len(some))
            all_gone = gone == len(some)
            self.at_once = min(2 * self.at_once, self.most) if all_gone else min(gone + 1, self.most)
