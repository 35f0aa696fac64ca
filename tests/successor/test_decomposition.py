"""Index and domain: on sums whose parts are known, and on vectors that are no sums."""

import pytest
import torch

from mechinterp.successor import train_projections

VALUES = torch.arange(1, 9).repeat(3)
NAMES = [t for t in ("days", "months", "letters") for _ in range(8)]


def sums(seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    index, domain = torch.randn(8, 40, generator=g), torch.randn(3, 40, generator=g)
    return (index[:, None] + domain).transpose(0, 1).reshape(24, 40)


def test_parts_of_a_sum_are_told_apart() -> None:
    """A held-out word is made from two others: nobody has seen it."""
    x = sums(0)
    held_out = torch.zeros(24, dtype=torch.bool)
    held_out[9] = held_out[20] = True
    found = train_projections(x, VALUES, NAMES, held_out, ridge=1e-6)
    for target, value_of, task_of in ((9, 1, 12), (20, 4, 22)):
        torch.testing.assert_close(found.combine(x[value_of], x[task_of]), x[target], atol=0.02, rtol=0)


def test_words_that_are_no_sums_cannot_be_made() -> None:
    """Null control: of independent vectors nothing is shared between tasks."""
    x = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    held_out = torch.zeros(24, dtype=torch.bool)
    held_out[9] = True
    made = train_projections(x, VALUES, NAMES, held_out).combine(x[1], x[12])
    assert torch.cosine_similarity(made, x[9], dim=0) < 0.5


def test_too_little_to_combine() -> None:
    with pytest.raises(ValueError, match="two tasks"):
        train_projections(sums(0)[:8], VALUES[:8], NAMES[:8])
