"""The card's measurements: right on models whose behaviour is known, at chance on random weights."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechinterp.datasets.ioi import NAMES, single_token
from mechinterp.datasets.ordinals import TASKS
from mechinterp.lab import behaviours
from mechinterp.models import organisms


def test_random_weights_can_do_nothing(tiny: Any) -> None:
    can = behaviours.indirect_objects(tiny, n=64)
    assert 0.2 < can["accuracy"] < 0.8
    assert can["io_prob"] < 0.01
    repeats = behaviours.induction(tiny, n=4, length=20)
    assert repeats["accuracy"] < 0.1
    assert repeats["loss_second"] > 7
    assert behaviours.succession(tiny, "adjacent")["all"] < 0.1


def test_induction_is_found_where_it_is_wired_in() -> None:
    measured = behaviours.induction(organisms.induction().model, n=16, length=6)
    assert measured["accuracy"] > 0.7, "repeats by chance inside the block are the only misses"
    assert measured["loss_second"] < measured["loss_first"]
    assert behaviours.induction(organisms.control(organisms.induction()).model, n=16, length=6)["accuracy"] < 0.4


def test_succession_prompts_end_before_the_answer() -> None:
    for kind in ("adjacent", "fetched"):
        prompts = behaviours.succession_prompts(kind)
        assert {answer.strip() for _, answer in prompts} <= {w for task in TASKS.values() for w in task.words}
        assert len({prompt for prompt, _ in prompts}) == len(prompts)
    assert (" Monday Tuesday Wednesday", " Thursday") in behaviours.succession_prompts("adjacent")
    assert all(prompt.endswith(" Step") for prompt, _ in behaviours.succession_prompts("fetched"))
    with pytest.raises(ValueError, match="kind must be adjacent or fetched, not 'far'"):
        behaviours.succession_prompts("far")


class Copier:
    """A stand-in that puts all its probability on names, with a given preference for the names in the row."""

    def __init__(self, tokenizer: Any, preference: float) -> None:
        self.tokenizer = tokenizer
        self.cfg = SimpleNamespace(device="cpu", n_ctx=256)
        self.names = torch.tensor([single_token(tokenizer, name) for name in NAMES])
        self.newline = tokenizer.encode("\n", add_special_tokens=False)[0]
        self.preference = preference

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.full((*tokens.shape, 8192), -30.0)
        logits[..., self.names] = 0.0
        for row, out in zip(tokens, logits, strict=True):
            start = int((row == self.newline).nonzero().max())
            listed = [t for t in row[start:].tolist() if t in set(self.names.tolist())]
            out[-1, listed] = self.preference
        return logits


@pytest.mark.parametrize(("preference", "low", "high"), [(0.0, 0.49, 0.51), (-10.0, 0.0, 0.01), (10.0, 0.99, 1.0)])
def test_share_of_probability_on_listed_names(tokenizer: Any, preference: float, low: float, high: float) -> None:
    model = Copier(tokenizer, preference)
    assert low <= behaviours.no_repetition(model, n=8)["repeated"] <= high


def test_text_loss_of_a_blind_model_is_log_vocabulary(tokenizer: Any) -> None:
    class Blind(Copier):
        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*tokens.shape, 8192)

    measured = behaviours.text_loss(Blind(tokenizer, 0.0), np.arange(1, 4000, dtype=np.uint16), windows=4)
    assert measured["loss"] == pytest.approx(np.log(8192), abs=1e-4)
    assert measured["standard_error"] == pytest.approx(0, abs=1e-5)
