"""Every claim is complete, and no expectation changes without saying so.

`stated.json` holds each expectation as it was first stated. It grows by `python tests/claims/test_registry.py`, which
adds what is new and never changes what is there.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from mechinterp.claims import CLAIMS, Claim, Range, Revision, find_claim
from mechinterp.claims.expectations import describe
from mechinterp.scales import SCALES

STATED = Path(__file__).with_name("stated.json")
RESULTS = Path(__file__).parents[2] / "results"
EVERY = [c for chapter in CLAIMS.values() for c in chapter.values()]
FIELDS = {"id": "X-1", "statement": "s", "paper_value": "1", "where": "§1", "measure": "m"}
CLAIM = Claim(**FIELDS, null="n", paper=Range(0, 1), lab=Range(0.5))


def first_stated(entry: Claim) -> dict[str, str]:
    """Each scale's expectation before all revisions, in words."""
    stated = {}
    for scale in (scale for scale in SCALES if scale != "rehearsal"):
        rule = entry.expected(scale)
        if rule is not None:
            first = next((r for r in entry.revised if r.scale == scale), None)
            stated[scale] = describe(rule) if first is None else first.was
    return stated


@pytest.mark.parametrize("entry", EVERY, ids=lambda c: c.id)
def test_every_claim_is_complete(entry):
    assert entry.statement
    assert not entry.statement.endswith(".")
    assert entry.paper_value
    assert entry.where
    assert entry.measure
    assert entry.null
    rules = [rule for rule in (entry.paper, entry.lab, entry.laptop) if rule is not None]
    assert len({isinstance(rule, dict) for rule in rules}) <= 1
    assert rules or all(entry.why_not(scale) for scale in SCALES), "asked nowhere, and why"


@pytest.mark.parametrize("entry", EVERY, ids=lambda c: c.id)
def test_an_expectation_that_has_changed_says_so(entry):
    """`revised` begins with what was stated first."""
    stated = json.loads(STATED.read_text(encoding="utf8"))
    assert entry.id in stated, f"a new claim: add it with python {STATED.with_name('test_registry.py')}"
    now = first_stated(entry)
    assert {scale: text for scale, text in stated[entry.id].items() if scale in now} == {
        scale: text for scale, text in now.items() if scale in stated[entry.id]
    }


def test_a_silent_change_is_noticed():
    later = dataclasses.replace(CLAIM, lab=Range(0.3))
    assert first_stated(later) != first_stated(CLAIM)
    told = dataclasses.replace(later, revised=(Revision("2026-01-01", "lab", "at least 0.5", "too strict"),))
    assert first_stated(told) == first_stated(CLAIM)
    assert "too strict" in str(told.revised[0])


@pytest.mark.parametrize("chapter", ["ioi", "copy_suppression", "successor_heads"])
def test_every_claim_is_stated_for_the_laptop_or_says_why_not(chapter):
    for entry in CLAIMS[chapter].values():
        assert (entry.laptop is None) == bool(entry.why_not_laptop), entry.id


def unbounded(rule: object, rows: object) -> bool:
    """Whether a rule by rows bounds none of the rows that were measured: a run at that scale would stop there."""
    return isinstance(rule, dict) and isinstance(rows, dict) and "value" not in rows and not set(rule) & set(rows)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_scale_bounds_some_row_that_the_chapter_measures(path):
    """A chapter measures the same rows, of values and of nulls, at every scale."""
    for id, entry in json.loads(path.read_text(encoding="utf8"))["claims"].items():
        for scale in (scale for scale in SCALES if scale != "rehearsal"):
            for rows in (entry.get("value"), (entry.get("null") or {}).get("value")):
                assert not unbounded(find_claim(id).expected(scale), rows), f"{id} at {scale} scale"


def test_rows_without_a_bound_are_noticed():
    assert unbounded({"a": Range(0)}, {"b": {"value": 1.0}})
    assert not unbounded({"a": Range(0)}, {"a": {"value": 1.0}, "b": {"value": 1.0}})


def test_an_unknown_id_names_its_neighbours():
    with pytest.raises(ValueError, match=r"unknown claim 'IOI-99'; did you mean IOI-9"):
        find_claim("IOI-99")


def test_a_claim_has_an_expectation_or_a_reason_and_a_null():
    fields = {**FIELDS, "null": "n", "paper": Range(0, 1)}
    with pytest.raises(ValueError, match="X-1: give a lab"):
        Claim(**fields)
    with pytest.raises(ValueError, match="X-1: give a lab"):
        Claim(**fields, lab=Range(0, 1), why_not_lab="no such heads")
    with pytest.raises(ValueError, match="X-1: give a laptop"):
        Claim(**fields, lab=Range(0, 1), laptop=Range(0, 1), why_not_laptop="no such heads")
    with pytest.raises(ValueError, match="X-1: name the null"):
        Claim(**{**fields, "null": ""}, lab=Range(0, 1))
    assert Claim(**fields, why_not_lab="no such heads").expected("lab") is None
    assert Claim(**fields, why_not_lab="no such heads").expected("rehearsal") == Range(0, 1)
    with pytest.raises(ValueError, match="its date"):
        Revision("", "lab", "x", "y")


if __name__ == "__main__":
    known = json.loads(STATED.read_text(encoding="utf8")) if STATED.exists() else {}
    for claim in EVERY:
        known[claim.id] = first_stated(claim) | known.get(claim.id, {})
    STATED.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
