"""When name movers are knocked out, who makes up for it, and how much? (McDougall et al., section 4.1, Eq. 4)"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.copy_suppression.recording import norm_scale, refuse_rotary, through_final_norm, through_norm
from mechinterp.heads import Head, check_heads
from mechinterp.stats import bootstrap


@dataclass(frozen=True)
class SelfRepair:
    """Direct contributions to the logit difference, clean (x) and with the name movers ablated (y).

    Attributes:
        heads: y − x of every head, 0 for heads before or beside the ablated ones. mlps: the same.
    """

    heads: Float[Tensor, "layer head prompt"]
    mlps: Float[Tensor, "layer prompt"]

    def share(self, heads: Sequence[Head]) -> tuple[float, tuple[float, float]]:
        """Σ (y − x) of some heads over Σ (y − x) of all downstream components, with its interval over prompts."""
        some = torch.stack([self.heads[h] for h in heads]).sum(0)
        every = self.heads.sum((0, 1)) + self.mlps.sum(0)
        pair = torch.stack([some, every], 1)
        return _ratio(pair).item(), bootstrap(pair, statistic=_ratio)


def _ratio(pair: Float[Tensor, "prompt two"]) -> Tensor:
    return pair[:, 0].mean() / pair[:, 1].mean()


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

    A contribution is what the component writes at `at`, behind the final norm of its own run, times
    W_U[right] − W_U[wrong].

    Args:
        means: z of the mean ablation, as `patching.mean_reference` gives it.

    Errors: `ValueError` for no heads, or a head that the model does not have.
    """
    ablated = check_heads(model, ablated)
    if not ablated:
        raise ValueError("no heads to ablate")
    first = min(h.layer for h in ablated)
    direction = (model.W_U[:, right] - model.W_U[:, wrong]).T

    hooks = _mean_ablation(ablated, means)
    clean = _contributions(model, tokens, at, direction, [])
    after = _contributions(model, tokens, at, direction, hooks)
    heads, mlps = (y - x for x, y in zip(clean, after, strict=True))
    heads[: first + 1], mlps[:first] = 0, 0
    for h in ablated:
        heads[h] = 0
    return SelfRepair(heads.cpu(), mlps.cpu())


