"""Fixtures that every part of the tests shares; models are built once a session and must not be changed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported: no test asks the network

import jaxtyping
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase
from visiting import CHROMIUM, FLAGS

from mechinterp.models import load, load_tokenizer, pretrained, to_bridge
from mechinterp.models.load import LAB

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
"""Data beside the project (GPT-2's tokenizer and attention weights); tests that need it skip without it."""

torch.set_num_threads(int(os.environ.get("MECHINTERP_TEST_THREADS", "1")))


def random_gpt2(
    *, n_layer: int = 3, n_head: int = 4, n_embd: int = 64, vocab_size: int = 8192, n_positions: int = 64, seed: int = 0
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights of order one everywhere, biases and layer-norm parameters included."""
    config = GPT2Config(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        n_positions=n_positions,
        vocab_size=vocab_size,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["GPT2LMHeadModel"],
    )
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            size = weight.shape[0] ** -0.5 if weight.ndim == 2 and ".h." in name else 0.1
            weight.copy_(
                float("ln_" in name and name.endswith("weight")) + size * torch.randn(weight.shape, generator=generator)
            )
    return model


def _process() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "precision of products": torch.get_float32_matmul_precision(),
        "denormal numbers": bool(torch.tensor(1e-40) * 1 > 0),
        "gradients": torch.is_grad_enabled(),
        "default type": torch.get_default_dtype(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("MECHINTERP_")},
    }


@pytest.fixture(autouse=True)
def leaves_the_process_as_it_was() -> Iterator[None]:
    """What holds for the whole process would change the tests that happen to come later."""
    before = _process()
    yield
    after = _process()
    torch.set_grad_enabled(True)
    torch.set_flush_denormal(False)
    assert after == before


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No shape and type checking, which only tests have: what a user's wrong argument meets instead."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def make_gpt2() -> Callable[..., GPT2LMHeadModel]:
    """`random_gpt2`, for tests that need a raw Hugging Face model of their own."""
    return random_gpt2


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The lab model's tokenizer."""
    return load_tokenizer("lab")


@pytest.fixture(scope="session")
def tiny(tokenizer: PreTrainedTokenizerBase):  # type: ignore[no-untyped-def]
    """A random 3-layer GPT-2 (4 heads of size 16, context 64, the lab model's vocabulary) as a bridge."""
    return to_bridge(random_gpt2(), tokenizer, name="tiny", device="cpu")


@pytest.fixture(scope="session")
def lab():  # type: ignore[no-untyped-def]
    """The lab model on the CPU."""
    if not (LAB / "model.safetensors").is_file():
        pytest.skip("the lab model's weights are not in this checkout")
    return load("lab", device="cpu")


@pytest.fixture(scope="session")
def smollm2():  # type: ignore[no-untyped-def]
    """SmolLM2-135M on the CPU, where it was fetched: a real pretrained model that nobody here trained."""
    if not pretrained.here("smollm2"):
        pytest.skip("SmolLM2 is not here: mechinterp models get smollm2")
    return load("smollm2", device="cpu")


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared: Path) -> PreTrainedTokenizerBase:
    """GPT-2's own tokenizer, from the shared folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "gpt2_tokenizer")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, one for all tests; except in CI, no browser is no failure."""
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("no Chromium to open pages with")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS.split()])
        yield chromium
        chromium.close()
