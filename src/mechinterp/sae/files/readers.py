"""Files of other libraries, read into `Stored`. No code from a file is ever executed.

safetensors and JSON hold data only; `.npz` is read without pickles; `.pt` goes through PyTorch's restricted unpickler
(`weights_only=True`), which makes tensors and plain containers and refuses all else.
"""

import hashlib
import json
import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mechinterp.sae.files.stored import Stored
from mechinterp.sae.kinds import KINDS

_FACTS = (
    "model_name",
    "model_class_name",
    "hook_head_index",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "context_size",
    "dataset_path",
    "neuronpedia_id",
)
"""What SAELens before version 6 kept among the settings, and since then in the metadata."""
_VERSIONS = ("sae_lens_version", "sae_lens_training_version")
_GEMMA_SITES = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}
_GEMMA_2_SITES = {"resid_post": "hook_resid_post", "attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}
"""Of Gemma Scope 2, whose attn_out is the input of the output projection."""
NO_DENSITY = 1e-10
"""SAELens adds it before it takes the logarithm."""

_WEIGHTS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
_DICTIONARIES: dict[str, tuple[str, bool, dict[str, str]]] = {
    "AutoEncoder": ("standard", True, _WEIGHTS | {"bias": "b_dec"}),
    "AutoEncoderNew": ("standard", False, _WEIGHTS | {"decoder.bias": "b_dec"}),
    "GatedAutoEncoder": (
        "gated",
        True,
        _WEIGHTS | {"decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag"},
    ),
    "JumpReluAutoEncoder": ("jumprelu", False, {}),
    "AutoEncoderTopK": ("topk", True, _WEIGHTS),
    "BatchTopKSAE": ("jumprelu", True, _WEIGHTS),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, {}),
}
"""Class of dictionary_learning: kind, whether it centres its input, and its names for our tensors."""


_BATCHWISE = ("batchtopk", "matryoshka_batchtopk")
"""What SAELens calls training checkpoints whose latents depend on the batch."""
_TRANSCODER = "it reads one place of the model and predicts another; files.load_transcoder reads it"
SPARSIFY: dict[str, str | bool] = {
    "activation": "topk",
    "signed": False,
    "skip_connection": False,
    "embed_skip": False,
    "gram_lookup": False,
    "transcode": False,
}
"""Settings of sparsify that change the function, and what they are in a plain SAE; its files have some of them."""


def sae_lens(folder: Path) -> Stored:
    """A SAELens folder: `cfg.json` of version 6 and later, or flat as before, and `sae_weights.safetensors`."""
    place = str(folder)
    cfg = json_object(folder / "cfg.json")
    weights = folder / "sae_weights.safetensors"
    tensors = tensors_of(weights)
    metadata = _part(place, cfg, "metadata") or {n: cfg[n] for n in _FACTS if n in cfg}
    hook = metadata.get("hook_name") or cfg.get("hook_name") or cfg.get("hook_point") or ""
    sha256 = _sha256(weights)
    if metadata.get("sha256", sha256) != sha256:
        raise ValueError(f"{weights} is not the file that cfg.json was written with (SHA-256 differs); save it again")
    kept = {n: v for n, v in metadata.items() if v is not None and n not in ("hook_name", *_VERSIONS)}
    kind, k = _sae_lens_kind(place, cfg)
    if "log_threshold" in tensors:  # a checkpoint of training
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if kind in _BATCHWISE:
        by_norm = bool(cfg.get("rescale_acts_by_decoder_norm", False))
        kind, tensors = "jumprelu", _one_threshold(place, kind, tensors, by_norm)
    if not torch.all(tensors.pop("scaling_factor", torch.ones(1)) == 1):
        raise ValueError(f"{place} has a fine-tuned scaling_factor, which is not supported; fold it into W_dec first")
    shape = _whole(place, cfg, "d_in"), _whole(place, cfg, "d_sae")
    if (folder / "sparsity.safetensors").is_file():
        kept["density"] = _density(folder / "sparsity.safetensors", shape[1])
    return Stored(
        place,
        kind,
        tensors,
        k=k,
        hook=hook,
        facts=kept | {"sha256": sha256},
        shape=shape,
        centred=bool(cfg.get("apply_b_dec_to_input", True)),
        scale=_sae_lens_scale(place, cfg, folder),
        by_norm=KINDS[kind].takes_k and bool(cfg.get("rescale_acts_by_decoder_norm", False)),
    )


