"""The OV and QK circuits of a head, kept as products of thin matrices (Elhage et al., 2021), and what they read."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.FactoredMatrix import FactoredMatrix

from mechinterp.anatomy import Anatomy
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_ids, check_text
from mechinterp.patching.engine import trace


def ov_circuit(model: Any, head: Head) -> FactoredMatrix:
    """What attending to a direction writes: W_V W_O, [d_model d_model] as a product through d_head.

    From the normalised stream, with the value that the head shares with others where they are grouped; under a post
    norm, times that norm's scale.
    """
    [(layer, index)] = check_heads(model, [head])
    block = Anatomy.of(model, bidirectional=True).layers[layer]
    return FactoredMatrix(block.W_V(index), block.writes(index))


def qk_circuit(model: Any, head: Head) -> FactoredMatrix:
    """Which directions attend to which: W_Q W_Kᵀ, [d_model (query) d_model (key)] through d_head.

    With rotary positions this is the product at distance 0; norms of queries and keys are left out.
    """
    [(layer, index)] = check_heads(model, [head])
    block = Anatomy.of(model, bidirectional=True).layers[layer]
    return FactoredMatrix(block.W_Q(index), block.W_K(index).T)


@torch.no_grad()
def effective_embedding(
    model: Any, tokens: Int[Tensor, " token"] | None = None, *, embedding: bool = True, block: int = 1024
) -> Float[Tensor, "token d_model"]:
    """W_E + MLP0(norm(W_E)): what a token is after block 0 when attention and positions are left out.

    `W_EE` of copy suppression (McDougall et al., Appendix I); without the first term, `embedding=False`, the input
    of successor heads (Gould et al.). The same for models whose MLP stands beside the attention, as in Pythia. What a
    token is in context is `contextual_embedding`; a context of that token alone is neither: its attention is a sink.

    Args:
        tokens: token ids; None for the whole vocabulary.
        block: tokens at a time. Memory: block · d_mlp floats beside the result.
    """
    anatomy = Anatomy.of(model, bidirectional=True)
    if tokens is None:
        tokens = torch.arange(anatomy.size.d_vocab)
    check_ids(anatomy.size, tokens)
    parts = []
    for ids in tokens.to(anatomy.device).split(block):
        x = anatomy.embed(ids, positions=False)
        out = anatomy.layers[0].mlp(x)
        parts.append(x + out if embedding else out)
    return torch.cat(parts)


@torch.no_grad()
def contextual_embedding(
    model: Any, text: Int[Tensor, "doc pos"], layer: int
) -> tuple[Float[Tensor, "token d_model"], Int[Tensor, " token"]]:
    """The mean stream before a layer at every token's places in a text, and how many places those are.

    First positions are left out: what stands there is the attention's sink. Tokens that the text lacks have zeros and
    a count of 0.

    Errors: `ValueError` for a layer that the model does not have.

    >>> from mechinterp.models import load
    >>> mean, count = contextual_embedding(load("lab"), torch.tensor([[0, 5, 9, 5]]), 1)
    >>> count[torch.tensor([0, 5, 9])].tolist()
    [0, 2, 1]
    """
    every = torch.arange(Anatomy.of(model).size.d_vocab)
    mean, count = contextual_embeddings(model, text, [layer], every)
    return mean[0], count


@torch.no_grad()
def contextual_embeddings(
    model: Any, text: Int[Tensor, "doc pos"], layers: Sequence[int], tokens: Int[Tensor, " token"]
) -> tuple[Float[Tensor, "layer token d_model"], Int[Tensor, " token"]]:
    """`contextual_embedding` before several layers, of some tokens, from one run of the text.

    Memory: layers · tokens · d_model floats.

    Errors: `ValueError` for a layer or a token that the model does not have, or no layers.
    """
    anatomy = check_text(model, text)
    check_ids(anatomy.size, tokens)
    wrong = [str(layer) for layer in layers if not 0 <= layer <= anatomy.size.n_layers]
    if wrong or not len(layers):
        raise ValueError(f"no stream before layer {', '.join(wrong)}: this model has 0..{anatomy.size.n_layers}")
    kept, back = tokens.to(anatomy.device).unique(return_inverse=True)
    place = torch.full((anatomy.size.d_vocab,), -1, device=anatomy.device)
    place[kept] = torch.arange(len(kept), device=anatomy.device)
    total = torch.zeros(len(layers), len(kept), anatomy.size.d_model, device=anatomy.device)
    count = torch.zeros(len(kept), dtype=torch.long, device=anatomy.device)
    for row in text.to(anatomy.device).split(1):
        got = trace(
            anatomy, row, lambda name, i, x: x[0] if name == "resid_pre" and i in layers else None, stop=max(layers)
        )
        where = (place[row[0, 1:]] >= 0).nonzero()[:, 0] + 1
        ids = place[row[0, where]]
        for i, layer in enumerate(layers):
            total[i].index_add_(0, ids, got["resid_pre", layer][where].float())
        count.index_add_(0, ids, torch.ones_like(ids))
    return (total / count.clamp(min=1)[:, None])[:, back], count[back]
