"""Succession as a task: lists to be continued, and the same words in no order."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mechinterp.datasets import task
from mechinterp.datasets.ordinals import TASKS, Task
from mechinterp.datasets.text import bos_id
from mechinterp.successor.score import Class, classes


def continuations(
    tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Task] = TASKS, *, length: int = 3, seed: int = 0
) -> tuple[task.Task, tuple[str, ...]]:
    """Every `length` consecutive words of every task, to be continued; and the tasks' names by group.

    ` Monday, Tuesday, Wednesday,` is followed by ` Thursday`, and not by ` Wednesday`, which it competes with. The
    corrupted prompt has other words of the class in random order. A tokenizer that splits numbers continues digits:
    ` 3, 4, 5, ` is followed by `6`.

    Errors: `ValueError` if the tokenizer has none of the tasks with more than `length` words.

    >>> from mechinterp.models import load_tokenizer
    >>> found, names = continuations(load_tokenizer("lab"), {"days": TASKS["days"]})
    >>> len(found), names
    (7, ('days',))
    """
    generator, rows, names = torch.Generator().manual_seed(seed), [], []
    for words in classes(tokenizer, tasks)[0]:
        spaced = tokenizer.encode(" " + words.words[0], add_special_tokens=False)[-1:] == [int(words.ids[0])]
        joined = len(tokenizer.encode(" " + words.words[0], add_special_tokens=False)) == 1
        after = dict(zip(words.source.tolist(), words.target.tolist(), strict=True))
        windows = [run for i in range(len(words.words)) if (run := _run(after, i, length + 1))]
        if not windows or not spaced:
            continue
        for *items, answer in windows:
            others = [i for i in torch.randperm(len(words.words), generator=generator).tolist() if i != answer]
            others = others[:length] if others[:length] != items else others[length - 1 :: -1]
            end = "" if joined else " "
            rows.append(
                {
                    "clean": _listed(words, items) + end,
                    "corrupted": _listed(words, others) + end,
                    "answer": ("" if end else " ") + words.words[answer],
                    "wrong": ("" if end else " ") + words.words[items[-1]],
                    "group": words.task,
                }
            )
        names.append(words.task)
    if not rows:
        raise ValueError(f"this tokenizer has no {length + 1} consecutive words of {', '.join(tasks)} as single tokens")
    starts = bos_id(tokenizer) is not None
    return task.from_rows(tokenizer, rows, prepend_bos=starts), tuple(names)


def disorder(
    tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Task] = TASKS, *, n: int = 8, seed: int = 0
) -> Int[Tensor, "list pos"]:
    """Lists of every task's words in random order, each word `n` times or more: no word tells the next one.

    A row has forty words; where these have more tokens than elsewhere it is cut, so that all rows are equally long.

    Errors: `ValueError` if the tokenizer has none of the tasks.
    """
    generator, rows = torch.Generator().manual_seed(seed), []
    start = bos_id(tokenizer)
    for words in classes(tokenizer, tasks)[0]:
        order: list[int] = []
        while len(order) < n * len(words.words) or len(order) < 40:
            order += torch.randperm(len(words.words), generator=generator).tolist()
        order += order[: -len(order) % 40]
        for i in range(0, len(order), 40):
            ids = tokenizer.encode(_listed(words, order[i : i + 40]), add_special_tokens=False)
            rows.append([*([] if start is None else [start]), *ids])
    if not rows:
        raise ValueError(f"this tokenizer has none of the tasks {', '.join(tasks)} as single tokens")
    shortest = min(map(len, rows))
    return torch.tensor([row[:shortest] for row in rows])


def _run(after: Mapping[int, int], first: int, n: int) -> list[int]:
    """n consecutive words from one on, no word twice; empty if the class ends before."""
    run = [first]
    while len(run) < n and after.get(run[-1], first) not in run:
        run.append(after[run[-1]])
    return run if len(run) == n else []


def _listed(words: Class, items: list[int]) -> str:
    return "".join(f" {words.words[i]}," for i in items)
