"""Running part of a transformer: from a layer on, at some positions, with some activations replaced.

Every intervention of this package is a question about a forward pass that differs from a cached one only
from some layer and position on. `trace` runs a model once and keeps what such a pass needs; `resume` runs
the rest of it for a window of positions, many variants of it at once, with the keys and values of all
other positions taken from the trace.

The attention arithmetic is written here from the model's weights; layer norms and MLPs are the model's
own modules. Serial attention and MLP blocks with absolute positions are supported (GPT-2 and its like);
anything else is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

Edit = Callable[[int, Tensor], Tensor]
"""(layer, activation of the window) -> activation."""


@dataclass(frozen=True)
class Trace:
    """Activations of one clean forward pass that a partial pass can start from."""

    resid_pre: Float[Tensor, "layer prompt pos d_model"]
    resid_mid: Float[Tensor, "layer prompt pos d_model"]
    z: Float[Tensor, "layer prompt pos head d_head"]
    k: Float[Tensor, "layer prompt pos head d_head"]
    v: Float[Tensor, "layer prompt pos head d_head"]
    resid_final: Float[Tensor, "prompt pos d_model"]

    @property
    def attn_out(self) -> Float[Tensor, "layer prompt pos d_model"]:
        """What the attention of each layer added to the residual stream, bias included."""
        return self.resid_mid - self.resid_pre

    @property
    def mlp(self) -> Float[Tensor, "layer prompt pos d_model"]:
        """What the MLP of each layer added to the residual stream."""
        return torch.cat([self.resid_pre[1:], self.resid_final[None]]) - self.resid_mid


@dataclass(frozen=True)
class Edits:
    """Replacements during `resume`; each gets (layer, tensor [variant prompt window ...]) and returns a tensor.

    `heads(layer)` names the heads whose attention has to be computed; the others keep what `trace` has
    (only right where their input is unchanged or their output is replaced anyway). None: all.
    """

    q: Edit | None = None
    k: Edit | None = None
    v: Edit | None = None
    pattern: Edit | None = None
    z: Edit | None = None
    attn_out: Edit | None = None
    mlp_out: Edit | None = None
    heads: Callable[[int], list[int] | None] = field(default=lambda layer: None)


def check_model(model: Any) -> None:
    """Refuse architectures that the arithmetic here would get wrong."""
    cfg = model.cfg
    unsupported = {
        "parallel attention and MLP blocks": getattr(cfg, "parallel_attn_mlp", False),
        f"{cfg.positional_embedding_type} positions": cfg.positional_embedding_type != "standard",
        "attention that is not causal": getattr(cfg, "attention_dir", "causal") != "causal",
        "grouped keys and values": getattr(cfg, "n_key_value_heads", None) not in (None, cfg.n_heads),
        "soft-capped logits": (getattr(cfg, "output_logits_soft_cap", -1.0) or -1.0) > 0,
        "local attention": getattr(cfg, "use_local_attn", False),
    }
    for what, present in unsupported.items():
        if present:
            raise ValueError(
                f"this model has {what}, which patching does not support; it needs serial blocks with absolute "
                "positions, as in GPT-2"
            )


def check_tokens(model: Any, tokens: Tensor, batch_size: int, at: Tensor | None = None, name: str = "at") -> None:
    """Refuse token batches and positions that do not fit the model."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens must have shape [prompt pos] and not be empty, got {tuple(tokens.shape)}")
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"prompts of {tokens.shape[1]} tokens do not fit into the model's context of {model.cfg.n_ctx}"
        )
    if at is not None:
        if at.shape != tokens.shape[:1]:
            raise ValueError(f"{name} must hold one position a prompt, shape {(len(tokens),)}, got {tuple(at.shape)}")
        if not (0 <= int(at.min()) and int(at.max()) < tokens.shape[1]):
            raise ValueError(f"{name} must lie in 0..{tokens.shape[1] - 1}, got {int(at.min())}..{int(at.max())}")


def finite(logits: Tensor) -> Tensor:
    """The logits; `ValueError` if any is NaN or infinite."""
    if not torch.isfinite(logits).all():
        raise ValueError("the model's output contains NaN or infinity; check its weights and the values patched in")
    return logits


