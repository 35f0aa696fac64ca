"""Has a value changed in silence? New results against the committed ones."""

from dataclasses import dataclass
from typing import Any

from mechinterp.claims.expectations import show
from mechinterp.claims.registry import CLAIMS
from mechinterp.claims.results import Results


@dataclass(frozen=True)
class Change:
    """One difference between two results files.

    Attributes:
        id: the claim, or the name of a field of the file (`model`, `seed`, `scale`).
        what: the difference in words.
    """

    id: str
    what: str

    def __str__(self) -> str:
        return f"{self.id}: {self.what}"


def compare(old: Results, new: Results, *, rtol: float = 0.02, atol: float = 0.005) -> list[Change]:
    """Every difference that a reader should be told of: values, verdicts, expectations, model and seed.

    Numbers may differ by `atol + rtol * |old|`, the rounding of other processors, and by the claim's own `drift`;
    names of heads may not differ at all. Dates, seconds, versions, devices and notes are no changes. Empty means equal.
    """
    changes = [
        Change(name, f"was {getattr(old, name)!r}, is {getattr(new, name)!r}")
        for name in ("chapter", "scale", "model", "seed")
        if getattr(old, name) != getattr(new, name)
    ]
    for id in [*old.claims, *(id for id in new.claims if id not in old.claims)]:
        before, after = old.claims.get(id), new.claims.get(id)
        if before is None or after is None:
            changes.append(Change(id, "was recorded, is missing" if after is None else "is new, was not recorded"))
            continue
        claim = CLAIMS.get(old.chapter, {}).get(id)
        if not _close(before.value, after.value, rtol, atol + (claim.drift if claim else 0.0)):
            changes.append(Change(id, f"was {show(before.value)}, is {show(after.value)}"))
        # The ends of an interval are noisier than the value; only whether there is one is compared.
        if (before.interval is None) != (after.interval is None):
            changes.append(Change(id, "has gained or lost its interval"))
        for name in ("expected", "verdict"):
            if getattr(before, name) != getattr(after, name):
                changes.append(Change(id, f"{name} was {getattr(before, name)}, is {getattr(after, name)}"))
    return changes


def _close(a: Any, b: Any, rtol: float, atol: float) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(_close(a[key], b[key], rtol, atol) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return set(a) == set(b)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= atol + rtol * abs(a)
    return bool(a == b)
