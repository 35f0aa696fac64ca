"""Models in one `.gguf` file: weights, configuration and tokenizer together, usually quantised.

The file is checked before anything is built from it. Weights come back dequantised. A GGUF file holds
numbers and strings only, so reading one runs no code.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase

MAGIC = b"GGUF"
VERSIONS = (2, 3)


def header(path: Path) -> "GGUFReader":
    """Keys and tensor places of a GGUF file; nothing is dequantised.

    Errors: `ValueError` for a file that is not GGUF, of another version, or truncated.
    """
    with path.open("rb") as file:
        magic, version = file.read(4), int.from_bytes(file.read(4), "little")
    if magic != MAGIC:
        raise ValueError(f"{path} is not a GGUF file: it starts with {magic!r}, expected {MAGIC!r}")
    if version not in VERSIONS:
        raise ValueError(f"{path} is GGUF version {version}; versions 2 and 3 can be read, so convert it again")
    try:
        return _parse(path.resolve(), path.stat().st_mtime_ns, path.stat().st_size)
    except Exception as error:  # whatever the parser stumbles over: the file ends too early
        raise ValueError(f"{path} is truncated or damaged ({error}); delete it and get it again") from error


def check(path: Path) -> None:
    """Refuse a file that would not load, before its weights are read.

    Errors: `ValueError` as for `header`, and for an architecture that transformers cannot read from GGUF or
        that is not a causal decoder that TransformerLens supports.
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    field = header(path).get_field("general.architecture")
    if field is None:
        raise ValueError(f"{path} has no key general.architecture; it does not say what model it is: convert it again")
    name = str(field.contents())
    try:
        kind = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).model_type
    except ValueError as error:
        known = ", ".join(a for a in GGUF_SUPPORTED_ARCHITECTURES if a not in ("general", "tokenizer"))
        raise ValueError(
            f"{path} is a model of architecture {name!r}, which transformers does not read from GGUF; it reads {known}"
        ) from error
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) not in SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"{path} is a model of architecture {name!r}; expected a causal decoder that TransformerLens supports, "
            "such as llama, gemma3 or qwen2"
        )


def tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a GGUF file. It adds a BOS token if, and only if, the file says so."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    found.init_kwargs["gguf_file"] = path.name  # who wants to make it again needs to know
    return found


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """In here transformers parses a GGUF file once instead of three times, four times as fast, and without a bar.

    It imports the reader by name each time it needs it, so the name is what is changed, and put back.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    changes: list[tuple[Any, str, Any]] = [
        (gguf, "GGUFReader", lambda path, *_: header(Path(path))),
        (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        (loader, "tqdm", lambda items, **_: items),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes if hasattr(module, name)]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        _parse.cache_clear()  # a large vocabulary takes 100 MB


@functools.lru_cache(maxsize=1)
def _parse(path: Path, changed: int, size: int) -> "GGUFReader":
    from gguf import gguf_reader

    class Reader(gguf_reader.GGUFReader):
        """The package's reader without numpy's memory-map slices, which take most of its time."""

        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if self.byte_order != "I":
                return super()._get(offset, dtype, count, override_order)
            return np.frombuffer(self.data, dtype, int(count), int(offset))

    return Reader(path)
