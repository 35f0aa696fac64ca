"""The OV and QK circuits of a head, kept as products of thin matrices (Elhage et al., 2021)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.FactoredMatrix import FactoredMatrix

from mechinterp.heads import Head, check_heads


def ov_circuit(model: Any, head: Head) -> FactoredMatrix:
    """What attending to a direction writes: W_V W_O, [d_model d_model] as a product through d_head."""
    [(layer, index)] = check_heads(model, [head])
    return FactoredMatrix(model.W_V[layer, index], model.W_O[layer, index])


def qk_circuit(model: Any, head: Head) -> FactoredMatrix:
    """Which directions attend to which: W_Q W_Kᵀ, [d_model (query) d_model (key)] through d_head."""
    [(layer, index)] = check_heads(model, [head])
    return FactoredMatrix(model.W_Q[layer, index], model.W_K[layer, index].T)


@torch.no_grad()
def effective_embedding(
    model: Any, tokens: Int[Tensor, " token"] | None = None, *, embedding: bool = True, block: int = 1024
) -> Float[Tensor, "token d_model"]:
    """W_E + MLP0(LN2(W_E)): what a token is after block 0 when attention and positions are left out.

    `W_EE` of copy suppression (McDougall et al., Appendix I); without the first term, `embedding=False`, the input
    of successor heads (Gould et al.). The same for models whose MLP stands beside the attention, as in Pythia.

    Args:
        tokens: token ids; None for the whole vocabulary.
        block: tokens at a time. Memory: block · d_mlp floats beside the result.
    """
    first, rows = model.blocks[0], model.W_E if tokens is None else model.W_E[tokens.to(model.W_E.device)]
    parts = []
    for x in rows.split(block):
        out = first.mlp(first.ln2(x[None]))[0]
        parts.append(x + out if embedding else out)
    return torch.cat(parts)
