"""Modular addition: every split against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechinterp.datasets.modular_addition import is_prime, pairs, split


@given(st.sampled_from([2, 3, 5, 7, 11]), st.data())
def test_a_split_divides_all_pairs_and_labels_are_sums(p: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, p**2))
    s = split(p, size, seed=data.draw(st.integers(0, 5)))
    assert sorted([*s.train.tolist(), *s.test.tolist()]) == list(range(p**2))
    assert len(s.train) == size
    for i, (a, b) in enumerate(pairs(p).tolist()):
        assert (i, s.labels[i].item()) == (a * p + b, (a + b) % p)


def test_random_labels_are_uniform_and_only_in_training() -> None:
    s, clean = split(53, 2000, seed=3, random_labels=0.5), split(53, 2000, seed=3)
    assert (s.train == clean.train).all(), "the pairs do not depend on the labels"
    changed = s.labels != clean.labels
    assert not changed[s.test].any()
    assert changed[s.train[:1000]].float().mean().item() == pytest.approx(52 / 53, abs=0.02)
    assert not changed[s.train[1000:]].any(), "the corrupted ones come first"
    wrong = split(53, 2809, random_labels=1.0).labels
    assert torch.bincount(wrong, minlength=53).float().std() < 3 * 53**0.5


def test_smaller_sets_lie_in_larger_ones() -> None:
    small, large = split(11, 40, seed=2), split(11, 80, seed=2)
    assert (large.train[:40] == small.train).all()
    assert not torch.equal(small.train, split(11, 40, seed=3).train)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((9, 5, 0.0), "9 is not prime"), ((7, 0, 0.0), "size = 0"), ((7, 50, 0.0), "49"), ((7, 5, 1.5), "fraction")],
)
def test_bad_input(arguments: tuple[int, int, float], words: str) -> None:
    p, size, random_labels = arguments
    with pytest.raises(ValueError, match=words):
        split(p, size, random_labels=random_labels)


def test_primes() -> None:
    assert [n for n in range(60) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59]
