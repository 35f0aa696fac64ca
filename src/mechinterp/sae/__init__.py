"""Sparse autoencoders: architectures, training, measures.

Three rooms hold the rest: `files` the formats on disk, `latents` what latents do in a model and what they are about,
`study` sweeps, comparisons and data whose features are known.
"""

from mechinterp.sae.architectures import SAE, gated_to_jumprelu, initial, same_function, scale_input, tensor_shapes
from mechinterp.sae.files.formats import load, save
from mechinterp.sae.kinds import KINDS, Gradients, Kind, Loss, Options
from mechinterp.sae.losses import loss
from mechinterp.sae.metrics import Quality, Reconstruction, Site, evaluate, reconstruction, site
from mechinterp.sae.settings import Config, Spec
from mechinterp.sae.sites import activations, logits
from mechinterp.sae.store import Given, Store
from mechinterp.sae.training import Trained, train
from mechinterp.sae.transcoders import Transcoder

__all__ = [
    "KINDS",
    "SAE",
    "Config",
    "Given",
    "Gradients",
    "Kind",
    "Loss",
    "Options",
    "Quality",
    "Reconstruction",
    "Site",
    "Spec",
    "Store",
    "Trained",
    "Transcoder",
    "activations",
    "evaluate",
    "gated_to_jumprelu",
    "initial",
    "load",
    "logits",
    "loss",
    "reconstruction",
    "same_function",
    "save",
    "scale_input",
    "site",
    "tensor_shapes",
    "train",
]
