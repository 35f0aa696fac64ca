"""Attribution patching of nodes, AtP and AtP* (Kramár et al., arXiv:2403.00745).

A node is an activation at one position: a head's query, key, value or z, a neuron, a layer's output. Its effect is the
change of the metric if it alone takes its value from the corrupted prompt. AtP estimates all effects at once from one
gradient: (n(corrupt) − n(clean)) · ∂metric/∂n at the clean prompt. It misses nodes behind a saturated softmax and
nodes whose paths cancel; AtP* mends both: `fix_qk` and `graddrop`. What it still may miss: `diagnostics.missed`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy
from mechinterp.discovery.qk_fix import NEEDED, key_effects, query_effects
from mechinterp.discovery.slopes import slope
from mechinterp.patching.checks import Metric, check_pair, check_tokens
from mechinterp.patching.engine import Cache, final_streams, reach, trace

NodeKind = Literal["q", "k", "v", "z", "neurons", "attn_out", "mlp_out"]
"""Names as `patching.engine.trace` has them; keys and values come once for the heads that share them."""


class Node(NamedTuple):
    """An activation at one position: printed `a3.0.q@5`, `m2.17@5` (a neuron), `a3@5`, `m2@5` (a layer's output).

    Its unit is the head, for keys and values the group of heads that share it, or the neuron; 0 for outputs.
    """

    kind: NodeKind
    layer: int
    pos: int
    unit: int = 0

    def __str__(self) -> str:
        unit = "" if self.kind.endswith("_out") else f".{self.unit}"
        part = f".{self.kind}" if self.kind in ("q", "k", "v", "z") else ""
        return f"{'m' if self.kind in ('neurons', 'mlp_out') else 'a'}{self.layer}{unit}{part}@{self.pos}"


@dataclass(frozen=True)
class NodeScores:
    """The estimated effect of every node on every prompt.

    Attributes:
        method: "AtP", "AtP + QK fix", "AtP + GradDrop" or "AtP*".
        values: of each kind [prompt pos layer unit]: by how much the metric changes if the node takes its value from
            the corrupted prompt. With GradDrop it is the size of that change, averaged over dropped layers, never
            below 0.
    """

    method: str
    values: Mapping[NodeKind, Float[Tensor, "prompt pos layer _"]]

    @cached_property
    def contribution(self) -> dict[NodeKind, Float[Tensor, "pos layer _"]]:
        """Mean over prompts of the effect's size, c(n) in the paper, by which nodes are ranked."""
        return {kind: x.abs().mean(0) for kind, x in self.values.items()}

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes, kind by kind in the order of `values`."""
        return [
            Node(kind, layer, pos, unit)
            for kind, x in self.values.items()
            for pos in range(x.shape[1])
            for layer in range(x.shape[2])
            for unit in range(x.shape[3])
        ]

    def of(self, nodes: Iterable[Node]) -> Float[Tensor, "prompt node"]:
        """The values of some nodes; `ValueError` for one that was not scored."""
        found = []
        for node in nodes:
            x = self.values.get(node.kind)
            if x is None or not all(
                0 <= i < n for i, n in zip((node.pos, node.layer, node.unit), x.shape[1:], strict=True)
            ):
                raise ValueError(f"{Node(*node)} was not scored: kinds are {', '.join(self.values)}")
            found.append(x[:, node.pos, node.layer, node.unit])
        return torch.stack(found, 1)

    def top(self, n: int) -> list[Node]:
        """The n nodes of the largest contribution, ties in the order of `nodes`.

        Errors: `ValueError` for a number below 0 or above that of all nodes.
        """
        each = torch.cat([x.flatten() for x in self.contribution.values()])
        if not 0 <= n <= len(each):
            raise ValueError(f"{n} nodes of {len(each)} that are scored")
        return [self.nodes[i] for i in torch.argsort(each, descending=True, stable=True)[:n].tolist()]


@torch.no_grad()
def atp(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "prompt pos"],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    kinds: Sequence[NodeKind] = ("q", "k", "v", "z"),
    fix_qk: bool = False,
    graddrop: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> NodeScores:
    """Estimate every node's effect: AtP; with `fix_qk` and `graddrop`, AtP*.

    Cost: two forward passes and one backward pass, and a third forward pass for prompts that are more than a batch,
    since the metric is of all prompts. The QK fix adds two or three attention patterns a layer. GradDrop adds the work
    of (layers − 1) / 2 backward passes: what lies above the dropped layer is not computed again.

    Args:
        clean, corrupt: prompts of equal shape, aligned position by position.
        metric: from logits at `at` of *all* prompts to one value a prompt, differentiable.
        at: where the logits are read.
        kinds: which nodes. Whole streams are not among them: a line is a poor estimate there, and
            `patching.activation_patch` measures them in few passes.
        fix_qk: the change of attention patterns by queries and keys is exact, and only what comes after is linear:
            exact for a node whose effect on the metric is linear in the pattern.
        graddrop: the mean over layers of the size of the estimate with that layer's outputs held fixed, the node's own
            layer left out: 1 / (layers − 1) · Σ |estimate without layer|. Effects lose their signs.
        batch_size: prompts at a time; changes no result. Memory: their activations, as for training without the
            weights' gradients; with GradDrop a gradient of the stream for each layer besides.
        progress: show a bar.

    Errors: `ValueError` for an unknown kind, shapes that differ, positions out of range, an unsupported architecture,
        a metric that is not differentiable or whose gradient is zero at the clean prompts, GradDrop on a model of one
        layer, or scores that are not finite.

    >>> from mechinterp.models import organisms
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> scores = atp(
    ...     organism.model, data.tokens, data.abc(1).tokens, metric=data.logit_diff, at=data.positions["END"],
    ...     kinds=["z", "q"], fix_qk=True,
    ... )
    >>> [(node.kind, organism.roles[(node.layer, node.unit)]) for node in scores.top(2)]
    [('q', 'name mover'), ('z', 'name mover')]
    """
    anatomy = check_nodes_of(model, clean, corrupt, at, batch_size, kinds)
    layers = anatomy.size.n_layers
    if graddrop and layers == 1:
        raise ValueError(
            "GradDrop holds every layer but a node's own fixed, and this model has one; use graddrop=False"
        )
    at, length = at.to(clean.device), int(reach(anatomy, at, clean.shape[1]).max()) + 1
    chunks = torch.arange(len(clean), device=clean.device).split(batch_size)
    slopes = None
    if len(chunks) > 1:
        finals = [final_streams(anatomy, clean[some], at[some]) for some in chunks]
        slopes = slope(metric, torch.cat([anatomy.unembed(final) for final in finals]))
    found: dict[NodeKind, list[Tensor]] = {kind: [] for kind in kinds}
    for some in tqdm(chunks, desc="attribution patching", disable=not progress):
        graphs = _graphs(anatomy, clean[some, :length], {*kinds, *(NEEDED if fix_qk else ())})
        final, rows = graphs[-1]["resid_pre", layers].detach(), torch.arange(len(some), device=clean.device)
        end = final[rows, at[some]].requires_grad_()
        with torch.enable_grad():
            logits = anatomy.unembed(end)
        if slopes is None:
            slopes = slope(metric, logits)
        gradient = torch.zeros_like(final)
        gradient[rows, at[some]] = torch.autograd.grad(logits, end, slopes[some].to(logits))[0]
        other = trace(anatomy, corrupt[some, :length], lambda name, _, x: x if name in kinds else None)
        for kind, x in _backward(anatomy, graphs, other, gradient, kinds, fix_qk, graddrop).items():
            found[kind].append(x)
    values: dict[NodeKind, Tensor] = {}
    for kind, parts in found.items():
        values[kind] = torch.nn.functional.pad(torch.cat(parts), (0, 0, 0, 0, 0, clean.shape[1] - length))
        if not torch.isfinite(values[kind]).all():
            raise ValueError(f"scores of {kind} are not finite; check the model's weights and the metric's gradient")
    method = {(False, False): "AtP", (True, False): "AtP + QK fix", (False, True): "AtP + GradDrop"}
    return NodeScores(method.get((fix_qk, graddrop), "AtP*"), values)


def check_nodes_of(
    model: Any, clean: Tensor, corrupt: Tensor, at: Tensor, batch_size: int, kinds: Iterable[str]
) -> Anatomy:
    """The model's anatomy, after refusing prompts, positions and kinds of nodes that do not fit."""
    anatomy = check_tokens(model, clean, batch_size, at, bidirectional=True)
    check_tokens(model, corrupt, batch_size, bidirectional=True)
    check_pair(clean, corrupt)
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if not kinds or not set(kinds) <= set(get_args(NodeKind)) or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds must be some of {', '.join(get_args(NodeKind))}, each once, not {kinds}")
    return anatomy


def _graphs(anatomy: Anatomy, tokens: Tensor, names: set[str]) -> list[Cache]:
    """A forward pass, each layer's graph by itself: from its own stream to what is named and the next stream."""
    graphs: list[Cache] = []
    with torch.no_grad():
        x = anatomy.embed(tokens)
    for layer in range(anatomy.size.n_layers):
        start = layer, x.detach().requires_grad_()
        keep = lambda name, _, x: x if name == "resid_pre" or name in names else None  # noqa: E731
        graphs.append(trace(anatomy, tokens, keep, start=start, stop=layer + 1, grad=True))
        x = graphs[-1]["resid_pre", layer + 1]
    return graphs


def _backward(
    anatomy: Anatomy,
    graphs: list[Cache],
    other: Cache,
    gradient: Float[Tensor, "prompt pos d_model"],
    kinds: Sequence[NodeKind],
    fix_qk: bool,
    graddrop: bool,
) -> dict[NodeKind, Float[Tensor, "prompt pos layer _"]]:
    """The scores, layer by layer from the last one down; layers' graphs are freed on the way.

    Dropping a layer makes the gradient before it that after it. So every backward pass with a layer dropped begins
    below that layer, and nodes above it have the plain estimate.
    """
    n = len(graphs)
    found: dict[NodeKind, list[Tensor]] = {kind: [] for kind in kinds}
    gradients = [gradient]  # the plain one, then those with one of the layers above dropped
    for i in reversed(range(n)):
        graph, below = graphs.pop(), []
        reads = {kind: _read(anatomy, i, kind, graph, other, fix_qk) for kind in kinds}
        names = list(dict.fromkeys(name for name, _ in reads.values()))
        inputs = [graph[name, layer] for name, layer in [("resid_pre", i), *((name, i) for name in names)]]
        inputs = inputs if i else inputs[1:]
        sums: dict[NodeKind, Tensor] = {}
        for j, after in enumerate(gradients):
            more = j + 1 < len(gradients)
            got = list(torch.autograd.grad(graph["resid_pre", i + 1], inputs, after, retain_graph=more))
            if i:
                below.append(got.pop(0))
            slopes = dict(zip(names, got, strict=True))
            for kind, (name, read) in reads.items():
                estimate = read(slopes[name])
                if graddrop:
                    # The plain one is also that with any of the i layers below dropped.
                    estimate = estimate.abs() * ((1 if j else i) / (n - 1))
                sums[kind] = sums[kind] + estimate if j else estimate
        for kind, x in sums.items():
            found[kind].insert(0, x)
        gradients = [*below, gradients[0]] if graddrop else below
    return {kind: torch.stack(parts, 2) for kind, parts in found.items()}


def _read(
    anatomy: Anatomy, index: int, kind: NodeKind, graph: Cache, other: Cache, fix_qk: bool
) -> tuple[str, Callable[[Tensor], Float[Tensor, "prompt pos _"]]]:
    """Whose gradient a kind of nodes needs, and what makes scores of it."""
    if fix_qk and kind in ("q", "k"):
        clean = {(name, index): graph[name, index].detach() for name in NEEDED}
        effects = query_effects if kind == "q" else key_effects
        return "pattern", effects(anatomy.layers[index], clean, other[kind, index])
    change = other[kind, index] - graph[kind, index].detach()
    if kind == "neurons":
        return kind, lambda slope: change * slope
    return kind, lambda slope: (change * slope).sum(-1, keepdim=kind.endswith("_out"))
