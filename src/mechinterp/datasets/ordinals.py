"""Ordinal sequences: the eight succession tasks of Gould et al. (arXiv:2312.09230) and held-out Roman numerals."""

from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from mechinterp.datasets.ioi import single_token, single_token_words

NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
ORDINAL_WORDS = "first second third fourth fifth sixth seventh eighth ninth tenth"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
ROMAN = "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX"


Form = Literal["capitalised", "upper", "lower"]


@dataclass(frozen=True)
class Task:
    """One ordered class of words; `cyclic` classes wrap around (Sunday is followed by Monday).

    >>> TASKS["days"].successor("Sunday")
    'Monday'
    >>> TASKS["ordinals"].successor("tenth") is None
    True
    """

    name: str
    words: tuple[str, ...]
    cyclic: bool = False

    def successor(self, word: str) -> str | None:
        """The word after `word`, or None for the last word of a class that does not wrap."""
        i = self.words.index(word) + 1
        if i < len(self.words):
            return self.words[i]
        return self.words[0] if self.cyclic else None

    def written(self, form: Form) -> "Task":
        """The same succession with every word capitalised, or in upper or lower case.

        >>> TASKS["days"].written("upper").words[0]
        'MONDAY'
        """
        change = {"capitalised": str.capitalize, "upper": str.upper, "lower": str.lower}[form]
        return replace(self, words=tuple(map(change, self.words)))

    def pairs(self) -> list[tuple[str, str]]:
        """Every (word, successor), the wrap-around included for cyclic classes."""
        return [(w, nxt) for w in self.words if (nxt := self.successor(w)) is not None]


def single_tokens(tokenizer: PreTrainedTokenizerBase, task: Task, *, space: bool = True) -> dict[str, int]:
    """The words of a task that are one token, in order, with their ids; a tokenizer that splits digits keeps 1 to 9.

    >>> from mechinterp.models import load_tokenizer
    >>> len(single_tokens(load_tokenizer("lab"), TASKS["days"])), len(TASKS["days"].words)
    (7, 7)
    """
    words = single_token_words(tokenizer, task.words, space=space)
    return {word: single_token(tokenizer, word, space=space) for word in words}


def _task(name: str, words: str, cyclic: bool = False, cut: int | None = None) -> Task:
    return Task(name, tuple(w[:cut] for w in words.split()), cyclic)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("numbers", tuple(str(n) for n in range(1, 201))),
        _task("number words", NUMBER_WORDS),
        _task("ordinals", ORDINAL_WORDS),
        _task("days", DAYS, cyclic=True),
        _task("day prefixes", DAYS, cyclic=True, cut=3),
        _task("months", MONTHS, cyclic=True),
        _task("month prefixes", MONTHS, cyclic=True, cut=3),
        _task("letters", " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
    )
}
"""The eight tasks, by name. The lab model's generated text uses these and no others."""

HELD_OUT_TASK: Task = _task("roman numerals", ROMAN)
"""Roman numerals, never written as a succession in the lab model's training text."""
