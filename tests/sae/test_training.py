"""Training: it learns, stacks change nothing, a killed run goes on, and a bad one harms nobody."""

import errno
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp.sae import SAE, initial
from mechinterp.sae.kinds import cells
from mechinterp.sae.metrics import reconstruction
from mechinterp.sae.settings import Config, Spec
from mechinterp.sae.store import Given
from mechinterp.sae.study.synthetic import recovery, sample, truth
from mechinterp.sae.training import train

TRUTH = truth(32, 24, active=2.0, seed=0)
CONFIG = Config(
    600, lr_warmup=30, sparsity_warmup=120, cooldown=0.2, bandwidth=0.03, threshold_rate=5.0, dead_after=20_000
)
SPARSITY = {"standard": 0.35, "gated": 0.45, "jumprelu": 0.03, "topk": 2, "batchtopk": 2}


@pytest.fixture(scope="module")
def data() -> Given:
    return Given({"here": 7 * sample(TRUTH, 20_000, seed=1)[0]}, batch=256)


def close(one: SAE, other: SAE, atol: float = 1e-6) -> None:
    for name in one.params:
        torch.testing.assert_close(one.params[name], other.params[name], atol=atol, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", SPARSITY)
def test_known_features_are_found(data: Given, kind: Any) -> None:
    result = train([Spec(kind, "here", 40, SPARSITY[kind], lr=5e-3)], data, CONFIG)
    [sae] = result.saes
    held_out = 7 * sample(TRUTH, 4000, seed=2)[0]
    found = reconstruction(sae, held_out)
    assert found.fvu < 0.25
    assert found.l0 < 6
    assert recovery(sae.W_dec, TRUTH.directions).by_feature.mean() > 0.85
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40), atol=1e-5, rtol=0)
    assert result.history["fvu"][-1, 0] == pytest.approx(found.fvu, abs=0.05)


def test_noise_has_no_features() -> None:
    noise = torch.randn(20_000, 24, generator=torch.Generator().manual_seed(0))
    [sae] = train([Spec("topk", "here", 64, 2, lr=5e-3)], Given({"here": noise}, batch=256), CONFIG).saes
    assert reconstruction(sae, noise[:4000]).fvu > 0.6
    assert recovery(sae.W_dec, TRUTH.directions).by_feature.mean() < 0.75


def test_a_stack_gives_what_its_members_give_alone(data: Given) -> None:
    config = replace(CONFIG, steps=40, resample_every=10, dead_after=500)
    specs = [Spec(kind, "here", 32, SPARSITY[kind] * (1 if "topk" in kind else f), s) for kind in SPARSITY
             for f, s in ((1, 0), (2, 1))]  # fmt: skip
    together = train(specs, data, config, stack=8, precision="highest")
    for spec, sae in zip(specs, together.saes, strict=True):
        [alone] = train([spec], data, config, precision="highest").saes
        close(alone, sae, atol=2e-5)


@pytest.mark.parametrize(("kind", "variant"), [*((kind, "") for kind in SPARSITY), ("gated", "no r_mag")])
def test_a_killed_run_goes_on_to_the_same_numbers(data: Given, kind: Any, variant: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30, log_every=5, dead_after=600, resample_every=8)
    specs = [Spec(kind, "here", 32, SPARSITY[kind], variant=variant)]
    whole = train(specs, data, config)
    train(specs, data, config, folder=tmp_path, save_every=0, stop_at=17)
    resumed = train(specs, data, config, folder=tmp_path, save_every=0)
    close(whole.saes[0], resumed.saes[0], atol=0)
    assert whole.steps == resumed.steps
    torch.testing.assert_close(whole.history["l0"], resumed.history["l0"], atol=0, rtol=0)
    again = train(specs, data, config, folder=tmp_path)  # finished: read, not trained
    close(whole.saes[0], again.saes[0], atol=0)
    with pytest.raises(ValueError, match="holds another run"):
        train(specs, data, replace(config, steps=31), folder=tmp_path)


