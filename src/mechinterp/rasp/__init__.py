"""RASP programs compiled into transformers whose circuit is known: the ground truth of interpretability methods."""

from mechinterp.rasp.compiled import Compiled, compile_program
from mechinterp.rasp.language import (
    Aggregate,
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
from mechinterp.rasp.library import programs

__all__ = [
    "Aggregate",
    "Compiled",
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
