"""What the arithmetic of this package would get wrong is refused at the door."""

from collections.abc import Callable
from typing import Any, Literal, get_args
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.heads import Head, check_heads
from mechinterp.patching.engine import trace, unembed

Metric = Callable[[Float[Tensor, "prompt vocab"]], Float[Tensor, " prompt"]]
"""From logits at one position of every prompt to one value a prompt."""
Input = Literal["q", "k", "v"]
Receiver = tuple[Head, Input]
"""An input of a head."""
_agreeing: WeakSet[Any] = WeakSet()


def check_model(model: Any) -> None:
    """`ValueError` for an architecture that is not supported, naming what is not.

    A model that is seen for the first time also has to give the logits of its own forward pass.
    """
    cfg = model.cfg
    original = getattr(getattr(model, "original_model", None), "config", None)
    positions = getattr(cfg, "positional_embedding_type", "standard")
    unsupported = {
        "parallel attention and MLP blocks": getattr(cfg, "parallel_attn_mlp", False),
        f"{positions} positions": positions != "standard",
        "attention that is not causal": getattr(cfg, "attention_dir", "causal") != "causal",
        "grouped keys and values": getattr(cfg, "n_key_value_heads", None) not in (None, cfg.n_heads),
        "soft-capped logits": (getattr(cfg, "output_logits_soft_cap", -1.0) or -1.0) > 0,
        "local attention": getattr(cfg, "use_local_attn", False),
        "attention scaled by layer": getattr(original, "scale_attn_by_inverse_layer_idx", False),
    }
    for what, present in unsupported.items():
        if present:
            raise ValueError(f"this model has {what}, which patching does not support. {_NEEDED}")
    if model not in _agreeing:
        _compare(model)
        _agreeing.add(model)


_NEEDED = "It needs serial attention and MLP blocks with absolute positions, as in GPT-2."


@torch.no_grad()
def _compare(model: Any) -> None:
    tokens = torch.arange(min(model.cfg.n_ctx, model.cfg.d_vocab, 4), device=model.W_E.device)[None]
    theirs = model(tokens)
    if not torch.isfinite(theirs).all():
        raise ValueError("the model's output contains NaN or infinity; check its weights")
    final = trace(
        model, tokens, lambda name, layer, x: x if (name, layer) == ("resid_pre", model.cfg.n_layers) else None
    )
    ours = unembed(model, final["resid_pre", model.cfg.n_layers])
    worst = (ours - theirs).abs().max().item()
    allowed = max(1e-3, 64 * torch.finfo(theirs.dtype).eps) * (1 + theirs.abs().max().item())
    if worst > allowed:
        raise ValueError(
            f"the arithmetic of patching gives other logits than this model (by {worst:.2g}): it has a part that is "
            f"not supported, is in training mode, or has hooks that change it. {_NEEDED}"
        )


def check_tokens(
    model: Any,
    tokens: Int[Tensor, "..."],
    batch_size: int,
    at: Int[Tensor, "..."] | None = None,
    name: str = "at",
) -> None:
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
        if not (int(at.min()) >= 0 and int(at.max()) < tokens.shape[1]):
            raise ValueError(f"{name} must lie in 0..{tokens.shape[1] - 1}, got {int(at.min())}..{int(at.max())}")


def check_pair(clean: Tensor, corrupt: Tensor) -> None:
    """Refuse clean and corrupted prompts that are not aligned."""
    if corrupt.shape != clean.shape:
        raise ValueError(f"clean and corrupt differ in shape: {tuple(clean.shape)} and {tuple(corrupt.shape)}")


def check_receivers(model: Any, receivers: Any) -> list[Receiver]:
    """The receivers as a list; `ValueError` for none, an unknown head or an input that a head does not have."""
    receivers = list(receivers)
    if not receivers:
        raise ValueError("no receivers: give 'logits' or a list of (head, 'q' | 'k' | 'v')")
    checked = check_heads(model, [head for head, _ in receivers])
    for _, part in receivers:
        if part not in get_args(Input):
            raise ValueError(f"a receiver's input is 'q', 'k' or 'v', not {part!r}")
    return [(head, part) for head, (_, part) in zip(checked, receivers, strict=True)]


def measure(metric: Metric, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
    """The metric of every prompt; `ValueError` if it is not one number a prompt."""
    values = metric(logits)
    if values.shape != logits.shape[:1]:
        raise ValueError(f"metric must return one value a prompt, shape {(len(logits),)}, got {tuple(values.shape)}")
    return values
