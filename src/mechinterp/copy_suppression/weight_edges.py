"""Who feeds the suppressors of GPT-2, by weights alone?

    python -m mechinterp.copy_suppression.weight_edges --weights gpt2 [--json FILE]

ranks all earlier heads by how much of what they write lies where 10.7 and 11.10 read, in queries and in keys.
`--weights` is a hub id, a folder, or a folder that has nothing but attention weights.
"""

from pathlib import Path

from mechinterp.circuits import weight_edges
from mechinterp.circuits.weight_edges import Edge, Wiring

EDGES: tuple[Edge, ...] = (
    ("CS-W1", ("name mover",), "q", "negative name mover"),
    ("CS-W2", ("name mover",), "k", "negative name mover"),
)
"""Suppressors should hear in their queries what name movers have copied, and not in their keys."""


def gpt2() -> Wiring:
    """The suppressors on GPT-2 small's real attention weights, as this module's command found it."""
    return weight_edges.load(Path(__file__).with_name("gpt2_wiring.json"))


if __name__ == "__main__":
    weight_edges.main(edges=EDGES, about=__doc__)
