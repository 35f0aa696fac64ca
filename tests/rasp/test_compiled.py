"""A compiled program says what the interpreter says: the library on all inputs, and random programs."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mechinterp.rasp import (
    Aggregate,
    Compiled,
    LinearSequenceMap,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    compile_program,
    evaluate,
    full,
    indices,
    programs,
    tokens,
    trace,
)
from mechinterp.rasp import library as lib

LIBRARY = programs()


def inputs(compiled: Compiled, most: int = 2000):
    """All inputs of every length, evenly thinned above `most`."""
    for length in range(1, compiled.max_len + 1):
        rows = list(itertools.product(compiled.vocabulary, repeat=length))
        yield rows[:: math.ceil(len(rows) / most)]


def check(compiled: Compiled, most: int = 2000) -> int:
    """Every value of every S-op in the stream is the interpreter's, and so is the output; returns how many inputs."""
    checked = 0
    for rows in inputs(compiled, most):
        expected = []
        for row in rows:
            try:
                expected.append(trace(compiled.program, row, causal=compiled.causal))
            except ValueError:  # two categories at once: the program has no meaning here
                expected.append(None)
        kept = [row for row, found in zip(rows, expected, strict=True) if found is not None]
        expected = [found for found in expected if found is not None]
        if not kept:
            continue
        checked += len(kept)
        logits, cache = compiled.model.run_with_cache(compiled.tokens(kept))
        stream = cache[f"blocks.{compiled.model.cfg.n_layers - 1}.hook_resid_post"]
        decoded = compiled.decode(logits)
        place = {d: i for i, d in enumerate(compiled.layout.directions)}
        for i, found in enumerate(expected):
            values = found[compiled.program]
            if compiled.program.numerical:
                assert decoded[i] == pytest.approx(values, abs=1e-3), kept[i]
            else:
                assert decoded[i] == values, kept[i]
            for sop, values in found.items():
                columns = [place[d] for d in compiled.layout.of(sop)]
                here = stream[i, 1:, columns]
                if sop.numerical:
                    assert here[:, 0].tolist() == pytest.approx(values, abs=1e-3)
                else:
                    hot = [[float(d.value == v) for d in compiled.layout.of(sop)] for v in values]
                    torch.testing.assert_close(here, torch.tensor(hot), atol=1e-3, rtol=0)
    return checked


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_is_exact_on_all_inputs(name):
    compiled = compile_program(**LIBRARY[name])
    n = sum(len(compiled.vocabulary) ** k for k in range(1, compiled.max_len + 1))
    assert check(compiled) == n
    cfg = compiled.model.cfg
    if name in lib.TRACR:
        assert (cfg.d_model, cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_mlp) == lib.TRACR[name]


@pytest.mark.parametrize("name", ["hist", "frac_prevs", "shift_by", "detect_pattern", "sort_unique"])
def test_causal_programs_are_exact(name):
    assert check(compile_program(**LIBRARY[name], causal=True), most=200)


def test_a_conjunction_of_selectors_is_one_head():
    before = (
        Select(indices, indices, "<") & Select(tokens, tokens, "==") & Select(indices, tokens, lambda k, q: q != "c")
    )
    width = compile_program(SelectorWidth(before), "abc", 4)
    assert len(width.heads) == 1
    assert check(width) == 3 + 9 + 27 + 81
    nearest = Select(indices, indices, lambda k, q: k == q - 1) & Select(tokens, tokens, "!=")
    assert check(compile_program(Aggregate(nearest, tokens), "ab", 4)) == 2 + 4 + 8 + 16


def test_numbers_may_be_negative_and_lie_close_together():
    shares = [lib.frac_prevs(tokens == t) for t in "ab"]
    gap = LinearSequenceMap(*shares, 1, -1)
    assert check(compile_program(Map(lambda x: -2 * x, gap, numerical=True), "ab", 5))
    assert check(compile_program(Map(lambda x: x, gap), "ab", 5)), "every possible number is a category"
    assert check(compile_program(Map({"a": -3, "b": 5}.get, tokens, numerical=True), "abc", 2))
    assert check(compile_program(Map(lambda x: 1 / x, gap), "ab", 4)), "no result where there is a division by zero"


