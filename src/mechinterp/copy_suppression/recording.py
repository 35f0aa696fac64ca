"""What a head does on a text: everything that copy-suppression-preserving ablation needs, from one forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.heads import Head, check_heads


@dataclass(frozen=True)
class Record:
    """One document: the residual stream's end, and what each layer under study reads and writes.

    Attributes:
        tokens: the document.
        final: the stream behind the last layer norm; `final @ W_U + b_U` are the logits.
        scale: what that layer norm divided by, frozen in every direct effect.
        resid: by layer, the stream before it. `pattern`, `v`, `z`: by layer, all heads.
    """

    tokens: Int[Tensor, " pos"]
    final: Float[Tensor, "pos d_model"]
    scale: Float[Tensor, "pos 1"]
    resid: dict[int, Float[Tensor, "pos d_model"]]
    pattern: dict[int, Float[Tensor, "head query key"]]
    v: dict[int, Float[Tensor, "pos head d_head"]]
    z: dict[int, Float[Tensor, "pos head d_head"]]


def check_text(model: Any, tokens: Tensor) -> None:
    """`ValueError` for a text that is not [doc pos], is shorter than two tokens, or longer than the context."""
    if tokens.ndim != 2 or len(tokens) == 0:
        raise ValueError(f"tokens must have shape [doc pos] and not be empty, got {tuple(tokens.shape)}")
    if tokens.shape[1] < 2:
        raise ValueError(f"a text needs at least two tokens to predict one from another, got {tokens.shape[1]}")
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"{tokens.shape[1]} tokens do not fit into the model's context of {model.cfg.n_ctx}")


def refuse_rotary(model: Any) -> None:
    """`ValueError` for a model whose attention scores depend on the distance by themselves."""
    kind = str(getattr(model.cfg, "positional_embedding_type", "standard"))
    if kind not in ("standard", "learned"):
        raise ValueError(f"scores are computed anew from vectors alone, and {kind} positions are not supported here")


@torch.no_grad()
def records(model: Any, tokens: Int[Tensor, "doc pos"], layers: Sequence[int]) -> Iterator[Record]:
    """Run the documents one by one. Memory: one document, heads · pos² floats a layer."""
    check_text(model, tokens)
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    kinds = {"resid": "hook_resid_pre", "pattern": "attn.hook_pattern", "v": "attn.hook_v", "z": "attn.hook_z"}
    names = {last, *(f"blocks.{layer}.{hook}" for layer in layers for hook in kinds.values())}
    heads = model.cfg.n_heads
    for row in tokens.to(model.W_E.device):
        _, cache = model.run_with_cache(row[None], names_filter=lambda name: name in names)
        end = cache[last][0]
        kept = {kind: {layer: cache[f"blocks.{layer}.{hook}"][0] for layer in layers} for kind, hook in kinds.items()}
        for layer, v in kept["v"].items():
            if v.shape[1] != heads:  # grouped values: one for several heads
                kept["v"][layer] = v.repeat_interleave(heads // v.shape[1], 1)
        yield Record(row, model.ln_final(end[None])[0], norm_scale(model, end), **kept)


def norm_scale(model: Any, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... 1"]:
    """What the model's layer norms divide by."""
    if centres(model):
        x = x - x.mean(-1, keepdim=True)
    return (x.pow(2).mean(-1, keepdim=True) + float(model.cfg.eps)).sqrt()


def centres(model: Any) -> bool:
    """Whether the model's norms subtract the mean (layer norm) or not (RMS norm)."""
    return "RMS" not in str(model.cfg.normalization_type)


def through_final_norm(
    model: Any, change: Float[Tensor, "pos d_model"], scale: Float[Tensor, "pos 1"]
) -> Float[Tensor, "pos d_model"]:
    """A change of the stream's end as it appears behind the last layer norm with its scale frozen."""
    return through_norm(model, model.ln_final, change, scale)


def through_norm(
    model: Any, norm: Any, change: Float[Tensor, "... d_model"], scale: Float[Tensor, "... 1"]
) -> Float[Tensor, "... d_model"]:
    """A change of the stream as it appears behind one of the model's norms with its scale frozen."""
    if centres(model):
        change = change - change.mean(-1, keepdim=True)
    gain = getattr(norm, "weight", None)
    return change / scale if gain is None else change / scale * gain


@torch.no_grad()
def head_means(
    model: Any, tokens: Int[Tensor, "doc pos"], heads: Sequence[Head], *, pooled: bool = False
) -> dict[Head, Float[Tensor, "pos d_head"]]:
    """Mean of each head's z at every position, or (`pooled`) over all positions but the first.

    A mean by position, as in the paper's code, needs many documents; the pooled one suits a small sample.
    """
    heads = check_heads(model, heads)
    total = {h: torch.zeros(tokens.shape[1], model.cfg.d_head, device=model.W_E.device) for h in heads}
    for record in records(model, tokens, sorted({h.layer for h in heads})):
        for h in heads:
            total[h] += record.z[h.layer][:, h.head]
    means = {h: z / len(tokens) for h, z in total.items()}
    if not pooled:
        return means
    return {h: torch.cat([z[:1], z[1:].mean(0).expand(len(z) - 1, -1)]) for h, z in means.items()}
