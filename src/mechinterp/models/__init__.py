"""The one door to every model of the book: `load("lab")`, a pretrained model, a hub id, a folder or a `.gguf` file."""

from mechinterp.models.load import describe, load, load_tokenizer, sha256, to_bridge
from mechinterp.models.pretrained import get
from mechinterp.models.quantisation import dither

__all__ = ["describe", "dither", "get", "load", "load_tokenizer", "sha256", "to_bridge"]
