"""Successor heads: the methods of Gould et al. (arXiv:2312.09230)."""

from mechinterp.successor.arithmetic import Grid, arithmetic_grid, neuron_ablation
from mechinterp.successor.decomposition import Decomposition, Projections, decompose, train_projections
from mechinterp.successor.features import (
    Dictionaries,
    Probe,
    agreement,
    linear_probe,
    residue_features,
    train_dictionaries,
)
from mechinterp.successor.lists import continuations, disorder
from mechinterp.successor.natural import (
    CATEGORIES,
    Shares,
    Winning,
    category,
    direct_effects,
    total_effects,
    winning_cases,
)
from mechinterp.successor.score import (
    Class,
    SuccessorScores,
    class_logits,
    class_of,
    classes,
    greater_than_bias,
    head_logits,
    pooled,
    representations,
    shuffled_scores,
    successor_scores,
    table,
)

__all__ = [
    "CATEGORIES",
    "Class",
    "Decomposition",
    "Dictionaries",
    "Grid",
    "Probe",
    "Projections",
    "Shares",
    "SuccessorScores",
    "Winning",
    "agreement",
    "arithmetic_grid",
    "category",
    "class_logits",
    "class_of",
    "classes",
    "continuations",
    "decompose",
    "direct_effects",
    "disorder",
    "greater_than_bias",
    "head_logits",
    "linear_probe",
    "neuron_ablation",
    "pooled",
    "representations",
    "residue_features",
    "shuffled_scores",
    "successor_scores",
    "table",
    "total_effects",
    "train_dictionaries",
    "train_projections",
    "winning_cases",
]
