import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechinterp import Head
from mechinterp.claims.expectations import Includes, Range, SameSet, Size, clean, describe, holds, show, to_json


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(-10, 10))
def test_a_range_holds_exactly_what_lies_between_its_ends(a, b, x):
    lo, hi = sorted((a, b))
    assert Range(lo, hi).holds(x) == (lo <= x <= hi)


@pytest.mark.parametrize(
    ("rule", "value", "met"),
    [
        (SameSet(["9.9", "9.6"]), ["9.6", "9.9"], True),
        (SameSet(["9.9", "9.6"]), ["9.6", "9.9", "10.0"], False),
        (Includes(["3.0"]), ["3.0", "0.1"], True),
        (Includes(["3.0"]), ["0.1"], False),
        (Size(1, 2), ["1.1", "1.1"], True),
        (Size(1, 2), ["1.1", "1.2", "1.3"], False),
        (Size(1), [], False),
        ({"a": Range(0, 1), "b": SameSet(["1.1"])}, {"a": 0.5, "b": ["1.1"]}, True),
        ({"a": Range(0, 1), "b": SameSet(["1.1"])}, {"a": 0.5, "b": ["1.2"]}, False),
    ],
)
def test_expectations_hold_when_they_should(rule, value, met):
    assert holds(rule, value) is met


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (Range(0, 1), ["9.9"], "a number"),
        (Range(0, 1), {"a": 0.0}, "a number"),
        (SameSet(["9.9"]), 0.5, "a list of names"),
        ({"a": Range(0, 1)}, 0.5, "a table with the rows"),
        ({"a": Range(0, 1)}, {"b": 0.5}, "a table with the rows"),
        ({"a": Range(0, 1)}, {"a": 0.5, "b": 1.0}, "a table with the rows"),
    ],
)
def test_a_value_of_another_shape_is_refused(rule, value, message):
    with pytest.raises(ValueError, match=message):
        holds(rule, value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float32("nan")])
def test_only_finite_numbers_are_values(bad):
    with pytest.raises(ValueError, match="finite"):
        clean(bad)
    with pytest.raises(ValueError, match="row 'LD'"):
        clean({"LD": bad})


@pytest.mark.parametrize("bad", [None, "9.9", [1.0, 2.0], torch.zeros(3), {"a": {"b": 1.0}}])
def test_other_things_are_no_values(bad):
    with pytest.raises(ValueError, match="must be a number or a list"):
        clean(bad)


def test_numbers_and_heads_become_plain():
    assert clean(torch.tensor(2)) == 2.0
    assert clean(np.float32(0.5)) == 0.5
    assert clean({Head(9, 6), Head(9, 6)}) == ["9.6"]
    assert clean({"lower": (Head(9, 6),), "share": 1}) == {"lower": ["9.6"], "share": 1.0}


def test_words_and_json():
    assert describe({"LD": Range(3), "heads": Size(1, 4)}) == "LD: at least 3; heads: 1 to 4 heads"
    assert to_json({"LD": Range(3), "heads": Includes(["1.1"])}) == {"LD": [3, None], "heads": {"include": ["1.1"]}}
    assert to_json(None) is None
    assert show(None) == "—"


def test_a_range_upside_down_is_refused():
    with pytest.raises(ValueError, match="lo=2 and hi=1"):
        Range(2, 1)
    with pytest.raises(ValueError, match="lo=nan"):
        Range(math.nan, 1)
