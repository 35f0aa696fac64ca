"""Causal interventions on any GPT-2-like model: knock-outs, activation patching, path patching."""

from mechinterp.patching.ablation import replace
from mechinterp.patching.activation import ActivationPatch, activation_patch
from mechinterp.patching.activations import Activations, group_means, logits_at, mask, mean_reference, record
from mechinterp.patching.paths import PathPatch, path_patch

__all__ = [
    "ActivationPatch",
    "Activations",
    "PathPatch",
    "activation_patch",
    "group_means",
    "logits_at",
    "mask",
    "mean_reference",
    "path_patch",
    "record",
    "replace",
]
