"""What a head looks at: attention patterns and the scores that give head types their names."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.heads import Head, check_heads


def _check(model: Any, tokens: Tensor, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens must have shape [prompt pos] and not be empty, got {tuple(tokens.shape)}")
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"{tokens.shape[1]} tokens do not fit into the model's context of {model.cfg.n_ctx}")


@torch.no_grad()
def _collect(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    hook: str,
    reduce: Callable[[Tensor, slice], Tensor],
    batch_size: int,
) -> Float[Tensor, "layer prompt ..."]:
    """Run the model and keep `reduce(activation, prompts)` of one hook in every layer, stopping after the last."""
    _check(model, tokens, batch_size)
    names = [f"blocks.{layer}.attn.{hook}" for layer in range(model.cfg.n_layers)]
    columns = []
    for start in range(0, len(tokens), batch_size):
        part = slice(start, start + batch_size)
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: Any, part: slice = part, kept: dict[str, Tensor] = kept) -> None:
            kept[hook.name] = reduce(x, part)

        with model.hooks([(name, keep) for name in names]):
            model(tokens[part], stop_at_layer=model.cfg.n_layers)
        columns.append(torch.stack([kept[name] for name in names]))
    return torch.cat(columns, 1)


def patterns(
    model: Any, tokens: Int[Tensor, "prompt pos"], heads: Sequence[Head], *, batch_size: int = 64
) -> Float[Tensor, "head prompt query key"]:
    """Attention patterns of some heads. Memory: heads · prompts · positions² floats.

    Errors: `ValueError` for a head that the model does not have.
    """
    heads = check_heads(model, heads)
    if not heads:
        raise ValueError("no heads given")
    stacked = _collect(model, tokens, "hook_pattern", lambda x, _: x, batch_size)
    return torch.stack([stacked[h.layer, :, h.head] for h in heads])


def attention_to(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    query: Int[Tensor, " prompt"],
    key: Int[Tensor, " prompt"],
    *,
    batch_size: int = 64,
) -> Float[Tensor, "layer head prompt"]:
    """Every head's attention from one position to another, one pair of positions a prompt."""

    def reduce(x: Tensor, part: slice) -> Tensor:
        return x[torch.arange(len(x), device=x.device), :, query[part].to(x.device), key[part].to(x.device)]

    return rearrange(
        _collect(model, tokens, "hook_pattern", reduce, batch_size), "layer prompt head -> layer head prompt"
    )


def repeated_tokens(model: Any, *, n: int = 20, length: int = 100, seed: int = 0) -> Int[Tensor, "prompt pos"]:
    """`length` random tokens, repeated once (AA), behind the BOS token if the tokenizer adds one.

    The length is cut to what the model's context holds.
    """
    bos = getattr(model.tokenizer, "bos_token_id", None)
    length = min(length, (model.cfg.n_ctx - (bos is not None)) // 2)
    generator = torch.Generator().manual_seed(seed)
    block = torch.randint(1, model.cfg.d_vocab, (n, length), generator=generator)
    parts = [block, block] if bos is None else [torch.full((n, 1), bos), block, block]
    return torch.cat(parts, 1).to(model.W_E.device)


def _offset_score(model: Any, offset: Callable[[int], int], second: bool, n: int, length: int, seed: int) -> Tensor:
    tokens = repeated_tokens(model, n=n, length=length, seed=seed)
    size = tokens.shape[1] // 2
    first = tokens.shape[1] - size if second else 1

    def reduce(x: Tensor, _: slice) -> Tensor:
        diagonal = x.diagonal(-offset(size), dim1=-2, dim2=-1)  # entry j is query j + offset, key j
        return diagonal[..., max(first - offset(size), 0) :].mean(-1)

    return _collect(model, tokens, "hook_pattern", reduce, 16).mean(1)


def previous_token_scores(model: Any, *, n: int = 20, length: int = 100, seed: int = 0) -> Float[Tensor, "layer head"]:
    """Mean attention to the token before, on repeated random tokens (Wang et al., Appendix H)."""
    return _offset_score(model, lambda size: 1, False, n, length, seed)


def duplicate_token_scores(model: Any, *, n: int = 20, length: int = 100, seed: int = 0) -> Float[Tensor, "layer head"]:
    """Mean attention from the second copy of a random token to the first (Wang et al., Appendix H)."""
    return _offset_score(model, lambda size: size, True, n, length, seed)


def induction_scores(model: Any, *, n: int = 20, length: int = 100, seed: int = 0) -> Float[Tensor, "layer head"]:
    """Mean attention from the second copy of a random token to the one after the first copy (Olsson et al., 2022)."""
    return _offset_score(model, lambda size: size - 1, True, n, length, seed)


def direct_projection(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    at: Int[Tensor, " prompt"],
    token_ids: Int[Tensor, " prompt"],
    *,
    batch_size: int = 64,
) -> Float[Tensor, "layer head prompt"]:
    """Every head's output at `at` along the unembedding direction of one token a prompt (Figure 3c).

    The output is taken before b_O, and the final layer norm is left out, as in the paper.
    """

    def reduce(z: Tensor, part: slice) -> Tensor:
        return z[torch.arange(len(z), device=z.device), at[part].to(z.device)]

    z = _collect(model, tokens, "hook_z", reduce, batch_size)  # layer prompt head d_head
    directions = model.W_U[:, token_ids.to(model.W_U.device)]
    # Going from d_model down to d_head first is `heads` times cheaper than forming every head's output.
    read = torch.einsum("lhem,mp->lphe", model.W_O, directions)
    return torch.einsum("lphe,lphe->lhp", z, read)


@torch.no_grad()
def copy_scores(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    positions: Sequence[Int[Tensor, " prompt"]],
    *,
    k: int = 5,
    sign: int = 1,
    batch_size: int = 64,
) -> Float[Tensor, "layer head"]:
    """Copy score of every head (Wang et al., section 3.1): does its OV circuit return the token it reads?

    The residual stream after block 0 at the given positions goes through the layer norm of the head's own
    layer, W_V and W_O, the final layer norm and the unembedding; a hit is the token itself among the k
    highest logits. Biases are left out, so that only what depends on the token counts.

    Args:
        positions: where the tokens (names) stand, one position a prompt; several sets are pooled.
        sign: 1, or -1 for the negative copy score (−W_V W_O).
        k: how many of the highest logits count as a hit.

    Memory: one layer's logits, prompts · vocabulary floats per head at a time.
    """
    _check(model, tokens, batch_size)
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1, not {sign}")
    pieces, ids = [], []
    for part in torch.arange(len(tokens)).split(batch_size):
        cache = model.run_with_cache(tokens[part], names_filter="blocks.0.hook_resid_post", stop_at_layer=1)[1]
        resid, rows = cache["blocks.0.hook_resid_post"], torch.arange(len(part))
        for where in positions:
            here = where[part].to(resid.device)
            pieces.append(resid[rows, here])
            ids.append(tokens[part][rows, here])
    # The same token at the same position gives the same answer in every prompt, but contexts differ.
    x, target = torch.cat(pieces), torch.cat(ids)
    hits = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, device=x.device)
    for layer in range(model.cfg.n_layers):
        normal = model.blocks[layer].ln1(x[:, None])[:, 0]
        for head in range(model.cfg.n_heads):
            out = sign * (normal @ model.W_V[layer, head] @ model.W_O[layer, head])
            best = (model.ln_final(out[:, None])[:, 0] @ model.W_U).topk(k, -1).indices
            hits[layer, head] = (best == target[:, None]).any(-1).float().mean()
    return hits
