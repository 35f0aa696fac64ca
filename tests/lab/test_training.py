"""The lab model's recipe: seeded, resumable to the digit after a kill, and equal to GPT-2 as others write it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from mechinterp.lab.export import save, to_hugging_face
from mechinterp.lab.mixture import Mixture
from mechinterp.lab.training import (
    Config,
    Weights,
    _BlockLoss,
    final_residual,
    initial_weights,
    loss,
    schedule,
    train,
)
from mechinterp.models import load, load_tokenizer
from mechinterp.models.load import LAB

SMALL = Config(n_layers=2, n_heads=2, d_model=32, n_ctx=32, batch=4, steps=12, warmup=2)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    words = Tokenizer.from_file(str(LAB / "tokenizer.json"))
    text = words.encode("The ship went down the river and the people of the town came to see it. " * 40)
    return Mixture(words, np.array(text.ids, dtype=np.uint16))


@pytest.fixture(scope="module")
def whole_run(mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, list[float]]:
    """An uninterrupted run: final weights and the loss of every step."""
    out = tmp_path_factory.mktemp("whole")
    return train(SMALL, mixture, out, every=5), losses(out)


@pytest.fixture(scope="module")
def noisy() -> Weights:
    """Weights in which nothing is zero or one, so that a wrong bias or gain shows."""
    generator = torch.Generator().manual_seed(1)
    weights = initial_weights(SMALL)
    return {k: w + 0.1 * torch.randn(w.shape, generator=generator) for k, w in weights.items()}


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss"] for line in lines]


def test_loss_goes_down(whole_run: tuple[Weights, list[float]]) -> None:
    _, curve = whole_run
    assert len(curve) == SMALL.steps
    assert curve[0] == pytest.approx(np.log(8192), abs=0.1)
    assert curve[-1] < curve[0] - 0.5


@pytest.mark.parametrize("stop", [3, 5, 7, 11])
def test_a_stopped_run_resumes_to_the_same_losses_and_weights(
    mixture: Mixture, whole_run: tuple[Weights, list[float]], tmp_path: Path, stop: int
) -> None:
    train(SMALL, mixture, tmp_path, every=5, stop_after=stop)
    resumed = train(SMALL, mixture, tmp_path, every=5)
    weights, curve = whole_run
    assert losses(tmp_path) == pytest.approx(curve, abs=1e-6)
    assert all(torch.allclose(w, resumed[name], atol=1e-6) for name, w in weights.items())


def test_a_killed_process_resumes_to_the_same_losses(
    mixture: Mixture, whole_run: tuple[Weights, list[float]], tmp_path: Path
) -> None:
    """SIGKILL right after a checkpoint and a few more steps: nothing is flushed, nothing is cleaned up."""
    np.save(tmp_path / "real.npy", mixture.real)
    script = f"""
        import os, signal
        import numpy as np, torch
        from pathlib import Path
        from tokenizers import Tokenizer
        from mechinterp.lab import training
        from mechinterp.lab.mixture import Mixture

        torch.set_num_threads({torch.get_num_threads()})
        class Doomed(Mixture):
            def batch(self, step, *rest):
                if step == 8:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().batch(step, *rest)

        words = Tokenizer.from_file({str(LAB / "tokenizer.json")!r})
        mixture = Doomed(words, np.load({str(tmp_path / "real.npy")!r}))
        training.train(training.{SMALL!r}, mixture, Path({str(tmp_path / "run")!r}), every=5)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(losses(tmp_path / "run")) == 8
    train(SMALL, mixture, tmp_path / "run", every=5)
    assert losses(tmp_path / "run") == pytest.approx(whole_run[1], abs=1e-6)


def test_same_seed_same_losses_other_seed_others(
    mixture: Mixture, whole_run: tuple[Weights, list[float]], tmp_path: Path
) -> None:
    train(SMALL, mixture, tmp_path / "same", stop_after=4)
    train(replace(SMALL, seed=1), mixture, tmp_path / "other", stop_after=4)
    assert losses(tmp_path / "same") == whole_run[1][:4]
    assert losses(tmp_path / "other") != whole_run[1][:4]


