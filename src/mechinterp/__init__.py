"""mechinterp: the package behind an executable textbook of mechanistic interpretability."""

from mechinterp.heads import Head, all_heads, check_heads

__version__ = "0.1.0"
__all__ = ["Head", "all_heads", "check_heads", "__version__"]
