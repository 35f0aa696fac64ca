"""Successor heads on every family: OV circuits, neurons, arithmetic, effects on text, against raw matrices and runs."""

from collections import Counter
from typing import Any

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, WIDTH, Raw, bridge
from slow import Slow, close
from torch import Tensor

from mechinterp import successor
from mechinterp.datasets.ordinals import Task
from mechinterp.heads import Head
from mechinterp.successor import Class

G = torch.Generator().manual_seed(12)
TOKENS = torch.randint(1, 60, (3, 9), generator=G)
N, LENGTH = TOKENS.shape
TESTED = (Head(0, 1), Head(1, 2), Head(2, 3))
LETTERS = Task("letters", tuple("ABCDEFGHIJKL"))
DIGITS = Task("digits", tuple("0123456789"), cyclic=True)
NUMBERS = Class(
    "made up", tuple(map(str, range(1, 26))), torch.arange(100, 125), torch.arange(25), torch.arange(24),
    torch.arange(1, 25),
)  # fmt: skip
DOWN = {
    "GPT-2": "mlp.c_proj", "GPT-Neo": "mlp.c_proj", "OPT": "fc2", "GPT-J": "mlp.fc_out", "Phi": "mlp.fc2",
    "Pythia": "mlp.dense_4h_to_h", "GPT-NeoX, serial": "mlp.dense_4h_to_h", "Falcon": "mlp.dense_4h_to_h",
}  # fmt: skip
"""The MLP's last linear layer, where it is not mlp.down_proj."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Slow]:
    return bridge(request.param), Slow(request.param, TOKENS)


def ov_logits(slow: Slow, head: Head, unit: Tensor, ids: Tensor) -> Tensor:
    m = slow.matrix[head.layer]
    return unit @ m["V"][head.head] @ m["O"][head.head] @ slow.U[ids].T


def test_representations(family: tuple[Any, Slow]) -> None:
    model, slow = family
    ids = torch.tensor([3, 150, 17])
    close(successor.representations(model, ids), slow.W_EE[ids])
    close(successor.representations(model, ids, embedding=False), slow.W_EE[ids] - slow.centred(slow.W_E[ids]))


@pytest.mark.parametrize("size", [1.0, 0.003], ids=["", "as small as a norm's eps"])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", ""])
def test_logits_of_ov_circuits(family: tuple[Any, Slow], norm: bool, size: float) -> None:
    model, slow = family
    ids = torch.tensor([5, 190, 66, 7, 121])
    x = size * slow.centred(torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1)))
    every = successor.class_logits(model, x, ids, norm=norm)
    for layer in range(LAYERS):
        unit = slow.normal(layer, x) if norm else x
        for h in range(HEADS):
            close(every[layer, h], ov_logits(slow, Head(layer, h), unit, ids))
    close(successor.head_logits(model, Head(2, 1), x, ids, norm=norm), every[2, 1])


@pytest.mark.parametrize("embedding", [True, False])
def test_successor_scores(family: tuple[Any, Slow], embedding: bool) -> None:
    model, slow = family
    tasks = {"letters": LETTERS, "digits": DIGITS}
    ours = successor.successor_scores(model, tasks, embedding=embedding, space=False)
    assert ours.chance == {"letters": 1 / 12, "digits": 1 / 10}
    for name, task in tasks.items():
        ids = torch.tensor([model.tokenizer.encode(word, add_special_tokens=False)[0] for word in task.words])
        words = successor.class_of(model.tokenizer, task, space=False)
        x = slow.W_EE[ids] if embedding else slow.W_EE[ids] - slow.centred(slow.W_E[ids])
        for head in TESTED:
            logits = ov_logits(slow, head, slow.normal(head.layer, x), ids)
            close(successor.table(model, head, words, embedding=embedding), logits)
            for pair, (word, after) in enumerate(task.pairs()):
                row, target = logits[task.words.index(word)], task.words.index(after)
                others = torch.cat([row[:target], row[target + 1 :]]).max()
                if (row[target] - others).abs() > 1e-5:
                    assert bool(ours.hits[name][head][pair]) == bool(row[target] > others)


def test_scores_in_a_context(family: tuple[Any, Slow]) -> None:
    model, slow = family
    words = successor.class_of(model.tokenizer, LETTERS, space=False)
    rows = [words.ids[torch.randperm(12, generator=torch.Generator().manual_seed(i))[:9]] for i in range(6)]
    text = torch.stack([torch.cat([torch.tensor([7]), row]) for row in rows])
    assert torch.isin(words.ids, text).all()
    ours = successor.successor_scores(model, {"letters": LETTERS}, space=False, context=text).hits["letters"]
    other = Slow(slow.name, text)
    for head in TESTED:
        stream = other.centred(other.got["resid_pre", head.layer])[:, 1:]
        x = torch.stack([stream[text[:, 1:] == token].mean(0) for token in words.ids])
        logits = ov_logits(slow, head, slow.normal(head.layer, x), words.ids)[words.source]
        gap = logits.topk(2).values.diff().abs()[:, 0]
        right = logits.argmax(-1) == words.target
        assert ours[head][gap > 1e-5].tolist() == right[gap > 1e-5].tolist()


def test_heads_that_know_nothing_score_like_chance(family: tuple[Any, Slow]) -> None:
    """The null: the weights are random."""
    model, _ = family
    scores = successor.successor_scores(model, {"letters": LETTERS, "digits": DIGITS}, space=False)
    assert scores.score().mean() < 0.3


def block0(raw: Raw, ids: Tensor, edit: Any = None) -> tuple[Tensor, Tensor]:
    """MLP 0's last linear layer's output for tokens without attention and positions, and the stream after the block."""
    e, made = raw.model.get_input_embeddings()(ids)[None], []
    down = raw.module(0, DOWN.get(raw.name, "mlp.down_proj"))

    def before(module: Any, args: Any) -> Any:
        return (edit(args[0].clone().view(len(ids), -1)).view(args[0].shape),) if edit else None

    handles = [
        down.register_forward_pre_hook(before),
        down.register_forward_hook(lambda module, args, out: made.append(out.view(len(ids), -1))),
    ]
    try:
        got = raw.run(ids[None], {("resid_pre", 0): lambda x: e, ("attn_out", 0): torch.zeros_like})[1]
    finally:
        for handle in handles:
            handle.remove()
    return made[0], got["resid_pre", 1][0]


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "zero"])
def test_neurons(family: tuple[Any, Slow], mean: bool) -> None:
    """One raw run a neuron; the change goes on with the scales of norms as they were."""
    model, slow = family
    raw, words = slow.raw, NUMBERS
    down, stream = block0(raw, words.ids)
    post = raw.module(0, raw.family.mlp_out) if raw.family.attn_out else None
    ours = {head: successor.neuron_ablation(model, head, words, mean=mean) for head in TESTED}
    for neuron in (0, 11, 40):

        def edit(hidden: Tensor, neuron: int = neuron) -> Tensor:
            hidden[:, neuron] = hidden[:, neuron].mean() if mean else 0.0
            return hidden

        change = block0(raw, words.ids, edit)[0] - down
        change = change if post is None else change / slow.scale(down, post) * slow.gain(post)
        for head in TESTED:
            unit = slow.centred(change) / slow.scale(stream, slow.norm_of(head.layer))
            logits = ov_logits(slow, head, unit if slow.norm_of(head.layer) else change, words.ids)
            expected = (logits - logits.mean(-1, keepdim=True))[words.source, words.target]
            close(ours[head][neuron], expected)
            assert expected.abs().max() > 1e-4


def test_arithmetic(family: tuple[Any, Slow]) -> None:
    model, slow = family
    words, head = NUMBERS, Head(1, 2)
    features = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(4))
    ours = successor.arithmetic_grid(model, head, words, features, start=3, stop=18)
    x, values = slow.W_EE[words.ids], list(range(1, 26))
    centred, unit = x - x.mean(0), features / features.norm(dim=-1, keepdim=True)
    size = [torch.stack([centred[v - 1] @ unit[r] for v in values if v % 10 == r]).mean() for r in range(10)]
    wins = 0
    for row, value in enumerate(range(3, 19)):
        for j in range(10):
            goal = value - value % 10 + j
            possible = 1 <= goal <= 24
            assert bool(ours.possible[row, j]) == possible
            edited = x[value - 1] - size[value % 10] * unit[value % 10] + size[j] * unit[j]
            logits = ov_logits(slow, head, slow.normal(1, edited[None]), words.ids)[0]
            first, second = logits.topk(2).values
            if first - second > 1e-5:
                # Value v has place v − 1, so its successor has place v.
                assert bool(ours.success[row, j]) == (possible and int(logits.argmax()) == goal)
                wins += int(ours.success[row, j])
    assert ours.share().value < 0.3, "features at random move nothing"


def slow_effects(slow: Slow) -> Tensor:
    """[doc pos head]: change of the right token's logit against the mean one (before a soft cap), sign turned."""
    columns = []
    for layer in range(LAYERS):
        for h in range(HEADS):
            z = slow.got["z", layer][:, :, h]
            logits = slow.to_logits(slow.written(Head(layer, h), z - z[:, :-1].mean((0, 1))), slow.end)
            logits = logits if slow.cap else logits - logits.mean(-1, keepdim=True)
            columns.append(logits[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0])
    return torch.stack(columns, -1)