@st.composite
def random_program(draw, depth=4):
    """Categorical S-ops of numbers below 4, grown step by step from tokens and indices."""
    pool = [Map(lambda x: x, tokens), Map(lambda x: x % 4, indices), tokens, indices]
    small = lambda f: lambda *x: f(*x) % 4  # noqa: E731

    def some():
        return draw(st.sampled_from(pool))

    def selector():
        found = Select(some(), some(), draw(st.sampled_from(["==", "<", "<=", "!=", "all", "none"])))
        found = ~found if draw(st.booleans()) else found
        return found & Select(some(), some(), draw(st.sampled_from(["==", ">"]))) if draw(st.booleans()) else found

    for _ in range(draw(st.integers(1, depth))):
        kind = draw(st.sampled_from(["map", "pair", "width", "aggregate", "share"]))
        if kind == "map":
            shift, gone = draw(st.integers(-2, 2)), draw(st.integers(0, 5))
            pool.append(Map(lambda x, s=shift, g=gone: None if x == g else (x + s) % 4, some()))
        elif kind == "pair":
            pool.append(SequenceMap(small(draw(st.sampled_from([int.__add__, int.__mul__, max]))), some(), some()))
        elif kind == "width":
            pool.append(Map(lambda x: x % 4, SelectorWidth(selector())))
        elif kind == "aggregate":
            pool.append(Aggregate(Select(indices, Map(lambda x: x, some()), "=="), some()))
        else:
            share = Aggregate(selector(), (some() == draw(st.integers(0, 3))).as_numerical(), numerical=True)
            pool.append(Map(lambda x: int(4 * x) % 4, share))
    return pool[-1]


@settings(max_examples=60, deadline=None)
@given(program=random_program(), causal=st.booleans(), letters=st.sampled_from([2, 3]))
def test_random_programs_are_exact(program, causal, letters):
    """On all inputs of up to five tokens: 62 of two letters, 363 of three."""
    compiled = compile_program(program, range(letters), 5, causal=causal)
    assume(compiled.model.cfg.d_mlp < 500)
    assert check(compiled) > 0


def test_scores_and_leakage_are_those_of_tracr():
    """TR-3 and TR-4: read off tracr-pypi 1.0.0's compiled programs."""
    for name, width, wrong, to_bos in (("frac_prevs", 7, 37.796, 18.898), ("reverse", 12, 28.87, 14.43)):
        compiled = compile_program(**LIBRARY[name])
        head = list(compiled.heads)[-1]
        rows = compiled.tokens([tuple(compiled.vocabulary[:4])])
        _, cache = compiled.model.run_with_cache(rows)
        q, k = (cache[f"blocks.{head.layer}.attn.hook_{x}"][0, :, head.head] for x in "qk")
        scores = q @ k.T / width**0.5
        assert scores[1:, 1:].max().item() == pytest.approx(wrong, abs=5e-3)
        assert scores[1:, 0].unique().tolist() == pytest.approx([to_bos], abs=5e-3)
        pattern = cache[f"blocks.{head.layer}.attn.hook_pattern"][0, head.head]
        selected = (scores[1:, 1:] > to_bos).sum(-1)
        leak = math.exp(-(wrong - to_bos)) / selected
        torch.testing.assert_close(pattern[1:, 0], leak, rtol=0.05, atol=1e-8)
    hist = compile_program(**LIBRARY["hist"])
    _, cache = hist.model.run_with_cache(hist.tokens(["abaca"]))
    head = cache["blocks.0.hook_resid_mid"][0, 1:, hist.layout.directions.index(("hist_head", None))]
    torch.testing.assert_close(head, 1 / (1 + torch.tensor([3.0, 1, 3, 1, 3])), atol=1e-3, rtol=0)


