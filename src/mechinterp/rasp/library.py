"""Programs of Tracr's library (arXiv:2301.05062, section 3; RASP's own, arXiv:2106.06981)."""

from collections.abc import Callable, Sequence
from typing import Any

from mechinterp.rasp.language import (
    Aggregate,
    LinearSequenceMap,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    SOp,
    Value,
    indices,
    tokens,
)

TRACR = {
    "length": (19, 1, 1, 6, 12),
    "hist": (19, 1, 1, 6, 12),
    "count": (18, 1, 1, 5, 12),
    "frac_prevs": (14, 2, 1, 7, 1),
    "pair_balance": (17, 2, 2, 7, 4),
    "sort_unique": (21, 2, 1, 6, 10),
    "sort": (37, 3, 1, 18, 16),
    "reverse": (43, 4, 1, 12, 30),
    "sort_freq": (52, 5, 1, 22, 20),
}
"""Width of the stream, layers, heads, d_head and d_mlp that tracr-pypi 1.0.0 gives to programs of `programs`."""


def length() -> SOp:
    """How many tokens there are: "abc" → 3, 3, 3."""
    return SelectorWidth(Select(tokens, tokens, "all")).named("length")


def reverse(sop: SOp = tokens) -> SOp:
    """The sequence backwards: "abcd" → d, c, b, a."""
    opposite = ((length() - indices).named("opposite+1") - 1).named("opposite")
    return Aggregate(Select(indices, opposite, "=="), sop).named("reverse")


def hist() -> SOp:
    """How often a position's token occurs: "abac" → 2, 1, 2, 1."""
    return SelectorWidth(Select(tokens, tokens, "==")).named("hist")


def count(token: Value, sop: SOp = tokens) -> SOp:
    """How often a token occurs, everywhere: "a" in "abac" → 2, 2, 2, 2."""
    return SelectorWidth(Select(sop, sop, lambda key, query: key == token)).named(f"count_{token}")


def count_less_freq(n: int) -> SOp:
    """How many tokens occur at most n times: 2 in "aaabbc" → 3 everywhere."""
    found = hist()
    return SelectorWidth(Select(found, found, lambda key, query: key <= n)).named("count_less_freq")


def frac_prevs(condition: SOp) -> SOp:
    """The share of positions so far where the condition holds: tokens == "l" in "hello" → 0, 0, 1/3, 1/2, 2/5."""
    return _share(Select(indices, indices, "<="), condition).named("frac_prevs")


def _share(selector: Select, condition: SOp) -> SOp:
    return Aggregate(selector, condition.as_numerical(), numerical=True)


def pair_balance(opening: Value, closing: Value, sop: SOp = tokens) -> SOp:
    """The share of opening minus that of closing tokens so far: "a()b" → 0, 1/2, 0, 0."""
    prevs = Select(indices, indices, "<=")
    opens, closes = (
        _share(prevs, (sop == token).named(name)).named(f"share_{name}")
        for token, name in ((opening, f"is_{opening}"), (closing, f"is_{closing}"))
    )
    return LinearSequenceMap(opens, closes, 1.0, -1.0).named("pair_balance")


def shuffle_dyck(*pairs: str) -> SOp:
    """Whether every kind of bracket is balanced by itself: "({)}" → 1, 1, 1, 1; "(){)}" → 0 everywhere."""
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"give pairs of an opening and a closing bracket, such as '()', not {pairs!r}")
    balances = [pair_balance(*pair).named(f"balance_{pair}") for pair in pairs]
    below = _joined([balance < 0 for balance in balances], lambda x, y: x or y).named("any_below")
    everywhere = Select(indices, indices, "all")
    was_below = _share(everywhere, Map(lambda x: x, below)).named("was_below")
    closed = _joined([balance == 0 for balance in balances], lambda x, y: x and y).named("all_closed")
    last = Select(indices, (length() - 1).named("last"), "==")
    return (Aggregate(last, closed).named("closed_at_last") & (~was_below).named("never_below")).named("shuffle_dyck")