def test_direct_effects(family: tuple[Any, Slow]) -> None:
    model, slow = family
    ours, effect = successor.direct_effects(model, TOKENS, block=2), slow_effects(slow)
    close(ours.effect, effect)
    best = effect.gather(-1, ours.winner[..., None])[..., 0]
    close(best, effect.max(-1).values)
    index = int(ours.winner[0, 0])
    won = (effect.argmax(-1) == index) & (effect.max(-1).values > 0)
    assert torch.equal(ours.cases(Head(*divmod(index, HEADS))), won)


def test_winning_cases(family: tuple[Any, Slow]) -> None:
    model, slow = family
    effect = slow_effects(slow)
    index = int(effect.argmax(-1).flatten().mode().values)
    head = Head(*divmod(index, HEADS))
    ours = successor.winning_cases(model, TOKENS, head)
    won = ((effect.argmax(-1) == index) & (effect.max(-1).values > 0)).nonzero().tolist()
    assert ours.cases == len(won) > 0
    pattern, name, kinds = slow.got["pattern", head.layer][:, head.head], model.tokenizer.decode, Counter[str]()
    for doc, d in won:
        source = max(range(d + 1), key=lambda s, doc=doc, d=d: pattern[doc, d, s].item())
        kinds[successor.category(name([int(TOKENS[doc, source])]), name([int(TOKENS[doc, d + 1])]))] += 1
    for kind in successor.CATEGORIES:
        assert ours.share[kind].value == pytest.approx(kinds[kind] / len(won))


