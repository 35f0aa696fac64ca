"""Sweeps: their committed results are those of the committed command; their tables are what they say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechinterp.grokking import Config, Shape, sweeps, train
from mechinterp.grokking.training import Run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A plan that takes a second."""
    plan = replace(
        sweeps.PLANS["lab"],
        shape=Shape(p=7, d_model=12, n_heads=3, d_mlp=20),
        size=20,
        decay=2.0,
        decays=(1.0, 2.0),
        seeds=(0, 1),
        main_epochs=100,
        grokked_size=24,
        grokked_epochs=100,
        smaller=(8, 16),
        ungrokking_epochs=100,
        undecayed_sizes=(8,),
    )
    monkeypatch.setitem(sweeps.PLANS, "lab", plan)
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path / "results")
    return tmp_path


def test_ungrokking_goes_on_from_the_network_of_the_same_seed_and_decay(small: Path) -> None:
    grokked = sweeps.run_sweep("grokked", "lab", small)
    found = sweeps.run_sweep("ungrokking", "lab", small)
    assert found.state.step == 200
    for i, run in enumerate(found.runs):
        [j] = [j for j, g in enumerate(grokked.runs) if (g.seed, g.weight_decay) == (run.seed, run.weight_decay)]
        first = found.history["norm"][0, i]
        torch.testing.assert_close(first, grokked.final("norm")[j])


def test_export_and_read_back(small: Path) -> None:
    with pytest.raises(ValueError, match="has not been run"):
        sweeps.measured("ungrokking", "lab")
    sweeps.main(["lab", "--out", str(small), "--only", "grokked", "ungrokking", "--device", "cpu", "--export"])
    found = sweeps.measured("ungrokking", "lab")
    sizes, accuracy = found.table("test_accuracy", weight_decay=2.0)
    assert sizes == [8, 16]
    assert accuracy.shape == (2, 2)
    with pytest.raises(ValueError, match="do not fill"):
        found.table("test_accuracy")
    trained = sweeps.run_sweep("ungrokking", "lab", small)
    for run, measured in zip(trained.runs, found.runs, strict=True):
        assert (run.size, run.seed, run.weight_decay) == (measured["size"], measured["seed"], measured["weight_decay"])
    norms = torch.tensor([r["norm"] for r in found.runs], dtype=torch.float64)
    torch.testing.assert_close(norms, trained.final("norm"), rtol=1e-3, atol=0)


def test_networks_without_weight_decay_go_on_from_those_of_the_plan_s(small: Path) -> None:
    plan = sweeps.PLANS["lab"]
    found = sweeps.run_sweep("undecayed", "lab", small, seeds=[1])
    [run] = found.runs
    assert (run.seed, run.size, run.weight_decay) == (1, 8, 0.0)
    grokked = sweeps.run_sweep("grokked", "lab", small)
    [j] = [j for j, g in enumerate(grokked.runs) if (g.seed, g.weight_decay) == (1, plan.decay)]
    torch.testing.assert_close(found.history["norm"][0, 0], grokked.final("norm")[j])
    with pytest.raises(ValueError, match="has the seeds"):
        sweeps.run_sweep("grokked", "lab", small, seeds=[7])


def test_one_more_seed_is_added_to_the_file(small: Path) -> None:
    names = ["lab", "--out", str(small), "--only", "mainline", "--device", "cpu", "--export", "--seeds"]
    assert sweeps.made("lab") == []
    sweeps.main([*names, "1"])
    first = sweeps.measured("mainline", "lab")
    sweeps.main([*names, "0"])
    assert sweeps.made("lab") == ["mainline"]
    both = sweeps.measured("mainline", "lab")
    assert [run["seed"] for run in both.runs] == [0, 1]
    assert both.runs[1] == first.runs[0]


def test_settled_runs_have_lost_the_norm_of_memorising() -> None:
    config = {"epochs": 1000, "lr": 1e-3, "stop_accuracy": None, "stop_after": 0}
    runs = [{"grok": grok, "weight_decay": decay} for grok in (100, 700, None) for decay in (2.0, 1.0, 0.0)]
    found = sweeps.Measured(config, [], runs).settled()
    assert found == [{"grok": 100, "weight_decay": 2.0}]
    stopping = sweeps.Measured(config | {"stop_accuracy": 0.99, "stop_after": 400}, [], runs)
    assert stopping.settled() == []


def test_summary_of_a_run_that_diverged() -> None:
    config = Config(epochs=20, shape=Shape(p=7, d_model=12, n_heads=3, d_mlp=20), every=20, lr=1e20)
    [run] = sweeps.summary(train([Run(20)], config), config)["runs"]
    assert run["diverged"] == 20
    json.dumps(run, allow_nan=False)


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_committed_sweeps_have_the_settings_of_the_code(scale: str) -> None:
    path = sweeps.RESULTS / f"{scale}.json"
    if not path.exists():
        pytest.skip(f"no sweep has been run at {scale} scale")
    for name in json.loads(path.read_text()):
        runs, config = sweeps.sweep(name, scale)
        found = sweeps.measured(name, scale)
        assert json.loads(json.dumps(sweeps.asdict(config))) == found.config, name
        settings = [(r["size"], r["seed"], r["weight_decay"], r["random_labels"]) for r in found.runs]
        assert settings == [(r.size, r.seed, r.weight_decay, r.random_labels) for r in runs], name


def test_a_committed_run_can_be_made_again() -> None:
    """The first hundred epochs of the lab's main runs; rounding differs between machines, and grows later."""
    runs, config = sweeps.sweep("mainline", "lab")
    again = train(runs, replace(config, epochs=100))
    found = sweeps.measured("mainline", "lab")
    for i, run in enumerate(found.runs):
        at = found.epochs.index(0)
        assert run["curve"]["test_accuracy"][at] == pytest.approx(again.history["test_accuracy"][0, i].item(), rel=1e-3)
        assert run["curve"]["test_loss"][at] == pytest.approx(again.history["test_loss"][0, i].item(), rel=1e-3)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="no sweep 'nothing'"):
        sweeps.sweep("nothing", "lab")
