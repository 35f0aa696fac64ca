"""Write a transformer's weights by hand: orthogonal feature spaces and heads that read and write them.

The residual stream is cut into orthogonal spaces of unit directions, each of zero mean, so that a layer
norm's centring changes nothing. The position embedding adds one long direction of length `BULK` at every
position: it dominates the norm, so that every layer norm divides by nearly the same number, which its gain
multiplies back. What remains of the layer norm is a relative error below 1 %.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from mechinterp.files import atomic_write
from mechinterp.heads import Head

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BULK = 40.0
SCRATCH = 0.2
Spaces = dict[str, Float[Tensor, "feature d_model"]]


@dataclass(frozen=True)
class Wiring:
    """One head as features: its score is Σ_r (query_r · x_i)(key_r · x_j), and it moves value_s · x_j to output_s.

    Shapes: `query`, `key` [r d_model]; `value`, `output` [s d_model]; r and s at most d_head.
    """

    query: Float[Tensor, "r d_model"]
    key: Float[Tensor, "r d_model"]
    value: Float[Tensor, "s d_model"]
    output: Float[Tensor, "s d_model"]


def spaces(sizes: Mapping[str, int], d_model: int, *, seed: int = 0) -> Spaces:
    """Orthonormal zero-mean directions, `sizes[name]` for each name, and what is left over as `scratch`.

    `one` is a single vector whose product with any normalised residual stream is 1.

    >>> s = spaces({"tok": 3}, 8)
    >>> [(name, tuple(x.shape)) for name, x in s.items()]
    [('tok', (3, 8)), ('bulk', (1, 8)), ('scratch', (3, 8)), ('one', (1, 8))]
    """
    left = d_model - 2 - sum(sizes.values())
    if left < 1:
        raise ValueError(
            f"{sum(sizes.values())} features need d_model of at least {sum(sizes.values()) + 3}, not {d_model}"
        )
    matrix = torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix[:, 0] = 1
    basis = torch.linalg.qr(matrix).Q.T[1:].float()
    parts = basis.split([*sizes.values(), 1, left])
    named = dict(zip([*sizes, "bulk", "scratch"], parts, strict=True))
    return named | {"one": named["bulk"] / BULK}


def build(
    space: Spaces,
    heads: Mapping[Head, Wiring],
    *,
    n_layers: int,
    n_heads: int,
    unembed: Float[Tensor, "vocab d_model"],
    vocabulary: Sequence[str],
    seed: int = 0,
    idle_size: float = SCRATCH,
) -> "TransformerBridge":
    """A GPT-2 whose token and position embeddings are the spaces `tok` and `pos`, with these heads.

    Every other head attends at random, and it and every MLP write only into `scratch`, which nobody reads, with
    matrices of norm `idle_size`.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from mechinterp.models.load import to_bridge

    d_model = space["tok"].shape[1]
    d_head = d_model // n_heads
    idle = min(8, d_head)
    config = GPT2Config(
        n_layer=n_layers,
        n_head=n_heads,
        n_embd=d_model,
        n_inner=32,
        n_positions=len(space["pos"]),
        vocab_size=len(vocabulary),
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
        architectures=["GPT2LMHeadModel"],
    )
    model: Any = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int) -> Tensor:
        return torch.randn(rows, d_model, generator=generator) / d_model**0.5

    def scratch(rows: int) -> Tensor:
        mix = torch.randn(rows, len(space["scratch"]), generator=generator)
        return idle_size * mix / mix.norm() @ space["scratch"]

    gain = ((BULK**2 + 3) / d_model) ** 0.5
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.transformer.wte.weight.copy_(space["tok"])
        model.transformer.wpe.weight.copy_(space["pos"] + BULK * space["bulk"])
        model.lm_head.weight.copy_(unembed)
        for norm in [n for block in model.transformer.h for n in (block.ln_1, block.ln_2)] + [model.transformer.ln_f]:
            norm.weight.fill_(gain)
        for layer, block in enumerate(model.transformer.h):
            q, k, v = block.attn.c_attn.weight.view(d_model, 3, n_heads, d_head).unbind(1)
            out = block.attn.c_proj.weight.view(n_heads, d_head, d_model)
            for head in range(n_heads):
                wiring = heads.get(Head(layer, head)) or Wiring(random(idle), random(idle), random(idle), scratch(idle))
                r, s = len(wiring.query), len(wiring.value)
                if max(r, s) > d_head:
                    raise ValueError(f"head {layer}.{head} uses {max(r, s)} features, a head has {d_head}")
                q[:, head, :r] = wiring.query.T * d_head**0.5
                k[:, head, :r] = wiring.key.T
                v[:, head, :s] = wiring.value.T
                out[head, :s] = wiring.output
            block.mlp.c_fc.weight.copy_(random(32).T)
            block.mlp.c_proj.weight.copy_(scratch(32))
    return to_bridge(model, tokenizer(vocabulary), name="organism", device="cpu")


def native(
    shape: Mapping[str, Any], weights: Mapping[str, Tensor], vocabulary: Sequence[str], *, name: str
) -> "TransformerBridge":
    """A bridge of TransformerLens' own architecture, without norms and with relu, from a dictionary of weights.

    Weights that are not given are zero: `tok_embed`, `pos`, `head`, and of each layer `attn.q`, `attn.k`, `attn.v`,
    `attn.o`, `mlp.fc_in`, `mlp.fc_out`, each [out in] under its name and `.weight`.

    Args:
        shape: sizes and switches of the bridge's config. `vocabulary`: words, one a token; the first is BOS.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.native import NativeModel

    architecture = "TransformerLensNative"
    config = TransformerBridgeConfig.from_dict(
        {**shape, "act_fn": "relu", "normalization_type": None, "architecture": architecture}
    )
    model = NativeModel(config)
    model.load_state_dict({key: torch.zeros_like(old) for key, old in model.state_dict().items()} | dict(weights))
    bridge = build_bridge_from_module(
        model,
        architecture=architecture,
        tl_config=config,
        tokenizer=tokenizer(vocabulary),
        device="cpu",
        model_name=name,
    )
    return bridge.eval().requires_grad_(False)


KIND = "mechinterp-native"
"""What the config of a saved handmade model says it is."""


def save_native(
    folder: Path, shape: Mapping[str, Any], weights: Mapping[str, Tensor], vocabulary: Sequence[str]
) -> None:
    """Write a model of `native` into a folder that `models.load` reads: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": KIND, "shape": dict(shape), "vocabulary": list(vocabulary)}
    atomic_write(folder / "model.safetensors", save({name: w.contiguous() for name, w in weights.items()}))
    atomic_write(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def is_native(folder: Path) -> bool:
    """Whether a folder holds a model of `save_native`."""
    config = folder / "config.json"
    return config.is_file() and f'"{KIND}"' in config.read_text(encoding="utf8")


def load_native(folder: Path) -> "TransformerBridge":
    """Read what `save_native` has written; `ValueError` if it is incomplete."""
    config, weights = json.loads((folder / "config.json").read_text(encoding="utf8")), folder / "model.safetensors"
    if not weights.is_file() or not {"shape", "vocabulary"} <= set(config):
        raise ValueError(f"{folder} holds half of a handmade model: config.json and model.safetensors are needed")
    return native(config["shape"], load_file(weights), config["vocabulary"], name=folder.name)


def tokenizer(vocabulary: Sequence[str]):  # type: ignore[no-untyped-def]
    """One token per word of `vocabulary`, words separated by spaces; the first word is BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("eos_token", "pad_token", "unk_token"), vocabulary[0])
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)
