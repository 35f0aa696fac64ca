"""Sparse autoencoders: architectures, training, measures, attribution and file formats."""

from mechinterp.sae.architectures import KINDS, SAE, Kind, gated_to_jumprelu, initial, scale_input, tensor_shapes

__all__ = ["KINDS", "SAE", "Kind", "gated_to_jumprelu", "initial", "scale_input", "tensor_shapes"]
