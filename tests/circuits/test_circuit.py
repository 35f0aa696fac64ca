"""Circuits against one hooked pass for every variant, on an organism whose circuit is known, and on nothing."""

import dataclasses
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp.circuits import (
    NAIVE_CIRCUIT,
    PAPER_CIRCUIT,
    PAPER_COMPANIONS,
    Circuit,
    Node,
    Setting,
    by_class,
    companions,
    compare_runs,
    completeness,
    faithfulness,
    from_roles,
    greedy_completeness,
    greedy_sets,
    keep,
    knock_out,
    minimality,
    random_subsets,
    score,
    score_without,
)
from mechinterp.heads import Head, all_heads
from mechinterp.models import organisms
from mechinterp.patching import mean_reference

N = 32


def make_setting(model: Any, batch_size: int = 512) -> Setting:
    data = organisms.ioi_prompts(N)
    means = mean_reference(model, data.abc(1).tokens, data.group)
    where = torch.arange(len(data))

    def metric(logits: Tensor) -> Tensor:
        return logits[where, data.io] - logits[where, data.s]

    return Setting(model, data.tokens, data.positions, data.positions["END"], metric, means, batch_size)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting(organisms.ioi_circuit().model)


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    roles: dict[str, list[Head]] = {}
    for head, role in organisms.ioi_circuit().roles.items():
        roles.setdefault(role, []).append(head)
    return from_roles(roles)


def slow_score(setting: Setting, circuit: Circuit | None, removed: list[Head]) -> Tensor:
    """F with one hook a layer, head by head and prompt by prompt."""
    model = setting.model

    def edit(z: Tensor, hook: Any) -> Tensor:
        layer, z = int(hook.name.split(".")[1]), z.clone()
        for head in range(model.cfg.n_heads):
            for p in range(len(z)):
                for pos in range(z.shape[1]):
                    node = circuit.nodes.get(Head(layer, head)) if circuit else None
                    stays = circuit is None or (
                        node is not None and any(setting.positions[name][p] == pos for name in node.positions)
                    )
                    if not stays or Head(layer, head) in removed:
                        z[p, pos, head] = setting.means.z[layer][p, pos, head]
        return z

    hooks = [(f"blocks.{i}.attn.hook_z", edit) for i in range(model.cfg.n_layers)]
    logits = model.run_with_hooks(setting.tokens, fwd_hooks=hooks)
    return setting.metric(logits[torch.arange(len(logits)), setting.at])


