"""Causal interventions on any model that `Anatomy` describes: knock-outs, activation patching, path patching."""

from mechinterp.patching.ablation import replace
from mechinterp.patching.activation_patching import ActivationPatch, activation_patch
from mechinterp.patching.direct import LogitAttribution, direct_logit_attribution, logit_lens
from mechinterp.patching.following import follow_back
from mechinterp.patching.path_patching import PathPatch, path_patch
from mechinterp.patching.recording import (
    Activations,
    group_means,
    logits_at,
    mask,
    mean_reference,
    record,
    value_biases,
)

__all__ = [
    "ActivationPatch",
    "Activations",
    "LogitAttribution",
    "PathPatch",
    "activation_patch",
    "direct_logit_attribution",
    "follow_back",
    "group_means",
    "logit_lens",
    "logits_at",
    "mask",
    "mean_reference",
    "path_patch",
    "record",
    "replace",
    "value_biases",
]
