"""Scores of all edges at once from gradients: EAP, integrated gradients (EAP-IG) and GIM.

An edge carries its sender's message into the sum that its receiver reads. To first order, patching it changes the
metric by

    s(u → v) = Σ_positions (m_u elsewhere − m_u) · ∂L/∂(input of v),

the difference of the messages along the gradient at the receiver, on the clean run: two forward passes and a backward
one for all edges (Syed et al., arXiv:2310.10348). EAP-IG (Hanna et al., arXiv:2403.17806) averages the gradient over
runs between the corrupted and the clean one. GIM takes EAP's formula with a changed backward pass: scales of norms
frozen, attention's softmax at a higher temperature, gradients of queries, keys and values made smaller.

The gradient at a receiver's input is never formed by a pass of its own: what comes back to a query, key or value
[head d_head] is taken through its weights and the norm's Jacobian, r − x̂ (x̂ · r) / d_model with r the direction after
the norm seen from before it and x̂ the normalised stream.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy, Layer
from mechinterp.discovery.forward import Elsewhere, at_rows, by_head, check_question, messages
from mechinterp.discovery.gim import FACTORS, TEMPERATURE, Scaled, Tempered, frozen_norms
from mechinterp.discovery.graph import Graph, Receiver
from mechinterp.discovery.scores import Scores, check_room
from mechinterp.discovery.slopes import slope
from mechinterp.patching.checks import Metric


def eap(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    positions: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Scores:
    """Edge attribution patching: a first-order estimate of every edge's effect.

    Args:
        elsewhere: what flows along a patched edge: corrupted prompts aligned with the clean ones (resample ablation),
            messages as `said` gives them (their mean, say), or None, nothing.
        metric: from logits at `at` of *all* prompts to one value a prompt; differentiable.
        at: where the logits are read.
        positions: score every edge at every position, [prompt pos sender receiver], instead of their sum.
        batch_size: prompts at a time; changes no result. Memory: twice [batch pos sender d_model], and one graph of
            gradients. More than one batch costs a forward pass more.

    Errors: `ValueError` for prompts that are not aligned, a metric without gradient at the clean run (a KL divergence
        from that very run has none), scores that would not fit into memory; as of `check_tokens`.

    >>> from mechinterp.models import organisms
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> found = eap(
    ...     organism.model, data.tokens, data.abc(1).tokens, metric=data.logit_diff, at=data.positions["END"]
    ... )
    >>> found.values.shape == (8, len(found.graph.senders), len(found.graph.receivers))
    True
    """
    setup = _Setup.of(model, clean, elsewhere, metric, at, positions, batch_size)
    return setup.scores("EAP", [1.0], progress)


def eap_ig(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    steps: int = 5,
    along: Literal["input", "sender"] = "input",
    positions: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Scores:
    """EAP with gradients averaged over `steps` runs on the way from the corrupted to the clean run.

    Run k of m = `steps`, k = 0 … m − 1, is a fraction k / m of the way: the corrupted end is among them, the clean one
    is not. A KL divergence from the clean run has a gradient at these.

    Args:
        along: "input": the input's message is interpolated, one backward pass a step for all edges. "sender": each
            sender's own message is interpolated with all else clean, and scores the edges from this sender alone:
            a step is a pass for every sender, of all prompts in one batch.
        others: as of `eap`.

    Errors: as of `eap`; `ValueError` for less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if along not in ("input", "sender"):
        raise ValueError(f"along must be 'input' or 'sender', not {along!r}")
    setup = _Setup.of(model, clean, elsewhere, metric, at, positions, batch_size)
    on_the_way = [k / steps for k in range(steps)]
    if along == "input":
        return setup.scores("EAP-IG", on_the_way, progress)
    return setup.scores_by_sender("EAP-IG by sender", on_the_way, progress)


