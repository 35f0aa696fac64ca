"""Grokking as a race of two circuits: Varma et al. (arXiv:2309.02390), Nanda et al. (arXiv:2301.05217)."""

from mechinterp.grokking.efficiency import Located, crossing, norm_at_loss, scaling_exponent
from mechinterp.grokking.fourier import (
    Neurons,
    all_logits,
    embedding_spectrum,
    excluded_loss,
    gini,
    logit_spectrum,
    neuron_frequencies,
    restricted_loss,
    trig_share,
)
from mechinterp.grokking.model import Shape, hidden, initial, logits, norm, pack, unpack
from mechinterp.grokking.organism import fourier_network
from mechinterp.grokking.toy import Course, Toy, simulate
from mechinterp.grokking.training import METRICS, Config, Run, State, Trained, train

__all__ = [
    "METRICS",
    "Config",
    "Course",
    "Located",
    "Neurons",
    "Run",
    "Shape",
    "State",
    "Toy",
    "Trained",
    "all_logits",
    "crossing",
    "embedding_spectrum",
    "excluded_loss",
    "fourier_network",
    "gini",
    "hidden",
    "initial",
    "logit_spectrum",
    "logits",
    "neuron_frequencies",
    "norm",
    "norm_at_loss",
    "pack",
    "restricted_loss",
    "scaling_exponent",
    "simulate",
    "train",
    "trig_share",
    "unpack",
]
