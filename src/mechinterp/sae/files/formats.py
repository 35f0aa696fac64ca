"""SAEs on disk: written in SAELens' format, read from it and from other libraries', local or on the hub.

| source | files |
|---|---|
| SAELens, version 6 and before | folder with `cfg.json`, `sae_weights.safetensors`, perhaps `sparsity.safetensors` |
| Gemma Scope (arXiv:2408.05147) | `params.npz` |
| Gemma Scope 2 | `params.safetensors` |
| Llama Scope (arXiv:2410.20526) | folder with `hyperparams.json` and `checkpoints/final.safetensors` |
| attention-output SAEs (arXiv:2406.17759) | `{run}.pt` and `{run}_cfg.json` |
| dictionary_learning | folder with `ae.pt` and `config.json` |
| EleutherAI sparsify | folder with `cfg.json` and `sae.safetensors` |

Transcoders are read by `files.load_transcoder`. A file is data: no code from it is executed, pickles included. What the
conversion does is in `sae.stored`.
"""

import difflib
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mechinterp.files import atomic_write
from mechinterp.models import hub
from mechinterp.sae.architectures import SAE
from mechinterp.sae.files import readers
from mechinterp.sae.files.stored import Stored, convert
from mechinterp.sae.kinds import KINDS

_VERSION = "6.0.0"
"""Of SAELens: the format that is written."""
_KNOWN = (
    "cfg.json",
    "sae_weights.safetensors",
    "sae.safetensors",
    "sparsity.safetensors",
    "activation_scaler.json",
    "params.npz",
    "params.safetensors",
    "hyperparams.json",
    "checkpoints/final.safetensors",
    "ae.pt",
    "config.json",
)
_MAIN = ("cfg.json", "params.npz", "params.safetensors", "hyperparams.json", "ae.pt")


