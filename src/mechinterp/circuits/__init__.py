"""A circuit as an object, and the three demands on it: faithful, complete, minimal."""

from mechinterp.circuits.circuit import (
    POSITIONS,
    Circuit,
    Node,
    Setting,
    evaluate,
    from_roles,
    keep,
    score,
    score_without,
)
from mechinterp.circuits.criteria import (
    Completeness,
    Faithfulness,
    Minimality,
    by_class,
    companions,
    completeness,
    faithfulness,
    greedy_completeness,
    greedy_sets,
    minimality,
    random_subsets,
)
from mechinterp.circuits.ioi import NAIVE_CIRCUIT, PAPER_CIRCUIT, PAPER_COMPANIONS

__all__ = [
    "NAIVE_CIRCUIT",
    "PAPER_CIRCUIT",
    "PAPER_COMPANIONS",
    "POSITIONS",
    "Circuit",
    "Completeness",
    "Faithfulness",
    "Minimality",
    "Node",
    "Setting",
    "by_class",
    "companions",
    "completeness",
    "evaluate",
    "faithfulness",
    "from_roles",
    "greedy_completeness",
    "greedy_sets",
    "keep",
    "minimality",
    "random_subsets",
    "score",
    "score_without",
]
