"""Broken pairs: against a loop, on the induction organism, and on its control."""

from typing import Any

import pytest
import torch

from mechinterp.attention import broken_pairs, patterns
from mechinterp.datasets.repeats import behind_pairs, passage_twice
from mechinterp.heads import Head
from mechinterp.models import organisms

WORDS = torch.arange(3, 32)


def test_an_induction_head_that_wants_one_token_notices_nothing() -> None:
    model = organisms.induction().model
    data = passage_twice(WORDS, 4, 30, length=16, bos=0, seed=0)
    before, after = broken_pairs(model, data.tokens, Head(1, 0), behind_pairs(data.tokens), WORDS)
    assert len(before) == 30
    assert (before > 0.9).all()
    # A word that is drawn anew may be the present one and call the head away.
    assert (after > 0.9).float().mean() > 0.8
    assert after.median().item() == pytest.approx(before.median().item(), abs=0.01)


def test_a_head_without_induction_has_no_such_place() -> None:
    organism = organisms.induction()
    data = passage_twice(WORDS, 4, 30, length=16, bos=0, seed=0)
    for model, head in ((organisms.control(organism).model, Head(1, 0)), (organism.model, Head(1, 1))):
        with pytest.raises(ValueError, match="never attends"):
            broken_pairs(model, data.tokens, head, behind_pairs(data.tokens), WORDS, least=0.5)


@pytest.mark.parametrize("batch_size", [64, 3])
def test_places_are_those_of_a_loop(tiny: Any, batch_size: int) -> None:
    tokens = torch.randint(5, 9, (7, 20), generator=torch.Generator().manual_seed(2))
    head, least, only = Head(2, 1), 0.06, torch.tensor([4000])
    before, after = broken_pairs(tiny, tokens, head, behind_pairs(tokens), only, least=least, batch_size=batch_size)
    expected = []
    for row in tokens:
        pattern = patterns(tiny, row[None], [head])[0, 0]
        places = [
            (q, k)
            for q in range(2, 20)
            for k in range(3, q + 1)
            if row[k - 1] == row[q] and row[k - 2] == row[q - 1] and pattern[q, k] > least
        ]
        if places:
            q, k = places[0]
            other = row.clone()
            other[k - 2] = 4000
            expected.append((pattern[q, k].item(), patterns(tiny, other[None], [head])[0, 0, q, k].item()))
    assert 2 < len(expected) <= 7
    torch.testing.assert_close(torch.stack([before, after], 1), torch.tensor(expected), atol=1e-5, rtol=0)


def test_keys_of_other_tokens(tiny: Any) -> None:
    tokens = torch.randint(5, 9, (2, 12))
    with pytest.raises(ValueError, match="prompt query key"):
        broken_pairs(tiny, tokens, Head(0, 0), behind_pairs(tokens[:, 1:]), WORDS)
    with pytest.raises(ValueError, match="head"):
        broken_pairs(tiny, tokens, Head(9, 0), behind_pairs(tokens), WORDS)