def save(sae: SAE, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write an SAE in SAELens' native format; `SAE.load_from_disk` and `load` read it. Returns the folder.

    `sae.hook` and `sae.facts` become the metadata, with the SHA-256 of the weights. A fact "density" (share of tokens
    on which each latent is active) goes to `sparsity.safetensors` as its decimal logarithm. Either all files are
    written or, on a full disk, the old ones stay.

    Args:
        dtype: of the two matrices; float16 halves the file, and norms move by less than 0.0005. Biases and
            thresholds stay in float32, and so does what is computed after loading.

    Errors: `ValueError` for a batchtopk (its latents depend on the batch: make it a jumprelu), tensors that are not
        finite or too large for float16, and facts that JSON cannot hold.

    >>> from tempfile import TemporaryDirectory
    >>> from mechinterp.sae import initial
    >>> sae = SAE("topk", initial("topk", 4, 16, seed=0), k=2, hook="blocks.2.hook_mlp_out", facts={"tokens": 1000})
    >>> with TemporaryDirectory() as folder:
    ...     again = load(save(sae, folder))
    >>> again, again.facts["tokens"]
    (SAE(topk, 4 -> 16, k=2, blocks.2.hook_mlp_out), 1000)
    """
    if KINDS[sae.kind].batchwise:
        raise ValueError(
            f"a {sae.kind} SAE is for training, its latents depend on the batch; make it a jumprelu with one threshold "
            "and save that"
        )
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype must be torch.float32 or torch.float16, not {dtype}")
    tensors = {n: v.detach().cpu().float() for n, v in sae.params.items()}
    tensors |= {n: tensors[n].to(dtype) for n in ("W_enc", "W_dec")}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{name} contains NaN, infinity or values too large for {value.dtype}; nothing was written"
            )
    weights = safetensors.torch.save({n: v.contiguous() for n, v in tensors.items()})
    facts = dict(sae.facts)
    density = facts.pop("density", None)
    files = {"sae_weights.safetensors": weights, "cfg.json": _config(sae, facts, weights)}
    if density is not None:
        files["sparsity.safetensors"] = _log_density(density, sae.d_sae)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_together(folder, files)
    if density is None:
        (folder / "sparsity.safetensors").unlink(missing_ok=True)
    return folder


def load(
    source: str | Path,
    *,
    hook: str | None = None,
    scale: float | None = None,
    unit_norm: bool = True,
    revision: str | None = None,
) -> SAE:
    """An SAE from a folder, a file or the hub, in our conventions: float32, on the CPU, input centred, unit rows.

    Args:
        source: a folder or file of a format in this module's table, or a hub id `owner/name:path` such as
            `google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82`,
            `jbloom/GPT2-Small-SAEs-Reformatted:blocks.8.hook_resid_pre` or
            `ckkissane/attn-saes-gpt2-small-all-layers:{run}.pt`. What is in the local cache is used as it is there.
        hook: where it belongs, if the file does not say (dictionary_learning and sparsify never do) or is wrong.
        scale: the SAE was trained on scale · x; only for files that want it and do not tell.
        unit_norm: make decoder rows unit and scale the latents to match, the function staying the same. False leaves
            them, which a topk with other rows needs, unless it compares by norm already.
        revision: branch, tag or commit of a hub repository.

    Activations must be those the SAE was trained on. Attention-output SAEs expect TransformerLens' processing (layer
    norm folded, value biases folded into b_O, heads concatenated), and the residual SAEs of GPT-2 its centred stream:
    what `models.load` returns. dictionary_learning trains on raw Hugging Face activations, whose residual stream is
    not centred, and so does sparsify. Gemma Scope never saw a BOS token.

    Errors: `ValueError` for a missing, truncated or corrupt file, tensors that are missing, transposed, of a wrong
        type or not finite, an unknown architecture or a transcoder, a topk without k, and a normalisation that
        weights cannot express; `ConnectionError` for a hub SAE that is neither cached nor reachable.

    >>> load("no/such/folder")
    Traceback (most recent call last):
    ValueError: no file or folder 'no/such/folder'; give one, or a hub id such as 'owner/name:path/in/it'
    """
    path = Path(source).expanduser()
    hub = None if path.exists() else str(source)
    if hub is not None:
        path = _hub(hub, revision)
    stored = _read(path, hub or path.absolute().as_posix())
    if hook is not None:
        stored = replace(stored, hook=hook)
    if hub is not None:
        stored = replace(stored, facts=stored.facts | {"source": hub})
    return convert(stored, scale=scale, unit_norm=unit_norm)


def _config(sae: SAE, facts: dict[str, Any], weights: bytes) -> bytes:
    heads = sae.hook.endswith("hook_z") and facts.get("hook_head_index") is None
    metadata = facts | {
        "sae_lens_version": _VERSION,
        "sae_lens_training_version": None,
        "hook_name": sae.hook or None,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    cfg: dict[str, Any] = {
        "architecture": sae.kind,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if heads else "none",
        "metadata": metadata,
    }
    if sae.k is not None:
        cfg |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    try:
        return (json.dumps(cfg, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts must be what JSON can hold, numbers, texts, lists and dicts: {error}") from error


def _log_density(density: Any, d_sae: int) -> bytes:
    shares = torch.as_tensor(density).detach().cpu().double()
    if shares.shape != (d_sae,) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"the fact density must be {d_sae} shares between 0 and 1, got shape {tuple(shares.shape)}")
    logs: Tensor = (shares + readers.NO_DENSITY).log10().float()
    return safetensors.torch.save({"sparsity": logs})


def _write_together(folder: Path, files: dict[str, bytes]) -> None:
    """All are on the disk before the first takes its place; weights and config know each other by their hash."""
    new = {name: folder / f".{name}.new" for name in files}
    try:
        for name, data in files.items():
            atomic_write(new[name], data)
        for name, path in new.items():
            os.replace(path, folder / name)
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)


def _read(path: Path, name: str) -> Stored:
    if path.is_dir():
        main = [path / n for n in _MAIN if (path / n).is_file()]
        if not main:
            found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
            raise ValueError(f"no SAE in {path}: expected one of {', '.join(_MAIN)}, found {found}")
        path = main[0]
    if path.name == "sae.safetensors" or (path.name == "cfg.json" and (path.parent / "sae.safetensors").is_file()):
        return readers.sparsify(path.parent)
    if path.name in ("cfg.json", "sae_weights.safetensors"):
        return readers.sae_lens(path.parent)
    if path.name == "params.safetensors":
        return readers.gemma_scope_2(path, name if name.endswith(path.name) else f"{name}/{path.name}")
    if path.name == "hyperparams.json":
        return readers.llama_scope(path.parent)
    if path.suffix == ".npz":
        return readers.gemma_scope(path, name)
    if path.suffix == ".pt":
        return readers.dictionary_learning(path) if path.name == "ae.pt" else readers.attention_output(path)
    raise ValueError(f"{path} is no SAE that is known here: expected {', '.join(_MAIN)} or a run's .pt")


def _hub(source: str, revision: str | None) -> Path:
    """The file or folder of `owner/name:path` in the local cache, downloaded first if it is not there."""
    known = re.fullmatch(r"([\w][\w.-]*/[\w][\w.-]*):(.*)", source)
    if not known:
        raise ValueError(f"no file or folder {source!r}; give one, or a hub id such as 'owner/name:path/in/it'")
    repo, path = known[1], known[2].strip("/")
    is_file = path.endswith((".npz", ".pt", "/params.safetensors"))
    beside = Path(path).parent.as_posix() if is_file else path
    folder = "" if beside in ("", ".") else f"{beside}/"
    wanted = [path, f"{path.removesuffix('.pt')}_cfg.json"] if is_file else []
    wanted += [folder + name for name in _KNOWN if not is_file or name == "config.json"]

    instead = "train one, `mechinterp.sae` has all it takes"
    root = hub.download(
        repo, wanted, revision=revision, enough=lambda folder: _complete(folder / path), instead=instead
    )
    if _complete(root / path):
        return root / path
    names = hub.names(repo, revision=revision)
    saes = {str(Path(n).parent) if Path(n).name in _MAIN else n for n in names if n.endswith((*_MAIN, ".pt"))}
    near = difflib.get_close_matches(path, saes, n=5, cutoff=0)
    raise ValueError(f"{repo} has no SAE at {path!r}; near it are {', '.join(near) or 'none in a known format'}")


def _complete(path: Path) -> bool:
    """Whether all files that the format needs are there."""
    if path.is_dir():
        pairs = (
            ("cfg.json", "sae_weights.safetensors"),
            ("cfg.json", "sae.safetensors"),
            ("params.npz",),
            ("params.safetensors",),
            ("hyperparams.json", "checkpoints/final.safetensors"),
            ("ae.pt", "config.json"),
        )
        return any(all((path / name).is_file() for name in names) for names in pairs)
    config = "config.json" if path.name == "ae.pt" else f"{path.stem}_cfg.json"
    return path.is_file() and (path.name.startswith("params.") or path.with_name(config).is_file())
