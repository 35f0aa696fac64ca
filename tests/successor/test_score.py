"""Successor scores against loops over words; on an exact successor head; at chance on random weights."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from mechinterp import successor as su
from mechinterp.datasets.ordinals import TASKS
from mechinterp.heads import Head, all_heads
from mechinterp.models import organisms, to_bridge
from mechinterp.models.load import LAB
from mechinterp.successor import (
    class_of,
    classes,
    greater_than_bias,
    pooled,
    representations,
    successor_scores,
    table,
)

NUMBERS = {"numbers": TASKS["numbers"]}


def slow_score(model: Any, head: Head, task: str, embedding: bool) -> float:
    words = class_of(model.tokenizer, TASKS[task])
    hits = []
    for source, target in zip(words.source.tolist(), words.target.tolist(), strict=True):
        e = model.W_E[words.ids[source]][None, None]
        out = model.blocks[0].mlp(model.blocks[0].ln2(e))
        x = model.blocks[1].ln1(e + out if embedding else out)[0, 0]
        logits = x @ model.W_V[head] @ model.W_O[head] @ model.W_U
        hits.append(max(range(len(words.ids)), key=lambda i, row=logits: row[words.ids[i]].item()) == target)
    return sum(hits) / len(hits)


@pytest.mark.parametrize("embedding", [True, False])
@pytest.mark.parametrize("task", ["days", "letters"])
def test_scores_equal_a_loop(tiny: Any, task: str, embedding: bool) -> None:
    scores = successor_scores(tiny, {task: TASKS[task]}, embedding=embedding).score()
    for head in all_heads(tiny):
        assert scores[head] == pytest.approx(slow_score(tiny, head, task, embedding))


def test_the_exact_successor_head_scores_one_and_no_other_does() -> None:
    organism = organisms.successor()
    scores = successor_scores(organism.model, NUMBERS)
    [head] = organism.heads("successor")
    assert scores.best() == head
    assert scores.score()[head] == 1
    rest = scores.score()
    rest[head] = 0
    assert rest.max() < 0.1
    assert (scores.of(head).value, scores.of(head).interval) == (1, None)


def test_random_weights_score_at_chance(tiny: Any) -> None:
    scores = successor_scores(tiny)
    assert set(scores.hits) == set(TASKS)
    assert scores.score().mean() == pytest.approx(scores.chance_level(), abs=0.03)
    assert scores.chance["days"] == pytest.approx(1 / 7)
    assert scores.of(scores.best()).value == pytest.approx(scores.score().max().item())
    assert scores.of(scores.best(), "days").n == 7
    with pytest.raises(ValueError, match="no task 'planets'; one of numbers"):
        scores.score("planets")


def test_a_table_is_the_head_s_circuit_and_the_bias_its_tilt() -> None:
    organism = organisms.successor()
    [head] = organism.heads("successor")
    words = class_of(organism.model.tokenizer, TASKS["numbers"])
    logits = table(organism.model, head, words)
    assert logits.argmax(1)[:-1].tolist() == list(range(1, 50))
    rising = torch.arange(5.0).expand(5, 5)
    assert (greater_than_bias(rising, torch.arange(5)) > 0).all()
    assert torch.equal(greater_than_bias(-rising, torch.arange(5)), -greater_than_bias(rising, torch.arange(5)))
    assert greater_than_bias(torch.ones(5, 5), torch.arange(5)).tolist() == [0, 0, 0]


def test_the_lab_model_has_a_successor_head(lab: Any) -> None:
    scores = successor_scores(lab)
    assert sum(float(scores.score(task).max()) >= 0.5 for task in TASKS) >= 3
    assert scores.of(scores.best()).value > 5 * scores.chance_level()


def test_tasks_that_the_tokenizer_lacks() -> None:
    organism = organisms.successor()
    with pytest.raises(ValueError, match="task 'number words' has 0 of 20 words that are single tokens"):
        successor_scores(organism.model)
    assert set(successor_scores(organism.model, skip_missing=True).hits) == {"numbers"}
    assert len(classes(organism.model.tokenizer)[1]) == len(TASKS) - 1
    with pytest.raises(ValueError, match="has none of the tasks days"):
        successor_scores(organism.model, {"days": TASKS["days"]}, skip_missing=True)


def test_pooled_words_keep_their_values(tokenizer: Any) -> None:
    ids, values, names = pooled([class_of(tokenizer, TASKS[t]) for t in ("days", "months")])
    assert len(ids) == len(values) == len(names) == 19
    assert values.tolist() == [*range(1, 8), *range(1, 13)]
    assert tokenizer.decode(ids[8]).strip() == "February"


@pytest.mark.parametrize("family", ["pythia", "llama"])
def test_other_architectures(tokenizer: Any, family: str) -> None:
    """Parallel blocks, rotary positions, no biases, grouped values: the score needs none of what they lack."""
    torch.manual_seed(0)
    shape = {"vocab_size": 8192, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    if family == "pythia":
        config: Any = GPTNeoXConfig(**shape, num_attention_heads=4, max_position_embeddings=64)
        config.architectures = ["GPTNeoXForCausalLM"]
        raw: Any = GPTNeoXForCausalLM(config)
    else:
        config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
        config.architectures = ["LlamaForCausalLM"]
        raw = LlamaForCausalLM(config)
    model = to_bridge(raw, tokenizer, name=family, device="cpu")
    scores = successor_scores(model, {"days": TASKS["days"], "months": TASKS["months"]})
    assert scores.score().shape == (2, 4)
    ids = class_of(tokenizer, TASKS["days"]).ids
    e = model.W_E[ids][None]
    expected = (e + model.blocks[0].mlp(model.blocks[0].ln2(e)))[0]
    torch.testing.assert_close(representations(model, ids), expected, atol=1e-5, rtol=1e-4)


def test_the_model_card_says_what_the_weights_give(lab: Any) -> None:
    """A share of a task's pairs; rounding may decide one of them where two logits nearly tie."""
    scores = successor_scores(lab)
    card = json.loads((LAB / "card.json").read_text())["measured"]["best successor score from weights"]
    assert set(card) == set(TASKS)
    for name, hits in scores.hits.items():
        assert scores.score(name).max().item() == pytest.approx(card[name], abs=1.01 / hits.shape[-1])


