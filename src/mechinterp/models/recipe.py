"""From a folder of text to a model folder: tokenizer, encoded corpus, training, weights and card.

Every stage leaves a file in the run's folder and is skipped when the file is there, so a run that was
killed goes on where it stopped.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer

from mechinterp.files import atomic_write
from mechinterp.models.mixture import EOT, Mixture, encode_corpus, fit_tokenizer, read_texts
from mechinterp.models.training import Config, Weights, train

FIT_CHARACTERS = 60_000_000
"""How much of the corpus the tokenizer is fitted on."""
GENERATED_IDS = 8192
"""Repeated random tokens are drawn below this id."""


@dataclass(frozen=True)
class Source:
    """Text to learn from and, if there is any, text to be tested on.

    Attributes:
        train, held_out: each call starts the texts again.
        origin: what the model card says about it, files with their hashes.
    """

    train: Callable[[], Iterator[str]]
    held_out: Callable[[], Iterator[str]] | None
    origin: list[dict[str, str]]


def from_folder(folder: Path) -> Source:
    """Files `train*` and, if there are any, `held_out*` of a folder, as `.txt` or `.txt.xz`.

    Errors: `ValueError` if there is nothing to learn from.
    """
    next(read_texts(folder, "train*"))  # refuses an empty folder
    paths = sorted(path for path in folder.glob("*") if path.name.endswith((".txt", ".txt.xz")))
    held = any(path.name.startswith("held_out") for path in paths)
    origin = [{"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths]
    return Source(
        lambda: read_texts(folder, "train*"), (lambda: read_texts(folder, "held_out*")) if held else None, origin
    )


def from_hub(name: str, column: str = "text", documents: int = 20_000, *, held_out: int = 200) -> Source:
    """The first documents of a text dataset on the Hugging Face hub, streamed; the first few are held out."""
    import datasets

    stream = datasets.load_dataset(name, split="train", streaming=True)

    def texts(start: int, stop: int) -> Iterator[str]:
        for row in itertools.islice(stream, start, stop):
            if column not in row:
                raise ValueError(f"dataset {name} has no column {column!r}; it has {', '.join(row)}")
            yield row[column]

    origin = [{"dataset": name, "column": column, "documents": str(documents)}]
    return Source(lambda: texts(held_out, documents), lambda: texts(0, held_out), origin)


def train_lab(config: Config, source: Source, out: Path, *, generated: float = 0.5) -> Path:
    """Tokenizer, corpus, training and export, each resumable; returns the model's folder, `out/model`.

    Args:
        config: shape and schedule; its `vocab_size` is what the tokenizer is fitted to.
        source: real text.
        out: folder of the run.
        generated: share of rows that are generated documents.

    Errors: `ValueError` if the vocabulary is smaller than the generated documents need.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(out / "tokenizer.json", source, config.vocab_size)
    config = replace(config, vocab_size=tokenizer.get_vocab_size())
    if generated and config.vocab_size < GENERATED_IDS:
        raise ValueError(
            f"the text gives {config.vocab_size} tokens and generated documents draw from {GENERATED_IDS}: "
            "give more text, a larger vocabulary, or no generated documents"
        )
    real = _encoded(out / "train.npy", tokenizer, source.train)
    weights = train(config, Mixture(tokenizer, real, generated), out)
    card: dict[str, Any] = {
        "config": asdict(config),
        "generated": generated,
        "tokens_seen": config.steps * config.batch * config.n_ctx,
        "real_tokens": len(real),
        "text": source.origin,
    }
    folder = save_model(weights, config, tokenizer, out / "model", card)
    if source.held_out is not None:
        held_out = _encoded(out / "held_out.npy", tokenizer, source.held_out)
        card |= {"measured": _measure(folder, held_out)}
        atomic_write(folder / "card.json", _json(card))
    return folder


def save_model(weights: Weights, config: Config, tokenizer: Tokenizer, folder: Path, card: dict[str, Any]) -> Path:
    """Write a Hugging Face GPT-2 folder: config, tokenizer, fp16 safetensors and card; returns the folder.

    Errors: `ValueError` if a weight is not finite in fp16.
    """
    from safetensors.torch import save

    tensors = {name: w.to(torch.float16).contiguous() for name, w in to_gpt2(weights, config).items()}
    for name, w in tensors.items():
        if not torch.isfinite(w).all():
            raise ValueError(f"{name} is not finite in fp16; the run has diverged, lower the learning rate")
    shape = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "layer_norm_epsilon": 1e-5,
        "n_ctx": config.n_ctx,
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "vocab_size": config.vocab_size,
    }
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), EOT)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.n_ctx, **special}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "tokenizer.json", tokenizer.to_str().encode())
    atomic_write(folder / "tokenizer_config.json", _json(settings))
    atomic_write(folder / "config.json", _json(shape))
    atomic_write(folder / "card.json", _json(card))
    atomic_write(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    return folder


def to_gpt2(weights: Weights, config: Config) -> Weights:
    """The same weights under the names and in the shapes of Hugging Face's `GPT2LMHeadModel`."""
    gpt2 = {
        "transformer.wte.weight": weights["wte"],
        "transformer.wpe.weight": weights["wpe"],
        "transformer.ln_f.weight": weights["ln_f.w"],
        "transformer.ln_f.bias": weights["ln_f.b"],
    }
    for i in range(config.n_layers):
        ours, theirs = f"h.{i}.", f"transformer.h.{i}."
        gpt2 |= {
            theirs + "attn.c_attn.weight": torch.cat([weights[ours + f"W_{s}"] for s in "QKV"], 1),
            theirs + "attn.c_attn.bias": torch.cat([weights[ours + f"b_{s}"] for s in "QKV"]),
            theirs + "attn.c_proj.weight": weights[ours + "W_O"],
            theirs + "attn.c_proj.bias": weights[ours + "b_O"],
            theirs + "mlp.c_fc.weight": weights[ours + "W_in"],
            theirs + "mlp.c_fc.bias": weights[ours + "b_in"],
            theirs + "mlp.c_proj.weight": weights[ours + "W_out"],
            theirs + "mlp.c_proj.bias": weights[ours + "b_out"],
        }
        for ln in ("ln_1", "ln_2"):
            gpt2 |= {
                theirs + ln + ".weight": weights[ours + ln + ".w"],
                theirs + ln + ".bias": weights[ours + ln + ".b"],
            }
    return gpt2


def _tokenizer(path: Path, source: Source, vocab_size: int) -> Tokenizer:
    if not path.exists():
        budget = itertools.accumulate(map(len, source.train()))
        texts = (text for text, total in zip(source.train(), budget, strict=True) if total < FIT_CHARACTERS + len(text))
        atomic_write(path, fit_tokenizer(texts, vocab_size).to_str().encode())
    return Tokenizer.from_file(str(path))


def _encoded(path: Path, tokenizer: Tokenizer, texts: Callable[[], Iterator[str]]) -> Int[np.ndarray, " token"]:
    if not path.exists():
        buffer = io.BytesIO()
        np.save(buffer, encode_corpus(tokenizer, texts()))
        atomic_write(path, buffer.getvalue())
    return np.load(path, mmap_mode="r")


def _measure(folder: Path, held_out: Int[np.ndarray, " token"]) -> dict[str, Any]:
    from mechinterp.models import load
    from mechinterp.models.behaviours import card

    return card(load(str(folder)), held_out)


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()
