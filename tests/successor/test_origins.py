"""Small models on different diets of questions: their rows are what they say, and the probe can fail and succeed."""

import json
from pathlib import Path

import pytest
import torch

from mechinterp.successor import origins
from mechinterp.successor.origins import DIETS, NUMBERS, VOCABULARY, Recipe, held_out, rows, units_probe

SHORT = Recipe(steps=3, n_embd=16)


def told(tokens: torch.Tensor) -> list[str]:
    return [VOCABULARY[i] for i in tokens.tolist()]


def test_rows_by_hand() -> None:
    prompts, answers, _ = rows("succession and units", 0)
    assert told(prompts[57]) == ["<bos>", "<next>", "57"]
    assert told(answers[[57, NUMBERS - 1]]) == ["58", "0"]
    assert told(prompts[NUMBERS + 57]) == ["<bos>", "<units>", "57"]
    assert told(answers[NUMBERS + 57][None]) == ["<units 7>"]
    prompts, answers, _ = rows("sums", 0)
    assert told(prompts[2 * NUMBERS + 195]) == ["<bos>", "<plus 3>", "195"]
    assert told(answers[[NUMBERS + 195, 2 * NUMBERS + 198]]) == ["197", "1"]
    _, answers, _ = rows("succession and tens", 0)
    assert told(answers[[NUMBERS + 9, NUMBERS + 130]]) == ["<tens 0>", "<tens 13>"]


@pytest.mark.parametrize("diet", DIETS)
def test_the_share_held_out_is_that_of_the_diet_and_the_same_in_all(diet: str) -> None:
    questions, share = DIETS[diet]
    _, _, hidden = rows(diet, 3)
    assert [int(part.sum()) for part in hidden.split(NUMBERS)] == [round(share * NUMBERS)] * len(questions)
    if share:
        assert torch.equal(hidden[:NUMBERS], held_out("next", 0.3, 3))
        assert not torch.equal(hidden[:NUMBERS], held_out("next", 0.3, 4))


def test_the_probe_reads_digits_that_are_there_and_none_that_are_not() -> None:
    number = torch.arange(NUMBERS)
    noise = torch.randn(NUMBERS, 32, generator=torch.Generator().manual_seed(0))
    digits = torch.nn.functional.one_hot(number % 10, 32) + 0.1 * noise
    line = (number / NUMBERS)[:, None] * torch.ones(32)
    assert units_probe(digits, 0)[0] > 0.95
    assert units_probe(digits, 0)[1].mean() < 0.25
    assert units_probe(noise, 0)[0] < 0.25
    assert units_probe(line, 0)[0] < 0.25, "size alone does not say the last digit"


def test_unknown_diets_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown diet 'meat'; one of succession, every pair"):
        rows("meat", 0)


def test_training_depends_on_the_seed_alone() -> None:
    first, again, other = (origins.train("sums", seed, SHORT) for seed in (0, 0, 1))
    assert torch.equal(first.W_E, again.W_E)
    assert not torch.equal(first.W_E, other.W_E)


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def train(diet: str, seed: int, recipe: Recipe, *, device: str) -> None:
        made.append((diet, seed))

    monkeypatch.setattr(origins, "train", train)
    monkeypatch.setattr(origins, "measure", lambda model, diet, seed: {"shown": 1.0, "held out": None, "probe": seed})
    monkeypatch.setattr(origins, "RESULTS", tmp_path / "origins.json")
    with pytest.raises(ValueError, match=r"is not there: run python -m mechinterp\.successor\.origins"):
        origins.measured()
    arguments = ["--out", str(tmp_path / "runs"), "--steps", "3", "--export"]
    origins.main(arguments)
    assert len(made) == len(DIETS) * len(origins.SEEDS)
    origins.main(arguments)
    assert len(made) == len(DIETS) * len(origins.SEEDS)
    found = origins.measured(Recipe(steps=3))
    assert [run["probe"] for run in found["sums"]] == list(origins.SEEDS)
    with pytest.raises(ValueError, match="made by another recipe"):
        origins.measured()
    with pytest.raises(ValueError, match="is of another recipe: give another folder"):
        origins.main([*arguments[:2], "--steps", "4"])
    assert json.loads((tmp_path / "origins.json").read_text())["recipe"]["steps"] == 3