def gim(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    elsewhere: Elsewhere,
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    positions: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Scores:
    """EAP's formula with the backward pass of GIM, made for attention that has saturated.

    Scales of norms are taken as given; the softmax of attention goes backward as if at temperature 2; gradients of
    queries, keys and values are multiplied by 0.25, 0.25 and 0.5. Forward nothing changes.

    Args and errors: as of `eap`.
    """
    setup = _Setup.of(model, clean, elsewhere, metric, at, positions, batch_size)
    return replace(setup, anatomy=frozen_norms(setup.anatomy), gim=True).scores("GIM", [1.0], progress)


@dataclass(frozen=True)
class _Gradient:
    """What comes back to the receivers of one half-layer: [prompt pos receiver d_model], and which they are."""

    receivers: list[int]
    before: int
    values: Float[Tensor, "prompt pos receiver d_model"]


@dataclass(frozen=True)
class _Setup:
    """A question about all edges, checked."""

    anatomy: Anatomy
    graph: Graph
    clean: Tensor
    elsewhere: Elsewhere
    metric: Metric
    at: Tensor
    positions: bool
    batch_size: int
    gim: bool = False

    @classmethod
    def of(
        cls, model: Any, clean: Tensor, elsewhere: Any, metric: Metric, at: Tensor, positions: bool, batch_size: int
    ) -> "_Setup":
        anatomy, graph, at = check_question(model, clean, elsewhere, at, batch_size)
        check_room(graph, clean, positions)
        return cls(anatomy, graph, clean, elsewhere, metric, at, positions, batch_size)

    def scores(self, method: str, fractions: Sequence[float], progress: bool) -> Scores:
        """Gradients averaged over runs at some fractions of the way from elsewhere to the clean input."""
        n, values = len(self.clean), self._zeros()
        chunks = torch.arange(n, device=self.clean.device).split(self.batch_size)
        pulls = {f: self._pull(f, len(chunks)) for f in fractions}
        for rows in tqdm(chunks, desc=method, disable=not progress):
            start = self.anatomy.embed(self.clean[rows])
            here = start.new_empty(*start.shape[:2], len(self.graph.senders), start.shape[2])
            if fractions == [1.0]:  # the clean messages come from the very pass that gradients are taken of
                found = self._gradients(start, rows, pulls[1.0], here=here)
                change = self._change(rows, here)
                self._add(values, rows, change, found, 1.0)
                continue
            change = self._change(rows, messages(self.anatomy, self.graph, self.clean[rows])[0])
            for fraction in fractions:
                found = self._gradients(start + (1 - fraction) * change[:, 0], rows, pulls[fraction])
                self._add(values, rows, change, found, 1 / len(fractions))
        return Scores(method, self.graph, self._finite(values))

    def scores_by_sender(self, method: str, fractions: Sequence[float], progress: bool) -> Scores:
        """As `scores`, with each sender's own message on the way and all else clean."""
        values = self._zeros()
        rows = torch.arange(len(self.clean), device=self.clean.device)
        if len(rows) > self.batch_size:
            raise ValueError(
                f"gradients by sender take all prompts in one batch, and {len(rows)} are more than batch_size = "
                f"{self.batch_size}: give fewer prompts or a larger batch"
            )
        start, pull = self.anatomy.embed(self.clean), self._pull(0.0, 1)
        change = self._change(rows, messages(self.anatomy, self.graph, self.clean)[0])
        for sender in tqdm(range(len(self.graph.senders)), desc=method, disable=not progress):
            for fraction in fractions:
                moved = (sender, (1 - fraction) * change[:, sender])
                found = self._gradients(start, rows, pull, moved)
                self._add(values, rows, change, found, 1 / len(fractions), sender)
        return Scores(method, self.graph, self._finite(values))

    def _zeros(self) -> Tensor:
        n, length = self.clean.shape
        return torch.zeros(n, *[length] * self.positions, *self.graph.mask.shape, device=self.clean.device)

    def _change(self, rows: Tensor, here: Tensor) -> Float[Tensor, "prompt sender pos d_model"]:
        """Each message elsewhere minus the clean one, which is overwritten."""
        there = at_rows(self.anatomy, self.graph, self.elsewhere, rows)
        here.neg_()
        return (here if there is None else here.add_(there.to(here))).transpose(1, 2).contiguous()

    def _add(
        self,
        values: Tensor,
        rows: Tensor,
        change: Tensor,
        gradients: Iterable[_Gradient],
        weight: float,
        sender: int | None = None,
    ) -> None:
        """Changes of messages along gradients, added to all scores, or to those of one sender."""
        part = values[int(rows[0]) : int(rows[-1]) + 1]
        for gradient in gradients:
            if sender is not None and gradient.before <= sender:
                continue
            some = slice(0, gradient.before) if sender is None else slice(sender, sender + 1)
            if self.positions:
                found = change[:, some].transpose(1, 2) @ gradient.values.mT
            else:
                found = change[:, some].flatten(2) @ gradient.values.transpose(1, 2).flatten(2).mT
            part[..., some, gradient.receivers] += weight * found

    def _pull(self, fraction: float, chunks: int) -> "Pull":
        """From logits at `at` of some prompts to the gradient of the metric's sum by them.

        A metric sees all prompts, so that with several chunks their logits come from a pass of their own.
        """
        if chunks == 1:
            return lambda rows, logits: slope(self.metric, logits, at_clean=fraction == 1).to(logits)
        found = []
        for rows in torch.arange(len(self.clean), device=self.clean.device).split(self.batch_size):
            x = self.anatomy.embed(self.clean[rows])
            if fraction != 1:
                there = at_rows(self.anatomy, self.graph, self.elsewhere, rows)
                other = torch.zeros_like(x) if there is None else there[..., 0, :].to(x)
                x = x + (1 - fraction) * (other - x)
            with torch.no_grad():
                for layer in self.anatomy.layers:
                    x = layer(x)
                found.append(self.anatomy.unembed(x[torch.arange(len(x)), self.at[rows]]))
        by_logits = slope(self.metric, torch.cat(found), at_clean=fraction == 1)
        return lambda rows, logits: by_logits[rows].to(logits)

    def _finite(self, values: Tensor) -> Tensor:
        if not torch.isfinite(values).all():
            raise ValueError("scores contain NaN or infinity: the metric's gradient is not finite on these prompts")
        return values

    def _gradients(
        self,
        start: Tensor,
        rows: Tensor,
        pull: "Pull",
        moved: tuple[int, Tensor] | None = None,
        here: Tensor | None = None,
    ) -> Iterator[_Gradient]:
        """One forward and one backward pass from the stream before layer 0, made at once; gradients one by one.

        Args:
            moved: a sender, by its number, to whose message something is added.
            here: filled with every sender's message, [prompt pos sender d_model].
        """
        anatomy = self.anatomy
        length, per_layer = start.shape[1], anatomy.size.n_heads + 1
        where = torch.arange(length, device=start.device)
        added = {} if moved is None else {moved[0]: moved[1]}
        leaves: list[Tensor] = []
        streams: list[Tensor] = []
        with torch.enable_grad():
            x = start.detach() + added.get(0, 0)
            if here is not None:
                here[:, :, 0] = x
            x.requires_grad_()
            for i, layer in enumerate(anatomy.layers):
                streams.append(x)
                normal, first = layer.norm1(x), 1 + i * per_layer
                made = [layer.project(name, normal) for name in ("q", "k", "v")]
                leaves += made
                q, k, v = (self._ready(layer, *part, where) for part in zip(("q", "k", "v"), made, strict=True))
                unseen = layer.hidden(where[:, None] - where)
                pattern = self._softmax(layer.scores(q, layer.expand(k)).masked_fill(unseen, -torch.inf))
                z = layer.weigh(pattern, layer.expand(v))
                attn_out = layer.post1(layer.merge(z))
                if here is not None:
                    here[:, :, first : first + layer.n_heads] = by_head(layer, z.detach())[0].detach()
                for sender in range(first, first + layer.n_heads):
                    attn_out = attn_out + added.get(sender, 0)
                mid = x + attn_out
                branch = (x if layer.parallel else mid).view_as(x)
                leaves.append(branch)
                mlp_out = layer.mlp(branch)
                if here is not None:
                    here[:, :, first + layer.n_heads] = mlp_out.detach()
                x = mid + mlp_out + added.get(first + layer.n_heads, 0)
            last = x.view_as(x)
            leaves.append(last)
            logits = anatomy.unembed(last[torch.arange(len(last)), self.at[rows]])
            grads = torch.autograd.grad(logits, leaves, pull(rows, logits))
        return self._pulled_back(grads, streams)

    def _pulled_back(self, grads: Sequence[Tensor], streams: Sequence[Tensor]) -> Iterator[_Gradient]:
        """From gradients at queries, keys, values and the streams that MLPs and logits read, to those at receivers."""
        graph = self.graph
        column = graph.column
        yield _Gradient([column[Receiver("logits")]], len(graph.senders), grads[-1][:, :, None])
        for i, layer in enumerate(self.anatomy.layers):
            *three, mlp = grads[4 * i : 4 * i + 4]
            receiver = Receiver("mlp", i)
            yield _Gradient([column[receiver]], graph.before(receiver), mlp[:, :, None])
            unit = layer.norm1.unit(streams[i].detach())[:, :, None] if layer.norm1 else None
            scale = layer.norm1.scale(streams[i].detach())[:, :, None]
            for name, gradient in zip(("q", "k", "v"), three, strict=True):
                heads = gradient.shape[2]
                names = [Receiver(name, i, head) for head in range(heads)]  # type: ignore[arg-type]
                weight = getattr(layer, name).weight.detach().unflatten(0, (heads, -1))
                back = layer.norm1.pulled_back(torch.einsum("nphe,hed->nphd", gradient, weight), scale)
                if unit is not None and not self.gim:
                    back = back - unit * (unit * back).mean(-1, keepdim=True)
                yield _Gradient([column[r] for r in names], graph.before(names[0]), back)

    def _ready(self, layer: Layer, name: Any, made: Tensor, where: Tensor) -> Tensor:
        return layer.ready(name, Scaled.apply(made, FACTORS[name]) if self.gim else made, where)

    def _softmax(self, scores: Tensor) -> Tensor:
        return Tempered.apply(scores, TEMPERATURE) if self.gim else scores.softmax(-1)


Pull = Callable[[Tensor, Tensor], Tensor]
"""(rows, their logits at `at`) -> the gradient by these."""
