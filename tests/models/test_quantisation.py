"""Noise within the rounding cells of four-bit weights, against the steps that the GGUF file itself stores."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mechinterp.models import dither, pretrained
from mechinterp.models.quantisation import step_sizes


def quantised(rows: int, columns: int, seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as a GGUF reader gives them, and the steps (fp16) in the file's own bytes."""
    values = scale * np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    stored = gguf.quants.quantize(values, kind)
    steps = stored.reshape(-1, 20)[:, :2].copy().view(np.float16).astype(np.float32).reshape(rows, -1)
    return torch.from_numpy(gguf.quants.dequantize(stored, kind)), torch.from_numpy(steps)


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight.clone()
    return layer


@given(st.integers(0, 1000), st.sampled_from([0.01, 1.0, 30.0]))
def test_steps_are_those_of_the_file(seed: int, scale: float) -> None:
    weight, steps = quantised(4, 96, seed, scale)
    found = step_sizes(weight)
    assert found is not None
    torch.testing.assert_close(found, steps, rtol=1e-3, atol=0)


@given(st.integers(0, 1000), st.sampled_from([0.25, 1.0, 4.0]))
def test_noise_stays_within_its_cells(seed: int, width: float) -> None:
    weight, steps = quantised(4, 64, seed)
    layer = linear(weight)
    assert dither(layer, seed=seed, steps=width) == weight.numel()
    moved = (layer.weight.data - weight).unflatten(1, (-1, 32)).abs().amax(-1)
    assert (moved <= width * steps / 2 * 1.01).all()


def test_the_noise_is_uniform() -> None:
    weight, steps = quantised(512, 512)
    layer = linear(weight)
    dither(layer)
    cells = (layer.weight.data - weight).unflatten(1, (-1, 32)) / steps[..., None]
    assert cells.mean().abs() < 0.005
    assert (cells.var() * 12 - 1).abs() < 0.02
    assert torch.histc(cells, 4, -0.5, 0.5).std() / cells.numel() < 0.002


def test_a_seed_decides() -> None:
    weight, _ = quantised(8, 64)
    one, again, other = linear(weight), linear(weight), linear(weight)
    dither(one, seed=1)
    dither(again, seed=1)
    dither(other, seed=2)
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)


def test_a_constant_block_stays() -> None:
    weight, _ = quantised(2, 64)
    weight[0, :32] = 0.5
    layer = linear(weight)
    dither(layer)
    assert (layer.weight.data[0, :32] == 0.5).all()
    assert (layer.weight.data[1] != weight[1]).any()


def test_what_is_not_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match="Q4_1"):
        dither(nn.Linear(64, 64))
    with pytest.raises(ValueError, match="steps wide, got 0"):
        dither(linear(quantised(4, 64)[0]), steps=0)


def test_smollm2_has_as_many_such_weights_as_its_file_says(smollm2: Any) -> None:
    from mechinterp.models import load

    file = pretrained.path("smollm2")
    in_file = sum(int(t.n_elements) for t in gguf.GGUFReader(file).tensors if t.tensor_type.name == "Q4_1")
    counts: list[int] = []
    moved = load("smollm2", device="cpu", edit=lambda raw: counts.append(dither(raw, seed=1)))
    assert counts == [in_file]
    tokens = torch.tensor([smollm2.tokenizer.encode("The capital of France is")])
    difference = (moved(tokens) - smollm2(tokens)).abs().max()
    assert 0.01 < difference < 10
