"""Load a language model as a `TransformerBridge`, processed as the analyses assume.

A name is `"lab"` (the small model inside this package), `"rehearsal"` (GPT-2 small's shape with random
weights), a local Hugging Face folder, or the id of a model on the hub. Weights are read from safetensors
only; a pickle is never opened. Every model comes back in fp32 and eval mode, without gradients for its
parameters, layer norms folded, and the weights that write to the residual stream and the unembedding
centred: logits are shifted by a constant per position, log-probabilities are those of the raw model.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mechinterp.scales import check_device

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAB = Path(__file__).parents[1] / "lab" / "model"
"""Folder of the lab model inside the package."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")


def load(
    name: str | Path = "lab", *, device: str | torch.device | None = None, revision: str | None = None
) -> "TransformerBridge":
    """A model by name, ready for analysis: fp32, eval mode, no gradients, folded and centred.

    Args:
        name: `"lab"`, `"rehearsal"`, a local folder, or a hub id such as `"gpt2"`. A hub model that is in
            the local cache is used as it stands there, without asking the network.
        device: where the weights go; the default is a GPU if there is one, else the CPU.
        revision: branch, tag or commit of a hub model.

    Errors: `ValueError` for an unknown name, a folder without config, weights or tokenizer, pickled,
        truncated or incomplete weights, and an architecture that is not a supported causal decoder;
        `ConnectionError` for a hub model that is neither cached nor reachable; `ValueError` for a device that is
        not here.

    >>> model = load("lab")
    >>> model.cfg.n_heads, model.W_Q.dtype, model.training
    (8, torch.float32, False)
    """
    check_device(device)
    if str(name) == "rehearsal":
        from mechinterp.models.rehearsal import rehearsal

        return to_bridge(rehearsal(), load_tokenizer(name), name="rehearsal", device=device)
    folder = _folder(name, revision)
    _check_architecture(folder)
    _check_weights(folder)
    tokenizer = _tokenizer(folder)
    return to_bridge(_raw_model(folder), tokenizer, name=str(name), device=device)


def load_tokenizer(name: str | Path = "lab", *, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, without its weights. Names and errors as for `load`.

    >>> load_tokenizer("lab").decode(load_tokenizer("lab").encode(" Mary"))
    ' Mary'
    """
    if str(name) == "rehearsal":
        from mechinterp.models.rehearsal import tokenizer_folder

        return _tokenizer(tokenizer_folder())
    return _tokenizer(_folder(name, revision, weights=False))


def sha256(name: str | Path = "lab", *, revision: str | None = None) -> str:
    """SHA-256 of a model's weight file (of its shards one after the other, if there are several).

    The rehearsal model has no file; its hash is that of its recipe.
    """
    if str(name) == "rehearsal":
        from mechinterp.models.rehearsal import RECIPE

        return hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    for path in _weight_files(_folder(name, revision)):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def describe(name: str | Path = "lab", *, revision: str | None = None) -> dict[str, str]:
    """What a ledger notes about a model: its name, the hash of its weights, and its revision if one was asked for."""
    facts = {"name": str(name), "sha256": sha256(name, revision=revision)}
    return facts | ({"revision": revision} if revision else {})


def to_bridge(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    name: str = "local",
    device: str | torch.device | None = None,
) -> "TransformerBridge":
    """Wrap a Hugging Face causal model that is already in memory; `model` is changed in place.

    The result is fp32, in eval mode, without gradients, folded and centred, like everything from `load`.
    """
    from transformer_lens.model_bridge import TransformerBridge

    check_device(device)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with _quiet():
        model = model.float().to(device).eval()
        bridge = TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer, device=device)
        bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge.eval().requires_grad_(False)


def _folder(name: str | Path, revision: str | None, *, weights: bool = True) -> Path:
    """The folder that holds the model's files, downloaded first if it is a hub id."""
    if str(name) == "lab":
        return LAB
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"no config.json in {path}; give a Hugging Face model folder, or use 'lab'")
        return path
    if isinstance(name, Path) or not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise ValueError(f"unknown model {str(name)!r}: not 'lab', not 'rehearsal', no such folder and no hub id")
    return _hub(name, revision, weights)