def _sae_lens_kind(place: str, cfg: dict[str, Any]) -> tuple[str, int | None]:
    kind = str(cfg.get("architecture") or "standard")
    activation = cfg.get("activation_fn") or cfg.get("activation_fn_str") or "relu"
    k = cfg.get("k", _part(place, cfg, "activation_fn_kwargs").get("k"))
    if activation == "topk":
        kind = "topk"
    elif activation != "relu":
        raise ValueError(f"{place} has the activation function {activation!r}; only relu and topk are known")
    if "transcoder" in kind:
        raise ValueError(f"{place} is a {kind}, and no SAE: {_TRANSCODER}")
    if kind in _BATCHWISE:
        return kind, None
    saved = [name for name, one in KINDS.items() if not one.batchwise]
    if kind not in saved:
        raise ValueError(f"{place} has the unknown architecture {kind!r}; known: {', '.join(saved)}")
    return kind, k if KINDS[kind].takes_k else None


def _one_threshold(place: str, kind: str, tensors: dict[str, Tensor], by_norm: bool) -> dict[str, Tensor]:
    """A checkpoint whose latents depend on the batch as the jumprelu that its moving average makes of it."""
    level = tensors.pop("topk_threshold", None)
    if level is None or not level > 0 or "b_enc" not in tensors:
        raise ValueError(
            f"{place} is a training checkpoint of kind {kind}, whose latents depend on the batch, without the "
            "threshold that training keeps; write it with SAELens' save_inference_model, which makes it a jumprelu"
        )
    threshold = level.to(tensors["b_enc"]).expand(tensors["b_enc"].shape)
    if by_norm and "W_dec" in tensors:  # what was compared is pre · ‖W_dec row‖
        threshold = threshold / tensors["W_dec"].norm(dim=1)
    return tensors | {"threshold": threshold}


def _sae_lens_scale(place: str, cfg: dict[str, Any], folder: Path) -> float | None:
    """What activations were multiplied by; None if that is not in the folder."""
    how = cfg.get("normalize_activations")
    if how in (None, False, "none"):
        return 1.0
    if how in (True, "expected_average_only_in"):
        beside = folder / "activation_scaler.json"
        return json_object(beside).get("scaling_factor") if beside.is_file() else None
    raise ValueError(
        f"{place} was trained on activations normalised by {how!r}, which no weights can express or the file does not "
        "tell; choose an SAE with normalize_activations 'none'"
    )


def _density(path: Path, d_sae: int) -> Tensor:
    logs = tensors_of(path).get("sparsity")
    if logs is None or logs.shape != (d_sae,):
        raise ValueError(f"{path} must hold the tensor 'sparsity' of {d_sae} numbers; get it again or delete it")
    return torch.where(logs > -9.999, 10 ** logs.double() - NO_DENSITY, 0.0).float()


def gemma_scope(path: Path, name: str) -> Stored:
    """`params.npz` of Gemma Scope; `name` is its full path or hub id, which tells model, layer and site."""
    if re.search(r"gemma-scope-[\w-]*transcoders", name):
        raise ValueError(f"{name} is a transcoder, and no SAE: {_TRANSCODER}")
    tensors = {("W_" + n[2:] if n.startswith("w_") else n): v for n, v in arrays_of(path).items()}
    model = re.search(r"gemma-scope-(\w+)-(pt|it)-(res|att|mlp)", name)
    layers = re.findall(r"\blayer_(\d+)/", name)
    hook, scale = "", 1.0
    if re.search(r"\bembedding/width_", name) and "b_dec" in tensors:
        # TransformerLens' embeddings carry the factor √d_model that the SAE's training inputs did not have.
        hook, scale = "hook_embed", tensors["b_dec"].numel() ** -0.5
    elif model and layers:
        hook = f"blocks.{layers[-1]}.{_GEMMA_SITES[model[3]]}"
    facts: dict[str, Any] = {"sha256": _sha256(path)}
    if model:
        facts["model_name"] = f"gemma-2-{model[1]}{'-it' if model[2] == 'it' else ''}"
    return Stored(str(path), "jumprelu", tensors, hook=hook, facts=facts, centred=False, scale=scale)