def test_another_configuration_is_refused_and_the_run_kept(mixture: Mixture, tmp_path: Path) -> None:
    train(SMALL, mixture, tmp_path, every=2, stop_after=4)
    before = (tmp_path / "checkpoint.safetensors").read_bytes(), (tmp_path / "log.jsonl").read_text()
    with pytest.raises(ValueError, match="run of another configuration; choose another folder"):
        train(replace(SMALL, lr=1e-3), mixture, tmp_path)
    assert ((tmp_path / "checkpoint.safetensors").read_bytes(), (tmp_path / "log.jsonl").read_text()) == before


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    mixture: Mixture, whole_run: tuple[Weights, list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(SMALL, mixture, tmp_path, every=5, stop_after=6)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 100_000:  # the checkpoint, not the log
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(SMALL, mixture, tmp_path, every=5)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl", "snapshots"]
    train(SMALL, mixture, tmp_path, every=5)
    assert losses(tmp_path) == pytest.approx(whole_run[1], abs=1e-6)


def test_a_diverged_run_stops(mixture: Mixture, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step \d+; lower lr or muon_lr"):
        train(replace(SMALL, lr=1e30, warmup=1), mixture, tmp_path)


def test_schedule() -> None:
    config = Config(steps=100, warmup=10, cooldown=0.4)
    rates = [schedule(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:60] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.03
    assert all(0 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize("block", [7, 16, 1000])
def test_block_loss_is_cross_entropy(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 24, generator=generator).requires_grad_()
    w = torch.randn(90, 24, generator=generator).mul(0.3).requires_grad_()
    targets = torch.randint(90, (50,), generator=generator)
    value = _BlockLoss.apply(x, w, targets, block)
    (3 * value).backward()
    mine = x.grad, w.grad
    x.grad = w.grad = None
    expected = F.cross_entropy(x @ w.T, targets)
    (3 * expected).backward()
    assert value.item() == pytest.approx(expected.item(), rel=5e-3)
    for got, want in zip(mine, (x.grad, w.grad), strict=True):
        assert (got - want).norm() < 0.01 * want.norm()


def test_the_model_is_gpt2(noisy: Weights) -> None:
    """Residual, loss and its gradients, in bf16, against the Hugging Face model, in fp32, after the export."""
    tokens = torch.randint(8192, (3, 33), generator=torch.Generator().manual_seed(2))
    reference = hugging_face(noisy)
    expected = reference.transformer(tokens[:, :-1]).last_hidden_state
    got = final_residual(noisy, tokens[:, :-1], SMALL)
    assert (got - expected).norm() < 0.01 * expected.norm()

    grown = {name: w.clone().requires_grad_() for name, w in noisy.items()}
    value = loss(grown, tokens, SMALL)
    value.backward()
    expected_loss = F.cross_entropy(reference(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
    expected_loss.backward()
    assert value.item() == pytest.approx(expected_loss.item(), rel=2e-3)
    mine = to_hugging_face({name: w.grad for name, w in grown.items()}, SMALL)
    for name, weight in reference.named_parameters():
        assert (mine[name] - weight.grad).norm() < 0.05 * weight.grad.norm(), name


def hugging_face(weights: Weights) -> GPT2LMHeadModel:
    """The export loaded into transformers' own model, every tensor used."""
    from transformers import GPT2Config

    from mechinterp.lab.export import hugging_face_config

    model = GPT2LMHeadModel(GPT2Config(**hugging_face_config(SMALL))).float().eval()
    missing, unexpected = model.load_state_dict(to_hugging_face(weights, SMALL), strict=False)
    assert missing == ["lm_head.weight"]
    assert unexpected == []
    return model


def test_export_loads_through_the_one_door(noisy: Weights, mixture: Mixture, tmp_path: Path) -> None:
    save(tmp_path / "model", noisy, SMALL, mixture.tokenizer)
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == names
    model = load(tmp_path / "model", device="cpu")
    tokens = torch.randint(8192, (3, 32), generator=torch.Generator().manual_seed(3))
    expected = hugging_face(noisy)(tokens).logits.log_softmax(-1)
    assert (model(tokens).log_softmax(-1) - expected).abs().max() < 0.02, "fp16 storage costs this much"
    text = "When Mary and John went to the store, John gave a drink to"
    saved, shipped = load_tokenizer(tmp_path / "model"), load_tokenizer("lab")
    assert saved.encode(text) == shipped.encode(text) == mixture.tokenizer.encode(text, add_special_tokens=False).ids
    assert saved.bos_token_id == saved.eos_token_id == saved.pad_token_id == 0


def test_export_refuses_what_it_cannot_hold(noisy: Weights, mixture: Mixture, tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(ValueError, match=r"h\.1\.W_Q is missing"):
        save(out, {k: w for k, w in noisy.items() if k != "h.1.W_Q"}, SMALL, mixture.tokenizer)
    with pytest.raises(ValueError, match=r"wpe has shape \(31, 32\), expected \(32, 32\)"):
        save(out, noisy | {"wpe": noisy["wpe"][:-1]}, SMALL, mixture.tokenizer)
    with pytest.raises(ValueError, match=r"ln_f\.b contains NaN"):
        save(out, noisy | {"ln_f.b": noisy["ln_f.b"] * torch.nan}, SMALL, mixture.tokenizer)
    with pytest.raises(ValueError, match="beyond the range of fp16"):
        save(out, noisy | {"ln_f.b": noisy["ln_f.b"] + 1e5}, SMALL, mixture.tokenizer)
    large = Config(n_layers=9)
    with pytest.raises(ValueError, match=r"takes 19\.\d MB, at most 16"):
        save(out, initial_weights(large), large, mixture.tokenizer)
    assert not out.exists()