def _contributions(
    model: Any, tokens: Tensor, at: Tensor, direction: Tensor, hooks: list[tuple[str, Callable[..., Any]]]
) -> tuple[Float[Tensor, "layer head prompt"], Float[Tensor, "layer prompt"]]:
    rows = torch.arange(len(tokens), device=tokens.device)
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> tuple[str, Callable[..., Any]]:
        def store(x: Tensor, hook: Any) -> None:
            kept[name] = x[rows, at]

        return name, store

    layers = range(model.cfg.n_layers)
    names = [name for i in layers for name in (f"blocks.{i}.attn.hook_z", f"blocks.{i}.hook_mlp_out")]
    end = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    model.run_with_hooks(tokens, fwd_hooks=[*hooks, *map(keep, (*names, end))])
    scale = norm_scale(model, kept[end])
    heads, mlps = [], []
    for i in layers:
        written = torch.einsum("phe,hed->hpd", kept[f"blocks.{i}.attn.hook_z"], model.W_O[i])
        heads.append((through_final_norm(model, written, scale) * direction).sum(-1))
        mlps.append((through_final_norm(model, kept[f"blocks.{i}.hook_mlp_out"], scale) * direction).sum(-1))
    return torch.stack(heads), torch.stack(mlps)


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
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(reader.layer)]
    rows = torch.arange(len(tokens), device=tokens.device)
    _, clean = model.run_with_cache(tokens, names_filter=lambda name: name in names)
    _, other = model.run_with_cache(twins, names_filter=lambda name: name in names)

    def freeze(layer: int) -> tuple[str, Callable[..., Tensor]]:
        def edit(z: Tensor, hook: Any) -> Tensor:
            z = clean[names[layer]].clone()
            for h in writers:
                if h.layer == layer:
                    z[rows, at, h.head] = other[names[layer]][rows, at, h.head]
            return z

        return names[layer], edit

    found: dict[str, Tensor] = {}

    def look(pattern: Tensor, hook: Any) -> None:
        found["pattern"] = pattern[rows, reader.head, at]

    hooks = [*map(freeze, range(reader.layer)), (f"blocks.{reader.layer}.attn.hook_pattern", look)]
    model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=reader.layer + 1)
    return found["pattern"].cpu()


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

    Name movers are ablated; each reader's query at `at` then changes in one of three ways, behind its layer norm with
    the scale frozen. Keys, values and everything else stay clean; contributions are as in `self_repair`.

    Errors: `ValueError` for rotary positions, or a reader that comes before every ablated head.
    """
    ablated, readers = check_heads(model, ablated), check_heads(model, readers)
    refuse_rotary(model)
    for reader in readers:
        if not any(h.layer < reader.layer for h in ablated):
            raise ValueError(f"no ablated head comes before {reader}: its query cannot change")
    rows = torch.arange(len(tokens), device=tokens.device)
    layers = sorted({h.layer for h in readers})
    end = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    kept = {f"blocks.{layer}.{hook}" for layer in layers for hook in ("hook_resid_pre", "attn.hook_k", "attn.hook_v")}
    kept |= {f"blocks.{layer}.attn.hook_{hook}" for layer in layers for hook in ("q", "z")}
    _, clean = model.run_with_cache(tokens, names_filter=lambda name: name == end or name in kept)
    streams: dict[int, Tensor] = {}

    def look(x: Tensor, hook: Any) -> None:
        streams[int(hook.name.split(".")[1])] = x[rows, at]

    looks = [(f"blocks.{layer}.hook_resid_pre", look) for layer in layers]
    model.run_with_hooks(tokens, fwd_hooks=[*_mean_ablation(ablated, means), *looks])
    direction = (model.W_U[:, right] - model.W_U[:, wrong]).T
    answer = torch.nn.functional.normalize(model.W_U[:, right].T, dim=-1)
    scale = norm_scale(model, clean[end][rows, at])
    later = torch.arange(tokens.shape[1], device=tokens.device) > at[:, None]
    found = {}
    for reader in readers:
        layer, index = reader
        part = {hook: clean[f"blocks.{layer}.attn.hook_{hook}"] for hook in "qkvz"}
        group = part["q"].shape[2] // part["k"].shape[2]
        query, key, value = part["q"][rows, at, index], part["k"][:, :, index // group], part["v"][:, :, index // group]
        before = clean[f"blocks.{layer}.hook_resid_pre"][rows, at]
        change = through_norm(model, model.blocks[layer].ln1, streams[layer] - before, norm_scale(model, before))
        along = (change * answer).sum(-1, keepdim=True) * answer
        values = []
        for part_of_it in (change, along, change - along):
            score = torch.einsum("pe,pke->pk", query + part_of_it @ model.W_Q[layer, index], key)
            pattern = (score / model.cfg.d_head**0.5).masked_fill(later, -torch.inf).softmax(-1)
            new = torch.einsum("pk,pke->pe", pattern, value) - part["z"][rows, at, index]
            values.append((through_final_norm(model, new @ model.W_O[reader], scale) * direction).sum(-1).cpu())
        found[reader] = QueryChange(*values)
    return found


def _mean_ablation(
    heads: Sequence[Head], means: Float[Tensor, "layer prompt pos head d_head"]
) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that give some heads the z of `means`."""

    def edit(z: Tensor, hook: Any) -> Tensor:
        z, layer = z.clone(), int(hook.name.split(".")[1])
        for h in heads:
            if h.layer == layer:
                z[:, :, h.head] = means[layer][:, :, h.head]
        return z

    return [(f"blocks.{layer}.attn.hook_z", edit) for layer in sorted({h.layer for h in heads})]