@pytest.mark.parametrize("removed", [[], [Head(3, 1)], [Head(3, 1), Head(3, 2), Head(0, 0)]])
def test_scores_equal_hooks(setting: Setting, circuit: Circuit, removed: list[Head]) -> None:
    torch.testing.assert_close(
        score(setting, circuit, removed), slow_score(setting, circuit, removed), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(score_without(setting, removed), slow_score(setting, None, removed), atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_random_parts_of_the_circuit_equal_hooks(setting: Setting, circuit: Circuit, seed: int) -> None:
    [removed] = random_subsets(circuit, 1, seed=seed)
    torch.testing.assert_close(
        score(setting, circuit, removed), slow_score(setting, circuit, removed), atol=1e-4, rtol=0
    )


def test_batch_size_does_not_matter(setting: Setting, circuit: Circuit) -> None:
    sets = random_subsets(circuit, 6)
    small = make_setting(setting.model, batch_size=5)
    for a, b in zip(completeness(setting, circuit, sets), completeness(small, circuit, sets), strict=True):
        assert a.circuit.value == pytest.approx(b.circuit.value, abs=1e-5)
        assert a.model.value == pytest.approx(b.model.value, abs=1e-5)


def test_the_known_circuit_is_faithful_complete_and_minimal(setting: Setting, circuit: Circuit) -> None:
    whole = faithfulness(setting, circuit)
    assert whole.recovered.value == pytest.approx(1, abs=0.02)
    assert whole.absolute.value < 0.02
    for result in completeness(setting, circuit, by_class(circuit) + random_subsets(circuit, 8)):
        assert result.incompleteness < 0.05 * whole.model.value, result.removed
    for head, result in minimality(setting, circuit, companions(circuit)).items():
        assert result.share > 0.05, head


def test_without_a_role_the_circuit_is_no_longer_complete(setting: Setting, circuit: Circuit) -> None:
    """Greedy search finds what a circuit without backups lacks: the name movers' removal."""
    part = circuit.without(circuit.heads("backup name mover"))
    movers = circuit.heads("name mover")
    [whole] = completeness(setting, circuit, [movers])
    [lacking] = completeness(setting, part, [movers])
    assert lacking.incompleteness > whole.incompleteness + 1
    worst = greedy_completeness(setting, part, runs=3, steps=3, worst=1)[0]
    assert worst.incompleteness >= lacking.incompleteness - 1e-4


def test_an_inert_head_is_not_minimal(setting: Setting, circuit: Circuit) -> None:
    inert = Head(1, 0)
    assert inert not in circuit.nodes
    larger = Circuit({**circuit.nodes, inert: Node("induction", ("S2",))})
    assert minimality(setting, larger)[inert].share < 0.01


def test_the_wrong_circuit_is_not_faithful(setting: Setting, circuit: Circuit) -> None:
    wrong = Circuit({h: Node("name mover", ("END",)) for h in all_heads(setting.model) if h not in circuit.nodes})
    assert abs(faithfulness(setting, wrong).recovered.value) < 0.05


def test_random_weights_have_no_circuit(circuit: Circuit) -> None:
    """The metric of a random model is about nothing, with every head or none."""
    setting = make_setting(organisms.control(organisms.ioi_circuit()).model)
    values = score_without(setting, [])
    assert values.mean().abs() < 4 * values.std() / N**0.5
    result = faithfulness(setting, circuit)
    low, high = result.difference.interval
    assert low < 0.5
    assert high > -0.5


def test_errors_of_opposite_sign_do_not_cancel(setting: Setting) -> None:
    """Two prompts, one too high by as much as the other is too low: F agrees, the mean absolute difference does not."""
    pair = dataclasses.replace(setting, clusters=None)
    model, alone = torch.tensor([4.0, 4.0, 4.0, 4.0]), torch.tensor([6.0, 2.0, 6.0, 2.0])
    result = compare_runs(pair, model, alone)
    assert (result.recovered.value, result.absolute.value) == (1.0, 0.5)


@pytest.mark.parametrize("position", [None, "END", "S2"])
def test_knock_outs_equal_hooks(setting: Setting, circuit: Circuit, position: str | None) -> None:
    sets = [[], [Head(3, 1)], circuit.heads("S-inhibition"), list(circuit)[:4]]
    ours = knock_out(setting, sets, position=position)
    for row, heads in zip(ours, sets, strict=True):

        def ablate(z: Tensor, hook: Any, heads: list[Head] = heads) -> Tensor:
            layer = int(hook.name.split(".")[1])
            for h in heads:
                if h.layer == layer and position is None:
                    z[:, :, h.head] = setting.means.z[layer][:, :, h.head]
                elif h.layer == layer:
                    where = torch.arange(N), setting.positions[position]
                    z[*where, h.head] = setting.means.z[layer][*where, h.head]
            return z

        with setting.model.hooks([(f"blocks.{i}.attn.hook_z", ablate) for i in range(setting.model.cfg.n_layers)]):
            logits = setting.model(setting.tokens)[torch.arange(N), setting.at]
        torch.testing.assert_close(row, setting.metric(logits), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="unknown position 'S3'"):
        knock_out(setting, sets, position="S3")


def test_keep_marks_named_positions_only(setting: Setting, circuit: Circuit) -> None:
    kept = keep(setting, circuit, [Head(3, 1)])
    for head in all_heads(setting.model):
        here = torch.zeros(setting.tokens.shape, dtype=torch.bool)
        if head in circuit.nodes and head != Head(3, 1):
            for name in circuit.nodes[head].positions:
                here[torch.arange(N), setting.positions[name]] = True
        assert torch.equal(kept[head], here)
    assert keep(setting, None).all()


def test_greedy_takes_the_best_candidate_at_every_step(setting: Setting, circuit: Circuit) -> None:
    [first] = greedy_sets(setting, circuit, runs=1, steps=1, candidates=len(circuit))
    base = score(setting, circuit).mean()
    effect = {h: (score(setting, circuit, [h]).mean() - base).abs().item() for h in circuit}
    assert effect[first[0]] == pytest.approx(max(effect.values()), abs=1e-5)


def test_greedy_sets_are_seeded_and_distinct(setting: Setting, circuit: Circuit) -> None:
    options = {"runs": 3, "steps": 3, "candidates": 2}
    sets = greedy_sets(setting, circuit, **options, seed=1)
    assert sets == greedy_sets(setting, circuit, **options, seed=1)
    assert all(set(a) != set(b) for a, b in combinations(sets, 2))


def test_random_subsets_take_each_head_half_of_the_time(circuit: Circuit) -> None:
    sets = random_subsets(circuit, 400)
    assert sets == random_subsets(circuit, 400)
    for head in circuit:
        assert 0.4 < sum(head in s for s in sets) / 400 < 0.6


def test_the_paper_s_circuit_as_the_sheet_counts_it() -> None:
    assert len(PAPER_CIRCUIT) == 26
    assert {role: len(PAPER_CIRCUIT.heads(role)) for role in PAPER_CIRCUIT.roles} == {
        "name mover": 3,
        "negative name mover": 2,
        "backup name mover": 8,
        "S-inhibition": 4,
        "induction": 4,
        "duplicate token": 3,
        "previous token": 2,
    }
    assert set(NAIVE_CIRCUIT) < set(PAPER_CIRCUIT)
    assert set(PAPER_COMPANIONS) < set(PAPER_CIRCUIT)
    beside = companions(PAPER_CIRCUIT)
    assert beside[Head(9, 9)] == []
    assert len(beside[Head(11, 2)]) == 3
    assert all(head not in others for head, others in beside.items())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Circuit({}), "needs at least one head"),
        (lambda: from_roles({}), "needs at least one head"),
        (lambda: Circuit({Head(0, 0): Node("name mover", ())}), "kept at no position"),
        (lambda: from_roles({"poet": [Head(0, 0)]}), "no positions for the role 'poet'"),
        (lambda: from_roles({"induction": [Head(0, 0)], "name mover": [Head(0, 0)]}), "two roles"),
        (lambda: PAPER_CIRCUIT.role(Head(0, 0)), "0.0 is not in this circuit"),
        (lambda: PAPER_CIRCUIT.without(PAPER_CIRCUIT), "needs at least one head"),
    ],
)
def test_circuits_that_make_no_sense(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_bad_input(setting: Setting, circuit: Circuit) -> None:
    with pytest.raises(ValueError, match=r"no head 12\.3"):
        score(setting, Circuit({Head(12, 3): Node("name mover", ("END",))}))
    with pytest.raises(ValueError, match=r"no head 12\.3"):
        score(setting, circuit, [Head(12, 3)])
    with pytest.raises(ValueError, match="unknown position 'S9'"):
        score(setting, Circuit({Head(0, 0): Node("name mover", ("S9",))}))
