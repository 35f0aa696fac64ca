"""Has a value changed in silence? New results against the committed ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechinterp.claims.registry import CLAIMS
from mechinterp.claims.results import Results
from mechinterp.claims.values import Leaf, Names, show
from mechinterp.stats import Estimate

RTOL, ATOL = 0.002, 0.002
"""What rounding may do to a value whose claim has no `drift`: seven times the most by which a run of all six chapters
without vector instructions differed from the committed results, 2.7e-4."""


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


def compare(old: Results, new: Results, *, rtol: float = RTOL, atol: float = ATOL) -> list[Change]:
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
        elif _facts(before.value) != _facts(after.value):
            changes.append(Change(id, "another unit or number of units, or an interval gained or lost"))
        if (before.null is None) != (after.null is None):
            changes.append(Change(id, "has gained or lost its null"))
        for name in ("expected", "verdict"):
            if getattr(before, name) != getattr(after, name):
                changes.append(Change(id, f"{name} was {getattr(before, name)}, is {getattr(after, name)}"))
    return changes


def _close(a: Any, b: Any, rtol: float, atol: float) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(_close(a[key], b[key], rtol, atol) for key in a)
    if isinstance(a, Names) and isinstance(b, Names):
        return set(a.names) == set(b.names)
    if isinstance(a, Estimate) and isinstance(b, Estimate):
        return abs(a.value - b.value) <= atol + rtol * abs(a.value)
    return bool(a == b)


def _facts(value: Any) -> Any:
    """What else is compared: units and whether there is an interval. Its ends are noisier than the value."""
    if isinstance(value, dict):
        return {row: _facts(item) for row, item in value.items()}
    return (value.n, value.unit, value.interval is None) if isinstance(value, Estimate) else None


@dataclass(frozen=True)
class Spread:
    """How far one number of a claim, or one list of names, lies apart between runs that should agree.

    Attributes:
        id, row: the claim, and the row if its value is a table.
        absolute: largest difference between two runs; for names, how many are not in every run.
        relative: that over the largest size of the number; for names, over how many there are in all.
        allowed: what `compare` lets pass between the two, 0 for names.
    """

    id: str
    row: str
    absolute: float
    relative: float
    allowed: float


def spread(runs: Sequence[Results]) -> list[Spread]:
    """What the tolerances of `compare` have to cover: differences between runs on several processors, widest first.

    Claims that only some of the runs have are left out; so are rows of a table.

    Errors: `ValueError` for fewer than two runs, or runs of different chapters, scales or seeds.
    """
    kinds = {(run.chapter, run.scale, run.seed) for run in runs}
    if len(runs) < 2 or len(kinds) > 1:
        raise ValueError(f"a spread needs at least two runs of one chapter, scale and seed, got {len(runs)} of {kinds}")
    found = []
    for id in (id for id in runs[0].claims if all(id in run.claims for run in runs)):
        values = [run.claims[id].value for run in runs]
        tables: list[dict[str, Leaf | None]] = [{**v} if isinstance(v, dict) else {"": v} for v in values]
        claim = CLAIMS.get(runs[0].chapter, {}).get(id)
        for row in (row for row in tables[0] if all(row in table for table in tables)):
            leaves = [table[row] for table in tables]
            sets = [set(leaf.names) for leaf in leaves if isinstance(leaf, Names)]
            numbers = [leaf.value for leaf in leaves if isinstance(leaf, Estimate)]
            if len(sets) == len(leaves):
                every = set.union(*sets)
                apart, size, allowed = float(len(every) - len(set.intersection(*sets))), float(len(every)), 0.0
            elif len(numbers) == len(leaves):
                apart, sizes = max(numbers) - min(numbers), [abs(x) for x in numbers]
                size, allowed = max(sizes), ATOL + RTOL * min(sizes) + (claim.drift if claim else 0.0)
            else:
                continue  # not measured in some run
            found.append(Spread(id, row, apart, apart / size if size else 0.0, allowed))
    return sorted(found, key=lambda s: -s.absolute / (s.allowed or 1e-9))
