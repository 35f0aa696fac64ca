"""How an `Anatomy` is read off a `TransformerBridge`: what is supported and what is refused is decided here.

Modules are the bridge's `original_component`s, whose weights are the processed ones. Where families differ in a fact
that no module carries (windows of Mistral, rotary tables of GPT-J), Hugging Face's config or attention module is asked.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechinterp.anatomy import Anatomy, Layer, size
from mechinterp.modules import MLP, Linear, Norm, Rotary

CHECKED, LONGEST = 16, 128
"""Tokens of the comparison with the model's own logits: at least, and as prompts get longer; windows may need more."""
_PLACE = "_mechinterp_anatomy"
VALUE_BIASES = "_mechinterp_value_biases"
"""Where loading leaves the value biases that processing folds into b_O."""


@dataclass
class _Known:
    """What is remembered of a model: its anatomy, the version of its weights, over how many tokens it was compared."""

    anatomy: Anatomy
    version: tuple[Any, ...]
    compared: int = 0


def known(model: Any, length: int | None = None) -> Anatomy:
    """See `Anatomy.of`."""
    sizes = size(model)
    _refuse_hooks(model)
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    version = tuple((p.data_ptr(), p._version, p.dtype) for p in model.parameters())
    entry: _Known | None = model.__dict__.get(_PLACE)
    if entry is None or entry.version != version:
        _refuse(model)
        entry = model.__dict__[_PLACE] = _Known(_read(model), version)
    length = length or CHECKED
    windows = [layer.window + 2 for layer in entry.anatomy.layers if layer.window is not None and layer.window < length]
    needed = min(max([CHECKED, min(length, LONGEST), *windows]), sizes.n_ctx)
    if entry.compared < needed:
        _compare(model, entry.anatomy, needed)
        entry.compared = needed
    return entry.anatomy


def settings(model: Any) -> dict[str, Any]:
    """What makes a model's activations beside its weights: numbers and switches of its config, names of functions."""
    cfg = vars(model.cfg)
    named = ("act_fn", "architecture", "normalization_type", "positional_embedding_type")
    return {n: v for n, v in cfg.items() if isinstance(v, int | float)} | {n: str(cfg.get(n)) for n in named}


@torch.no_grad()
def value_biases(model: Any) -> Tensor | None:
    """[layer head d_head]: what a bridge that is not processed yet adds to values; None if it is not supported."""
    try:
        anatomy = _read(model)
    except ValueError:
        return None
    return torch.stack([torch.stack([x.bias("v", h) for h in range(x.n_heads)]) for x in anatomy.layers])


def _refuse_hooks(model: Any) -> None:
    """`ValueError` naming the first place at which somebody else changes or watches the model."""
    for name, module in model.named_modules():
        if hasattr(module, "fwd_hooks"):
            hooks = [handle.user_hook for handle in module.fwd_hooks]
        else:
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if not all(map(_of_the_bridge, hooks)):
            raise ValueError(
                f"the model has a hook at {name}, which this function would not see: call model.reset_hooks() first, "
                "or say what to change through the function's own arguments"
            )


def _of_the_bridge(hook: Any) -> bool:
    """The bridge has hooks of its own and leaves some behind after a pass; transformers' only watch."""
    return str(getattr(hook, "__module__", "")).split(".")[0] in ("transformer_lens", "transformers")


def _refuse(model: Any) -> None:
    """`ValueError` for an architecture that is not supported, naming what is not."""
    cfg, config = model.cfg, getattr(getattr(model, "original_model", None), "config", None)
    positions = getattr(cfg, "positional_embedding_type", "standard")
    ropes = [getattr(m, "rope_type", None) for m in _rotary_modules(model)]
    types = {t for rope in ropes for t in (rope.values() if isinstance(rope, dict) else [rope]) if t}
    first = model.blocks[0].submodules if len(model.blocks) else {}
    unsupported = {
        f"{positions} positions": positions not in ("standard", "rotary"),
        "an encoder": bool(getattr(config, "is_encoder_decoder", False)),
        f"rotary positions of the kind {', '.join(sorted(types))}, which depend on the prompt's length": any(
            "dynamic" in t or t == "longrope" for t in types
        ),
        "blocks without attention": any("attn" not in block.submodules for block in model.blocks),
        f"a mixture of experts ({', '.join(first)})": bool(getattr(config, "num_local_experts", 0) or 0)
        or bool(getattr(config, "num_experts", 0) or 0),
        "latent attention": bool(getattr(config, "kv_lora_rank", None)),
    }
    for what, present in unsupported.items():
        if present:
            raise ValueError(f"this model has {what}, which is not supported")


def _rotary_modules(model: Any) -> Iterator[Any]:
    bridge = getattr(model, "rotary_emb", None)
    if bridge is not None:
        yield getattr(bridge, "original_component", bridge)


def _read(model: Any) -> Anatomy:
    """The anatomy, not yet compared."""
    name = type(getattr(model, "original_model", model)).__name__
    try:
        sizes, cache = size(model), dict[Any, Rotary]()
        layers = tuple(_layer(model, i, cache) for i in range(sizes.n_layers))
        positions = _position_table(model)
        unembedding = Linear.of(model.unembed)
        cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
        final = Norm.of(getattr(model.ln_final, "original_component", None), sizes.d_model)
        embedding = model.embed.original_component
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} is not built as described in mechinterp.anatomy: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} is not supported: {error}") from error
    return Anatomy(sizes, layers, final, unembedding, float(cap) if cap > 0 else None, embedding, positions)


