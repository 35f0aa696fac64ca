import pytest

from mechinterp.claims import CLAIMS, Claim, Range, find_claim


@pytest.mark.parametrize("entry", [c for chapter in CLAIMS.values() for c in chapter.values()], ids=lambda c: c.id)
def test_every_claim_is_complete(entry):
    assert entry.statement
    assert not entry.statement.endswith(".")
    assert entry.paper_value
    assert entry.where
    assert entry.measure
    if isinstance(entry.lab, dict):
        assert set(entry.lab) == set(entry.paper)


def test_an_unknown_id_names_its_neighbours():
    with pytest.raises(ValueError, match=r"unknown claim 'IOI-99'; did you mean IOI-9"):
        find_claim("IOI-99")


def test_a_claim_has_a_lab_expectation_or_a_reason():
    fields = {"id": "X-1", "statement": "s", "paper_value": "1", "where": "§1", "measure": "m", "paper": Range(0, 1)}
    with pytest.raises(ValueError, match="X-1"):
        Claim(**fields)
    with pytest.raises(ValueError, match="X-1"):
        Claim(**fields, lab=Range(0, 1), why_not_lab="no such heads")
    assert Claim(**fields, why_not_lab="no such heads").expected("lab") is None
    assert Claim(**fields, why_not_lab="no such heads").expected("rehearsal") == Range(0, 1)


def test_a_laptop_expectation_comes_with_its_null():
    fields = {"id": "X-1", "statement": "s", "paper_value": "1", "where": "§1", "measure": "m", "paper": Range(0, 1)}
    with pytest.raises(ValueError, match="X-1"):
        Claim(**fields, why_not_lab="no such heads", laptop=Range(0, 1))
