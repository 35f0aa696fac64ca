"""A task of one's own: aligned, or refused with the row."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from mechinterp.datasets import task as tasks
from mechinterp.models import organisms
from mechinterp.patching import path_patch

ROW = {"clean": "After Monday comes", "corrupted": "After Friday comes", "answer": " Tuesday", "wrong": " Saturday"}
LONG = {"clean": "The day after Monday is", "corrupted": "The day after Friday is"} | {
    k: ROW[k] for k in ("answer", "wrong")
}


def test_rows_become_tokens_with_their_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    task = tasks.from_rows(tokenizer, [ROW, LONG])
    for i, row in enumerate((ROW, LONG)):
        end = int(task.end[i])
        assert tokenizer.decode(task.clean[i, : end + 1]) == row["clean"]
        assert tokenizer.decode(task.corrupt[i, : end + 1]) == row["corrupted"]
        assert tokenizer.decode(task.answer[i]) == row["answer"]
        assert tokenizer.decode(task.wrong[i]) == row["wrong"]
    assert task.group.tolist() == [0, 1], "prompts of different lengths have no positions in common"
    assert torch.equal(task.positions["END"], task.end)
    with_bos = tasks.from_rows(tokenizer, [ROW, LONG], prepend_bos=True)
    assert (with_bos.clean[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(with_bos.end, task.end + 1)


def test_the_metric_is_the_answer_less_the_wrong_one(tokenizer: PreTrainedTokenizerBase) -> None:
    task = tasks.from_rows(tokenizer, [ROW, LONG])
    logits = torch.zeros(2, len(tokenizer))
    logits[0, task.answer[0]], logits[1, task.wrong[1]] = 3.0, 2.0
    assert task.logit_diff(logits).tolist() == [3.0, -2.0]
    assert task[1:].logit_diff(logits[1:]).tolist() == [-2.0]
    with pytest.raises(ValueError, match="NaN or infinity"):
        task.logit_diff(logits / 0)
    with pytest.raises(TypeError):
        task[1]


def test_a_file_reads_as_its_rows_do(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    header = ["clean", "corrupted", "answer", "wrong"]
    for name, comma in (("a.csv", ","), ("a.tsv", "\t")):
        lines = [comma.join(header), *(comma.join(f'"{row[c]}"' for c in header) for row in (ROW, LONG))]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        read, expected = tasks.read(tokenizer, tmp_path / name), tasks.from_rows(tokenizer, [ROW, LONG])
        assert all(torch.equal(getattr(read, f), getattr(expected, f)) for f in expected.__dataclass_fields__)
    (tmp_path / "b.csv").write_text("clean,answer\nx,y\n")
    with pytest.raises(ValueError, match="has no column corrupted and no wrong"):
        tasks.read(tokenizer, tmp_path / "b.csv")
    with pytest.raises(ValueError, match="no file"):
        tasks.read(tokenizer, tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"corrupted": "After the Friday comes"},
            r"row 2: the prompts have 3 and 4 tokens, \['After', ' Monday', ' comes'\]",
        ),
        ({"corrupted": ROW["clean"]}, "row 2: the clean and the corrupted prompt are the same"),
        ({"answer": ""}, "row 2 has no answer"),
        ({"answer": "Tuesday"}, "row 2: the answer 'Tuesday' is .* tokens, .*; ' Tuesday', with its space, is one"),
        ({"wrong": ROW["answer"]}, "row 2: answer and wrong are the same token"),
        ({"group": "a", **LONG}, "row 2: group 'a' has prompts of"),
    ],
)
def test_what_cannot_be_aligned_is_refused_with_its_row(
    tokenizer: PreTrainedTokenizerBase, change: dict[str, str], words: str
) -> None:
    first = ROW | ({"group": "a"} if "group" in change else {})
    with pytest.raises(ValueError, match=words):
        tasks.from_rows(tokenizer, [first, ROW | change])


def test_a_prompt_that_swallows_the_answer_s_space_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    row = {name: ROW[name] + " " for name in ("clean", "corrupted")} | {"answer": "a", "wrong": "b"}
    with pytest.raises(ValueError, match="token of its own"):
        tasks.from_rows(tokenizer, [row, row])
    with pytest.raises(ValueError, match="at least two rows"):
        tasks.from_rows(tokenizer, [ROW])


def test_patching_a_task_is_patching_its_prompts() -> None:
    """The organism's prompts as a task give the same effects as the dataset that they come from."""
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    twins = data.abc(1)
    own = tasks.Task(data.tokens, twins.tokens, data.io, data.s, data.positions["END"], data.group)
    ours = path_patch(organism.model, own.clean, own.corrupt, metric=own.logit_diff, at=own.end)
    theirs = path_patch(organism.model, data.tokens, twins.tokens, metric=data.logit_diff, at=data.positions["END"])
    torch.testing.assert_close(ours.patched, theirs.patched)
