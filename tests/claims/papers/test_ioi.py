"""The claims of the first chapter agree with the paper and with the rules for stating them."""

import pytest

from mechinterp.claims import CLAIMS, Range, Size
from mechinterp.claims.expectations import judge
from mechinterp.claims.values import clean
from mechinterp.stats import population


def measured(value):
    """The paper's value as a claim has it."""
    if isinstance(value, dict):
        return {name: measured(item) for name, item in value.items()}
    return clean(value if isinstance(value, list) else population(value, 1, "paper"))


def test_every_claim_of_the_sheet_is_there_once_and_in_order():
    assert list(CLAIMS["ioi"])[:23] == [f"IOI-{i}" for i in range(1, 24)]
    assert all(id.startswith("IOI-W") for id in list(CLAIMS["ioi"])[23:])


@pytest.mark.parametrize(
    ("id", "value"),
    [
        ("IOI-1", 3.56),
        ("IOI-2", 0.993),
        ("IOI-3", 0.49),
        ("IOI-4", {"for": ["9.9", "9.6", "10.0"], "against": ["10.7", "11.10"]}),
        ("IOI-5", {"IO": 0.59}),
        ("IOI-7", {"name movers": 0.95, "average head": 0.2}),
        ("IOI-8", {"negative name movers": 0.98, "average head": 0.12}),
        ("IOI-9", ["7.3", "7.9", "8.6", "8.10"]),
        ("IOI-10", {"S2": 0.51}),
        ("IOI-11", ["0.1", "3.0", "5.5", "6.9"]),
        ("IOI-13", {"position": 2.31 / 3.55, "token": 0.99 / 3.55, "error": 0.07}),
        ("IOI-14", {"position inverted": 0.88, "token random": 0.08}),
        ("IOI-15", {"drop": 0.05}),
        ("IOI-16", {"recovered": 0.87}),
        ("IOI-17", 0.1 / 3.56),
        ("IOI-18", 3.09 / 3.56),
        ("IOI-19", 0.01),
        ("IOI-22", 0.01 / 3.56),
    ],
)
def test_the_papers_own_value_meets_the_papers_expectation(id, value):
    assert judge(CLAIMS["ioi"][id].paper, measured(value)) == "reproduced"


def test_the_papers_tables_meet_their_expectations():
    cells = (3.55, -0.99, 2.45, -1.96, 1.77, -3.16, (3.55 + 0.99) / 3.55, (3.55 - 2.45) / 3.55)
    cells = dict(zip(CLAIMS["ioi"]["IOI-12"].paper, cells, strict=True))
    assert judge(CLAIMS["ioi"]["IOI-12"].paper, measured(cells)) == "reproduced"
    rows = (3.55, 3.64, 1.23, 0.49, 0.59, 0.36, 0.007, 0.004, 0.234, (3.55 - 1.23) / 3.55)
    table = dict(zip(CLAIMS["ioi"]["IOI-20"].paper, rows, strict=True))
    assert judge(CLAIMS["ioi"]["IOI-20"].paper, measured(table)) == "reproduced"


def test_every_claim_of_the_first_chapter_is_stated_for_the_laptop_with_its_null_and_names_no_head():
    for entry in CLAIMS["ioi"].values():
        assert entry.laptop is not None
        assert entry.null
        rules = entry.laptop.values() if isinstance(entry.laptop, dict) else [entry.laptop]
        assert all(isinstance(rule, Range | Size) for rule in rules)
    assert {id for id, entry in CLAIMS["ioi"].items() if entry.seen_before} == {"IOI-1", "IOI-2", "IOI-3"}
