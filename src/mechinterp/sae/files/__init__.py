"""SAEs and transcoders on disk: our own and other libraries' formats, and where published ones are."""

from mechinterp.sae.files.formats import load, save
from mechinterp.sae.files.released import attention_gpt2, names, shipped
from mechinterp.sae.files.stored import Stored, convert
from mechinterp.sae.files.transcoders import load_transcoder

__all__ = ["Stored", "attention_gpt2", "convert", "load", "load_transcoder", "names", "save", "shipped"]