def test_bos_has_no_value_of_any_variable():
    for spec in LIBRARY.values():
        compiled = compile_program(**spec)
        _, cache = compiled.model.run_with_cache(compiled.tokens([tuple(compiled.vocabulary[:2])]))
        stream = cache[f"blocks.{compiled.model.cfg.n_layers - 1}.hook_resid_post"][0, 0]
        assert set(compiled.read(stream, above=1e-3)) == {"tokens:<bos>", "one"}


def test_the_stream_is_read_by_name():
    compiled = compile_program(**LIBRARY["hist"])
    _, cache = compiled.model.run_with_cache(compiled.tokens(["aba"]))
    said = compiled.read(cache["blocks.0.hook_resid_post"][0, 1])
    assert said == pytest.approx({"tokens:a": 1, "indices:0": 1, "one": 1, "hist_head": 1 / 3, "hist:2": 1}, abs=1e-3)
    assert compiled("aba") == [2, 1, 2]
    assert compiled.layout.names[compiled.heads[next(iter(compiled.heads))]] == "hist"


def test_names_are_made_different():
    pair = SequenceMap(max, Map(lambda x: x, indices, name="x"), Map(lambda x: 0, indices, name="x"))
    names = list(compile_program(pair, "a", 2).layout.names.values())
    assert names == ["indices", "x", "x_2", "sequencemap"]


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (tokens, {"vocabulary": ""}, "empty or has a value twice"),
        (tokens, {"vocabulary": "aba"}, "empty or has a value twice"),
        (tokens, {"vocabulary": ["<bos>", "a"]}, "compiler's own tokens"),
        (tokens, {"max_len": 0}, "max_len must be at least 1, not 0"),
        (SequenceMap(max, tokens, (tokens == "a").as_numerical()), {}, "reads and writes categories"),
        (LinearSequenceMap(indices, indices, 1, 1), {}, "reads and writes numbers"),
        (tokens.as_numerical(), {}, "embedded as categories"),
        (SelectorWidth(Select((tokens == "a").as_numerical(), tokens, "==")), {}, "keys and queries"),
        (Aggregate(Select(tokens, tokens, "=="), tokens, numerical=True), {}, "encoded as what it aggregates"),
        (
            Aggregate(Select(tokens, tokens, "all"), Map(lambda x: 2 * x, indices, numerical=True), numerical=True),
            {},
            "would average 3 different numbers",
        ),
        (Map(str, tokens, numerical=True), {}, "'a' is not a number"),
        (
            Map(lambda x: x, Map({"a": 0.1 + 0.2, "b": 0.3}.get, tokens, numerical=True)),
            {},
            "cannot tell apart",
        ),
        (lib.nary_map(lambda *x: x, *[indices + k for k in range(3)]), {"max_len": 60}, "would tell 216,000 combin"),
    ],
)
def test_what_cannot_be_compiled_is_refused(program, options, message):
    with pytest.raises(ValueError, match=message):
        compile_program(program, **({"vocabulary": "ab", "max_len": 3} | options))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["abcx"], "'x' is not in the vocabulary of this program: 'a', 'b'"),
        (["abcdab"], "an input of 6 tokens: this program was compiled for 1 to 5"),
        ([""], "an input of 0 tokens"),
        (["a", "ab"], "lengths \\[1, 2\\]"),
    ],
)
def test_inputs_that_the_program_was_not_compiled_for_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        compile_program(**LIBRARY["hist"]).tokens(rows)


def test_a_wide_head_stays_sharp():
    n = 300
    compiled = compile_program(
        Aggregate(Select(tokens, tokens, "=="), full(1).as_numerical(), numerical=True), range(n), 3
    )
    assert compiled.model.cfg.d_head > n
    row = [0, 5, 299]
    assert compiled(row) == pytest.approx(evaluate(compiled.program, row), abs=1e-3)