def test_other_ways_to_write_a_word(lab: Any) -> None:
    """Forms change the words and not their order; a form that the tokenizer lacks is refused or left out."""
    numbers = TASKS["numbers"]
    assert numbers.written("upper").words == numbers.words
    upper = {name: task.written("upper") for name, task in TASKS.items()}
    found, missing = classes(lab.tokenizer, upper)
    assert "letters" in {c.task for c in found}
    assert "number words" in missing
    for words in found:
        assert [lab.tokenizer.decode([int(i)]) for i in words.ids] == [" " + w for w in words.words]
    bare = class_of(lab.tokenizer, numbers, space=False)
    assert lab.tokenizer.decode([int(bare.ids[0])]) == bare.words[0]
    with pytest.raises(ValueError, match="single tokens"):
        class_of(lab.tokenizer, upper["number words"])


def test_shuffled_lists_score_as_lists_in_that_order(lab):
    """The lab model's tokenizer has every word, so a shuffled list can be asked for as a task of its own."""
    [found] = su.shuffled_scores(lab, 1, seed=3)
    generator = torch.Generator().manual_seed(3)
    for name, task in TASKS.items():
        order = torch.randperm(len(task.words), generator=generator).tolist()
        slow = su.successor_scores(lab, {name: replace(task, words=tuple(task.words[i] for i in order))})
        assert found.chance[name] == slow.chance[name]
        # Its pairs come in the order of the shuffled list.
        assert torch.equal(found.hits[name], slow.hits[name]), name
    with pytest.raises(ValueError, match="n must be positive"):
        su.shuffled_scores(lab, 0)


@pytest.mark.parametrize("words", [3, 9])
def test_shuffles_leave_out_no_pair_of_a_class_that_the_tokenizer_has_in_part(smollm2, words: int) -> None:
    """Of two hundred numbers this tokenizer has the digits: among all numbers in random order no two are neighbours."""
    tasks = {"numbers": replace(TASKS["numbers"], words=(*map(str, range(1, words + 1)), "200", "300"))}
    plain = su.successor_scores(smollm2, tasks)
    found = su.shuffled_scores(smollm2, 50, tasks)
    assert {one.hits["numbers"].shape for one in found} == {plain.hits["numbers"].shape}
    # A pair of words in random order is any pair: a head that says one word throughout is right for one pair in n.
    mean = torch.stack([one.score() for one in found]).mean()
    assert mean.item() == pytest.approx(1 / words, abs=0.05)
