"""Grokking as a race of two circuits: Varma et al. (arXiv:2309.02390), Nanda et al. (arXiv:2301.05217)."""

from mechinterp.grokking.efficiency import (
    common_losses,
    critical_sizes,
    crossings,
    largest_gap,
    norm_at_loss,
    norms_at_loss,
    over_seeds,
    scaling_exponent,
    slopes_at_equal_loss,
)
from mechinterp.grokking.fourier import (
    Neurons,
    all_logits,
    embedding_spectrum,
    excluded_loss,
    gini,
    key_part,
    logit_spectrum,
    neuron_frequencies,
    restricted_loss,
    trig_share,
)
from mechinterp.grokking.model import Shape, hidden, initial, logits, norm, pack, unpack
from mechinterp.grokking.organism import fourier_network
from mechinterp.grokking.runs import METRICS, Run
from mechinterp.grokking.toy import Course, Toy, simulate, without_an_ingredient
from mechinterp.grokking.training import Config, State, Trained, train

__all__ = [
    "METRICS",
    "Config",
    "Course",
    "Neurons",
    "Run",
    "Shape",
    "State",
    "Toy",
    "Trained",
    "all_logits",
    "common_losses",
    "critical_sizes",
    "crossings",
    "embedding_spectrum",
    "excluded_loss",
    "fourier_network",
    "gini",
    "hidden",
    "initial",
    "key_part",
    "largest_gap",
    "logit_spectrum",
    "logits",
    "neuron_frequencies",
    "norm",
    "norm_at_loss",
    "norms_at_loss",
    "over_seeds",
    "pack",
    "restricted_loss",
    "scaling_exponent",
    "simulate",
    "slopes_at_equal_loss",
    "train",
    "trig_share",
    "unpack",
    "without_an_ingredient",
]
