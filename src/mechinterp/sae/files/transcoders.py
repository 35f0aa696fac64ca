"""Transcoders on disk, read from SAELens' folders, Gemma Scope 1 and 2, and EleutherAI's sparsify."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechinterp.sae.files import readers
from mechinterp.sae.transcoders import Transcoder

_SAE_LENS = {"transcoder": "standard", "skip_transcoder": "standard"}
_SAE_LENS |= {"jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu"}


def load_transcoder(source: str | Path) -> Transcoder:
    """A transcoder from a folder or file, in float32, on the CPU, as it was stored: nothing is folded or made unit.

    | source | files |
    |---|---|
    | SAELens (`transcoder`, `skip_transcoder`, and the jumprelu ones) | `cfg.json`, `sae_weights.safetensors` |
    | Gemma Scope, repository of transcoders | `params.npz`, below `layer_L/` |
    | Gemma Scope 2, `transcoder` and its like | `params.safetensors`, below `layer_L_…/` |
    | sparsify, `transcode` or `skip_connection` | `cfg.json`, `sae.safetensors` |

    Errors: `ValueError` for another format, cross-layer transcoders, an input that would have to be centred or
        normalised, and tensors that are missing, misshapen or not finite.

    >>> load_transcoder("no/such/folder")
    Traceback (most recent call last):
    ValueError: no file or folder 'no/such/folder'; give one
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(f"no file or folder {str(source)!r}; give one")
    if path.is_dir():
        mains = ("params.safetensors", "params.npz", "cfg.json")
        path = next((path / name for name in mains if (path / name).is_file()), path)
    if (path.parent / "sae.safetensors").is_file():
        return _sparsify(path.parent)
    if path.name in ("cfg.json", "sae_weights.safetensors"):
        return _sae_lens(path.parent)
    if path.name in ("params.npz", "params.safetensors"):
        return _gemma(path)
    raise ValueError(f"{path} is no transcoder that is known here: expected cfg.json, params.npz or params.safetensors")


def _made(place: str, kind: str, tensors: dict[str, Tensor], **rest: Any) -> Transcoder:
    for name, value in tensors.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise ValueError(f"{name} in {place} must be finite floating-point numbers; get the file again")
    floats = {name: value.float().contiguous() for name, value in tensors.items()}
    skip = floats.pop("W_skip", None)
    try:
        return Transcoder(kind, floats, W_skip=skip, **rest)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _sae_lens(folder: Path) -> Transcoder:
    place, cfg = str(folder), readers.json_object(folder / "cfg.json")
    kind = _SAE_LENS.get(str(cfg.get("architecture")))
    if kind is None:
        raise ValueError(f"{place} has the architecture {cfg.get('architecture')!r}; known: {', '.join(_SAE_LENS)}")
    if cfg.get("apply_b_dec_to_input"):
        raise ValueError(f"{place} would subtract b_dec from its input, which belongs to the output of a transcoder")
    if cfg.get("normalize_activations") not in (None, False, "none"):
        raise ValueError(f"{place} wants activations normalised by {cfg['normalize_activations']!r}; fold that first")
    tensors = readers.tensors_of(folder / "sae_weights.safetensors")
    if "W_skip" in tensors:  # [d_out d_in]
        tensors["W_skip"] = tensors["W_skip"].mT
    facts = cfg.get("metadata") or {}
    hooks = {"reads": facts.get("hook_name") or "", "predicts": facts.get("hook_name_out") or ""}
    return _made(place, kind, tensors, facts=facts, **hooks)


def _gemma(path: Path) -> Transcoder:
    name = path.absolute().as_posix()
    found = readers.arrays_of(path) if path.suffix == ".npz" else readers.tensors_of(path)
    tensors = {("W_" + n[2:] if n.startswith("w_") else n): v for n, v in found.items()}
    if tensors["W_dec"].ndim != 2 if "W_dec" in tensors else "/clt" in name:
        raise ValueError(f"{path} is a cross-layer transcoder, which predicts many layers; that is not supported")
    if "affine_skip_connection" in tensors:  # [d_in d_out]
        tensors["W_skip"] = tensors.pop("affine_skip_connection")
    layers = re.findall(r"\blayer_(\d+)[_/]", name)
    layer = f"blocks.{layers[-1]}." if layers else ""
    hooks = {"reads": f"{layer}ln2.hook_normalized", "predicts": f"{layer}hook_mlp_out"} if layer else {}
    return _made(str(path), "jumprelu", tensors, **hooks)


def _sparsify(folder: Path) -> Transcoder:
    place, cfg = str(folder), readers.json_object(folder / "cfg.json")
    for name, plain in readers.SPARSIFY.items():
        if name not in ("transcode", "skip_connection") and cfg.get(name, plain) != plain:
            raise ValueError(f"{place} has {name} = {cfg[name]!r}; only {plain!r} can be read")
    if not cfg.get("transcode"):
        raise ValueError(f"{place} is no transcoder: it reconstructs its own input, less b_dec")
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    tensors = {names.get(n, n): v for n, v in readers.tensors_of(folder / "sae.safetensors").items()}
    for name in ("W_enc", "W_skip"):  # [out in]
        if name in tensors:
            tensors[name] = tensors[name].mT
    return _made(place, "topk", tensors, k=cfg.get("k"), facts={"config": cfg})
