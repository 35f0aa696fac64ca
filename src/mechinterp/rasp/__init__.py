"""RASP programs compiled into transformers whose circuit is known: the ground truth of interpretability methods."""

from mechinterp.rasp.compiled import Compiled, compile_program
from mechinterp.rasp.language import (
    Aggregate,
    Both,
    LinearSequenceMap,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    SOp,
    evaluate,
    full,
    indices,
    tokens,
    trace,
)
from mechinterp.rasp.layout import Direction, Layout
from mechinterp.rasp.library import programs

__all__ = [
    "Aggregate",
    "Both",
    "Compiled",
    "Direction",
    "Layout",
    "LinearSequenceMap",
    "Map",
    "SOp",
    "Select",
    "SelectorWidth",
    "SequenceMap",
    "compile_program",
    "evaluate",
    "full",
    "indices",
    "programs",
    "tokens",
    "trace",
]
