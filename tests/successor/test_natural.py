"""Winning cases against one ablation at a time; categories by example; the additive decomposition on known sums."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp.datasets import text
from mechinterp.datasets.ordinals import TASKS
from mechinterp.heads import Head, all_heads
from mechinterp.models import organisms
from mechinterp.successor import (
    CATEGORIES,
    category,
    class_of,
    decompose,
    direct_effects,
    representations,
    winning_cases,
)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 8192, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [1, 2, 10])
def test_effects_are_those_of_ablating_each_head(tiny: Any, tokens: Tensor, block: int) -> None:
    winning = direct_effects(tiny, tokens, block=block)
    _, cache = tiny.run_with_cache(tokens)
    end = cache["blocks.2.hook_resid_post"]
    scale = ((end - end.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + tiny.cfg.eps).sqrt()
    for i, (layer, h) in enumerate(all_heads(tiny)):
        z = cache[f"blocks.{layer}.attn.hook_z"][:, :, h]
        mean = z[:, :-1].mean((0, 1))
        change = (z - mean) @ tiny.W_O[layer, h]
        logits = ((change - change.mean(-1, keepdim=True)) / scale) @ tiny.W_U
        right = logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        torch.testing.assert_close(winning.effect[..., i], right, atol=1e-4, rtol=1e-3)
    assert torch.equal(winning.winner, winning.effect.argmax(-1))


@pytest.mark.parametrize(
    ("attended", "predicted", "kind"),
    [
        (" Monday", " Tuesday", "succession"),
        (" Sunday", " Monday", "succession"),
        (" 41", " 42", "succession"),
        (" 9", " 30", "greater-than"),
        (" 30", " 9", "other"),
        (" IV", " V", "succession"),
        (" The", " the", "copying"),
        (" Central", " C", "acronym"),
        (" Central", " India", "other"),
        (",", " 2", "other"),
        ("", "", "other"),
    ],
)
def test_categories(attended: str, predicted: str, kind: str) -> None:
    assert category(attended, predicted) == kind


def test_the_organism_wins_where_its_number_is_followed_by_the_next() -> None:
    organism = organisms.successor()
    counting = torch.tensor([[0, *range(5, 25)], [0, *range(20, 40)]])
    winning = direct_effects(organism.model, counting)
    [head] = organism.heads("successor")
    assert winning.cases(head)[:, 1:].all()
    shares = winning_cases(organism.model, counting, head, winning)
    assert shares.share["succession"].value > 0.9
    assert sum(share.value for share in shares.share.values()) == pytest.approx(1)
    assert set(shares.share) == set(CATEGORIES)
    inert = Head(0, 0)
    if not direct_effects(organism.model, counting).cases(inert).any():
        with pytest.raises(ValueError, match=r"0\.0 wins nowhere"):
            winning_cases(organism.model, counting, inert)


def test_random_weights_have_no_winner_that_succeeds(tiny: Any) -> None:
    tokens = torch.randint(1, 8192, (6, 40), generator=torch.Generator().manual_seed(1))
    winning = direct_effects(tiny, tokens)
    shares = torch.bincount(winning.winner.flatten(), minlength=12) / winning.winner.numel()
    assert shares.max() < 0.35
    best = Head(*divmod(int(shares.argmax()), 4))
    assert winning_cases(tiny, tokens, best, winning).share["succession"].value < 0.05


def test_a_sum_of_parts_is_decomposed_and_held_out_words_are_synthesised() -> None:
    g = torch.Generator().manual_seed(0)
    index, domain = torch.randn(10, 32, generator=g), torch.randn(3, 32, generator=g)
    names = [f"task {t}" for t in range(3) for _ in range(10)]
    values = torch.arange(1, 11).repeat(3)
    x = (domain[:, None] + index).flatten(0, 1)
    held_out = torch.zeros(30, dtype=torch.bool)
    held_out[[4, 17, 22]] = True
    parts = decompose(x, values, names, held_out, ridge=1e-6)
    assert parts.explained == pytest.approx(1, abs=1e-3)
    for i in held_out.nonzero()[:, 0].tolist():
        torch.testing.assert_close(parts.synthesise(int(values[i]), names[i]), x[i], atol=1e-2, rtol=0)
    noise = decompose(torch.randn(30, 32, generator=g), values, names, ridge=1e-6)
    assert noise.explained < 0.6, "thirty words and ten values fit some noise"
    with pytest.raises(ValueError, match="was not among the fitted words"):
        parts.synthesise(99, "task 0")
    with pytest.raises(ValueError, match="every word is held out"):
        decompose(x, values, names, torch.ones(30, dtype=torch.bool))


def test_the_organism_s_tens_and_units_are_an_index_without_a_domain() -> None:
    organism = organisms.successor()
    words = class_of(organism.model.tokenizer, TASKS["numbers"])
    x = representations(organism.model, words.ids)
    units = decompose(x, (words.place + 1) % 10, [str(v // 10) for v in (words.place + 1).tolist()])
    assert units.explained > 0.99


def test_generated_rows_are_seeded_and_full(tokenizer: Any) -> None:
    rows = text.generated_rows(tokenizer, 3, 50, seed=2)
    assert rows.shape == (3, 50)
    assert torch.equal(rows, text.generated_rows(tokenizer, 3, 50, seed=2))
    assert not torch.equal(rows, text.generated_rows(tokenizer, 3, 50, seed=3))
    assert (rows[:, 0] == tokenizer.bos_token_id).all()


def test_bad_input(tiny: Any, unchecked: None) -> None:
    with pytest.raises(ValueError, match="at least two tokens"):
        direct_effects(tiny, torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"no head 12\.3"):
        winning_cases(tiny, torch.zeros(2, 4, dtype=torch.long), Head(12, 3))
