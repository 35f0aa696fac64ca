"""Successor heads: the methods of Gould et al. (arXiv:2312.09230)."""

from mechinterp.successor.arithmetic import Grid, arithmetic_grid, neuron_ablation
from mechinterp.successor.features import (
    Dictionaries,
    Probe,
    agreement,
    linear_probe,
    residue_features,
    train_dictionaries,
)
from mechinterp.successor.score import (
    Class,
    SuccessorScores,
    class_logits,
    class_of,
    classes,
    greater_than_bias,
    pooled,
    representations,
    successor_scores,
    table,
)

__all__ = [
    "Class",
    "Dictionaries",
    "Grid",
    "Probe",
    "SuccessorScores",
    "agreement",
    "arithmetic_grid",
    "class_logits",
    "class_of",
    "classes",
    "greater_than_bias",
    "linear_probe",
    "neuron_ablation",
    "pooled",
    "representations",
    "residue_features",
    "successor_scores",
    "table",
    "train_dictionaries",
]
