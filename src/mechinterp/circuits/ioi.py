"""The 26 heads of the paper's circuit in GPT-2 small (Wang et al., Figure 2), and the sets of its minimality test."""

from mechinterp.circuits.circuit import from_roles
from mechinterp.heads import Head


def _heads(text: str) -> list[Head]:
    return [Head.parse(name) for name in text.split()]


PAPER_CIRCUIT = from_roles(
    {
        "name mover": _heads("9.9 10.0 9.6"),
        "negative name mover": _heads("10.7 11.10"),
        "backup name mover": _heads("11.2 10.6 10.10 10.2 9.7 10.1 11.9 9.0"),
        "S-inhibition": _heads("7.3 7.9 8.6 8.10"),
        "induction": _heads("5.5 6.9 5.8 5.9"),
        "duplicate token": _heads("0.1 3.0 0.10"),
        "previous token": _heads("2.2 4.11"),
    }
)
"""The circuit; name movers and backups in the order in which the minimality test takes them."""

NAIVE_CIRCUIT = from_roles(
    {
        "name mover": _heads("9.9 10.0 9.6"),
        "S-inhibition": _heads("7.3 7.9 8.6 8.10"),
        "induction": _heads("5.5 5.9"),
        "duplicate token": _heads("3.0 0.10"),
        "previous token": _heads("2.2 4.11"),
    }
)
"""Without negative and backup name movers (section 4.3)."""

_movers, _negative = PAPER_CIRCUIT.heads("name mover"), PAPER_CIRCUIT.heads("negative name mover")

PAPER_COMPANIONS: dict[Head, list[Head]] = {
    Head(5, 8): _negative,
    Head(5, 9): _negative,
    Head(9, 0): [*_movers, *_negative],
    Head(11, 9): [*_movers, *_negative],
}
"""Heads whose K the paper chose by hand; all others follow `companions`."""
