import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechinterp import Head
from mechinterp.claims.expectations import Includes, Range, SameSet, Size, describe, judge, part, to_json
from mechinterp.claims.nulls import Chance, Either, measured
from mechinterp.claims.values import Names, clean, from_json, show
from mechinterp.claims.values import to_json as value_json
from mechinterp.selection import Found
from mechinterp.stats import Estimate, population

numbers = st.floats(-10, 10)


def near(value: float, half: float = 0.0) -> Estimate:
    return Estimate(float(value), (float(value - half), float(value + half)), 15, "templates")


@given(numbers, numbers, numbers, st.floats(0, 3))
def test_the_whole_interval_decides(a, b, x, half):
    lo, hi = sorted((a, b))
    verdict = judge(Range(lo, hi), near(x, half))
    ends = (x - half, x + half)
    assert (verdict == "reproduced") == all(lo <= end <= hi for end in ends)
    assert (verdict == "not reproduced") == (ends[1] < lo or ends[0] > hi)


@given(numbers, numbers, st.floats(0, 3), st.floats(0, 3))
def test_a_wider_interval_is_never_surer(bound, x, half, more):
    narrow, wide = judge(Range(bound), near(x, half)), judge(Range(bound), near(x, half + more))
    assert wide in (narrow, "undecided")


def test_a_whole_population_is_in_or_out():
    assert judge(Range(0, 1), population(0.99, 8, "heads")) == "reproduced"
    assert judge(Range(0, 1), population(1.01, 8, "heads")) == "not reproduced"


@pytest.mark.parametrize(
    ("rule", "value", "verdict"),
    [
        (SameSet(["9.9", "9.6"]), ["9.6", "9.9"], "reproduced"),
        (SameSet(["9.9", "9.6"]), ["9.6", "9.9", "10.0"], "not reproduced"),
        (Includes(["3.0"]), ["3.0", "0.1"], "reproduced"),
        (Includes(["3.0"]), ["0.1"], "not reproduced"),
        (Size(1, 2), ["1.1", "1.1"], "reproduced"),
        (Size(1, 2), ["1.1", "1.2", "1.3"], "not reproduced"),
        (Size(1), [], "not reproduced"),
    ],
)
def test_sets_are_judged_by_their_rule(rule, value, verdict):
    assert judge(rule, clean(value)) == verdict


@pytest.mark.parametrize(
    ("often", "verdict"),
    [(20, "reproduced"), (16, "reproduced"), (15, "undecided"), (4, "undecided"), (3, "not reproduced")],
)
def test_a_found_set_has_to_recur(often, verdict):
    splits = (frozenset(["9.9"]),) * often + (frozenset(),) * (20 - often)
    assert judge(Size(1), clean(Found(("9.9",), {"9.9": near(0.3)}, splits))) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.5, 0.5), "reproduced"),
        ((0.5, 1.0), "undecided"),
        ((2.0, 1.0), "not reproduced"),
        ((2.0, 0.5), "not reproduced"),
    ],
)
def test_a_table_is_as_good_as_its_worst_row(values, verdict):
    rows = {"a": Range(0, 1), "b": Range(0, 1)}
    assert judge(rows, {name: near(value, 0.1) for name, value in zip(rows, values, strict=True)}) == verdict


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (Range(0, 1), ["9.9"], "an estimate"),
        (Range(0, 1), {"a": near(0.0)}, "an estimate"),
        (SameSet(["9.9"]), near(0.5), "a list of names"),
        ({"a": Range(0, 1)}, near(0.5), "a table with the rows"),
        ({"a": Range(0, 1)}, {"b": near(0.5)}, "a table with the rows"),
    ],
)
def test_a_value_of_another_shape_is_refused(rule, value, message):
    with pytest.raises(ValueError, match=message):
        judge(rule, clean(value))


@pytest.mark.parametrize("bad", [1.0, 3, torch.tensor(2.0), np.float32(0.5)])
def test_a_bare_number_does_not_say_what_was_counted(bad):
    with pytest.raises(ValueError, match="bare number; give an Estimate"):
        clean(bad)
    with pytest.raises(ValueError, match="row 'LD'"):
        clean({"LD": bad})


@pytest.mark.parametrize("bad", [None, "9.9", [1.0, 2.0], {"a": {"b": 1.0}}])
def test_other_things_are_no_values(bad):
    with pytest.raises(ValueError, match="must be an Estimate or a list"):
        clean(bad)


