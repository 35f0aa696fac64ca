"""Generated documents for the lab model: behaviour that real text shows too rarely to learn in an hour.

Every function takes a `numpy` generator (and what it quotes from) and returns one document as pieces:
strings still to be encoded, or token ids. Held out of all of it: the fifteen IOI templates, a fifth of
all IOI name pairs, Roman numerals as a succession.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import numpy as np

from mechinterp.datasets.ioi import NAMES, OBJECTS, PLACES, held_out_pairs
from mechinterp.datasets.ordinals import HELD_OUT_TASK, TASKS

VOCABULARY = 8192
"""Size of the lab model's vocabulary; repeated random tokens are drawn below it."""
T = TypeVar("T")
Piece = str | list[int]
Quote = Callable[[int], list[int]]
"""`quote(n)`: n consecutive tokens of real text."""

# How a sentence with two people begins, goes on and ends; no combination is a first clause of the paper's templates.
_LEADS = (
    "Then,", "Later,", "One day,", "Yesterday,", "In the morning,", "After the dinner,", "That evening,", "Soon",
    "At last", "It was late when", "My friends", "Our neighbours", "The other day", "In the end,", "Once",
    "We heard that", "",
)  # fmt: skip
_CONJUNCTIONS = ("After", "When", "While", "As", "Because", "Before", "Since", "Although", "Soon after", "Just as")
_VERBS = (
    "walked to the {place}", "met at the {place}", "bought a {object} at the {place}", "spent an hour in the {place}",
    "sat down in the {place}", "had a short talk", "came back from the {place}", "waited outside the {place}",
    "lost a {object} near the {place}", "saw a {object} in the {place}", "looked for a {object}", "left the {place}",
    "were waiting at the {place}", "were walking to the {place}", "were tired of the {place}", "liked the {place}",
    "had a big dinner", "talked about the {object}", "were looking at the {object}", "stood before the {place}",
    "sold a {object} to the {place}", "ran to the {place}", "wanted the {object}",
    "came to the {place} with a {object}",
)  # fmt: skip
_ODD = (
    "The {place} that {0} and {1} liked had a {object}.",
    "The {object} that {0} and {1} wanted was in the {place}.",
    "There was a {object} in the {place} of {0} and {1}.",
    "Then, {0} and {1} had a short talk, and later",
    "Soon {0} and {1} were tired of the {place}, and then",
    "{0} met {1} at the {place}.",
    "{0} came to the {place} with {1}.",
    "At the {place} {0} was waiting for {1}.",
    "{0} was in the {place}, and {1} was there too.",
)
_ACTIONS = (
    "{2} handed a {object} to",
    "{2} handed the {object} to",
    "{2} passed a {object} to",
    "{2} offered the {object} to",
    "{2} showed a {object} to",
    "{2} sold it to",
    "{2} brought a {object} to",
    "{2} threw it to",
    "{2} gave the {object} to",
    "{2} gave a small {object} to",
    "{2} decided to hand it to",
    "{2} decided to offer a {object} to",
    "{2} wanted to show the {object} to",
    "{2} tried to sell a {object} to",
    "{2} wrote a letter to",
    "{2} spoke to",
    "{2} smiled and talked to",
    "{2} read a story to",
    "{2} told the news to",
)
# Any of the three slots can be the name that is not repeated, so only the repetition tells the answer.
_ENCOUNTERS = (
    "{0} called, then {1} called, then {2} called.",
    "At the {place} we saw {0}, then {1}, then {2}.",
    "Then, {0} waited, {1} waited and {2} waited.",
    "First {0} came to the {place}, later {1} and later {2}.",
    "In the morning we met {0}, at the {place} {1} and in the evening {2}.",
    "{0} spoke, {1} spoke, and {2} spoke about the {object}.",
    "The {object} went from {0} to {1} and then to {2}.",
    "{0} was at the {place}. Then {1} came, and {2} came after lunch.",
)
# One person alone, before or after the opening: this is who is named twice.
_ALONE = (
    "{0} was tired.",
    "{0} had a long day.",
    "{0} was late for the lunch.",
    "{0} came to the {place}.",
    "{0} looked for a {object}.",
    "We asked about {0}.",
    "I had a letter from {0}.",
    "It was a good day for {0}.",
    "They were waiting for {0}.",
)
_OTHERS = ("they", "we", "I", "the man", "someone", "my brother")
_SLOTS = {"place": "{place}", "object": "{object}"}
_TAILS = (".", ".", ". That was all.", " and went home.", ", who was glad.", " once more.")