def test_a_truncated_checkpoint_is_named(data: Given, tmp_path: Path) -> None:
    specs, config = [Spec("standard", "here", 32, 0.1)], replace(CONFIG, steps=5, log_every=5)
    train(specs, data, config, folder=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        train(specs, data, config, folder=tmp_path)


def test_a_full_disk_keeps_the_last_checkpoint(data: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs, config = [Spec("standard", "here", 32, 0.1)], replace(CONFIG, steps=20, log_every=5)
    whole = train(specs, data, config)
    train(specs, data, config, folder=tmp_path, save_every=0, stop_at=10)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(specs, data, config, folder=tmp_path, save_every=0)
    close(train(specs, data, config, folder=tmp_path).saes[0], whole.saes[0], atol=0)


def test_a_run_that_diverges_is_reported_and_harms_no_other(data: Given) -> None:
    good, config = Spec("standard", "here", 32, 0.1), replace(CONFIG, steps=40)
    with pytest.warns(UserWarning, match=r"1 SAE\(s\) diverged.*lr=1e\+30"):
        both = train([good, replace(good, lr=1e30)], data, config)
    close(train([good], data, config).saes[0], both.saes[0], atol=0)


def test_resampling_brings_dead_latents_back() -> None:
    few = Given({"here": sample(TRUTH, 5000, seed=1)[0] + 1.5}, batch=250)  # a far mean kills latents at the start
    config = Config(240, lr_warmup=10, sparsity_warmup=0, dead_after=2000)
    specs = [Spec("standard", "here", 64, 0.2, seed, lr=5e-3) for seed in range(4)]
    without = train(specs, few, config).history["dead"][-1].mean()
    revived = train(specs, few, replace(config, resample_every=40)).history["dead"][-1].mean()
    assert without > 0.2
    assert revived < without / 2


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk", "batchtopk"])
def test_a_list_of_cells_trains_the_same_sae(data: Given, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    level = {"standard": 0.3, "gated": 0.5, "jumprelu": 0.05}.get(kind, 2)
    specs = [Spec(kind, "here", 64, level, lr=5e-3)]
    found = []
    for densest in (0.0, 0.5):
        monkeypatch.setattr(cells, "DENSEST", densest)
        found.append(train(specs, data, replace(CONFIG, steps=150), precision="highest"))
    for name in found[0].history:
        torch.testing.assert_close(found[0].history[name], found[1].history[name], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu"])
@pytest.mark.parametrize("d_sae", [64, 512])
def test_an_untrained_sae_is_as_near_its_input_as_a_scale_can_bring_it(kind: str, d_sae: int) -> None:
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    fresh = SAE(kind, initial(kind, 32, d_sae, seed=1, threshold=1e-9))
    out = fresh(x)
    best = ((x * out).sum() / out.square().sum()).item()
    assert best == pytest.approx(1, abs=0.1)


def test_what_is_refused(data: Given) -> None:
    with pytest.raises(ValueError, match="no SAEs to train"):
        train([], data, CONFIG)
    with pytest.raises(ValueError, match="there is not in the store, which has here"):
        train([Spec("standard", "there", 64, 0.1)], data, CONFIG)
    with pytest.raises(ValueError, match="dictionary of 16 latents is smaller than its input, 24"):
        train([Spec("standard", "here", 16, 0.1)], data, CONFIG)
    with pytest.raises(ValueError, match="constant"):
        train([Spec("standard", "x", 8, 0.1)], Given({"x": torch.ones(20, 4)}, batch=5), CONFIG)
    with pytest.raises(ValueError, match="unknown kind of SAE 'sparse'"):
        Spec("sparse", "here", 64, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"k, a whole number in 1\.\.64"):
        Spec("topk", "here", 64, 0.5)
    with pytest.raises(ValueError, match="no variant of a standard SAE"):
        Spec("standard", "here", 64, 0.1, variant="no r_mag")
    with pytest.raises(ValueError, match="must not be negative"):
        Spec("standard", "here", 64, -1)


def test_schedules() -> None:
    config = Config(100, lr_warmup=10, cooldown=0.2, resample_every=30, resamples=1)
    rates = torch.tensor([config.rate(step) for step in range(100)])
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1)
    assert rates[30] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(1)
    assert rates[90] == pytest.approx(0.5)
    assert [step for step in range(100) if config.resamples_at(step)] == [30]


def test_nothing_waits_for_the_device_in_a_step(data: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two entries of the log no tensor is read on the host, but on a CPU, which makes lists of cells."""
    monkeypatch.setattr(cells, "may_list", lambda values: False)
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, original: Any = original, name: str = name) -> Any:
            reads.append(name)
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, read)
    counts = []
    for steps in (20, 40):
        reads.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            specs = [Spec(kind, "here", 32, SPARSITY[kind]) for kind in ("standard", "gated", "jumprelu")]  # type: ignore[arg-type]
            train(specs, data, replace(CONFIG, steps=steps, log_every=1000))
        counts.append(len(reads))
    assert counts[0] == counts[1]


def test_a_topk_begins_at_the_median_and_the_others_at_zero() -> None:
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + 3
    given, idle = Given({"here": x}, batch=100), Config(1, lr_warmup=0, log_every=1)
    for kind, sparsity in (("topk", 2), ("batchtopk", 2), ("standard", 0.1), ("gated", 0.1), ("jumprelu", 0.1)):
        [sae] = train([Spec(kind, "here", 16, sparsity, lr=1e-9)], given, idle).saes  # type: ignore[arg-type]
        expected = given.median("here") if "topk" in kind else torch.zeros(8)
        torch.testing.assert_close(sae.b_dec, expected, atol=1e-4, rtol=1e-4)