def gemma_scope_2(path: Path, name: str) -> Stored:
    """`params.safetensors` of Gemma Scope 2; `name` is its full path or hub id, which tells model, layer and site."""
    tensors = {("W_" + n[2:] if n.startswith("w_") else n): v for n, v in tensors_of(path).items()}
    site = re.search(r"\b(resid_post|attn_out|mlp_out|transcoder|clt)\w*/", name)
    if (site and site[1] in ("transcoder", "clt")) or "affine_skip_connection" in tensors:
        raise ValueError(f"{name} is a transcoder, and no SAE: {_TRANSCODER}")
    layers = re.findall(r"\blayer_(\d+)_", name)
    hook = f"blocks.{layers[-1]}.{_GEMMA_2_SITES[site[1]]}" if site and layers else ""
    facts: dict[str, Any] = {"sha256": _sha256(path)}
    if model := re.search(r"gemma-scope-2-(\w+)-(pt|it)", name):
        facts["model_name"] = f"gemma-3-{model[1]}-{model[2]}"
    return Stored(str(path), "jumprelu", tensors, hook=hook, facts=facts, centred=False)


def llama_scope(folder: Path) -> Stored:
    """`hyperparams.json` and `checkpoints/final.safetensors` of Llama Scope (arXiv:2410.20526).

    The SAE reads x · √d / (mean norm of the training data), with one threshold for all latents.
    """
    place, cfg, path = (
        str(folder),
        json_object(folder / "hyperparams.json"),
        folder / "checkpoints" / "final.safetensors",
    )
    if cfg.get("act_fn", "jumprelu").lower() != "jumprelu":
        raise ValueError(f"{place} has the activation function {cfg['act_fn']!r}; only jumprelu is known")
    if cfg.get("hook_point_out", cfg.get("hook_point_in")) != cfg.get("hook_point_in"):
        raise ValueError(f"{place} is a transcoder, and no SAE: it predicts {cfg['hook_point_out']}")
    norm, threshold = _part(place, cfg, "dataset_average_activation_norm").get("in"), cfg.get("jump_relu_threshold")
    for name, value in (("dataset_average_activation_norm.in", norm), ("jump_relu_threshold", threshold)):
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{name} in {place} must be a positive number, got {value!r}: its threshold is not known")
    names = _WEIGHTS | {"decoder.bias": "b_dec"}
    tensors = {names.get(n, n): v for n, v in tensors_of(path).items()}
    tensors |= {n: tensors[n].mT for n in ("W_enc", "W_dec") if n in tensors and tensors[n].ndim == 2}
    d_in, d_sae = _whole(place, cfg, "d_model"), _whole(place, cfg, "d_sae")
    scale = d_in**0.5 / norm
    tensors["threshold"] = torch.full((d_sae,), threshold * scale)
    hook, facts = cfg.get("hook_point_in", ""), {"config": cfg, "sha256": _sha256(path)}
    return Stored(place, "jumprelu", tensors, hook=hook, facts=facts, shape=(d_in, d_sae), centred=False, scale=scale)


def attention_output(path: Path) -> Stored:
    """`{run}.pt` and `{run}_cfg.json` of the attention-output SAEs (arXiv:2406.17759)."""
    cfg = json_object(path.with_name(f"{path.stem}_cfg.json"))
    facts = {to: cfg[name] for to, name in (("model_name", "model_name"), ("context_size", "seq_len")) if name in cfg}
    return Stored(
        str(path),
        "standard",
        _pt(path),
        hook=cfg.get("act_name", ""),
        facts=facts | {"config": cfg, "sha256": _sha256(path)},
        shape=(_whole(str(path), cfg, "act_size"), _whole(str(path), cfg, "dict_size")),
    )


