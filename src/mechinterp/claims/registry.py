"""Every claim of every chapter, by the id it has in the book."""

from difflib import get_close_matches

from mechinterp.claims.papers.acdc import ACDC
from mechinterp.claims.papers.attention_output_saes import ATTENTION_OUTPUT_SAES
from mechinterp.claims.papers.attribution import ATTRIBUTION
from mechinterp.claims.papers.compiled_transformers import COMPILED_TRANSFORMERS
from mechinterp.claims.papers.copy_suppression import COPY_SUPPRESSION
from mechinterp.claims.papers.gated_vs_jumprelu import GATED_VS_JUMPRELU
from mechinterp.claims.papers.grokking_efficiency import GROKKING_EFFICIENCY
from mechinterp.claims.papers.ioi import IOI
from mechinterp.claims.papers.model_stealing import MODEL_STEALING
from mechinterp.claims.papers.successor_heads import SUCCESSOR_HEADS
from mechinterp.claims.statement import Claim

CLAIMS: dict[str, dict[str, Claim]] = {
    "ioi": {entry.id: entry for entry in IOI},
    "copy_suppression": {entry.id: entry for entry in COPY_SUPPRESSION},
    "successor_heads": {entry.id: entry for entry in SUCCESSOR_HEADS},
    "grokking_efficiency": {entry.id: entry for entry in GROKKING_EFFICIENCY},
    "attention_output_saes": {entry.id: entry for entry in ATTENTION_OUTPUT_SAES},
    "gated_vs_jumprelu": {entry.id: entry for entry in GATED_VS_JUMPRELU},
    "compiled_transformers": {entry.id: entry for entry in COMPILED_TRANSFORMERS},
    "acdc": {entry.id: entry for entry in ACDC},
    "attribution": {entry.id: entry for entry in ATTRIBUTION},
    "model_stealing": {entry.id: entry for entry in MODEL_STEALING},
}


def find_claim(id: str) -> Claim:
    """The claim with this id; `ValueError` naming the nearest ids for an unknown one.

    >>> find_claim("IOI-16").where
    '§4'
    """
    known = {key: entry for chapter in CLAIMS.values() for key, entry in chapter.items()}
    if id not in known:
        near = ", ".join(get_close_matches(id, known, n=3, cutoff=0.5)) or ", ".join(known)
        raise ValueError(f"unknown claim {id!r}; did you mean {near}?")
    return known[id]
