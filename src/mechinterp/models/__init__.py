"""The one door to every model of the book: `load("lab")`, a hub id or a local folder."""

from mechinterp.models.load import describe, load, load_tokenizer, sha256, to_bridge

__all__ = ["describe", "load", "load_tokenizer", "sha256", "to_bridge"]
