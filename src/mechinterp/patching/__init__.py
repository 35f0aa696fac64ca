"""Causal interventions on any GPT-2-like model: knock-outs, activation patching, path patching."""

from mechinterp.patching.ablation import Activations, group_means, logits_at, mask, mean_reference, record, replace
from mechinterp.patching.paths import PathPatch, path_patch

__all__ = [
    "Activations",
    "PathPatch",
    "group_means",
    "logits_at",
    "mask",
    "mean_reference",
    "path_patch",
    "record",
    "replace",
]
