"""One tiny random model of every supported family, and a slow reference of plain Hugging Face hooks.

Models are awkward on purpose: norm weights away from one, biases where the family has them, windows shorter than the
prompts, soft caps that bite, two key-value heads for four query heads, q and k norms, two prompts of different ends.

`Raw` runs the *raw* Hugging Face model (nothing folded, nothing centred), with hooks on its own modules. Where several
query heads share keys and values it runs the model's twin, in which every head has its own copy: only there can one
head's key be changed alone. `test_families` checks that twin and model agree.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from mechinterp.models import load_tokenizer, to_bridge

VOCAB, LAYERS, HEADS, WIDTH, CONTEXT, WINDOW = 200, 3, 4, 32, 64, 4
Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    """How a family is made in Hugging Face, and where its parts are.

    Attributes:
        config, model: classes. `options`: of the config.
        layers, attn, o, mlp: paths, the last three inside a layer. `fused`: the module with q, k and v in one, and
            whether heads come first in it ("heads") or q, k, v ("parts").
        attn_out, mlp_out: modules whose output is added to the stream.
    """

    config: str
    model: str
    options: Mapping[str, Any]
    layers: str = "model.layers"
    attn: str = "self_attn"
    o: str = "o_proj"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused: str = ""
    norm1: str = "input_layernorm"
    norm2: str = "post_attention_layernorm"
    attn_out: str = ""
    mlp_out: str = "mlp"
    final: str = "model.norm"
    embed: str = "model.embed_tokens"


_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": CONTEXT,
}  # fmt: skip
_GROUPED = _SHAPE | {"num_key_value_heads": 2}
_GPT = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT}
_OLD = {"layers": "transformer.h", "norm1": "ln_1", "norm2": "ln_2", "final": "transformer.ln_f"} | {
    "embed": "transformer.wte"
}
_POST = {"norm2": "pre_feedforward_layernorm", "attn_out": "post_attention_layernorm"} | {
    "mlp_out": "post_feedforward_layernorm"
}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": WINDOW}

FAMILIES: dict[str, Family] = {
    "GPT-2": Family("GPT2Config", "GPT2LMHeadModel", _GPT, **_OLD, attn="attn", o="c_proj", fused="c_attn:parts"),
    "GPT-Neo": Family(
        "GPTNeoConfig", "GPTNeoForCausalLM",
        {
            "vocab_size": VOCAB, "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS,
            "max_position_embeddings": CONTEXT, "attention_types": [[["local", "global", "local"], 1]],
            "window_size": WINDOW,
        },
        **_OLD, attn="attn.attention", o="out_proj",
    ),
    "OPT": Family(
        "OPTConfig", "OPTForCausalLM",
        {
            "vocab_size": VOCAB, "hidden_size": WIDTH, "ffn_dim": 48, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": WIDTH,
        },
        layers="model.decoder.layers", o="out_proj", norm1="self_attn_layer_norm", norm2="final_layer_norm",
        mlp_out="fc2", final="model.decoder.final_layer_norm", embed="model.decoder.embed_tokens",
    ),
    "GPT-J": Family(
        "GPTJConfig", "GPTJForCausalLM", _GPT | {"rotary_dim": 4}, **(_OLD | {"norm2": "ln_1"}),
        attn="attn", o="out_proj",
    ),
    "Pythia": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", _SHAPE | {"use_parallel_residual": True},
        layers="gpt_neox.layers", attn="attention", o="dense", fused="query_key_value:heads",
        final="gpt_neox.final_layer_norm", embed="gpt_neox.embed_in",
    ),
    "GPT-NeoX, serial": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", _SHAPE | {"use_parallel_residual": False},
        layers="gpt_neox.layers", attn="attention", o="dense", fused="query_key_value:heads",
        final="gpt_neox.final_layer_norm", embed="gpt_neox.embed_in",
    ),
    "Llama": Family("LlamaConfig", "LlamaForCausalLM", _GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "Mistral": Family("MistralConfig", "MistralForCausalLM", _GROUPED | {"sliding_window": WINDOW}),
    "Qwen 2": Family(
        "Qwen2Config", "Qwen2ForCausalLM", _GROUPED | {"use_sliding_window": True, "max_window_layers": 0} | _SLIDING
    ),
    "Qwen 3": Family("Qwen3Config", "Qwen3ForCausalLM", _GROUPED | {"head_dim": 12}),
    "Gemma": Family("GemmaConfig", "GemmaForCausalLM", _GROUPED | {"head_dim": 12}),
    "Gemma 2": Family(
        "Gemma2Config", "Gemma2ForCausalLM",
        _GROUPED | _SLIDING
        | {"head_dim": 12, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
        **_POST,
    ),
    "Gemma 3": Family(
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        _GROUPED | _SLIDING | {"head_dim": 12, "query_pre_attn_scalar": 9}, **_POST,
    ),
    "Phi": Family(
        "PhiConfig", "PhiForCausalLM", _SHAPE | {"partial_rotary_factor": 0.5},
        o="dense", norm2="input_layernorm", final="model.final_layernorm",
    ),
    "Phi 3": Family(
        "Phi3Config", "Phi3ForCausalLM", _GROUPED | {"sliding_window": WINDOW, "pad_token_id": 0},
        fused="qkv_proj:parts",
    ),
    "OLMo": Family("OlmoConfig", "OlmoForCausalLM", _GROUPED | {"clip_qkv": 0.7}),
    "OLMo 2": Family(
        "Olmo2Config", "Olmo2ForCausalLM", _SHAPE | {"num_key_value_heads": HEADS},
        norm1="", norm2="", attn_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm",
    ),
    "Falcon": Family(
        "FalconConfig", "FalconForCausalLM",
        {
            "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "multi_query": True, "parallel_attn": True, "alibi": False, "bias": True,
            "max_position_embeddings": CONTEXT,
        },
        layers="transformer.h", attn="self_attention", o="dense", fused="query_key_value:heads",
        norm2="input_layernorm", final="transformer.ln_f", embed="transformer.word_embeddings",
    ),
}  # fmt: skip
"""Exact families. Qwen 2.5 is Qwen 2 without windows, SmolLM2 and TinyLlama are Llama."""

PARALLEL = ("GPT-J", "Pythia", "Phi", "Falcon")


def _config(family: Family, **changes: Any) -> Any:
    options = {"bos_token_id": 0, "eos_token_id": 0} | dict(family.options) | changes
    config = getattr(hf, family.config)(**options, architectures=[family.model])
    config._attn_implementation = "eager"
    return config


@cache
def raw_model(name: str, seed: int = 0) -> Any:
    """The family's Hugging Face model with weights of order one; do not change it."""
    family = FAMILIES[name]
    model = getattr(hf, family.model)(_config(family)).eval()
    generator = torch.Generator().manual_seed(seed)
    offset = 0.0 if name.startswith("Gemma") else 1.0  # Gemma's gain is 1 + weight
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                is_gain = key.endswith("weight")
                weight.copy_(0.3 * noise + (offset if is_gain else 0.0))
            elif any(part in key for part in ("embed", "wte", "wpe", "lm_head")):
                weight.copy_(noise * (0.5 if name != "Gemma 3" else 0.2))
            else:
                weight.copy_(1.5 * noise / weight.shape[-1] ** 0.5)
    model.tie_weights()
    return model.requires_grad_(False)


