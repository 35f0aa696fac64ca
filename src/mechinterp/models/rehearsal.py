"""GPT-2 small's architecture with random weights: the paper scale without the hub, for tests.

Every head that the papers name exists and every cell runs, but nothing is learned and nothing is claimed.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

VARIABLE = "MECHINTERP_GPT2_TOKENIZER"
RECIPE: dict[str, Any] = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_positions": 1024,
    "vocab_size": 50257,
    "seed": 0,
    "embedding_std": 0.06,
}
"""Matrices are drawn with standard deviation 1/√inputs, so that attention scores and logits have order one."""


def tokenizer_folder() -> Path:
    """The folder of GPT-2's tokenizer, from the environment; `ValueError` if it is not set or not there."""
    value = os.environ.get(VARIABLE)
    if not value:
        raise ValueError(
            f"'rehearsal' needs GPT-2's tokenizer: set {VARIABLE} to a folder with its tokenizer.json, or use 'lab'"
        )
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{VARIABLE} names {value!r}, which is not a folder")
    return folder


def rehearsal(recipe: dict[str, Any] = RECIPE) -> "GPT2LMHeadModel":
    """A GPT-2 with seeded random weights in which no activation, score or logit is degenerate."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.initialization import no_init_weights

    shape = {k: v for k, v in recipe.items() if k.startswith("n_") or k == "vocab_size"}
    end = recipe["vocab_size"] - 1
    config = GPT2Config(**shape, bos_token_id=end, eos_token_id=end, architectures=["GPT2LMHeadModel"])
    with no_init_weights():
        model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(recipe["seed"])
    with torch.no_grad():
        for name, weight in model.transformer.named_parameters():
            if "ln_" in name:
                weight.fill_(float(name.endswith("weight")))
            elif name.endswith("bias"):
                weight.zero_()
            else:
                std = recipe["embedding_std"] if name.startswith("w") else weight.shape[0] ** -0.5
                weight.normal_(0, std, generator=generator)
    model.tie_weights()
    return model
