"""When name movers are knocked out, who makes up for it, and how much? (McDougall et al., section 4.1, Eq. 4)"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_tokens
from mechinterp.patching.direct import Written, written
from mechinterp.patching.engine import Change, trace
from mechinterp.stats import Estimate, ratio


@dataclass(frozen=True)
class SelfRepair:
    """Direct contributions to the logit difference, clean (x) and with the name movers ablated (y).

    Attributes:
        heads: y − x of every head, 0 for heads before or beside the ablated ones. mlps: the same; that of the same
            block is beside it in parallel blocks.
    """

    heads: Float[Tensor, "layer head prompt"]
    mlps: Float[Tensor, "layer prompt"]

    def share(
        self, heads: Sequence[Head], *, unit: str = "prompts", clusters: Int[Tensor, " prompt"] | None = None
    ) -> Estimate:
        """Σ (y − x) of some heads over Σ (y − x) of all downstream components; units as in `mechinterp.stats.mean`."""
        some = torch.stack([self.heads[h] for h in heads]).sum(0)
        every = self.heads.sum((0, 1)) + self.mlps.sum(0)
        return ratio(some, every, unit=unit, clusters=clusters)


@torch.no_grad()
def self_repair(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    at: Int[Tensor, " prompt"],
    right: Int[Tensor, " prompt"],
    wrong: Int[Tensor, " prompt"],
    ablated: Sequence[Head],
    means: Float[Tensor, "layer prompt pos head d_head"],
) -> SelfRepair:
    """Mean-ablate heads and measure how every later component's direct contribution changes.

    A contribution is what the component writes at `at`, after the final norm of its own run, times
    W_U[right] − W_U[wrong].

    Args:
        means: z of the mean ablation, as `patching.mean_reference` gives it.

    Errors: `ValueError` for no heads, or a head that the model does not have.
    """
    ablated = check_heads(model, ablated)
    if not ablated:
        raise ValueError("no heads to ablate")
    anatomy, first = check_tokens(model, tokens, 1, at), min(h.layer for h in ablated)
    rows, at = anatomy.unembedding.weight, at.to(anatomy.device)
    direction = rows[right] - rows[wrong]
    clean, after = (
        _contributions(anatomy, written(anatomy, tokens, at, change=change), direction)
        for change in (None, _mean_ablation(ablated, means))
    )
    heads, mlps = (y - x for x, y in zip(clean, after, strict=True))
    heads[: first + 1], mlps[: first + anatomy.layers[first].parallel] = 0, 0
    for h in ablated:
        heads[h] = 0
    return SelfRepair(heads.cpu(), mlps.cpu())


def _contributions(
    anatomy: Anatomy, parts: Written, direction: Float[Tensor, "prompt d_model"]
) -> tuple[Float[Tensor, "layer head prompt"], Float[Tensor, "layer prompt"]]:
    """What heads and MLPs add to a direction of the logits, norms of their own run."""
    d = anatomy.along(direction) / anatomy.final.scale(parts.end)
    return parts.heads_along(anatomy, d), (parts.mlps * d).sum(-1)


@torch.no_grad()
def attention_after(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    twins: Int[Tensor, "prompt pos"],
    writers: Sequence[Head],
    reader: Head,
    at: Int[Tensor, " prompt"],
) -> Float[Tensor, "prompt key"]:
    """The reader's attention from `at` when the writers say there what they say in the twin prompts (Appendix P).

    Every other head is frozen at its clean output; MLPs and layer norms between writers and reader recompute.

    Errors: `ValueError` if a writer does not come before the reader.
    """
    writers, [reader] = check_heads(model, writers), check_heads(model, [reader])
    for writer in writers:
        if writer.layer >= reader.layer:
            raise ValueError(f"{writer} does not come before {reader}: its message cannot reach it")
    anatomy = check_tokens(model, tokens, 1, at)
    check_tokens(model, twins, 1, at)
    rows, at = torch.arange(len(tokens), device=tokens.device), at.to(tokens.device)
    clean, other = (
        trace(anatomy, t, lambda name, i, x: x if name == "z" else None, stop=reader.layer) for t in (tokens, twins)
    )

    def freeze(name: str, i: int, x: Tensor) -> Tensor:
        if name != "z" or i >= reader.layer:
            return x
        z = clean["z", i].clone()
        for h in writers:
            if h.layer == i:
                z[rows, at, h.head] = other["z", i][rows, at, h.head]
        return z

    place = ("pattern", reader.layer)
    got = trace(
        anatomy, tokens, lambda name, i, x: x if (name, i) == place else None, stop=reader.layer + 1, change=freeze
    )
    return got[place][rows, reader.head, at].cpu()


@dataclass(frozen=True)
class QueryChange:
    """Change of a head's direct contribution to the logit difference when only its query sees an ablation (Figure 8).

    Attributes:
        full: the query changes as the ablation changes it. along: only by the part of that change that lies
            along the unembedding of the right answer. away: only by the rest.
    """

    full: Float[Tensor, " prompt"]
    along: Float[Tensor, " prompt"]
    away: Float[Tensor, " prompt"]


@torch.no_grad()
def query_projection(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    at: Int[Tensor, " prompt"],
    right: Int[Tensor, " prompt"],
    wrong: Int[Tensor, " prompt"],
    ablated: Sequence[Head],
    means: Float[Tensor, "layer prompt pos head d_head"],
    readers: Sequence[Head],
) -> dict[Head, QueryChange]:
    """Do later heads respond to *what* the ablated heads predicted, or to something else that they wrote?

    Name movers are ablated; each reader's query at `at` then changes in one of three ways, after its layer norm with
    the scale frozen. Keys, values and everything else stay clean; contributions are as in `self_repair`.

    Errors: `ValueError` for queries that are normed over all heads together (OLMo 2), or a reader that comes before
        every ablated head.
    """
    ablated, readers = check_heads(model, ablated), check_heads(model, readers)
    anatomy = check_tokens(model, tokens, 1, at)
    for reader in readers:
        if not any(h.layer < reader.layer for h in ablated):
            raise ValueError(f"no ablated head comes before {reader}: its query cannot change")
        if anatomy.layers[reader.layer].joint:
            raise ValueError("queries of this model are normed over all heads together: one head's cannot be changed")
    rows, at = torch.arange(len(tokens), device=tokens.device), at.to(tokens.device)
    layers, end = sorted({h.layer for h in readers}), ("resid_pre", anatomy.size.n_layers)
    kept = {end} | {(name, i) for i in layers for name in ("resid_pre", "q", "key", "value", "z", "attn")}
    clean = trace(anatomy, tokens, lambda name, i, x: x if (name, i) in kept else None)
    streams = trace(
        anatomy,
        tokens,
        lambda name, i, x: x[rows, at] if name == "resid_pre" and i in layers else None,
        stop=max(layers) + 1,
        change=_mean_ablation(ablated, means),
    )
    unembed = anatomy.unembedding.weight
    d = anatomy.along(unembed[right] - unembed[wrong]) / anatomy.final.scale(clean[end][rows, at])
    answer = torch.nn.functional.normalize(anatomy.directions(right), dim=-1)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    found = {}
    for reader in readers:
        i, index = reader
        layer = anatomy.layers[i]
        query = clean["q", i][rows, at, index]
        key, value = (layer.expand(clean[name, i], [index])[:, :, 0] for name in ("key", "value"))
        before, attn = clean["resid_pre", i][rows, at], clean["attn", i][rows, at]
        change = layer.norm1.frozen(streams["resid_pre", i] - before, layer.norm1.scale(before))
        along = (change * answer).sum(-1, keepdim=True) * answer
        unseen = layer.hidden(at[:, None] - places)
        values = []
        for part in (change, along, change - along):
            new_query = layer.ready("q", (query + part @ layer.weight("q", index))[:, None, None], at[:, None])
            scores = layer.scores(new_query, key[:, :, None])[:, 0, 0].masked_fill(unseen, -torch.inf)
            new = torch.einsum("pk,pke->pe", scores.softmax(-1), value) - clean["z", i][rows, at, index]
            values.append(((new @ layer.writes(index)) / layer.post1.scale(attn) * d).sum(-1).cpu())
        found[reader] = QueryChange(*values)
    return found


def _mean_ablation(heads: Sequence[Head], means: Float[Tensor, "layer prompt pos head d_head"]) -> Change:
    """Gives some heads the z of `means`."""

    def edit(name: str, i: int, x: Tensor) -> Tensor:
        own = [h.head for h in heads if h.layer == i]
        if name != "z" or not own:
            return x
        x = x.clone()
        x[:, :, own] = means[i][:, :, own]
        return x

    return edit
