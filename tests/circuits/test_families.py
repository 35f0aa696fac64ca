"""Circuits on every family: everything outside is mean-ablated in the raw model, one plain run a variant."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, VOCAB, Raw, bridge
from slow import close
from torch import Tensor

from mechinterp.circuits import (
    Circuit,
    Node,
    Setting,
    completeness,
    evaluate,
    faithfulness,
    greedy_sets,
    keep,
    minimality,
    score,
    score_without,
)
from mechinterp.heads import Head
from mechinterp.patching import mean_reference
from mechinterp.stats import Estimate

N, LENGTH = 4, 8
G = torch.Generator().manual_seed(14)
TOKENS, OTHER = torch.randint(1, VOCAB, (2, N, LENGTH), generator=G)
GROUP = torch.tensor([0, 1, 0, 1])
AT = torch.tensor([7, 6, 7, 5])
WHERE = {"end": AT, "name": torch.tensor([2, 3, 1, 4]), "after": torch.tensor([3, 4, 2, 5])}
RIGHT, WRONG = torch.randint(0, VOCAB, (2, N), generator=G)
ROWS = torch.arange(N)
CIRCUIT = Circuit(
    {
        Head(0, 1): Node("reader", ("name", "after")),
        Head(0, 3): Node("reader", ("name",)),
        Head(1, 2): Node("mover", ("end", "after")),
        Head(2, 0): Node("mover", ("end",)),
    }
)
REMOVED: list[list[Head]] = [[], [Head(1, 2)], [Head(0, 3), Head(2, 0), Head(2, 1)]]


def metric(logits: Tensor) -> Tensor:
    return logits[ROWS, RIGHT] - logits[ROWS, WRONG]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Setting, Raw]:
    model = bridge(request.param)
    means = mean_reference(model, OTHER, GROUP)
    return Setting(model, TOKENS, WHERE, AT, metric, means, 6), Raw(request.param)


def survives(alone: bool, removed: Sequence[Head], head: Head, prompt: int, pos: int) -> bool:
    if head in removed:
        return False
    if not alone:
        return True
    names = CIRCUIT.nodes[head].positions if head in CIRCUIT.nodes else ()
    return any(int(WHERE[name][prompt]) == pos for name in names)


@cache
def other_z(raw: Raw, layer: int) -> Tensor:
    """[prompt pos head d_head]: of the prompts of OTHER, the mean over those of the same group."""
    z = raw.run(OTHER)[1]["z", layer]
    return torch.stack([z[GROUP[p] == GROUP].mean(0) for p in range(N)])


def slow_score(raw: Raw, circuit: Circuit | None, removed: list[Head]) -> Tensor:
    """F(C∖K), or of the whole model F(M∖K)."""
    return _slow_score(raw, circuit is not None, tuple(removed))


@cache
def _slow_score(raw: Raw, alone: bool, removed: tuple[Head, ...]) -> Tensor:
    """What survives is decided prompt by prompt, position by position, head by head."""

    def edit(layer: int) -> Any:
        here = [
            [[survives(alone, removed, Head(layer, h), p, pos) for h in range(HEADS)] for pos in range(LENGTH)]
            for p in range(N)
        ]
        stays, mean = torch.tensor(here)[..., None], other_z(raw, layer)
        return lambda z: torch.where(stays, z, mean)

    return metric(raw.run(TOKENS, {("z", i): edit(i) for i in range(LAYERS)})[0][ROWS, AT])


def test_scores(family: tuple[Setting, Raw]) -> None:
    setting, raw = family
    close(score_without(setting, []), metric(raw.run(TOKENS)[0][ROWS, AT]))
    for removed in REMOVED:
        close(score(setting, CIRCUIT, removed), slow_score(raw, CIRCUIT, removed))
        close(score_without(setting, removed), slow_score(raw, None, removed))
    assert (score(setting, CIRCUIT) - score_without(setting, [])).abs().max() > 0.01


def test_variants_side_by_side_are_those_one_by_one(family: tuple[Setting, Raw]) -> None:
    setting, raw = family
    masks = [keep(setting, circuit, removed) for circuit in (CIRCUIT, None) for removed in REMOVED]
    slow = [slow_score(raw, circuit, removed) for circuit in (CIRCUIT, None) for removed in REMOVED]
    close(evaluate(setting, masks), torch.stack(slow))
    for removed in REMOVED:
        kept = keep(setting, CIRCUIT, removed)
        for layer, h, p, pos in ((0, 1, 0, 2), (0, 1, 0, 3), (0, 3, 1, 3), (1, 2, 2, 7), (1, 2, 2, 6), (2, 1, 3, 5)):
            assert bool(kept[layer, h, p, pos]) == survives(True, removed, Head(layer, h), p, pos)


def values(*estimates: Estimate) -> torch.Tensor:
    return torch.tensor([e.value for e in estimates])


def test_criteria(family: tuple[Setting, Raw]) -> None:
    setting, raw = family
    model, alone = slow_score(raw, None, []).mean(), slow_score(raw, CIRCUIT, []).mean()
    ours = faithfulness(setting, CIRCUIT)
    close(values(ours.model, ours.circuit, ours.difference), torch.stack([model, alone, model - alone]))
    assert ours.recovered.value == pytest.approx(float(alone / model), abs=1e-3, rel=1e-3)
    for result, removed in zip(completeness(setting, CIRCUIT, REMOVED), REMOVED, strict=True):
        left, rest = slow_score(raw, CIRCUIT, removed).mean(), slow_score(raw, None, removed).mean()
        expected = torch.stack([left, rest, (left - rest).abs()])
        close(torch.cat([values(result.circuit, result.model), torch.tensor([result.incompleteness])]), expected)
    for head, result in minimality(setting, CIRCUIT).items():
        beside = [h for h in CIRCUIT if CIRCUIT.role(h) == CIRCUIT.role(head) and h != head]
        after, before = (slow_score(raw, CIRCUIT, k).mean() for k in (beside, [*beside, head]))
        assert list(result.removed) == beside
        close(values(result.before, result.after), torch.stack([before, after]))
        assert result.share == pytest.approx(float((after - before).abs() / model.abs()), abs=1e-3, rel=1e-3)


def test_greedy_sets_take_the_head_that_matters_most(family: tuple[Setting, Raw]) -> None:
    """With all heads as candidates nothing is left to chance."""
    setting, raw = family
    chosen: list[Head] = []
    expected = []
    for _ in range(2):
        now = slow_score(raw, CIRCUIT, chosen).mean()
        left = [h for h in CIRCUIT if h not in chosen]
        effect = {h: float((slow_score(raw, CIRCUIT, [*chosen, h]).mean() - now).abs()) for h in left}
        chosen = [*chosen, max(effect, key=lambda h, effect=effect: effect[h])]
        expected.append(sorted(chosen))
    assert greedy_sets(setting, CIRCUIT, runs=2, steps=2, candidates=4) == expected


def test_the_whole_model_is_its_own_circuit(family: tuple[Setting, Raw]) -> None:
    """The null: knocked out by its own values, and with nothing outside, nothing changes."""
    setting, raw = family
    model = metric(raw.run(TOKENS)[0][ROWS, AT])
    every = Circuit({Head(i, h): Node("all", tuple(WHERE)) for i in range(LAYERS) for h in range(HEADS)})
    own = mean_reference(setting.model, TOKENS, ROWS)  # each prompt a group of its own
    itself = Setting(setting.model, TOKENS, WHERE, AT, metric, own)
    close(score(itself, CIRCUIT), model)
    everywhere = {str(pos): torch.full((N,), pos) for pos in range(LENGTH)}
    whole = Circuit({head: Node("all", tuple(everywhere)) for head in every})
    close(score(Setting(setting.model, TOKENS, everywhere, AT, metric, setting.means), whole), model)
