"""What the arithmetic of this package would get wrong is refused at the door."""

from collections.abc import Callable
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy, Input, Layer, Size, size
from mechinterp.heads import Head, check_heads

Metric = Callable[[Float[Tensor, "prompt vocab"]], Float[Tensor, " prompt"]]
"""From logits at one position of every prompt to one value a prompt."""
Receiver = tuple[Head, Input]
"""An input of a head."""


def check_ids(sizes: Size, tokens: Any, name: str = "tokens") -> None:
    """Refuse what is not a tensor of the model's token ids, or is longer than its context."""
    if not isinstance(tokens, Tensor):
        raise ValueError(f"{name} must be a tensor of token ids (model.to_tokens), not {type(tokens).__name__}")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"{name} must be token ids, whole numbers, not {tokens.dtype}")
    if tokens.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(tokens.shape)}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= sizes.d_vocab:
        wrong = low if low < 0 else high
        raise ValueError(f"{name}: id {wrong} is not in the model's vocabulary of {sizes.d_vocab} tokens")


def check_padding(model: Any, tokens: Tensor, *, ends: bool = False) -> None:
    """Refuse rows that begin with padding, and (`ends`) those that end with it.

    Padding on the left moves positions and is attended to. On the right nothing before it sees it, so where results
    are read at given positions it changes nothing. Two equal padding tokens in a row are taken for padding: one may
    be the BOS or EOS token that the text has.
    """
    pad = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
    if pad is None or tokens.shape[-1] < 2:
        return
    padded = tokens == pad
    if bool((padded[:, 0] & padded[:, 1]).any()):
        raise ValueError(
            f"some rows begin with padding (token {pad} twice), which would move positions and be attended to; pad on "
            "the right instead (tokenizer.padding_side = 'right'): what stands after the positions that are read "
            "changes nothing"
        )
    if ends and bool((padded[:, -1] & padded[:, -2]).any()):
        raise ValueError(
            f"some rows end with padding (token {pad} twice), which would count as text; give rows of text of equal "
            "length"
        )


def check_tokens(
    model: Any,
    tokens: Int[Tensor, "..."],
    batch_size: int,
    at: Int[Tensor, "..."] | None = None,
    name: str = "at",
    *,
    bidirectional: bool = False,
) -> Anatomy:
    """The model's anatomy, after refusing token batches and positions that do not fit it.

    Args:
        bidirectional: the method can do with attention that is not causal; else it is refused.

    Errors: `ValueError` for a model that `Anatomy.of` refuses, ids out of the vocabulary, prompts that are empty,
        padded on the left, longer than the context or on another device, or positions out of range.
    """
    sizes = size(model)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    check_ids(sizes, tokens)
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have shape [prompt pos] and not be empty, got {tuple(tokens.shape)}")
    if tokens.shape[1] > sizes.n_ctx:
        raise ValueError(f"prompts of {tokens.shape[1]} tokens do not fit into the model's context of {sizes.n_ctx}")
    check_padding(model, tokens)
    if at is not None:
        if at.shape != tokens.shape[:1]:
            raise ValueError(f"{name} must hold one position a prompt, shape {(len(tokens),)}, got {tuple(at.shape)}")
        if not (int(at.min()) >= 0 and int(at.max()) < tokens.shape[1]):
            raise ValueError(f"{name} must lie in 0..{tokens.shape[1] - 1}, got {int(at.min())}..{int(at.max())}")
    anatomy = Anatomy.of(model, tokens.shape[1], bidirectional=bidirectional)
    if tokens.device != anatomy.device:
        raise ValueError(f"tokens are on {tokens.device}, the model is on {anatomy.device}: use tokens.to(...)")
    return anatomy


def check_text(model: Any, tokens: Tensor) -> Anatomy:
    """The model's anatomy, after refusing a text that is not [doc pos] with two tokens or more, none of it padding."""
    if isinstance(tokens, Tensor) and (tokens.ndim != 2 or len(tokens) == 0):
        raise ValueError(f"tokens must have shape [doc pos] and not be empty, got {tuple(tokens.shape)}")
    if isinstance(tokens, Tensor) and tokens.shape[1] < 2:
        raise ValueError(f"a text needs at least two tokens to predict one from another, got {tokens.shape[1]}")
    anatomy = check_tokens(model, tokens, 1)
    check_padding(model, tokens, ends=True)
    return anatomy


def check_pair(clean: Tensor, corrupt: Tensor) -> None:
    """Refuse clean and corrupted prompts that are not aligned."""
    if corrupt.shape != clean.shape:
        raise ValueError(f"clean and corrupt differ in shape: {tuple(clean.shape)} and {tuple(corrupt.shape)}")


def check_receivers(model: Any, anatomy: Anatomy, receivers: Any) -> list[Receiver]:
    """The receivers as a list; `ValueError` for none, an unknown head or an input that a head does not have."""
    receivers = list(receivers)
    if not receivers:
        raise ValueError("no receivers: give 'logits' or a list of (head, 'q' | 'k' | 'v')")
    checked = check_heads(model, [head for head, _ in receivers])
    for _, part in receivers:
        if part not in get_args(Input):
            raise ValueError(f"a receiver's input is 'q', 'k' or 'v', not {part!r}")
    for head, (_, part) in zip(checked, receivers, strict=True):
        refuse_shared_key(anatomy.layers[head.layer], part)
    return [(head, part) for head, (_, part) in zip(checked, receivers, strict=True)]


def refuse_shared_key(layer: Layer, part: str) -> None:
    """`ValueError` where a key cannot be changed for one of the heads that share it (OLMo 2 with grouped keys)."""
    if part == "k" and layer.joint and layer.n_kv_heads != layer.n_heads:
        raise ValueError(
            "the keys of this model are shared by several heads and normed together: a key cannot be patched for one "
            "head alone; patch queries or values"
        )


def measure(metric: Metric, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
    """The metric of every prompt; `ValueError` if it is not one number a prompt."""
    values = metric(logits)
    if values.shape != logits.shape[:1]:
        raise ValueError(f"metric must return one value a prompt, shape {(len(logits),)}, got {tuple(values.shape)}")
    return values
