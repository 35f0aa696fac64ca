"""What a head reads and writes: patterns, head types, OV and QK circuits, composition."""

from mechinterp.attention.circuits import (
    contextual_embedding,
    contextual_embeddings,
    effective_embedding,
    ov_circuit,
    qk_circuit,
)
from mechinterp.attention.composition import HeadWeights, chance_level, composition, ranks
from mechinterp.attention.heads import (
    attention_to,
    copy_scores,
    direct_projection,
    duplicate_token_scores,
    induction_scores,
    patterns,
    previous_token_scores,
    repeated_tokens,
)
from mechinterp.attention.induction import broken_pairs

__all__ = [
    "HeadWeights",
    "attention_to",
    "broken_pairs",
    "chance_level",
    "composition",
    "contextual_embedding",
    "contextual_embeddings",
    "copy_scores",
    "direct_projection",
    "duplicate_token_scores",
    "effective_embedding",
    "induction_scores",
    "ov_circuit",
    "patterns",
    "previous_token_scores",
    "qk_circuit",
    "ranks",
    "repeated_tokens",
]