def test_values_come_back_from_their_json():
    found = Found((Head(9, 6),), {Head(9, 6): near(0.1234567, 0.1)}, (frozenset([Head(9, 6)]), frozenset()))
    value = clean({"for": found, "LD": near(3.0, 0.5), "all": [Head(1, 1)], "count": population(1, 8, "heads")})
    assert from_json(value_json(value)) == value
    assert value["for"].names == ("9.6",)
    assert value["for"].estimates["9.6"].value == 0.123457
    assert from_json(None) is None
    with pytest.raises(ValueError, match="not 3"):
        from_json(3)


def test_a_null_is_one_value_that_must_fail_with_its_whole_interval():
    assert measured(Range(0.5), near(0.2, 0.1)).fails
    assert not measured(Range(0.5), near(0.45, 0.1)).fails
    assert not measured(Range(0.5), near(0.9, 0.1)).fails
    assert measured(Size(1), []).fails
    assert not measured(Size(1), ["1.1"]).fails


@given(st.integers(0, 40))
def test_draws_pass_as_often_as_they_meet_the_expectation(hits):
    null = measured(Range(0.5), [1.0] * hits + [0.0] * (40 - hits))
    assert null.passes == pytest.approx(hits / 40)
    assert null.fails == (hits <= 2)


def test_draws_of_a_table_meet_it_row_by_row_together():
    rules = {"a": Range(0.5), "b": Range(hi=0.5), "c": Range()}
    ones, zeros = [1.0] * 20, [0.0] * 20
    assert measured(rules, {"a": ones, "b": zeros}).passes == 1
    assert measured(rules, {"a": ones, "b": ones}).passes == 0
    assert measured(rules, {"a": ones + zeros, "b": ones + zeros}).passes == 0
    assert measured(rules, {"a": ones}).value["a"] == Estimate(1.0, (1.0, 1.0), 20, "draws")
    assert measured({"a": Range(0.5), "b": Range(0)}, {"b": near(-1.0)}).fails


def test_of_several_nulls_the_one_that_passes_most_counts():
    weak, strong = [0.1] * 20, [0.9] * 5 + [0.1] * 15
    assert measured(Range(0.5), Either(weak, strong)).passes == 0.25
    assert measured(Range(0.5), Either(strong, weak)).passes == 0.25
    assert measured(Range(0.5), Either(weak, Chance(0.01))).passes == 0.01
    with pytest.raises(ValueError, match="two nulls or more"):
        Either(weak)


def test_a_chance_is_taken_as_it_is():
    assert measured(Range(0.5), Chance(0.04)).fails
    assert not measured(Range(0.5), Chance(0.125)).fails
    with pytest.raises(ValueError, match="between 0 and 1"):
        Chance(1.5)


@pytest.mark.parametrize(
    ("rule", "null", "message"),
    [
        (Range(0.5), [0.1] * 5, "take 20 or more"),
        ({"a": Range(0.5), "b": Range(0)}, [0.1] * 20, "shape of its claim"),
        ({"a": Range(0.5), "b": Range(0)}, {"c": [0.1] * 20}, "has a bound"),
        ({"a": Range(0.5), "b": Range()}, {"b": [0.1] * 20}, "has a bound"),
        ({"a": Range(0.5), "b": Range(0)}, {"a": [0.1] * 20, "b": [0.1] * 21}, "as many draws"),
        ({"a": Range(0.5), "b": Range(0)}, {"a": [0.1] * 20, "b": near(1)}, "not a mixture"),
        (Size(1), [0.1] * 20, "expects names"),
    ],
)
def test_a_null_of_another_shape_is_refused(rule, null, message):
    with pytest.raises(ValueError, match=message):
        measured(rule, null)


def test_words_and_json():
    assert describe({"LD": Range(3), "heads": Size(1, 4)}) == "LD: at least 3; heads: 1 to 4 heads"
    assert to_json({"LD": Range(3), "heads": Includes(["1.1"])}) == {"LD": [3, None], "heads": {"include": ["1.1"]}}
    assert to_json(None) is None
    assert show({"a": Names(("9.6",), {"9.6": near(-0.2, 0.1)})}) == "a: 9.6 −0.2 [−0.3, −0.1]"
    assert part({"a": Range(0.5), "b": Range(0)}, ["a"]) == {"a": Range(0.5)}


def test_a_range_upside_down_is_refused():
    with pytest.raises(ValueError, match="lo=2 and hi=1"):
        Range(2, 1)
    with pytest.raises(ValueError, match="lo=nan"):
        Range(math.nan, 1)


def test_rows_without_a_bound_are_measured_and_not_judged():
    rules = {"a": Range(0.5)}
    assert judge(rules, {"a": near(0.7), "b": near(-9.0)}) == "reproduced"
    assert judge(rules, {"a": near(0.2), "b": near(0.7)}) == "not reproduced"
    assert measured(rules, {"a": near(0.2), "b": near(0.7)}).fails