def _position_table(model: Any) -> Callable[[Tensor], Tensor] | None:
    bridge = getattr(model, "pos_embed", None)
    if bridge is None:
        return None
    module = bridge.original_component
    offset = int(getattr(module, "offset", 0))  # OPT
    return lambda positions: module.weight[positions + offset]


def _layer(model: Any, index: int, rotaries: dict[Any, Rotary]) -> Layer:
    sizes, block = size(model), model.blocks[index]
    parts, attn = block.submodules, block.attn
    hf, config = attn.original_component, getattr(model.original_model, "config", None)

    def norm(name: str, width: int = sizes.d_model, place: Any = parts) -> Norm:
        return Norm.of(place[name].original_component if name in place else None, width)

    parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
    norm1 = norm("ln1")
    q, k, v, o = (Linear.of(getattr(attn, name)) for name in "qkvo")
    d_head = sizes.d_head
    kinds = [q.weight.shape[0] // d_head, k.weight.shape[0] // d_head]
    if "q_norm" in attn.submodules:
        weight = getattr(attn.submodules["q_norm"].original_component, "weight", None)
        joint = weight is not None and weight.shape[-1] != d_head
        q_norm, k_norm = (
            norm(name, n * d_head if joint else d_head, attn.submodules)
            for name, n in zip(("q_norm", "k_norm"), kinds, strict=True)
        )
    else:
        joint, q_norm, k_norm = False, Norm(), Norm()
    return Layer(
        index=index,
        n_heads=kinds[0],
        n_kv_heads=kinds[1],
        d_head=d_head,
        norm1=norm1,
        # GPT-J, Phi and Falcon feed both branches from one norm.
        norm2=norm1 if parallel and "ln2" not in parts else norm("ln2"),
        post1=norm("ln1_post"),
        post2=norm("ln2_post"),
        parallel=parallel,
        q=q,
        k=k,
        v=v,
        o=o,
        neurons=MLP.of(block.mlp),
        scale=_scale(hf, d_head),
        cap=getattr(hf, "attn_logit_softcapping", None),
        window=_window(hf, config, index),
        clip=getattr(config, "clip_qkv", None),
        q_norm=q_norm,
        k_norm=k_norm,
        joint=joint,
        rotary=_rotary(model, hf, config, index, q.weight.dtype, rotaries),
        causal=getattr(model.cfg, "attention_dir", "causal") == "causal",
    )


def _scale(hf: Any, d_head: int) -> float:
    """What multiplies the scores."""
    if type(hf).__name__ == "GPTNeoSelfAttention":
        return 1.0
    for name in ("scaling", "inv_norm_factor"):
        if getattr(hf, name, None) is not None:
            return float(getattr(hf, name))
    return 1.0 / float(hf.scale_attn) if hasattr(hf, "scale_attn") else d_head**-0.5


def _window(hf: Any, config: Any, index: int) -> int | None:
    """How many positions back a layer sees, itself included; None for all."""
    if getattr(hf, "attention_type", None) == "local":  # GPT-Neo
        return int(config.window_size)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[index] != "sliding_attention":
        return None
    window = getattr(hf, "sliding_window", None)
    window = getattr(config, "sliding_window", None) if window is None else window
    if kinds is None and getattr(config, "use_sliding_window", True) is False:
        return None
    return None if window is None else int(window)


def _rotary(
    model: Any, hf: Any, config: Any, index: int, dtype: torch.dtype, known: dict[Any, Rotary]
) -> Rotary | None:
    """One for all layers with the same table."""
    if getattr(model.cfg, "positional_embedding_type", "standard") != "rotary":
        return None
    if hasattr(hf, "embed_positions"):  # GPT-J: sines and cosines of every pair
        if "adjacent" not in known:
            known["adjacent"] = Rotary(partial(_adjacent_tables, hf), adjacent=True)
        return known["adjacent"]
    module = model.rotary_emb.original_component
    kinds = getattr(config, "layer_types", None)
    by_kind = "layer_type" in inspect.signature(module.forward).parameters
    kind = kinds[index] if by_kind and kinds is not None else None
    if kind not in known:
        known[kind] = Rotary(partial(_tables, module, kind, dtype))
    return known[kind]


def _adjacent_tables(hf: Any, length: int) -> tuple[Tensor, Tensor]:
    sin, cos = hf.embed_positions[:length].chunk(2, -1)
    return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)


@torch.no_grad()
def _tables(module: Any, kind: str | None, dtype: torch.dtype, length: int) -> tuple[Tensor, Tensor]:
    device = next(module.buffers()).device
    positions = torch.arange(length, device=device)[None]
    x = torch.zeros(1, length, 1, dtype=dtype, device=device)
    cos, sin = module(x, positions) if kind is None else module(x, positions, kind)
    return cos[0], sin[0]


@torch.no_grad()
def _compare(model: Any, anatomy: Anatomy, length: int) -> None:
    """`ValueError` if the anatomy's logits are not the model's, over a context of this length."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(anatomy.size.d_vocab, (1, length), generator=generator).to(anatomy.device)
    theirs = model(tokens)[0, -CHECKED:].float()
    if not torch.isfinite(theirs).all():
        raise ValueError("the model's output contains NaN or infinity; check its weights")
    x = anatomy.embed(tokens)
    for layer in anatomy.layers:
        x = layer(x)
    ours = anatomy.unembed(x[0, -CHECKED:]).float()
    worst = (ours - theirs).abs().max().item()
    allowed = max(1e-3, 64 * torch.finfo(anatomy.dtype).eps) * (1 + theirs.abs().max().item())
    if not worst <= allowed:
        raise ValueError(
            f"{type(model.original_model).__name__}: the arithmetic of mechinterp.anatomy gives other logits than this "
            f"model (by {worst:.2g}); it has a part that is not supported"
        )
