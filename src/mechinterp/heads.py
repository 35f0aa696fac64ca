"""Attention heads by name: `Head(9, 6)`, printed `9.6`."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple


class Head(NamedTuple):
    """One attention head, 0-indexed.

    >>> str(Head(9, 6)), Head.parse("L10H7")
    ('9.6', Head(layer=10, head=7))
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Read `9.6` or `L9H6`; `ValueError` for anything else."""
        match = re.fullmatch(r"L?(\d+)[.H](\d+)", text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a head; write it as 9.6 or L9H6")
        return cls(int(match[1]), int(match[2]))


def all_heads(model: Any) -> list[Head]:
    """Every head of a model, layer by layer."""
    from mechinterp.anatomy import size

    return size(model).heads


def check_heads(model: Any, heads: Iterable[Head]) -> list[Head]:
    """The heads as a list; `ValueError` naming the first one that the model does not have."""
    from mechinterp.anatomy import size

    sizes, heads = size(model), [Head(*h) for h in heads]
    for h in heads:
        if not (0 <= h.layer < sizes.n_layers and 0 <= h.head < sizes.n_heads):
            raise ValueError(f"no head {h} in this model: layers 0..{sizes.n_layers - 1}, heads 0..{sizes.n_heads - 1}")
    return heads
