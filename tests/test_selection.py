"""Selection: strong effects are found again and again, noise never, and estimates come from the other half."""

import numpy as np
import pytest
import torch

from mechinterp import Head
from mechinterp.selection import matched, select


def effects(strength: list[float], noise: float = 0.02, samples: int = 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array(strength)[:, None] + noise * rng.normal(size=(len(strength), samples))


def test_strong_effects_of_either_sign_are_found_largest_first() -> None:
    names = [Head(0, i) for i in range(5)]
    found = select(effects([0.0, 0.1, -0.3, 0.001, 0.03]), names, least=0.02, unit="prompts")
    assert found.members == (Head(0, 2), Head(0, 1), Head(0, 4))
    assert found.estimates[Head(0, 2)].value == pytest.approx(-0.3, abs=0.02)
    assert found.estimates[Head(0, 2)].n == 30
    assert found.recurs(lambda names: {"0.2", "0.1"} <= set(names)) == 1
    assert select(effects([0.1, -0.3]), ["a", "b"], least=0.02, unit="prompts", sign=-1).members == ("b",)
    assert select(effects([0.1, -0.3]), ["a", "b"], least=0.02, unit="prompts", most=1).members == ("b",)


def test_many_null_effects_give_a_member_in_hardly_any_run() -> None:
    """One in twenty at most: the correction is for all 200 items at once. The largest of them is often above 2 %."""
    some = sum(
        len(select(effects([0.0] * 200, 0.05, 40, seed), range(200), least=0.01, unit="prompts", splits=1)) > 0
        for seed in range(60)
    )
    assert some <= 9  # 3 expected, four standard errors


def test_estimates_are_not_those_of_the_selecting_half() -> None:
    """Chosen for being largest, an effect is smaller on fresh samples."""
    first, second = [], []
    for seed in range(40):
        x = effects([0.1] * 50, 0.3, 80, seed)
        found = select(x, range(50), least=0.02, unit="prompts", most=1, level=1.1, splits=1, seed=seed)
        best = found.members[0]
        second.append(found.estimates[best].value)
        first.append(2 * x[best].mean() - second[-1])
    assert np.mean(first) > 0.16
    assert np.mean(second) == pytest.approx(0.1, abs=0.03)


def test_halves_hold_every_cluster_and_clusters_are_the_units() -> None:
    clusters = torch.arange(60) % 6
    found = select(effects([0.2, 0.0]), ["a", "b"], least=0.02, unit="templates", clusters=clusters)
    assert found.estimates["a"].n == 6
    offset = np.where(clusters.numpy() == 0, 1.2, 0.0)[None] + effects([0.0])
    assert len(select(offset, ["a"], least=0.02, unit="templates", clusters=clusters)) == 0, "one template's affair"


def test_a_second_rule_and_bad_input() -> None:
    found = select(effects([0.1, -0.3]), ["a", "b"], least=0.02, unit="prompts").only(lambda name: name == "a")
    assert (found.members, set(found.estimates), found.splits[0]) == (("a",), {"a"}, frozenset("a"))
    with pytest.raises(ValueError, match=r"\[item sample\] for 3 names"):
        select(effects([0.1, 0.2]), range(3), least=0.02, unit="prompts")
    with pytest.raises(ValueError, match="both halves need one"):
        select(effects([0.1], samples=3), ["a"], least=0.02, unit="prompts", clusters=[0, 0, 1])
    with pytest.raises(ValueError, match="NaN"):
        select([[np.nan, 1.0]], ["a"], least=0.02, unit="prompts")


def test_matched_sets_have_as_many_other_heads_of_each_layer() -> None:
    heads = [Head(2, 0), Head(2, 3), Head(4, 1)]
    sets = matched(heads, 6, 200, exclude=[Head(4, 5)])
    for drawn in sets:
        assert sorted(h.layer for h in drawn) == [2, 2, 4]
        assert len(set(drawn)) == 3
        assert not set(drawn) & {*heads, Head(4, 5)}
    assert {h for drawn in sets for h in drawn} == {Head(2, i) for i in (1, 2, 4, 5)} | {
        Head(4, i) for i in (0, 2, 3, 4)
    }
    with pytest.raises(ValueError, match="layer 2 has 1 other heads, 2 are needed"):
        matched(heads, 2)
    with pytest.raises(ValueError, match="nothing to match"):
        matched([], 6)
