"""A task of your own: clean and corrupted prompts with answers, aligned token by token.

Causal methods patch what a model does on a corrupted prompt into what it does on the clean one, position by position.
That is right only if both have as many tokens and an answer is one token; what cannot be aligned is refused here, with
the row and both tokenisations, and not patched in silence.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

COLUMNS = ("clean", "corrupted", "answer", "wrong")


@dataclass(frozen=True)
class Task:
    """Prompts in pairs, with the token that is right after the clean one and the token it competes with.

    Attributes:
        clean, corrupt: token ids, padded on the right (a causal model never looks at the padding).
        answer, wrong: token ids.
        end: the last position of each prompt, where the answer is predicted.
        group: prompts of a group have their positions in common; by default those of equal length.
    """

    clean: Int[Tensor, "prompt pos"]
    corrupt: Int[Tensor, "prompt pos"]
    answer: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]
    end: Int[Tensor, " prompt"]
    group: Int[Tensor, " prompt"]

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "Task":
        """The pairs selected by a slice, a list of indices or a mask."""
        if isinstance(index, int):
            raise TypeError(f"select a batch, not one pair: task[{index}:{index + 1}]")
        return replace(self, **{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def to(self, device: torch.device | str) -> "Task":
        """The same task with every tensor on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    @property
    def positions(self) -> dict[str, Int[Tensor, " prompt"]]:
        """Named positions by name; there is one, `END`."""
        return {"END": self.end}

    def logit_diff(self, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
        """logit(answer) − logit(wrong), from the logits at `end`. `ValueError` for logits that are not finite."""
        if not torch.isfinite(logits).all():
            raise ValueError("the logits contain NaN or infinity; check the model's weights and the intervention")
        right, wrong = (ids.to(logits.device)[:, None] for ids in (self.answer, self.wrong))
        return (logits.gather(1, right) - logits.gather(1, wrong))[:, 0]


def from_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, str]], *, prepend_bos: bool = False
) -> Task:
    """A task from rows with the columns clean, corrupted, answer and wrong, and if wanted group.

    An answer is what comes right after the prompt, so it usually begins with a space.

    Args:
        prepend_bos: start with the tokenizer's BOS token.

    Errors: `ValueError` naming the row for a missing or empty column, prompts of different numbers of tokens or that
        are the same, an answer that is not one token or that the tokenizer joins to the prompt, equal answers, groups
        whose prompts differ in length; for fewer than two rows; for a tokenizer without BOS where one is asked for.

    >>> from mechinterp.models import load_tokenizer
    >>> row = {"clean": "After Monday comes", "corrupted": "After Friday comes", "answer": " Tuesday"}
    >>> task = from_rows(load_tokenizer("lab"), [row | {"wrong": " Saturday"}] * 2)
    >>> len(task), task.clean.shape == task.corrupt.shape
    (2, True)
    """
    rows = list(rows)
    if len(rows) < 2:
        raise ValueError(f"a task needs at least two rows, got {len(rows)}")
    bos = tokenizer.bos_token_id if prepend_bos else None
    if prepend_bos and bos is None:
        raise ValueError("this tokenizer has no BOS token to start with; leave prepend_bos out")
    start = [] if bos is None else [bos]
    pairs, ids = [], []
    for number, row in enumerate(rows, 1):
        where = f"row {number}"
        missing = [column for column in COLUMNS if not row.get(column)]
        if missing:
            raise ValueError(f"{where} has no {' and no '.join(missing)}; every row has {', '.join(COLUMNS)}")
        clean, corrupt = ([*start, *_encode(tokenizer, row[name])] for name in ("clean", "corrupted"))
        if len(clean) != len(corrupt):
            raise ValueError(
                f"{where}: the prompts have {len(clean)} and {len(corrupt)} tokens, {_pieces(tokenizer, clean)} and "
                f"{_pieces(tokenizer, corrupt)}; change words until both have as many"
            )
        if clean == corrupt:
            raise ValueError(f"{where}: the clean and the corrupted prompt are the same: nothing would be patched")
        answers = [_answer(tokenizer, row["clean"], row[name], where) for name in ("answer", "wrong")]
        if answers[0] == answers[1]:
            raise ValueError(f"{where}: answer and wrong are the same token, {row['answer']!r}")
        pairs.append((clean, corrupt))
        ids.append(answers)
    names = [str(row.get("group") or len(clean)) for row, (clean, _) in zip(rows, pairs, strict=True)]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    sizes: dict[str, int] = {}
    for number, (name, (clean, _)) in enumerate(zip(names, pairs, strict=True), 1):
        if sizes.setdefault(name, len(clean)) != len(clean):
            raise ValueError(
                f"row {number}: group {name!r} has prompts of {sizes[name]} and {len(clean)} tokens; prompts of a "
                "group have their positions in common"
            )
    longest = max(len(clean) for clean, _ in pairs)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    tokens = torch.tensor([[ids + [pad] * (longest - len(ids)) for ids in pair] for pair in pairs])
    answer, wrong = torch.tensor(ids).T
    end = torch.tensor([len(pair[0]) - 1 for pair in pairs])
    return Task(tokens[:, 0], tokens[:, 1], answer, wrong, end, torch.tensor([order[name] for name in names]))


def aligned(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, str]], *, prepend_bos: bool = False
) -> list[Mapping[str, str]]:
    """Those rows that `from_rows` takes with this tokenizer; the others cannot be aligned, or their answers are split.

    >>> from mechinterp.models import load_tokenizer
    >>> row = {"clean": "After Monday comes", "corrupted": "After Friday comes", "answer": " Tuesday"}
    >>> len(aligned(load_tokenizer("lab"), [row | {"wrong": " Saturday"}, row | {"wrong": " Saturn's day"}]))
    1
    """
    kept = []
    for row in rows:
        try:
            from_rows(tokenizer, [row, row], prepend_bos=prepend_bos)
        except ValueError:
            continue
        kept.append(row)
    return kept


def read(tokenizer: PreTrainedTokenizerBase, path: str | Path, *, prepend_bos: bool = False) -> Task:
    """A task from a file with a header line: `.csv` with commas, any other with tabs. Errors as `from_rows`.

    Errors: also `ValueError` for a file that is not there or lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    with path.open(encoding="utf8", newline="") as file:
        table = csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t")
        missing = set(COLUMNS) - set(table.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column {' and no '.join(sorted(missing))}; its first line names them")
        return from_rows(tokenizer, table, prepend_bos=prepend_bos)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    return [str(tokenizer.decode([i])) for i in ids]


def _answer(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, where: str) -> int:
    ids = _encode(tokenizer, answer)
    if len(ids) != 1:
        hint = ""
        if not answer.startswith(" ") and len(_encode(tokenizer, " " + answer)) == 1:
            hint = f"; {' ' + answer!r}, with its space, is one"
        raise ValueError(f"{where}: the answer {answer!r} is {len(ids)} tokens, {_pieces(tokenizer, ids)}{hint}")
    if _encode(tokenizer, prompt + answer) != [*_encode(tokenizer, prompt), *ids]:
        raise ValueError(
            f"{where}: after this prompt the tokenizer does not write {answer!r} as a token of its own; does the "
            "prompt end in a space that belongs to the answer?"
        )
    return ids[0]
