"""From the recipe's weights to a Hugging Face GPT-2 folder: what the lab model is shipped as."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mechinterp.files import atomic_write
from mechinterp.lab.mixture import EOT
from mechinterp.lab.training import Config, Weights

LARGEST = 16_000_000
"""Bytes that a model inside the package may take."""
_VECTORS = {"b_O": "attn.c_proj.bias", "b_in": "mlp.c_fc.bias", "b_out": "mlp.c_proj.bias"}
_MATRICES = {"W_O": "attn.c_proj.weight", "W_in": "mlp.c_fc.weight", "W_out": "mlp.c_proj.weight"}
_NORMS = {
    f"{ln}.{short}": f"{ln}.{long}" for ln in ("ln_1", "ln_2") for short, long in (("w", "weight"), ("b", "bias"))
}


def to_hugging_face(weights: Weights, config: Config) -> dict[str, Tensor]:
    """The same weights under the names of a Hugging Face GPT-2, Q, K and V fused to [d_model, 3 · d_model].

    The unembedding is the embedding, so it is not listed.

    Errors: `ValueError` for a weight that is missing, of another shape than the configuration's, or not finite.

    >>> from mechinterp.lab.training import Config, initial_weights
    >>> config = Config(n_layers=1, n_heads=2, d_model=8, n_ctx=4, vocab_size=16)
    >>> to_hugging_face(initial_weights(config), config)["transformer.h.0.attn.c_attn.weight"].shape
    torch.Size([8, 24])
    """
    _check(weights, config)
    out = {
        "transformer.wte.weight": weights["wte"],
        "transformer.wpe.weight": weights["wpe"],
        "transformer.ln_f.weight": weights["ln_f.w"],
        "transformer.ln_f.bias": weights["ln_f.b"],
    }
    for i in range(config.n_layers):
        here, there = f"h.{i}.", f"transformer.h.{i}."
        out[there + "attn.c_attn.weight"] = torch.cat([weights[f"{here}W_{s}"] for s in "QKV"], 1)
        out[there + "attn.c_attn.bias"] = torch.cat([weights[f"{here}b_{s}"] for s in "QKV"])
        out |= {there + name: weights[here + key] for key, name in (_VECTORS | _MATRICES | _NORMS).items()}
    return {name: w.detach().contiguous() for name, w in out.items()}


def hugging_face_config(config: Config) -> dict[str, Any]:
    """`config.json` of the exported model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_embd": config.d_model,
        "n_positions": config.n_ctx,
        "vocab_size": config.vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "float16",
    }


def save(
    folder: Path, weights: Weights, config: Config, tokenizer: Tokenizer, *, largest: int | None = LARGEST
) -> None:
    """Write a folder that `mechinterp.models.load` and transformers read; weights in fp16, each file atomically.

    Args:
        largest: bytes that the folder may hold; None for no limit.

    Errors: `ValueError` if a weight does not fit into fp16, or if the folder would be larger than allowed;
        nothing is written then.
    """
    from safetensors.torch import save as serialise

    half = {name: w.half() for name, w in to_hugging_face(weights, config).items()}
    for name, w in half.items():
        if not torch.isfinite(w).all():
            raise ValueError(f"{name} has values beyond the range of fp16, ±65504; train with more weight decay")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.n_ctx,
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), EOT),
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(settings),
        "config.json": _json(hugging_face_config(config)),
        "model.safetensors": serialise(half, {"format": "pt"}),
    }
    size = sum(map(len, files.values()))
    if largest is not None and size > largest:
        raise ValueError(
            f"the model takes {size / 1e6:.1f} MB, at most {largest / 1e6:.0f} are allowed; make it smaller"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        atomic_write(folder / name, data)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _check(weights: Weights, config: Config) -> None:
    d = config.d_model
    matrices = {"W_Q": (d, d), "W_K": (d, d), "W_V": (d, d), "W_O": (d, d), "W_in": (d, 4 * d), "W_out": (4 * d, d)}
    vectors = dict.fromkeys(("b_Q", "b_K", "b_V", "b_O", "b_out", *_NORMS), (d,)) | {"b_in": (4 * d,)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (config.vocab_size, d), "wpe": (config.n_ctx, d)}
    shapes |= {"ln_f.w": (d,), "ln_f.b": (d,)}
    for i in range(config.n_layers):
        shapes |= {f"h.{i}.{name}": shape for name, shape in {**matrices, **vectors}.items()}
    if missing := sorted(shapes.keys() ^ weights.keys()):
        raise ValueError(f"the weights are not those of {config}: {missing[0]} is missing or not known")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, expected {shape}")
        if not torch.isfinite(weights[name]).all():
            raise ValueError(f"{name} contains NaN or infinity; go back to an earlier checkpoint")
