"""What a head looks at: attention patterns and the scores that give head types their names."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.anatomy import size
from mechinterp.datasets import repeats
from mechinterp.datasets.text import bos_id
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_tokens
from mechinterp.patching.direct import written
from mechinterp.patching.engine import trace


@torch.no_grad()
def _collect(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    wanted: str,
    reduce: Callable[[Tensor, slice], Tensor],
    batch_size: int,
) -> Float[Tensor, "layer prompt ..."]:
    """Run the model and keep `reduce(activation, prompts)` of one activation of `trace` in every layer."""
    anatomy = check_tokens(model, tokens, batch_size, bidirectional=True)
    columns = []
    for start in range(0, len(tokens), batch_size):
        part = slice(start, start + batch_size)

        def keep(name: str, layer: int, x: Tensor, part: slice = part) -> Tensor | None:
            return reduce(x, part) if name == wanted else None

        got = trace(anatomy, tokens[part], keep)
        columns.append(torch.stack([got[wanted, layer] for layer in range(anatomy.size.n_layers)]))
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
    stacked = _collect(model, tokens, "pattern", lambda x, _: x, batch_size)
    return torch.stack([stacked[h.layer, :, h.head] for h in heads])


def attention_to(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    query: Int[Tensor, " prompt"],
    key: Int[Tensor, "*place prompt"],
    *,
    batch_size: int = 64,
) -> Float[Tensor, "*place layer head prompt"]:
    """Every head's attention from one position of each prompt to another, or to several others in one pass."""
    places = key.reshape(-1, len(tokens))

    def reduce(x: Tensor, part: slice) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        return x[rows, :, query[part].to(x.device)[None], places[:, part].to(x.device)].movedim(0, 1)

    found = _collect(model, tokens, "pattern", reduce, batch_size)
    return rearrange(found, "layer prompt place head -> place layer head prompt").reshape(
        *key.shape[:-1], found.shape[0], found.shape[3], len(tokens)
    )


def repeated_tokens(model: Any, *, n: int = 20, length: int = 100, seed: int = 0) -> Int[Tensor, "prompt pos"]:
    """`length` random tokens, repeated once (AA), after the BOS token if texts of this tokenizer have one (`bos_id`).

    The length is cut to what the model's context holds.
    """
    bos, sizes = bos_id(model.tokenizer), size(model)
    length = min(length, (sizes.n_ctx - (bos is not None)) // 2)
    return repeats.repeated_tokens(sizes.d_vocab, n, length, seed, bos).to(next(model.parameters()).device)


def _offset_score(
    model: Any, offset: Callable[[int], int], second: bool, n: int, length: int, seed: int, repeat: bool
) -> Tensor:
    tokens = repeated_tokens(model, n=n, length=length, seed=seed)
    size = tokens.shape[1] // 2
    if not repeat:  # the second half is another row's
        tokens[:, -size:] = tokens[:, -size:].roll(1, 0)
    first = tokens.shape[1] - size if second else 1

    def reduce(x: Tensor, _: slice) -> Tensor:
        diagonal = x.diagonal(-offset(size), dim1=-2, dim2=-1)  # entry j is query j + offset, key j
        return diagonal[..., max(first - offset(size), 0) :].mean(-1)

    return _collect(model, tokens, "pattern", reduce, 16).mean(1)


def previous_token_scores(
    model: Any, *, n: int = 20, length: int = 100, seed: int = 0, repeat: bool = True
) -> Float[Tensor, "layer head"]:
    """Mean attention to the token before, on repeated random tokens (Wang et al., Appendix H).

    Here as in the other scores, `repeat=False` gives the null: the second half is that of another row.
    """
    return _offset_score(model, lambda size: 1, False, n, length, seed, repeat)


def duplicate_token_scores(
    model: Any, *, n: int = 20, length: int = 100, seed: int = 0, repeat: bool = True
) -> Float[Tensor, "layer head"]:
    """Mean attention from the second copy of a random token to the first (Wang et al., Appendix H)."""
    return _offset_score(model, lambda size: size, True, n, length, seed, repeat)


def induction_scores(
    model: Any, *, n: int = 20, length: int = 100, seed: int = 0, repeat: bool = True
) -> Float[Tensor, "layer head"]:
    """Mean attention from the second copy of a random token to the one after the first copy (Olsson et al., 2022)."""
    return _offset_score(model, lambda size: size - 1, True, n, length, seed, repeat)


def direct_projection(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    at: Int[Tensor, " prompt"],
    token_ids: Int[Tensor, " prompt"],
    *,
    batch_size: int = 64,
) -> Float[Tensor, "layer head prompt"]:
    """Every head's output at `at` along the unembedding direction of one token a prompt (Figure 3c).

    The output is taken before b_O, and the final layer norm is left out, as in the paper. Under a post norm its scale
    is frozen.
    """
    anatomy = check_tokens(model, tokens, batch_size, at, bidirectional=True)
    at = at.to(anatomy.device)
    parts = written(anatomy, tokens, at, batch_size=batch_size)
    return parts.heads_along(anatomy, anatomy.directions(token_ids.to(anatomy.device)))


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
    highest logits. Biases are left out, so that only what depends on the token counts. A post norm's scale does not
    matter, its gain does.

    Args:
        positions: where the tokens (names) stand, one position a prompt; several sets are pooled.
        sign: 1, or -1 for the negative copy score (−W_V W_O).
        k: how many of the highest logits count as a hit.

    Memory: one layer's logits, prompts · vocabulary floats per head at a time.
    """
    anatomy = check_tokens(model, tokens, batch_size)
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1, not {sign}")
    pieces, ids = [], []
    for part in torch.arange(len(tokens)).split(batch_size):
        after = trace(
            anatomy, tokens[part], lambda name, layer, x: x if (name, layer) == ("resid_pre", 1) else None, stop=1
        )
        resid, rows = after["resid_pre", 1], torch.arange(len(part))
        for where in positions:
            here = where[part].to(resid.device)
            pieces.append(resid[rows, here])
            ids.append(tokens[part][rows, here])
    # The same token at the same position gives the same answer in every prompt, but contexts differ.
    x, target = torch.cat(pieces), torch.cat(ids)
    hits = torch.zeros(anatomy.size.n_layers, anatomy.size.n_heads, device=x.device)
    for head in anatomy.size.heads:
        layer = anatomy.layers[head.layer]
        values = layer.ready("v", layer.project("v", layer.norm1(x), [head.head]))[:, 0]
        if layer.clip is None:
            values = values - layer.bias("v", head.head)
        out = sign * (values @ layer.writes(head.head))
        normal = anatomy.final.frozen(out, anatomy.final.scale(out))
        best = (normal @ anatomy.W_U).topk(k, -1).indices
        hits[head] = (best == target[:, None]).any(-1).float().mean()
    return hits
