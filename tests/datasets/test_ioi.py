"""IOI prompts: labels, positions and corruptions mean what they say, for every template, order and seed."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from mechinterp.datasets import ioi
from mechinterp.datasets.ioi import IOIDataset

relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**31)
TOKEN = ("original", "random", "inverted")
POSITION = ("original", "inverted")


def mentions(data: IOIDataset) -> torch.Tensor:
    """The names standing at IO, S1 and S2 [prompt 3]."""
    return torch.stack([data.at(place, data.tokens) for place in ("IO", "S1", "S2")], 1)


def elsewhere(data: IOIDataset) -> torch.Tensor:
    """The tokens with the three names blanked."""
    blank = torch.full_like(data.io, -1)
    return data.with_names(blank, blank, blank).tokens


@relaxed
@given(
    seed=seeds,
    n=st.integers(1, 40),
    templates=st.lists(st.integers(0, 14), min_size=1, max_size=4),
    orders=st.sampled_from([("ABBA",), ("BABA",), ("ABBA", "BABA")]),
    bos=st.booleans(),
)
def test_positions_point_at_the_right_tokens(
    tokenizer: PreTrainedTokenizerBase, seed: int, n: int, templates: list[int], orders: tuple[str, ...], bos: bool
) -> None:
    data = ioi.make(tokenizer, n, seed=seed, templates=templates, orders=orders, prepend_bos=bos)
    assert len(data) == n
    assert torch.equal(mentions(data), torch.stack([data.io, data.s, data.s], 1))
    assert (data.io != data.s).all()
    assert torch.equal(data.positions["S1+1"], data.positions["S1"] + 1)
    assert (data.positions["S2"] > data.positions["S1"]).all()
    assert (data.positions["S2"] > data.positions["IO"]).all()
    to = tokenizer.encode(" to", add_special_tokens=False)[0]
    assert (data.at("END", data.tokens) == to).all()
    baba = data.positions["S1"] < data.positions["IO"]
    assert torch.equal(baba, data.group % 2 == 1)
    assert set((data.group // 2).tolist()) <= set(templates)
    assert ((data.tokens[:, 0] == tokenizer.bos_token_id) == bos).all()


@relaxed
@given(seed=seeds, template=st.integers(0, 14), order=st.sampled_from(ioi.ORDERS))
def test_text_is_the_template(tokenizer: PreTrainedTokenizerBase, seed: int, template: int, order: str) -> None:
    data = ioi.make(tokenizer, 3, seed=seed, templates=[template], orders=(order,))
    for text, io, s in zip(data.text(tokenizer), data.io, data.s, strict=True):
        names = [tokenizer.decode([i]).strip() for i in (io, s)]
        first, second = names if order == "ABBA" else names[::-1]
        slots = {"place": "(?:" + "|".join(ioi.PLACES) + ")", "object": "(?:" + "|".join(ioi.OBJECTS) + ")"}
        assert re.fullmatch(ioi.TEMPLATES[template].format(first, second, names[1], **slots), text)


def test_every_group_has_its_share(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 90)
    assert data.group.bincount().tolist() == [3] * 30


@relaxed
@given(seed=seeds)
def test_a_group_shares_its_positions(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    data = ioi.make(tokenizer, 60, seed=seed)
    for group in data.group.unique():
        for where in data.positions.values():
            assert len(where[data.group == group].unique()) == 1


@relaxed
@given(seed=seeds, other=seeds)
def test_same_seed_same_prompts(tokenizer: PreTrainedTokenizerBase, seed: int, other: int) -> None:
    data = ioi.make(tokenizer, 30, seed=seed)
    assert torch.equal(data.tokens, ioi.make(tokenizer, 30, seed=seed).tokens)
    assert torch.equal(data.abc(seed).tokens, data.abc(seed).tokens)
    assert torch.equal(data.tokens, ioi.make(tokenizer, 30, seed=other).tokens) == (seed == other)


@relaxed
@given(seed=seeds)
def test_abc_has_three_different_names(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    data = ioi.make(tokenizer, 40, seed=seed)
    abc = data.abc(seed)
    names = mentions(abc)
    assert all(len(set(row)) == 3 for row in names.tolist())
    assert set(names.flatten().tolist()) <= set(data.names.tolist())
    assert torch.equal(elsewhere(abc), elsewhere(data))
    assert torch.equal(abc.io, data.io)
    assert torch.equal(abc.s, data.s)


@relaxed
@given(seed=seeds, token=st.sampled_from(TOKEN), position=st.sampled_from(POSITION))
def test_corruptions(tokenizer: PreTrainedTokenizerBase, seed: int, token: str, position: str) -> None:
    """Which name is doubled (token signal) and where its first copy stands (position signal)."""
    data = ioi.make(tokenizer, 40, seed=seed)
    edited = data.corrupt(token, position, seed=seed)
    at_io, at_s1, at_s2 = mentions(edited).T
    doubled, other = (at_s1, at_io) if position == "original" else (at_io, at_s1)
    assert torch.equal(at_s2, doubled)
    assert (doubled != other).all()
    if token == "original":
        assert torch.equal(doubled, data.s)
        assert torch.equal(other, data.io)
    elif token == "inverted":
        assert torch.equal(doubled, data.io)
        assert torch.equal(other, data.s)
    else:
        assert (doubled != data.s).float().mean() > 0.7
        assert (other != data.io).float().mean() > 0.7
    assert torch.equal(elsewhere(edited), elsewhere(data)), "nothing but names changes"
    assert torch.equal(edited.io, data.io), "the labels stay those of the clean prompt"
    assert torch.equal(edited.s, data.s)
    if (token, position) == ("original", "original"):
        assert torch.equal(edited.tokens, data.tokens)


def test_inverting_twice_is_no_change(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 30)
    both = data.corrupt("inverted", "inverted")
    assert torch.equal(both.at("IO", both.tokens), data.io), "IO and S1 stay where they are, S2 becomes IO"
    assert torch.equal(both.at("S1", both.tokens), data.s)
    assert torch.equal(both.at("S2", both.tokens), data.io)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "words"), [(("wrong",), "token must be"), (("random", "moved"), "position must")]
)
def test_unknown_corruption(tokenizer: PreTrainedTokenizerBase, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ioi.make(tokenizer, 2).corrupt(*arguments)


def test_with_names_keeps_labels_and_the_original(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 6)
    before = data.tokens.clone()
    name = data.names[:6]
    renamed = data.with_names(name, name.flip(0), name)
    assert torch.equal(renamed.at("IO", renamed.tokens), name)
    assert torch.equal(renamed.at("S1", renamed.tokens), name.flip(0))
    assert torch.equal(renamed.io, data.io)
    assert torch.equal(data.tokens, before)


def test_pairs_restrict_the_names(tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = [("Mary", "John"), ("Paul", "Lisa")]
    data = ioi.make(tokenizer, 200, pairs=pairs)
    seen = {
        (tokenizer.decode([a]).strip(), tokenizer.decode([b]).strip()) for a, b in zip(data.io, data.s, strict=True)
    }
    assert seen == {*pairs, *(pair[::-1] for pair in pairs)}, "either name of a pair can be IO"


@pytest.mark.parametrize("who", ["IO", "S"])
def test_inserted_sentence_names_one_of_the_two(tokenizer: PreTrainedTokenizerBase, who: str) -> None:
    data = ioi.make(tokenizer, 60, templates=ioi.TWO_SENTENCES, insert=who)
    assert torch.equal(mentions(data), torch.stack([data.io, data.s, data.s], 1))
    label = data.io if who == "IO" else data.s
    times = (data.tokens == label[:, None]).sum(1)
    assert (times == (2 if who == "IO" else 3)).all()
    # Every mention but the last precedes S2: positions name the last occurrence of S, not the inserted one.
    last = torch.stack([(row == s).nonzero().max() for row, s in zip(data.tokens, data.s, strict=True)])
    assert torch.equal(data.positions["S2"], last)


def test_an_inserted_third_person_is_neither(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 60, templates=ioi.TWO_SENTENCES, insert="other")
    assert torch.equal(mentions(data), torch.stack([data.io, data.s, data.s], 1))
    for label, times in ((data.io, 1), (data.s, 2)):
        assert ((data.tokens == label[:, None]).sum(1) == times).all()
    named = torch.isin(data.tokens, data.names).sum(1)
    assert (named == 4).all(), "two, the third person, and the subject again"


def test_orders_and_templates(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 60)
    assert torch.equal(data.io_first, data.positions["IO"] < data.positions["S1"])
    assert data.template.bincount().tolist() == [4] * 15


def test_inserted_sentence_needs_a_break(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="insert needs templates with a sentence break"):
        ioi.make(tokenizer, 2, templates=[5], insert="IO")


def test_prefix_shifts_every_position(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = ioi.make(tokenizer, 8, templates=[0], seed=3)
    longer = ioi.make(tokenizer, 8, templates=[0], seed=3, prefix="It was late. ")
    shift = longer.positions["END"] - plain.positions["END"]
    assert (shift > 0).all()
    for place in plain.positions:
        assert torch.equal(longer.positions[place] - plain.positions[place], shift)
    assert torch.equal(mentions(longer), mentions(plain))


def test_slices_and_masks(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 12)
    part = data[data.group % 2 == 0]
    assert len(part) == 6
    assert torch.equal(mentions(part), torch.stack([part.io, part.s, part.s], 1))
    assert torch.equal(data[2:5].tokens, data.tokens[2:5])
    assert torch.equal(data[[1, 3]].positions["END"], data.positions["END"][[1, 3]])
    assert torch.equal(data.to("cpu").tokens, data.tokens)


@pytest.mark.usefixtures("unchecked")
def test_one_prompt_is_asked_for_as_a_slice(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TypeError, match=r"data\[3:4\]"):
        ioi.make(tokenizer, 4)[3]  # type: ignore[index]


def test_metrics_are_those_of_a_softmax(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 5)
    logits = torch.randn(5, data.tokens.shape[1], 8192, generator=torch.Generator().manual_seed(0))
    end = torch.stack([logits[i, e] for i, e in enumerate(data.positions["END"])])
    rows = torch.arange(5)
    torch.testing.assert_close(data.logit_diff(logits), end[rows, data.io] - end[rows, data.s])
    torch.testing.assert_close(data.io_prob(logits), end.softmax(-1)[rows, data.io])
    torch.testing.assert_close(data.logit_diff(end), data.logit_diff(logits))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_in_the_logits_is_refused(tokenizer: PreTrainedTokenizerBase, bad: float) -> None:
    data = ioi.make(tokenizer, 2)
    logits = torch.zeros(2, 8192)
    logits[1, 5] = bad
    for metric in (data.logit_diff, data.io_prob):
        with pytest.raises(ValueError, match="NaN or infinity"):
            metric(logits)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"n": -3}, "not -3"),
        ({"n": 2, "names": ["Mary", "Nebuchadnezzar"]}, r"' Nebuchadnezzar' is \d+ tokens for this tokenizer, \["),
        ({"n": 2, "names": ["Mary"]}, "two different names, got 'Mary' twice"),
        ({"n": 2, "pairs": [("John", "John")]}, "two different names, got 'John' twice"),
        ({"n": 2, "context": 9}, r"a prompt of \d+ tokens does not fit into the context of 9; shorten the prefix"),
    ],
)
def test_bad_arguments(tokenizer: PreTrainedTokenizerBase, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ioi.make(tokenizer, **arguments)  # type: ignore[arg-type]


def test_names_given_twice_never_meet_themselves(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="two different names"):
        ioi.make(tokenizer, 50, names=["Mary", "Mary"])


def test_bos_needs_a_bos_token(tokenizer: PreTrainedTokenizerBase) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.bos_token = None
    with pytest.raises(ValueError, match="no BOS token"):
        ioi.make(bare, 2, prepend_bos=True)


def test_too_few_names_for_abc(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 2, names=["Mary", "John"])
    with pytest.raises(ValueError, match="needs at least 3 names to draw from, this dataset has 2"):
        data.abc()
    assert replace(data, names=torch.arange(5)).abc().tokens.shape == data.tokens.shape


def test_unknown_position(tokenizer: PreTrainedTokenizerBase) -> None:
    data = ioi.make(tokenizer, 2)
    with pytest.raises(ValueError, match=r"unknown position 'S3'; one of IO, S1, S1\+1, S2, END"):
        data.at("S3", data.tokens)


def test_every_word_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for word in (*ioi.NAMES, *ioi.PLACES, *ioi.OBJECTS):
        assert tokenizer.decode([ioi.single_token(tokenizer, word)]) == " " + word


def test_held_out_pairs_are_a_fifth_and_fair() -> None:
    held_out = ioi.held_out_pairs()
    n = len(ioi.NAMES)
    assert len(held_out) == len({frozenset(pair) for pair in held_out}) == pytest.approx(n * (n - 1) / 10, abs=5)
    count = {name: sum(name in pair for pair in held_out) for name in ioi.NAMES}
    assert max(count.values()) - min(count.values()) <= 2, "every name is held out equally often"
    assert all(15 <= c <= 25 for c in count.values())


class TestGPT2:
    """The real token boundaries of the paper's model."""

    def test_every_word_is_one_token(self, gpt2_tokenizer: PreTrainedTokenizerBase) -> None:
        for word in (*ioi.NAMES, *ioi.PLACES, *ioi.OBJECTS):
            ioi.single_token(gpt2_tokenizer, word)

    @pytest.mark.parametrize("bos", [False, True])
    def test_positions(self, gpt2_tokenizer: PreTrainedTokenizerBase, bos: bool) -> None:
        data = ioi.make(gpt2_tokenizer, 90, prepend_bos=bos, context=1024)
        assert torch.equal(mentions(data), torch.stack([data.io, data.s, data.s], 1))
        assert (data.at("END", data.tokens) == gpt2_tokenizer.encode(" to")[0]).all()
        assert (data.tokens[:, 0] == 50256).all() == bos

    def test_a_name_of_several_tokens_is_refused(self, gpt2_tokenizer: PreTrainedTokenizerBase) -> None:
        with pytest.raises(ValueError, match=r"' Zygmunt' is \d tokens"):
            ioi.make(gpt2_tokenizer, 2, names=["Mary", "Zygmunt"])