@pytest.mark.parametrize("everywhere", [False, True], ids=["", "everywhere"])
def test_total_effects(family: tuple[Any, Slow], everywhere: bool) -> None:
    """One raw run a case."""
    model, slow = family
    cases = torch.rand(N, LENGTH - 1, generator=torch.Generator().manual_seed(5)) < 0.3

    def right(logits: Tensor, doc: int, p: int) -> Tensor:
        logits = logits[p] if slow.cap else logits[p] - logits[p].mean()
        return logits[TOKENS[doc, p + 1]]

    for head in TESTED[::2]:
        mean = slow.got["z", head.layer][:, :-1, head.head].mean((0, 1))
        expected = []
        for doc, p in cases.nonzero().tolist():

            def edit(z: Tensor, p: int = p, head: Head = head, mean: Tensor = mean) -> Tensor:
                z[:, 0 if everywhere else p : p + 1, head.head] = mean
                return z

            broken = slow.raw.run(TOKENS[doc : doc + 1], {("z", head.layer): edit})[0][0]
            expected.append(right(slow.logits[doc], doc, p) - right(broken, doc, p))
        ours = successor.total_effects(model, TOKENS, head, cases, everywhere=everywhere, batch_size=4)
        close(ours, torch.stack(expected))
        assert ours.abs().max() > 1e-3


def test_a_head_that_says_what_it_says_has_no_effect(family: tuple[Any, Slow]) -> None:
    """The null of both effects."""
    model, _ = family
    one = TOKENS[:1, :2]
    cases = torch.ones(1, 1, dtype=torch.bool)
    for head in TESTED:  # one position: the mean is the head's own
        close(successor.total_effects(model, one, head, cases), torch.zeros(1))
    close(successor.direct_effects(model, one).effect, torch.zeros(1, 1, LAYERS * HEADS))
