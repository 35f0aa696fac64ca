"""The OV and QK circuits of a head, kept as products of thin matrices (Elhage et al., 2021)."""

from typing import Any

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
