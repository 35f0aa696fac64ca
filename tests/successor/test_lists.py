"""Lists to be continued, and words in disorder: what is in them, and what a head reads there."""

from itertools import pairwise

import pytest
import torch

from mechinterp import Head
from mechinterp import successor as su
from mechinterp.datasets.ordinals import TASKS
from mechinterp.models import load_tokenizer, organisms, pretrained


def test_every_window_of_a_list_is_asked_once(lab):
    task, names = su.continuations(lab.tokenizer)
    assert names == tuple(TASKS)
    days = task[task.group == names.index("days")]
    decode = lab.tokenizer.decode
    assert len(days) == 7
    assert decode(days.clean[0, 1 : days.end[0] + 1]) == " Monday, Tuesday, Wednesday,"
    assert [decode([int(ids[0])]) for ids in (days.answer, days.wrong)] == [" Thursday", " Wednesday"]
    for clean, corrupt, answer in zip(task.clean, task.corrupt, task.answer, strict=True):
        assert clean.tolist() != corrupt.tolist()
        assert int(answer) not in corrupt.tolist()
    assert len(task) == sum(max(0, len(t.words) - (0 if t.cyclic else 3)) for t in TASKS.values())


def test_a_tokenizer_that_splits_numbers_continues_digits():
    if not pretrained.here("smollm2"):
        pytest.skip("SmolLM2 has not been fetched")
    tokenizer = load_tokenizer("smollm2")
    task, names = su.continuations(tokenizer, {"numbers": TASKS["numbers"]})
    assert names == ("numbers",)
    assert len(task) == 6
    assert tokenizer.decode(task.clean[0]) == " 1, 2, 3, "
    assert [tokenizer.decode([int(i)]) for i in task.answer] == list("456789")
    assert su.class_of(tokenizer, TASKS["numbers"]).words == tuple("123456789")


def test_disorder_has_all_words_equally_often_and_in_no_order(lab):
    rows = su.disorder(lab.tokenizer, {"days": TASKS["days"]}, n=40)
    words = su.class_of(lab.tokenizer, TASKS["days"])
    counts = torch.stack([(rows == i).sum() for i in words.ids])
    assert counts.min() > 0.85 * counts.max()
    every = su.disorder(lab.tokenizer, n=2)
    ids = torch.cat([su.class_of(lab.tokenizer, task).ids for task in TASKS.values()])
    assert torch.isin(ids, every).all(), "each word is somewhere"
    listed = [[i for i in row if i in words.ids.tolist()] for row in rows.tolist()]
    place = {int(i): k for k, i in enumerate(words.ids)}
    follows = [(place[b] - place[a]) % 7 == 1 for row in listed for a, b in pairwise(row)]
    assert 0.1 < sum(follows) / len(follows) < 0.22


def test_in_a_context_a_head_reads_the_stream_before_its_layer(lab):
    tasks = {"days": TASKS["days"]}
    [words] = su.classes(lab.tokenizer, tasks)[0]
    text = torch.cat([torch.zeros(1, dtype=torch.long), words.ids[[3, 0, 5, 1, 6, 2, 4]]])[None]
    _, cache = lab.run_with_cache(text)
    where = torch.stack([(text[0] == i).nonzero()[0, 0] for i in words.ids])
    scores = su.successor_scores(lab, tasks, context=text).hits["days"]
    for head in (Head(1, 0), Head(3, 2), Head(4, 7)):
        stream = cache[f"blocks.{head.layer}.hook_resid_pre"][0, where]
        read = lab.blocks[head.layer].ln1(stream[None])[0] @ lab.W_V[head] @ lab.W_O[head]
        said = (read @ lab.W_U[:, words.ids])[words.source].argmax(-1)
        assert scores[head].tolist() == (said == words.target).tolist()


def test_the_organism_is_found_in_a_context_too():
    organism = organisms.successor()
    [head] = organism.heads("successor")
    tasks = {"numbers": TASKS["numbers"]}
    ids = su.class_of(organism.model.tokenizer, tasks["numbers"]).ids
    context = torch.stack([torch.cat([ids[:1], part]) for part in ids.split(1)])
    assert su.successor_scores(organism.model, tasks, context=context).best() == head


def test_what_a_context_or_a_tokenizer_lacks_is_refused(lab):
    with pytest.raises(ValueError, match="the context lacks"):
        su.successor_scores(lab, {"days": TASKS["days"]}, context=torch.tensor([[0, 5, 9]]))
    with pytest.raises(ValueError, match="no 8 consecutive words of days"):
        su.continuations(lab.tokenizer, {"days": TASKS["days"]}, length=7)
    odd = {"days": TASKS["days"].written("upper")}
    for lists in (su.continuations, su.disorder):
        with pytest.raises(ValueError, match="this tokenizer has no"):
            lists(lab.tokenizer, odd)
