"""The trainer that stacks runs against a plain loop of one; resume, isolation, early stop; grokking itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechinterp.datasets.modular_addition import pairs, split
from mechinterp.grokking import Config, Run, Shape, State, initial, logits, train, unpack

SHAPE = Shape(p=7, d_model=12, n_heads=3, d_mlp=20)
RUNS = [Run(20, 0, 1.0), Run(11, 1, 0.3), Run(20, 2, 0.0), Run(30, 1, 1.0, random_labels=0.5)]


def plain_loop(run: Run, config: Config) -> tuple[list[float], torch.Tensor]:
    """AdamW with its own weight decay, cross-entropy in float64, one run: train losses before each step, weights."""
    flat = initial(config.shape, [run.seed]).requires_grad_(True)
    s = split(config.shape.p, run.size, seed=run.seed, random_labels=run.random_labels)
    a, b = pairs(config.shape.p)[s.train].T[:, None]
    opt = torch.optim.AdamW([flat], lr=config.lr, betas=config.betas, weight_decay=run.weight_decay)
    losses = []
    for step in range(config.epochs):
        opt.param_groups[0]["lr"] = config.lr * min(1.0, (step + 1) / config.warmup)
        with torch.enable_grad():
            values = logits(unpack(flat, config.shape), a, b)[0].double()
            loss = torch.nn.functional.cross_entropy(values, s.labels[s.train])
            losses.append(loss.item())
            loss.backward()
        opt.step()
        opt.zero_grad()
    return losses, flat.detach()[0]


def test_every_run_of_a_stack_follows_the_plain_loop() -> None:
    config = Config(epochs=200, shape=SHAPE, every=1, lr=3e-3)
    stacked = train(RUNS, config)
    for i, run in enumerate(RUNS):
        losses, weights = plain_loop(run, config)
        torch.testing.assert_close(
            stacked.history["train_loss"][:-1, i], torch.tensor(losses, dtype=torch.float64), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(stacked.state.weights[i], weights, atol=1e-3, rtol=1e-3)


def test_metrics_are_what_they_say() -> None:
    config = Config(epochs=40, shape=SHAPE, every=20)
    trained = train(RUNS, config)
    for i, run in enumerate(RUNS):
        s = split(7, run.size, seed=run.seed, random_labels=run.random_labels)
        a, b = pairs(7).T[:, None]
        values = logits(unpack(trained.state.weights[i : i + 1], SHAPE), a, b)[0].double()
        final = {name: trained.final(name)[i].item() for name in trained.history}
        for name, which in (("train", s.train), ("test", s.test)):
            loss = torch.nn.functional.cross_entropy(values[which], s.labels[which]).item()
            assert final[f"{name}_loss"] == pytest.approx(loss, rel=1e-5)
            hits = (values[which].argmax(-1) == s.labels[which]).double().mean().item()
            assert final[f"{name}_accuracy"] == pytest.approx(hits)
        assert final["norm"] == pytest.approx(trained.state.weights[i].pow(2).sum().sqrt().item(), rel=1e-5)
        centred = values - values.mean(-1, keepdim=True)
        right = centred[s.train, s.labels[s.train]].mean().item()
        assert final["train_logit"] == pytest.approx(right, rel=1e-4, abs=1e-6)


def test_company_and_stack_size_change_nothing() -> None:
    config = Config(epochs=60, shape=SHAPE, every=20)
    together = train(RUNS, config)
    for rows in (1, 25, 10_000):
        other = train(RUNS, config, rows=rows)
        torch.testing.assert_close(other.state.weights, together.state.weights, atol=1e-4, rtol=1e-3)
    alone = train(RUNS[1:2], config)
    torch.testing.assert_close(alone.state.weights[0], together.state.weights[1], atol=1e-4, rtol=1e-3)


def test_a_killed_sweep_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mechinterp.grokking.training as module

    clock = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))  # a checkpoint at every evaluation
    config = Config(epochs=60, shape=SHAPE, every=20)
    whole = train(RUNS, config)
    train(RUNS, config, folder=tmp_path, stop_at=40)
    resumed = train(RUNS, config, folder=tmp_path)
    assert torch.equal(resumed.state.weights, whole.state.weights)
    assert resumed.state.step == whole.state.step == 60
    for name, values in whole.history.items():
        assert torch.equal(resumed.history[name], values), name
    read = train(RUNS, config, folder=tmp_path)
    assert torch.equal(read.state.weights, whole.state.weights), "a finished sweep is read"


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    config = Config(epochs=20, shape=SHAPE, every=20)
    train(RUNS, config, folder=tmp_path)
    for runs, other in ((RUNS, replace(config, lr=2e-3)), ([replace(r, seed=9) for r in RUNS], config)):
        with pytest.raises(ValueError, match="another configuration"):
            train(runs, other, folder=tmp_path)


def test_a_diverging_run_harms_no_other() -> None:
    config = Config(epochs=60, shape=SHAPE, every=20)
    fresh = initial(SHAPE, [run.seed for run in RUNS])
    zero = torch.zeros_like(fresh)
    healthy = train(RUNS, config, start=State(fresh, zero, zero, 0))
    broken = fresh.clone()
    broken[2] *= 1e30
    found = train(RUNS, config, start=State(broken, zero, zero, 0))
    assert found.diverged == (None, None, 0, None)
    assert found.history["train_loss"][:, 2].isnan().all()
    for i in (0, 1, 3):
        torch.testing.assert_close(found.state.weights[i], healthy.state.weights[i], atol=1e-4, rtol=1e-3)
        assert not found.history["train_loss"][:, i].isnan().any()


def test_training_goes_on_from_a_state() -> None:
    config = Config(epochs=40, shape=SHAPE, every=20)
    whole = train(RUNS, config)
    first = train(RUNS, replace(config, epochs=20))
    second = train(RUNS, replace(config, epochs=20), start=first.state)
    torch.testing.assert_close(second.state.weights, whole.state.weights, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="start holds"):
        train(RUNS[:2], config, start=first.state)


def test_early_stop_ends_one_run_only() -> None:
    config = Config(epochs=400, shape=SHAPE, every=20, lr=3e-3, stop_accuracy=0.5, stop_after=40)
    trained = train([Run(44, 0, 1.0), Run(10, 1, 1.0, random_labels=1.0)], config)
    accuracy = trained.history["test_accuracy"]
    reached = int((accuracy[:, 0] >= 0.5).nonzero()[0])
    assert accuracy[: reached + 3, 0].isfinite().all()
    assert accuracy[reached + 3 :, 0].isnan().all()
    assert accuracy[:, 1].isfinite().all()


@pytest.mark.parametrize(
    ("runs", "p", "words"),
    [([], 7, "no runs"), ([Run(0)], 7, "size = 0"), ([Run(50)], 7, "49"), ([Run(5)], 8, "not prime")],
)
def test_bad_input(runs: list[Run], p: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train(runs, Config(epochs=10, shape=Shape(p, 12, 3, 20)))
    with pytest.raises(ValueError, match="not a multiple"):
        Shape(7, 10, 3, 20)


def test_a_small_network_groks_and_its_controls_do_not() -> None:
    """Test accuracy long after train accuracy; not without weight decay, not with random labels."""
    shape = Shape(p=29, d_model=48, n_heads=4, d_mlp=192)
    runs = [Run(500, 0), Run(500, 0, 0.0), Run(500, 0, random_labels=1.0)]
    trained = train(runs, Config(epochs=1500, shape=shape, every=100, lr=3e-3))
    train_accuracy, test_accuracy = trained.history["train_accuracy"], trained.history["test_accuracy"]
    known = (train_accuracy[:, 0] > 0.99).nonzero()[0].item()
    understood = (test_accuracy[:, 0] > 0.95).nonzero()[:, 0]
    assert len(understood) > 0
    assert understood[0].item() >= 3 * known
    assert test_accuracy[:, 1].max() < 0.8
    assert test_accuracy[:, 2].max() < 0.1
