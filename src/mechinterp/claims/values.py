"""What a claim measures: an estimate, a set of names, or a table of those; and how they are stored and shown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from mechinterp.selection import Found
from mechinterp.stats import Estimate


@dataclass(frozen=True)
class Names:
    """A set of names (heads, mostly) as a claim keeps it.

    Attributes:
        names: the members, in the order to show them.
        estimates: the effect of some or all members.
        splits: what each random half of the samples selects; empty for a set that was not selected by samples.
    """

    names: tuple[str, ...]
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    splits: tuple[tuple[str, ...], ...] = ()


Leaf = Estimate | Names
Value = Leaf | dict[str, Leaf]


def clean(value: Any) -> Value:
    """An estimate, a list of names or heads, a `Found`, or a table of those, with six digits kept.

    Errors: `ValueError` for anything else, a bare number above all: it does not say what was counted.

    >>> clean([(9, 6)]).names
    ('9.6',)
    """
    if isinstance(value, Mapping):
        return {str(key): _leaf(item, f" in row {key!r}") for key, item in value.items()}
    return _leaf(value, "")


def to_json(value: Value | None) -> Any:
    """The value as it is in a results file."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, Names):
        data: dict[str, Any] = {"names": list(value.names)}
        if value.estimates:
            data["estimates"] = {name: to_json(item) for name, item in value.estimates.items()}
        if value.splits:
            data["splits"] = [sorted(split) for split in value.splits]
        return data
    if value is None:
        return None
    ends = None if value.interval is None else list(value.interval)
    return {"value": value.value, "interval": ends, "n": value.n, "unit": value.unit}


def from_json(data: Any) -> Value | None:
    """The value of a results file. `ValueError` or `KeyError` for another shape."""
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ValueError(f"a value is an estimate, a set of names or a table of those, not {data!r}")
    if set(data) >= {"value", "interval", "n", "unit"}:
        ends = data["interval"]
        return Estimate(data["value"], None if ends is None else (ends[0], ends[1]), data["n"], data["unit"])
    if "names" in data and isinstance(data["names"], list):
        estimates = {name: from_json(item) for name, item in data.get("estimates", {}).items()}
        splits = tuple(tuple(split) for split in data.get("splits", []))
        return Names(tuple(data["names"]), estimates, splits)  # type: ignore[arg-type]
    return {key: from_json(item) for key, item in data.items()}  # type: ignore[misc]


def show(value: Value | None, *, counted: bool = False) -> str:
    """A value in a few characters; with what was counted if wanted.

    >>> show(Estimate(0.99312, (0.98, 1.0), 15, "templates"))
    '0.993 [0.98, 1]'
    >>> show({"LD": Estimate(3.5, None, 8, "prompts"), "heads": Names(("9.6", "9.9"))}, counted=True)
    'LD: 3.5 (8 prompts); heads: 9.6, 9.9'
    >>> show(Names(())), show(None)
    ('none', '—')
    """
    if value is None:
        return "—"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {show(item, counted=counted)}" for key, item in value.items())
    if isinstance(value, Names):
        found = value.estimates
        return ", ".join(f"{name} {show(found[name])}" if name in found else name for name in value.names) or "none"
    told = str(value)
    return told if counted else told.removesuffix(f" ({value.n} {value.unit})")


def _leaf(value: Any, where: str) -> Leaf:
    if isinstance(value, Estimate):
        ends = None if value.interval is None else (_digits(value.interval[0]), _digits(value.interval[1]))
        return Estimate(_digits(value.value), ends, int(value.n), value.unit)
    if isinstance(value, Names):
        return value
    if isinstance(value, Found):
        estimates = {str(name): _leaf(item, where) for name, item in value.estimates.items()}
        splits = tuple(tuple(sorted(map(str, split))) for split in value.splits)
        return Names(tuple(map(str, value.members)), estimates, splits)  # type: ignore[arg-type]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) and not hasattr(value, "ndim"):
        items = list(value)
        if all(isinstance(item, str) for item in items) or all(_is_head(item) for item in items):
            return Names(tuple(item if isinstance(item, str) else f"{item[0]}.{item[1]}" for item in items))
    if isinstance(value, Real) or hasattr(value, "ndim"):
        raise ValueError(
            f"the value{where} is {value!r}, a bare number; give an Estimate, which says what was counted: "
            "mechinterp.stats.mean, share, ratio or resampled, or population if nothing would be drawn anew"
        )
    raise ValueError(f"the value{where} must be an Estimate or a list of heads or names, not {value!r}")


def _digits(x: float) -> float:
    return float(f"{x:.6g}")


def _is_head(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(i, int) for i in item)