def normalise(norm: Any, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Apply a module of the model that expects [batch pos d_model] to any leading shape."""
    return norm(x.reshape(-1, 1, x.shape[-1])).reshape(x.shape)


def project(
    x: Float[Tensor, "... d_model"], w: Float[Tensor, "head d_model d_head"], b: Float[Tensor, "head d_head"]
) -> Float[Tensor, "... head d_head"]:
    """Queries, keys or values of some heads from the normalised residual stream, as one matrix product."""
    flat = x @ rearrange(w, "head d_model d_head -> d_model (head d_head)") + b.flatten()
    return flat.unflatten(-1, b.shape)


def merge(
    z: Float[Tensor, "... head d_head"], w_o: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "... d_model"]:
    """The sum of heads' outputs, without bias."""
    return z.flatten(-2) @ rearrange(w_o, "head d_head d_model -> (head d_head) d_model")


def unembed(model: Any, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
    """Logits of a final residual stream."""
    return finite(normalise(model.ln_final, resid) @ model.W_U + model.b_U)


def pick(x: Float[Tensor, "prompt pos ..."], where: Int[Tensor, "prompt window"]) -> Float[Tensor, "prompt window ..."]:
    """The activations at some positions of every prompt."""
    return x[torch.arange(len(x), device=x.device)[:, None], where]


def window(first: Int[Tensor, " prompt"], last: Int[Tensor, " prompt"]) -> Int[Tensor, "prompt window"]:
    """Positions from `first` to `last` of every prompt, the last one repeated to make a rectangle."""
    width = int((last - first).max()) + 1
    where = first[:, None] + torch.arange(max(width, 1), device=first.device)
    return torch.minimum(where, torch.maximum(first, last)[:, None])


@torch.no_grad()
def trace(model: Any, tokens: Int[Tensor, "prompt pos"]) -> Trace:
    """One clean forward pass. Memory: about 6 · layers · prompts · positions · d_model floats."""
    x = model.W_E[tokens] + model.W_pos[: tokens.shape[1]]
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    kept: dict[str, list[Tensor]] = {name: [] for name in ("resid_pre", "resid_mid", "z", "k", "v")}
    for layer, block in enumerate(model.blocks):
        normal = normalise(block.ln1, x)
        q, k, v = (project(normal, *weights) for weights in _qkv(model, layer, None))
        z = _attend(model, q[None], k[None], v[None], positions, None, layer)[0]
        mid = x + merge(z, model.W_O[layer]) + model.b_O[layer]
        for name, value in (("resid_pre", x), ("resid_mid", mid), ("z", z), ("k", k), ("v", v)):
            kept[name].append(value)
        x = mid + block.mlp(normalise(block.ln2, mid))
    return Trace(**{name: torch.stack(values) for name, values in kept.items()}, resid_final=x)


@torch.no_grad()
def resume(
    model: Any,
    clean: Trace,
    x: Float[Tensor, "variant prompt window d_model"],
    where: Int[Tensor, "prompt window"],
    *,
    layer: int,
    edits: Edits,
) -> Float[Tensor, "variant prompt window d_model"]:
    """Run from `layer` on at the window's positions; returns the final residual stream there.

    Every position that `x` changes must lie in the window, and so must every later position whose
    output is read. Memory: keys, values and MLP of variant · prompt sequences, one layer at a time.
    """
    rows = torch.arange(len(where), device=where.device)[:, None]
    variants = len(x)
    for i in range(layer, model.cfg.n_layers):
        block, heads = model.blocks[i], edits.heads(i)
        z = pick(clean.z[i], where).expand(variants, -1, -1, -1, -1)
        if heads is None or heads:
            normal = normalise(block.ln1, x)
            chosen = slice(None) if heads is None else heads
            parts = []
            for (w, b), cached in zip(_qkv(model, i, heads), (None, clean.k[i], clean.v[i]), strict=True):
                new = project(normal, w, b)
                if cached is not None:
                    whole = cached[:, :, chosen].repeat(variants, 1, 1, 1, 1)
                    whole[:, rows, where] = new
                    new = whole
                parts.append(new)
            q, k, v = parts
            q = edits.q(i, q) if edits.q else q
            k = edits.k(i, k) if edits.k else k
            v = edits.v(i, v) if edits.v else v
            attended = _attend(model, q, k, v, where, edits.pattern, i)
            if heads is None:
                z = attended
            else:
                z = z.clone()
                z[:, :, :, heads] = attended
        z = edits.z(i, z) if edits.z else z
        attn_out = merge(z, model.W_O[i]) + model.b_O[i]
        x = x + (edits.attn_out(i, attn_out) if edits.attn_out else attn_out)
        mlp_out = _mlp(block, x)
        x = x + (edits.mlp_out(i, mlp_out) if edits.mlp_out else mlp_out)
    return x


def _mlp(block: Any, mid: Tensor) -> Tensor:
    return normalise(block.mlp, normalise(block.ln2, mid))


def mlp_step(block: Any, mid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """The residual stream after the MLP of a block."""
    return mid + _mlp(block, mid)


def _qkv(model: Any, layer: int, heads: list[int] | None) -> list[tuple[Tensor, Tensor]]:
    chosen = slice(None) if heads is None else heads
    return [(getattr(model, f"W_{name}")[layer][chosen], getattr(model, f"b_{name}")[layer][chosen]) for name in "QKV"]


def _attend(
    model: Any, q: Tensor, k: Tensor, v: Tensor, where: Tensor, edit: Edit | None, layer: int
) -> Float[Tensor, "variant prompt window head d_head"]:
    scale = model.cfg.d_head**0.5 if getattr(model.cfg, "use_attn_scale", True) else 1.0
    scores = einsum(q / scale, k, "v b q h d, v b k h d -> v b h q k")
    future = torch.arange(k.shape[2], device=k.device) > where[..., None]
    pattern = scores.masked_fill(future[None, :, None], -torch.inf).softmax(-1)
    if edit is not None:
        pattern = edit(layer, pattern)
    return einsum(pattern, v, "v b h q k, v b k h d -> v b q h d")
