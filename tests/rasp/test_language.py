"""What RASP expressions mean, on values written by hand."""

import pytest

from mechinterp.rasp import (
    Aggregate,
    LinearSequenceMap,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    evaluate,
    full,
    indices,
    tokens,
    trace,
)
from mechinterp.rasp import library as lib


@pytest.mark.parametrize(
    ("program", "inputs", "expected"),
    [
        (lib.length(), "abc", [3, 3, 3]),
        (lib.reverse(), "abcd", list("dcba")),
        (lib.hist(), "abac", [2, 1, 2, 1]),
        (lib.count("a"), "abac", [2] * 4),
        (lib.count_less_freq(2), "aaabbc", [3] * 6),
        (lib.count_less_freq(2), "aacbbc", [6] * 6),
        (lib.frac_prevs(tokens == "l"), "hello", [0, 0, 1 / 3, 1 / 2, 2 / 5]),
        (lib.pair_balance("(", ")"), "a()b(c))", [0, 1 / 2, 0, 0, 1 / 5, 1 / 6, 0, -1 / 8]),
        (lib.shuffle_dyck("()", "{}"), "({)}", [True] * 4),
        (lib.shuffle_dyck("()", "{}"), "(){)}", [False] * 5),
        (lib.shuffle_dyck("()", "{}"), "((", [False] * 2),
        (lib.sort_unique(), [2, 4, 3, 1], [1, 2, 3, 4]),
        (lib.sort(4), [2, 4, 1, 2], [1, 2, 2, 4]),
        (lib.sort_freq(4), [2, 4, 2, 1], [2, 2, 4, 1]),
        (lib.shift_by(2), "abcd", [None, None, "a", "b"]),
        (lib.detect_pattern("abc"), "abcabc", [None, None, True, False, False, True]),
        (lib.detect_pattern("a"), "bac", [False, True, False]),
        (lib.nary_map(lambda x, y, z: f"{x}{y}{z}", tokens, indices, lib.length()), "ab", ["a02", "b12"]),
        (full(7), "ab", [7, 7]),
        (1 + indices * 2, "abc", [1, 3, 5]),
        (3 - indices, "abc", [3, 2, 1]),
        (6 / (indices + 1), "abc", [6, 3, 2]),
        (6 / indices, "abc", [None, 6, 3]),
        (~((tokens == "a") | (indices == 2)), "abc", [False, True, False]),
        (Map(lambda x: x is None, lib.shift_by(1)), "ab", [None, False]),
    ],
)
def test_programs_say_what_their_papers_say(program, inputs, expected):
    assert evaluate(program, inputs) == expected


def test_a_causal_program_sees_nothing_after_a_position():
    assert evaluate(lib.hist(), "aab", causal=True) == [1, 2, 1]
    assert evaluate(lib.reverse(), "abc", causal=True) == ["a", "a", "a"], "each prefix's last is its first"


def test_selectors_join():
    same, before = Select(tokens, tokens, "=="), Select(indices, indices, "<")
    assert evaluate(SelectorWidth(same & before), "abaa") == [0, 0, 1, 2]
    assert evaluate(SelectorWidth(~same), "abaa") == [1, 3, 1, 1]
    next_to = Select(indices, indices, lambda k, q: k == q + 1) | Select(indices, indices, lambda k, q: k == q - 1)
    assert evaluate(SelectorWidth(next_to), "abc") == [1, 2, 1]
    both = before & same & ~Select(tokens, tokens, lambda k, q: k == "b")
    assert len(both.selects) == 2
    assert evaluate(SelectorWidth(both), "aabb") == [0, 1, 0, 0]


def test_nothing_is_selected_where_there_is_no_value():
    shifted = lib.shift_by(1)
    assert evaluate(SelectorWidth(Select(shifted, shifted, "all")), "abc") == [0, 2, 2]
    assert evaluate(SelectorWidth(~Select(shifted, shifted, "==")), "abc") == [0, 1, 1]
    assert evaluate((lib.shift_by(1) == "a").as_numerical(), "ab") == [0, 1], "a number is 0 where there is none"


def test_numbers_are_exact():
    a, b = ((lib.frac_prevs(tokens == t)) for t in "ab")
    zero = Map(lambda x: x == 0, LinearSequenceMap(LinearSequenceMap(a, b, 1, 1), a, 3, -3))
    assert evaluate(zero, "abaca") == [b == 0 for b in [0, 1, 1, 1, 1]], "0.2 + 0.4 - 0.6 is no zero as floats"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Select(tokens, tokens, "~"), "unknown comparison '~'; one of =="),
        (lambda: Select(tokens, tokens, "==") | Select(indices, indices, "=="), "same keys and the same queries"),
        (lambda: ~(Select(tokens, tokens, "==") & Select(indices, indices, "<")), "negate its parts"),
        (lambda: (Select(tokens, tokens, "==") & Select(indices, indices, "<")) | 3, "cannot be joined"),
        (lambda: evaluate(Map(abs, 3), "a"), "expected an S-op, not 3"),
        (lambda: evaluate(Aggregate(Select(tokens, tokens, "all"), tokens), "ab"), "selects different values at once"),
        (lambda: evaluate(tokens.as_numerical(), "ab"), "'a' is not a number"),
        (
            lambda: evaluate(Aggregate(Select(tokens, tokens, "all"), indices.as_numerical(), numerical=True), "abc"),
            "takes zeros and ones",
        ),
        (lambda: lib.shuffle_dyck("("), "pairs of an opening and a closing"),
        (lambda: lib.detect_pattern(""), "empty"),
    ],
)
def test_what_means_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_s_op_is_no_truth_value():
    with pytest.raises(TypeError, match="no truth value"):
        bool(tokens == "a")
    assert len({tokens, indices, tokens}) == 2


def test_a_trace_has_every_s_op():
    program = SequenceMap(lambda x, y: (x, y), tokens, lib.shift_by(1)).named("pair")
    found = {sop.name: values for sop, values in trace(program, "ab").items()}
    assert found == {"tokens": ["a", "b"], "indices": [0, 1], "shift_by_1": [None, "a"], "pair": [None, ("b", "a")]}