def dictionary_learning(path: Path) -> Stored:
    """`ae.pt` with its `config.json`, of the package dictionary_learning."""
    place, config = str(path), json_object(path.with_name("config.json"))
    trainer = _part(place, config, "trainer")
    name = trainer.get("dict_class")
    if name not in _DICTIONARIES:
        raise ValueError(f"{place} is of the class {name!r}; known: {', '.join(_DICTIONARIES)}")
    kind, centred, names = _DICTIONARIES[name]
    tensors = {names.get(n, n): v for n, v in _pt(path).items()}
    if names:  # torch.nn.Linear keeps [out, in]
        tensors |= {n: tensors[n].mT for n in ("W_enc", "W_dec") if n in tensors and tensors[n].ndim == 2}
    k = tensors.pop("k", None) if "TopK" in name else None
    tensors.pop("group_sizes", None)  # of a Matryoshka SAE: all groups together are the SAE
    if name == "AutoEncoderTopK":
        tensors.pop("threshold", None)
    elif "BatchTopK" in name and "threshold" in tensors and "b_enc" in tensors:
        tensors["threshold"] = tensors["threshold"].expand(tensors["b_enc"].shape)
    facts = {"model_name": trainer.get("lm_name"), "config": config, "sha256": _sha256(path)}
    return Stored(
        place,
        kind,
        tensors,
        k=(int(k) if k is not None else trainer.get("k")) if KINDS[kind].takes_k else None,
        facts=facts,
        shape=(_whole(place, trainer, "activation_dim"), _whole(place, trainer, "dict_size")),
        centred=centred,
    )


def sparsify(folder: Path) -> Stored:
    """`cfg.json` and `sae.safetensors` of EleutherAI's sparsify: relu(encoder(x - b_dec)), the k largest of a token."""
    place, cfg, path = str(folder), json_object(folder / "cfg.json"), folder / "sae.safetensors"
    for name, plain in SPARSIFY.items():
        if cfg.get(name, plain) != plain:
            way_out = _TRANSCODER if name in ("transcode", "skip_connection") else f"only {plain!r} can be read"
            raise ValueError(
                f"{place} is of EleutherAI's sparsify with {name} = {cfg[name]!r}, no plain TopK: {way_out}"
            )
    tensors = {_WEIGHTS.get(n, n): v for n, v in tensors_of(path).items()}
    if "W_enc" in tensors and tensors["W_enc"].ndim == 2:  # torch.nn.Linear keeps [out, in]; W_dec is as ours
        tensors["W_enc"] = tensors["W_enc"].mT
    d_in = _whole(place, cfg, "d_in")
    width = (
        _whole(place, cfg, "num_latents") if cfg.get("num_latents") else d_in * _whole(place, cfg, "expansion_factor")
    )
    facts = {"config": cfg, "sha256": _sha256(path)}
    return Stored(place, "topk", tensors, k=cfg.get("k"), facts=facts, shape=(d_in, width))


def _part(place: str, cfg: dict[str, Any], name: str) -> dict[str, Any]:
    value = cfg.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} in the config of {place} must be a JSON object, got {value!r}")
    return value


def _whole(place: str, cfg: dict[str, Any], name: str) -> int:
    value = cfg.get(name)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} in the config of {place} must be a positive whole number, got {value!r}")
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(path: Path) -> ValueError:
    return ValueError(f"no {path.name} in {path.parent}; the SAE is incomplete, get it again")


def _broken(path: Path, what: str, error: Exception) -> ValueError:
    return ValueError(f"{path} is truncated or not {what} ({error}); get it again")


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        cfg = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise _missing(path) from error
    except ValueError as error:
        raise _broken(path, "JSON", error) from error
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(cfg).__name__}")
    return cfg


def tensors_of(path: Path) -> dict[str, Tensor]:
    """A safetensors file."""
    if not path.is_file():
        raise _missing(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _broken(path, "a safetensors file", error) from error


def arrays_of(path: Path) -> dict[str, Tensor]:
    """A npz file of plain arrays."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError) as error:
        raise _broken(path, "an npz file of plain arrays", error) from error


def _pt(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or is damaged; it is not opened, since a pickle can run any code. "
            "Ask its authors for a plain state_dict or safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise _broken(path, "a PyTorch file", error) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must hold a state_dict, names and tensors; got {type(state).__name__}")
    return state