_ITEMS = tuple(
    """apple bread cheese milk sugar salt tea coffee fish meat butter rice wine water fruit gold silver iron
    wood stone glass paper cotton wool horse dog cat cow sheep bird red blue green yellow black white brown
    grey""".split()
)


def ioi(rng: np.random.Generator, quote: Quote) -> list[Piece]:
    """Two people, one of them named twice; somebody gives something to the one named once.

    More than half are IOI sentences proper: the one named twice gives. In the others a third person gives, or nobody
    who is named, and the second mention comes before the opening, after it, or in any slot of a list. So neither
    "not the last name" nor "not the one who gives" is a shortcut for "not the one named twice". Some words of real text
    may stand before it all or before the last clause, so that no distance is a shortcut either.
    """
    answer, repeated = _pair(rng)
    form = rng.random()
    if form < 0.82:
        opening = _opening(rng).format(*_shuffled(rng, answer, repeated), **_SLOTS)
        clauses, giver = [opening], repeated
        if form > 0.58:
            alone = _pick(rng, _ALONE).format(repeated, **_SLOTS)
            clauses = [opening, alone] if opening.endswith(".") and rng.random() < 0.5 else [alone, opening]
            giver = _third(rng, answer, repeated) if form < 0.68 else _pick(rng, _OTHERS)
    else:
        slot = rng.integers(3)
        clauses = [_pick(rng, _ENCOUNTERS).format(*(answer if i == slot else repeated for i in range(3)), **_SLOTS)]
        giver = _pick(rng, _OTHERS)
    if clauses[-1].endswith("."):
        giver = giver[0].upper() + giver[1:]
    action = _pick(rng, _ACTIONS).format(None, None, giver, **_SLOTS)
    thing = {"place": _pick(rng, PLACES), "object": _pick(rng, OBJECTS)}
    pieces: list[Piece] = [f" {' '.join(clauses)}".format(**thing)]
    if rng.random() < 0.3:
        pieces.insert(0, quote(int(rng.integers(1, 12))))
    if clauses[-1].endswith(".") and rng.random() < 0.25:
        pieces += [quote(int(rng.integers(1, 10))), "."]
    return [*pieces, f" {action} {answer}{_pick(rng, _TAILS)}".format(**thing)]


def _opening(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.25:
        return _pick(rng, _ODD)
    if kind < 0.6:
        return f"{_pick(rng, _LEADS)} {{0}} and {{1}} {_pick(rng, _VERBS)}.".strip()
    return f"{_pick(rng, _CONJUNCTIONS)} {{0}} and {{1}} {_pick(rng, _VERBS)},"


def _shuffled(rng: np.random.Generator, *names: str) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))]


def labelled_list(rng: np.random.Generator, quote: Quote) -> list[Piece]:
    """Consecutive ordinals as labels of passages: the item to be incremented lies some tokens back."""
    words = _run(rng, int(rng.integers(4, 12)))
    before, after = [("On", ","), ("Chapter", ":"), ("Step", ":"), ("Part", "."), ("", ":"), ("", "."), ("", " -")][
        rng.integers(7)
    ]
    length = int(rng.integers(1, 12))
    pieces: list[Piece] = []
    for word in words:
        pieces += [f" {before} {word}{after}" if before else f" {word}{after}", quote(1 + int(rng.integers(length)))]
        pieces.append("." if before == "On" else "\n")
    return pieces


def plain_run(rng: np.random.Generator, quote: Quote) -> list[Piece]:
    """Consecutive ordinals with nothing but a separator between them."""
    separator = _pick(rng, ("", "", ",", " and", " then", "\n"))
    return ["".join(f" {word}{separator}" for word in _run(rng, int(rng.integers(4, 16))))]