@cache
def bridge(name: str) -> Any:
    """The same model as `mechinterp.models.load` would give it; do not change it."""
    return to_bridge(copy.deepcopy(raw_model(name)), load_tokenizer("lab"), name=name, device="cpu")


@cache
def twin(name: str) -> Any:
    """The raw model with a key and a value of its own for every query head."""
    family, model = FAMILIES[name], raw_model(name)
    if name == "Falcon":
        config = _config(family, multi_query=False)
    elif "num_key_value_heads" in family.options and family.options["num_key_value_heads"] != HEADS:
        config = _config(family, num_key_value_heads=HEADS)
    else:
        return model
    other, state = getattr(hf, family.model)(config).eval(), dict(model.state_dict())
    d_head = config.head_dim if getattr(config, "head_dim", None) else WIDTH // HEADS

    def repeat(rows: Tensor) -> Tensor:
        kv = rows.unflatten(0, (-1, d_head))
        return kv.repeat_interleave(HEADS // len(kv), 0)

    for key, value in model.state_dict().items():
        if name == "Falcon" and "query_key_value" in key:
            q, k, v = value.unflatten(0, (-1, d_head)).split([HEADS, 1, 1])
            every = [q, k.expand_as(q), v.expand_as(q)]
            state[key] = torch.stack(every, 1).flatten(0, 2)
        elif "qkv_proj" in key:
            q, kv = value.split([HEADS * d_head, value.shape[0] - HEADS * d_head])
            state[key] = torch.cat([q, *(repeat(part).flatten(0, 1) for part in kv.chunk(2))])
        elif "k_proj" in key or "v_proj" in key:
            state[key] = repeat(value).flatten(0, 1)
    other.load_state_dict(state)
    return other.requires_grad_(False)


class Raw:
    """Forward passes of a raw model with some activations changed and others recorded, one plain hook each.

    Names: resid_pre, q, k, v, z [prompt pos head d_head], pattern, attn_out, mlp_out, resid_mid (serial blocks).
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.name, self.family, self.model = name, FAMILIES[name], twin(name)
        if dtype != torch.float32:
            self.model = copy.deepcopy(self.model).to(dtype)
        self.layers = list(self.model.get_submodule(self.family.layers))
        self.final = self.model.get_submodule(self.family.final)
        self.parallel = name in PARALLEL

    def module(self, layer: int, path: str) -> Any:
        return self.layers[layer].get_submodule(path)

    def attn(self, layer: int) -> Any:
        return self.module(layer, self.family.attn)

    @torch.no_grad()
    def run(
        self, tokens: Tensor, edits: Mapping[tuple[str, int], Edit] | None = None
    ) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
        """Logits, and every activation by (name, layer); ("resid_pre", layers) is the final stream."""
        edits, got, handles = edits or {}, {}, []
        batch = tuple(tokens.shape)

        def meet(name: str, layer: int, x: Tensor) -> Tensor:
            # OPT's MLP sees flattened tokens; OLMo clips in place.
            shaped = x.reshape(*batch, *x.shape[-2:]) if name in ("q", "k", "v", "z") else x.reshape(*batch, -1)
            new = edits[name, layer](shaped.clone()) if (name, layer) in edits else shaped
            got[name, layer] = new.clone()
            return new.reshape(x.shape)

        def output(name: str, layer: int) -> Any:
            def hook(module: Any, args: Any, out: Any) -> Any:
                x = out[0] if isinstance(out, tuple) else out
                new = meet(name, layer, x)
                return (new, *out[1:]) if isinstance(out, tuple) else new

            return hook

        def first_input(name: str, layer: int) -> Any:
            def hook(module: Any, args: Any, kwargs: Any) -> Any:
                if args:
                    return (meet(name, layer, args[0]), *args[1:]), kwargs
                return args, kwargs | {"hidden_states": meet(name, layer, kwargs["hidden_states"])}

            return hook

        def heads_of(name: str, layer: int) -> Any:
            def hook(module: Any, args: Any, out: Tensor) -> Tensor:
                return meet(name, layer, out.unflatten(-1, (HEADS, -1))).flatten(-2)

            return hook

        def parts(layer: int, order: str) -> Any:
            def hook(module: Any, args: Any, out: Tensor) -> Tensor:
                shape = (HEADS, 3, -1) if order == "heads" else (3, HEADS, -1)
                axis = -2 if order == "heads" else -3
                each = [x.clone() for x in out.unflatten(-1, shape).unbind(axis)]
                new = [meet(n, layer, x) for n, x in zip("qkv", each, strict=True)]
                return torch.stack(new, axis).flatten(-3)

            return hook

        def z_input(layer: int) -> Any:
            def hook(module: Any, args: Any) -> Any:
                return (meet("z", layer, args[0].unflatten(-1, (HEADS, -1))).flatten(-2), *args[1:])

            return hook

        f = self.family
        try:
            for i, layer in enumerate(self.layers):
                attn = self.attn(i)
                handles.append(layer.register_forward_pre_hook(first_input("resid_pre", i), with_kwargs=True))
                if f.fused:
                    path, order = f.fused.split(":")
                    handles.append(attn.get_submodule(path).register_forward_hook(parts(i, order)))
                else:
                    for n, path in zip("qkv", f.qkv, strict=True):
                        handles.append(attn.get_submodule(path).register_forward_hook(heads_of(n, i)))
                handles.append(attn.get_submodule(f.o).register_forward_pre_hook(z_input(i)))
                place = self.module(i, f.attn_out) if f.attn_out else attn.get_submodule(f.o)
                handles.append(place.register_forward_hook(output("attn_out", i)))
                handles.append(self.module(i, f.mlp_out).register_forward_hook(output("mlp_out", i)))
            end = ("resid_pre", len(self.layers))

            def final(module: Any, args: Any) -> Any:
                return (meet(*end, args[0]), *args[1:])

            handles.append(self.final.register_forward_pre_hook(final))
            out = self.model(tokens, use_cache=False, output_attentions=True)
        finally:
            for handle in handles:
                handle.remove()
        for i, pattern in enumerate(out.attentions):
            got["pattern", i] = pattern
        if not self.parallel:
            for i in range(len(self.layers)):
                got["resid_mid", i] = got["resid_pre", i + 1] - got["mlp_out", i]
        return out.logits, got


def path_patch(
    raw: Raw, clean: Tensor, corrupt: Tensor, sender: Any, receivers: Any = "logits", positions: Tensor | None = None
) -> Tensor:
    """Appendix B of Wang et al., literally: logits with the path from one sender to the receivers patched."""
    rows, (_, ours), (_, other) = torch.arange(len(clean)), raw.run(clean), raw.run(corrupt)

    def freeze(layer: int) -> Edit:
        z = ours["z", layer].clone()
        if layer == sender[0]:
            z[:, :, sender[1]] = other["z", layer][:, :, sender[1]]
        return lambda x: z

    logits, heard = raw.run(clean, {("z", layer): freeze(layer) for layer in range(LAYERS)})
    if receivers == "logits":
        return logits

    def override(part: str, layer: int) -> Edit:
        def edit(x: Tensor) -> Tensor:
            for (at_layer, head), name in receivers:
                if (name, at_layer) == (part, layer):
                    if positions is None:
                        x[:, :, head] = heard[part, layer][:, :, head]
                    else:
                        x[rows, positions, head] = heard[part, layer][rows, positions, head]
            return x

        return edit

    return raw.run(clean, {(part, head[0]): override(part, head[0]) for head, part in receivers})[0]


def activation_patch(
    raw: Raw, clean: Tensor, corrupt: Tensor, node: str, layer: int, head: int | None, marked: Tensor
) -> Tensor:
    """Logits with one activation replaced, at marked positions [prompt pos], by what it is on the corrupted prompts."""
    new = raw.run(corrupt)[1][node, layer]

    def edit(x: Tensor) -> Tensor:
        if head is None:
            return torch.where(marked[..., None], new, x)
        x[:, :, head] = torch.where(marked[..., None], new[:, :, head], x[:, :, head])
        return x

    return raw.run(clean, {(node, layer): edit})[0]


class Weights:
    """A head's raw matrices, as mathematics has them: x W, from the stream times the norm's gain; and the norms."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.centres = type(raw.final).__name__ in ("LayerNorm", "OlmoLayerNorm")
        self.W_U = raw.model.get_output_embeddings().weight.T

    def gain(self, module: Any) -> Tensor:
        weight = getattr(module, "weight", None)
        if weight is None:
            return torch.ones(WIDTH)
        return 1 + weight if self.raw.name.startswith("Gemma") else weight

    def norm_of(self, layer: int) -> Any:
        return self.raw.module(layer, self.raw.family.norm1) if self.raw.family.norm1 else None

    def unit(self, x: Tensor, module: Any) -> Tensor:
        """Centred, if the family does that, and divided by its scale."""
        if module is None:
            return x
        x = x - x.mean(-1, keepdim=True) if self.centres else x
        return x / self.scale(x, module)

    def scale(self, x: Tensor, module: Any) -> Tensor:
        eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", 0.0)
        x = x - x.mean(-1, keepdim=True) if self.centres else x
        return (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def matrices(self, layer: int) -> dict[str, Tensor]:
        """Q, K, V [head d_model d_head], bQ, bK, bV [head d_head], O [head d_head d_model]; norm gain not folded in."""
        attn, f = self.raw.attn(layer), self.raw.family
        found: dict[str, Tensor] = {}
        if f.fused:
            path, order = f.fused.split(":")
            module = attn.get_submodule(path)
            weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
            bias = module.bias if module.bias is not None else torch.zeros(len(weight))
            shape, axis = ((HEADS, 3, -1), 1) if order == "heads" else ((3, HEADS, -1), 0)
            rows, biases = weight.unflatten(0, shape).unbind(axis), bias.unflatten(0, shape).unbind(axis)
        else:
            modules = [attn.get_submodule(path) for path in f.qkv]
            rows = [m.weight.unflatten(0, (HEADS, -1)) for m in modules]
            biases = [
                (m.bias if m.bias is not None else torch.zeros(len(m.weight))).unflatten(0, (HEADS, -1))
                for m in modules
            ]
        for name, w, b in zip("QKV", rows, biases, strict=True):
            found[name], found[f"b{name}"] = w.transpose(1, 2), b
        out = attn.get_submodule(f.o)
        weight = out.weight if type(out).__name__ == "Conv1D" else out.weight.T
        return found | {"O": weight.unflatten(0, (HEADS, -1))}

    def folded(self, layer: int) -> dict[str, Tensor]:
        """The same with the norm's gain in Q, K, V, its bias in their biases, and the post norm's gain in O."""
        m, norm = self.matrices(layer), self.norm_of(layer)
        gain = torch.ones(WIDTH) if norm is None else self.gain(norm)
        shift = getattr(norm, "bias", None)
        for n in "QKV":
            if shift is not None:
                m[f"b{n}"] = m[f"b{n}"] + torch.einsum("m,hmd->hd", shift, m[n])
            m[n] = gain[:, None] * m[n]
        return m | {"O": m["O"] * self.post_gain(layer)}

    def post_gain(self, layer: int) -> Tensor:
        path = self.raw.family.attn_out
        return self.gain(self.raw.module(layer, path)) if path else torch.ones(WIDTH)

    def post_scale(self, layer: int, z: Tensor) -> Tensor:
        """What the attention's post norm divides by, from raw z [prompt pos head d_head]."""
        path = self.raw.family.attn_out
        if not path:
            return torch.ones(*z.shape[:2], 1)
        out = self.raw.attn(layer).get_submodule(self.raw.family.o)
        return self.scale(out(z.flatten(-2)), self.raw.module(layer, path))

    def z(self, got: Mapping[tuple[str, int], Tensor], layer: int) -> Tensor:
        """z without what values' biases put into it, which loading moves into the output's bias."""
        return got["z", layer] - self.folded(layer)["bV"]

    def to_logits(self, change: Tensor, end: Tensor) -> Tensor:
        """What a change of the final stream adds to the logits (before a soft cap), the norm's scale frozen."""
        change = change - change.mean(-1, keepdim=True) if self.centres else change
        return change / self.scale(end, self.raw.final) * self.gain(self.raw.final) @ self.W_U

    def uncapped(self, logits: Tensor) -> Tensor:
        cap = getattr(self.raw.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.atanh(logits.double() / cap).float()

    def capped(self, logits: Tensor) -> Tensor:
        cap = getattr(self.raw.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)