def _hub(name: str, revision: str | None, weights: bool) -> Path:
    import httpx
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = ["*.json", "*.txt", "*.model", *(["model*.safetensors"] if weights else [])]

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"], local_files_only=local
            )
        )

    with contextlib.suppress(LocalEntryNotFoundError):
        folder = snapshot(local=True)
        if (folder / "config.json").is_file() and (_complete(folder) or not weights) and _has_tokenizer(folder):
            return folder
    try:
        folder = snapshot(local=False)
        if weights and not _complete(folder):
            raise _unsafe(f"the hub's {name}", list_repo_files(name, revision=revision))
        return folder
    except GatedRepoError as error:
        raise ValueError(
            f"{name} is a gated model: accept its licence on the hub and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{name} has no revision {revision!r}; see the list of branches and tags on the hub"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"unknown model {name!r}: not 'lab', not 'rehearsal', no such folder, and the hub has no public model "
            "of this name (a private one needs `hf auth login`)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionError(
            f"{name!r} is not in the local cache and the Hugging Face hub cannot be reached. Three ways out: connect "
            "once so that the model is downloaded and cached; pass the path of a local folder that holds it; or use "
            "'lab', the model inside this package"
        ) from error


def _check_architecture(folder: Path) -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise ValueError(f"no config.json in {folder}; give a Hugging Face model folder, or use 'lab'") from error
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not valid JSON: {error}") from error
    names = config.get("architectures") or []
    good = [n for n in names if n in SUPPORTED_ARCHITECTURES and n.endswith(("LMHeadModel", "ForCausalLM"))]
    if not good or config.get("is_encoder_decoder"):
        found = ", ".join(names) or f"model_type {config.get('model_type')!r} without architectures"
        raise ValueError(
            f"{folder} is {found}; expected a causal decoder that TransformerLens supports, "
            "such as GPT2LMHeadModel or GPTNeoXForCausalLM"
        )


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    raise _unsafe(str(folder), [p.name for p in folder.iterdir()])


def _unsafe(place: str, names: list[str]) -> ValueError:
    """Why there are no weights to load."""
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        return ValueError(
            f"{place} has only pickled weights ({', '.join(pickles)}), which can run any code and are never loaded; "
            "convert them to model.safetensors, or choose a revision that has it"
        )
    return ValueError(f"no model.safetensors in {place}; only safetensors weights are loaded, never pickles")


def _complete(folder: Path) -> bool:
    """All shards named by the index, or one whole weight file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return all((folder / f).is_file() for f in set(json.loads(index.read_text())["weight_map"].values()))
    return (folder / "model.safetensors").is_file()


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path} is truncated or not a safetensors file ({error}); delete it and get it again"
            ) from error
    if not _complete(folder):
        raise ValueError(f"a shard named in {folder / 'model.safetensors.index.json'} is missing; get the model again")


def _raw_model(folder: Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    with _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, info = loaded
    wrong = sorted(info["missing_keys"]) + [str(k) for k in sorted(info["mismatched_keys"], key=str)]
    if wrong:
        raise ValueError(
            f"the weights in {folder} lack {len(wrong)} tensors that config.json asks for, the first being {wrong[0]}; "
            "they would be random: get the whole model"
        )
    for parameter_name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise ValueError(f"{parameter_name} in {folder} contains NaN or infinity; get the model again")
    return model


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / f).is_file() for f in TOKENIZER_FILES)


def _tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    if not _has_tokenizer(folder):
        raise ValueError(f"no tokenizer in {folder}: expected one of {', '.join(TOKENIZER_FILES)}")
    with _quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars or chatter from transformers while a model loads; its settings come back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
