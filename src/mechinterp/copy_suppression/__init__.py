"""Is a head a copy suppressor? The methods of McDougall et al. (arXiv:2310.04625)."""

from mechinterp.copy_suppression.behaviour import (
    AttendedPairs,
    Calibration,
    Cases,
    Paths,
    TokenView,
    attended_pairs,
    calibration,
    cases,
    head_paths,
    key_projection,
    view,
)
from mechinterp.copy_suppression.cspa import CSPA, PARTS, cspa
from mechinterp.copy_suppression.projection import ScoreFit, fit_scores, qk_projection
from mechinterp.copy_suppression.recording import Record, head_means, records
from mechinterp.copy_suppression.self_repair import (
    QueryChange,
    SelfRepair,
    attention_after,
    query_projection,
    self_repair,
)
from mechinterp.copy_suppression.similar import root, similar_tokens
from mechinterp.copy_suppression.weights import (
    DISTANCES,
    RankTests,
    composition_ranks,
    diagonal_ranks,
    distance_weights,
    ov_ranks,
    qk_ranks,
    qk_ranks_at,
    rank_tests,
    token_vectors,
)

__all__ = [
    "CSPA",
    "DISTANCES",
    "PARTS",
    "AttendedPairs",
    "Calibration",
    "Cases",
    "Paths",
    "QueryChange",
    "RankTests",
    "Record",
    "ScoreFit",
    "SelfRepair",
    "TokenView",
    "attended_pairs",
    "attention_after",
    "calibration",
    "cases",
    "composition_ranks",
    "cspa",
    "diagonal_ranks",
    "distance_weights",
    "fit_scores",
    "head_means",
    "head_paths",
    "key_projection",
    "ov_ranks",
    "qk_projection",
    "qk_ranks",
    "qk_ranks_at",
    "query_projection",
    "rank_tests",
    "records",
    "root",
    "self_repair",
    "similar_tokens",
    "token_vectors",
    "view",
]
