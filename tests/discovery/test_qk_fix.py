"""One score of a softmax at a time, against the definition: every new softmax written out."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mechinterp.discovery.qk_fix import rescored


def slowly(scores, new, values):
    """A softmax for each key, in double precision."""
    scores, new, values = scores.double(), new.double(), values.double()
    before = (scores.softmax(-1) * values).sum(-1)
    found = []
    for key in range(scores.shape[-1]):
        changed = scores.clone()
        changed[..., key] = new[..., key]
        found.append((changed.softmax(-1) * values).sum(-1) - before)
    return torch.stack(found, -1)


@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.1, 3.0, 30.0, 1000.0]), keys=st.integers(1, 7))
def test_closed_form_is_the_definition(seed, size, keys):
    """Rows that see one key, two, … all, with scores so far apart that weights round to 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    scores, new, values = (x * torch.randn(4, keys, keys, generator=generator) for x in (size, size, 1.0))
    unseen = torch.ones(keys, keys, dtype=torch.bool).triu(1)
    scores, new = scores.masked_fill(unseen, -torch.inf), new.masked_fill(unseen, -torch.inf)
    ours = rescored(scores, new)(values)
    assert torch.isfinite(ours).all()
    theirs = slowly(scores.masked_fill(unseen, -1e9), new.masked_fill(unseen, -1e9), values)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-4)
    assert ours[:, 0].abs().max() < 1e-6, "what is seen alone is seen whatever its score"


def test_a_weight_that_rounds_to_one_is_moved_in_full():
    """1 − p is e^−40 and not 0: a score that falls by 80 takes all of the weight, one that falls by 40 half of it."""
    scores = torch.tensor([40.0, 0.0, -torch.inf])
    assert scores.softmax(-1)[0] == 1
    values = torch.tensor([1.0, 0.0, 5.0])
    for fall, expected in ((80.0, -1.0), (40.0, -0.5)):
        change = rescored(scores, scores - torch.tensor([fall, 0.0, 0.0]))(values)
        torch.testing.assert_close(change, torch.tensor([expected, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_small_changes_of_a_weight_that_rounds_to_one_are_not_lost():
    scores, values = torch.tensor([20.0, 0.0]), torch.tensor([1.0, 0.0])
    change = rescored(scores, torch.tensor([19.0, 0.0]))(values)[0]
    torch.testing.assert_close(change, torch.tensor(math.exp(-20) - math.exp(-19)), atol=0, rtol=1e-4)


def test_many_values_at_once():
    generator = torch.Generator().manual_seed(0)
    scores, new = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator)
    values = torch.randn(3, 2, 5, generator=generator)
    together = rescored(scores, new)(values)
    for one, many in zip(values, together, strict=True):
        torch.testing.assert_close(rescored(scores, new)(one), many)