@pytest.fixture
def splitting(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerBase:
    """A tokenizer that has no single token for some default words."""
    import mechinterp.datasets.ioi as module

    monkeypatch.setattr(module, "NAMES", ("Mary", "Zygmunt", "John", "Anna"))
    monkeypatch.setattr(module, "OBJECTS", ("ring", "sphygmomanometer"))
    return tokenizer


def test_default_words_that_the_tokenizer_splits_are_left_out_and_counted(splitting: PreTrainedTokenizerBase) -> None:
    data = ioi.make(splitting, 60)
    kept = len(ioi.single_token_words(splitting, ["Mary", "Zygmunt", "John", "Anna"]))
    assert data.kept == {"names": (kept, 4), "places": (8, 8), "objects": (1, 2)}
    assert f"{kept} of 4 names, 8 of 8 places, 1 of 2 objects" in repr(data)
    assert data[:5].kept == data.kept
    assert len(data.names) == kept
    words = " ".join(data.text(splitting))
    assert "Zygmunt" not in words
    assert "sphygmomanometer" not in words


@pytest.mark.parametrize("what", ["names", "places", "objects"])
def test_given_words_that_it_splits_are_refused(splitting: PreTrainedTokenizerBase, what: str) -> None:
    with pytest.raises(ValueError, match=r"' Zygmunt' is .* tokens"):
        ioi.make(splitting, 4, **{what: ["Mary", "John", "Zygmunt"]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"no {what} to draw from"):
        ioi.make(splitting, 4, **{what: []})  # type: ignore[arg-type]
    assert ioi.make(splitting, 4, **{what: ["Mary", "John"]}).kept[what] == (2, 2)  # type: ignore[arg-type]


def test_too_few_default_words(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ioi, "NAMES", ("Mary", "Zygmunt"))
    with pytest.raises(ValueError, match=r"only 1 of the 2 names are one token.*at least 2.*give your own names"):
        ioi.make(tokenizer, 4)


def test_every_default_word_is_used_where_all_are_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert ioi.make(tokenizer, 30).kept == {"names": (99, 99), "places": (8, 8), "objects": (8, 8)}
    # The prompts of a seed stay what they were before words could be left out.
    assert ioi.make(tokenizer, 3, seed=5).text(tokenizer) == [
        "Then, Benjamin and Christina went to the station. Christina gave a necklace to",
        "Then, Jesse and Daniel went to the store. Jesse gave a kiss to",
        "Then, Mary and John had a lot of fun at the station. John gave a drink to",
    ]
