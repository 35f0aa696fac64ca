"""mechinterp: the package behind an executable textbook of mechanistic interpretability."""

from mechinterp.heads import Head, all_heads, check_heads
from mechinterp.scales import Chapter, scale, setup

__version__ = "0.1.0"
__all__ = ["Chapter", "Head", "__version__", "all_heads", "check_heads", "scale", "setup"]