def _joined(sops: list[SOp], f: Callable[[Value, Value], Value]) -> SOp:
    found, *others = sops
    for sop in others:
        found = SequenceMap(f, found, sop)
    return found


def sort_unique(values: SOp = tokens, keys: SOp = tokens) -> SOp:
    """Values in the order of their keys, no two of which are alike: 2, 4, 3, 1 → 1, 2, 3, 4."""
    place = SelectorWidth(Select(keys, keys, "<")).named("place")
    return Aggregate(Select(place, indices, "=="), values).named("sort")


def sort(max_len: int, values: SOp = tokens, keys: SOp = tokens, smallest: float = 1) -> SOp:
    """Values in the order of their keys, like ones in the order of the input: 2, 4, 1, 2 → 1, 2, 2, 4.

    Args:
        smallest: distance of two keys: equal ones are told apart by less than that.
    """
    return sort_unique(values, SequenceMap(lambda x, i: x + smallest * i / max_len, keys, indices).named("key"))


def sort_freq(max_len: int) -> SOp:
    """Tokens from the most frequent to the rarest: 2, 4, 2, 1 → 2, 2, 4, 1."""
    return sort(max_len, tokens, (-1 * hist()).named("-hist")).named("sort_freq")


def shift_by(offset: int, sop: SOp = tokens) -> SOp:
    """The sequence moved to the right, nothing in its first places: 1 in "abcd" → nothing, a, b, c."""
    return Aggregate(Select(indices, indices, lambda key, query: query == key + offset), sop).named(
        f"shift_by_{offset}"
    )


def detect_pattern(pattern: Sequence[Value], sop: SOp = tokens) -> SOp:
    """Where a pattern ends: "abc" in "abcabc" → nothing, nothing, True, False, False, True."""
    if not len(pattern):
        raise ValueError("the pattern is empty")
    *before, last = (sop == token for token in pattern)
    found = last
    for i, matches in enumerate(reversed(before), 1):
        found = shift_by(i, matches) & found
    return found.named("detect_pattern")


def nary_map(f: Callable[..., Value], *sops: SOp) -> SOp:
    """f of several S-ops: pairs are joined to ever longer tuples, so that values multiply."""
    joined: SOp = Map(lambda x: (x,), sops[0])
    for sop in sops[1:]:
        joined = SequenceMap(lambda x, y: (*x, y), joined, sop)
    return Map(lambda values: f(*values), joined)


def programs() -> dict[str, dict[str, Any]]:
    """Every library program by name, as `compile_program`'s program, vocabulary and max_len: small ones."""
    letters, numbers, brackets = tuple("abcd"), (1, 2, 3, 4), tuple("(){}")
    return {
        name: {"program": program, "vocabulary": vocabulary, "max_len": max_len}
        for name, program, vocabulary, max_len in (
            ("length", length(), letters, 5),
            ("reverse", reverse(), letters, 5),
            ("hist", hist(), letters, 5),
            ("count", count("a"), letters[:3], 5),
            ("count_less_freq", count_less_freq(1), letters[:3], 5),
            ("frac_prevs", frac_prevs((tokens == "a").named("is_a")), letters, 5),
            ("pair_balance", pair_balance("(", ")"), ("(", ")", "a", "b"), 5),
            ("shuffle_dyck", shuffle_dyck("()"), brackets[:2], 5),
            ("shuffle_dyck2", shuffle_dyck("()", "{}"), brackets, 4),
            ("shuffle_dyck3", shuffle_dyck("()", "{}", "[]"), (*brackets, "[", "]"), 4),
            ("sort_unique", sort_unique(), numbers, 4),
            ("sort", sort(4), numbers, 4),
            ("sort_freq", sort_freq(4), numbers, 4),
            ("shift_by", shift_by(1), letters, 5),
            ("detect_pattern", detect_pattern("abc"), letters, 5),
            ("nary_map", nary_map(lambda x, y, z: x == y and z > 0, tokens, shift_by(1), indices), letters[:3], 4),
        )
    }