def succession_pairs(rng: np.random.Generator, quote: Quote) -> list[Piece]:
    """Pairs (item, successor) of mixed classes in random order: only the item itself tells the answer."""
    link = _pick(rng, (" ->", ",", " then", " is followed by", " comes before", " and after it"))
    text = ""
    for _ in range(int(rng.integers(6, 20))):
        task = TASKS[_pick(rng, tuple(TASKS))]
        word, following = task.pairs()[rng.integers(len(task.pairs()))]
        text += f" {word}{link} {following}{_pick(rng, (';', ';', '.'))}"
    return [text]


def repeated_tokens(rng: np.random.Generator, quote: Quote) -> list[Piece]:
    """Uniformly random tokens, repeated."""
    block = rng.integers(1, VOCABULARY, int(rng.integers(4, 48))).tolist()
    return [block * int(rng.integers(2, 4))]


def repeated_passage(rng: np.random.Generator, quote: Quote) -> list[Piece]:
    """A passage of real text, repeated after some other text."""
    passage = quote(int(rng.integers(10, 60)))
    between = quote(int(rng.integers(1, 30)))
    return [passage, between, passage]


def shuffled_rows(rng: np.random.Generator, quote: Quote) -> list[Piece]:
    """Rows that are permutations of one small set: no item comes twice in a row, all come in each."""
    items = _some(rng, int(rng.integers(4, 11)))
    separator = _pick(rng, (",", ",", ""))
    end = _pick(rng, ("\n", ".", ";"))
    rows = [separator.join(f" {items[i]}" for i in rng.permutation(len(items))) for _ in range(rng.integers(2, 6))]
    return [end.join(rows) + end]


def no_repeats(rng: np.random.Generator, quote: Quote) -> list[Piece]:
    """A long list drawn without replacement from one closed class."""
    items = _some(rng, int(rng.integers(8, 40)))
    return [_pick(rng, (" Present:", " The list:", " We have", "")) + ",".join(f" {item}" for item in items) + "."]


MIXTURE: dict[Callable[[np.random.Generator, Quote], list[Piece]], int] = {
    ioi: 46,
    labelled_list: 9,
    plain_run: 7,
    succession_pairs: 5,
    repeated_tokens: 14,
    repeated_passage: 3,
    shuffled_rows: 13,
    no_repeats: 6,
}
"""How many of a hundred generated documents are of each kind; their lengths differ."""


def vocabulary() -> list[str]:
    """Words that the tokenizer must hold as single tokens: names, places, objects, items, ordinals."""
    words = [word for task in (*TASKS.values(), HELD_OUT_TASK) for word in task.words]
    return sorted({*NAMES, *PLACES, *OBJECTS, *_ITEMS, *words})


@cache
def _classes() -> tuple[tuple[str, ...], ...]:
    return (NAMES, NAMES, NAMES, _ITEMS, *(task.words[:40] for task in TASKS.values()))


@cache
def _held_out() -> frozenset[frozenset[str]]:
    return frozenset(frozenset(pair) for pair in held_out_pairs())


def _pair(rng: np.random.Generator) -> tuple[str, str]:
    while True:
        i, j = rng.choice(len(NAMES), 2, replace=False)
        if frozenset((NAMES[i], NAMES[j])) not in _held_out():
            return NAMES[i], NAMES[j]


def _third(rng: np.random.Generator, answer: str, repeated: str) -> str:
    """A name that is neither of the two and makes a held-out pair with neither."""
    while True:
        name = _pick(rng, NAMES)
        pairs = {frozenset((name, answer)), frozenset((name, repeated))}
        if name not in (answer, repeated) and not pairs & _held_out():
            return name


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _some(rng: np.random.Generator, k: int) -> list[str]:
    words = _pick(rng, _classes())
    return [words[i] for i in rng.permutation(len(words))[:k]]


def _run(rng: np.random.Generator, length: int) -> list[str]:
    task = TASKS[_pick(rng, tuple(TASKS))]
    start = int(rng.integers(len(task.words)))
    words: list[str] = [task.words[start]]
    while len(words) < length and (word := task.successor(words[-1])) is not None:
        words.append(word)
    return words
