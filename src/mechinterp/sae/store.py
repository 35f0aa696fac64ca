"""Activations of a model as shuffled batches, without ever holding all of them.

Rows of text are taken in blocks; a block's activations at every wanted hook are computed in one pass, shuffled and
cut into batches. A batch is a function of (rows, seed, its number) alone, so training resumes anywhere. A block that
was computed once can be kept on disk, one file a hook, so that one pass serves the training of many SAEs.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.architectures import settings
from mechinterp.files import atomic_write
from mechinterp.sae.sites import activations, check_hooks, width


def geometric_median(x: Float[Tensor, "token d_in"], *, steps: int = 30) -> Float[Tensor, " d_in"]:
    """The point with the smallest sum of distances to all (Weiszfeld's iteration from the mean).

    >>> geometric_median(torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])).round().tolist()
    [1.0, 0.0]
    """
    median = x.mean(0)
    for _ in range(steps):
        weight = 1 / (x - median).norm(dim=1).clamp(min=1e-8)
        median = weight @ x / weight.sum()
    return median


def skipped(model: Any, skip: Sequence[int] | None) -> tuple[int, ...]:
    """Token ids that do not count: `skip`, by default the BOS token of the model's tokenizer, if it has one.

    >>> from mechinterp.models import load
    >>> skipped(load("lab"), None), skipped(load("lab"), [3, 5]), skipped(object(), None)
    ((0,), (3, 5), ())
    """
    if skip is not None:
        return tuple(skip)
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    return () if bos is None else (int(bos),)


def counted(model: Any, tokens: Int[Tensor, "row pos"], skip: Sequence[int] | None = None) -> Bool[Tensor, "row pos"]:
    """Which tokens an SAE is trained and measured on: all but the first of every row and those of `skipped`.

    Heads that have nothing to do look at the first token of a text, BOS or not, and it has a scale of its own: in the
    middle of SmolLM2 the residual stream has a norm of 23,000 there and of 150 elsewhere.

    >>> from mechinterp.models import load
    >>> counted(load("lab"), torch.tensor([[7, 8, 0, 9]]))
    tensor([[False,  True, False,  True]])
    """
    kept = ~torch.isin(tokens, torch.tensor(skipped(model, skip), dtype=tokens.dtype, device=tokens.device))
    kept[:, 0] = False
    return kept


def content(x: Tensor) -> bytes:
    """SHA-256 of a tensor: its type, shape and every byte."""
    found = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def model_content(model: Any) -> bytes:
    """SHA-256 of all that makes a model's activations: every parameter and buffer, and its settings."""
    found = hashlib.sha256(json.dumps(settings(model), sort_keys=True).encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        found.update(name.encode() + content(value))
    return found.digest()


def _version(model: Any) -> tuple[tuple[int, int], ...]:
    """What changes, without looking at the weights, when some are trained, edited in place or replaced."""
    weights = (*model.parameters(), *model.buffers())
    return tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)


class _Shuffled:
    """Batches out of blocks, and the blocks' moments; what `Store` and `Given` share."""

    hooks: tuple[str, ...]
    batch: int
    seed: int

    def compute(self, index: int) -> dict[str, Float[Tensor, "token d_in"]]:
        """One block, in the order of the text."""
        raise NotImplementedError

    def counts(self) -> list[int]:
        """Whole batches in every block."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Batches in one pass over the text."""
        return sum(self.counts())

    def batches(self, start: int = 0) -> Iterator[dict[str, Float[Tensor, "token d_in"]]]:
        """Batches from number `start` on, one after the other, for ever: a new pass has a new order."""
        turn, number = divmod(start, len(self))
        while True:
            for index, count in enumerate(self.counts()):
                if number >= count:
                    number -= count
                    continue
                block = self.compute(index)
                first = block[self.hooks[0]]
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn * 10_007 + index)
                order = torch.randperm(len(first), generator=generator).to(first.device)
                for i in range(number, count):
                    part = order[i * self.batch : (i + 1) * self.batch]
                    yield {hook: x.index_select(0, part).float() for hook, x in block.items()}
                number = 0
            turn += 1

    @cached_property
    def _moments(self) -> dict[str, tuple[float, float]]:
        found = {}
        for hook, x in self.compute(0).items():
            mean = x.mean(0, dtype=torch.float32)
            sums = torch.zeros(2, device=x.device, dtype=torch.float64)
            for part in x.split(65_536):
                part = part.float()
                sums += torch.stack([part.square().sum(), (part - mean).square().sum()])
            square, variance = (sums / len(x)).tolist()
            if not square < float("inf"):
                raise ValueError(f"activations at {hook} contain NaN or infinity; check the model and its precision")
            if not variance > 1e-12 * square:
                raise ValueError(f"activations at {hook} are constant: there is nothing to learn from them")
            found[hook] = (square, variance)
        return found

    def scale(self, hook: str) -> float:
        """Root mean square norm of the activations at a hook, in the first block."""
        return self._moments[hook][0] ** 0.5

    @cached_property
    def _medians(self) -> dict[str, Float[Tensor, " d_in"]]:
        return {hook: geometric_median(x[:10_000].float()) for hook, x in self.compute(0).items()}

    def median(self, hook: str) -> Float[Tensor, " d_in"]:
        """Geometric median of the first 10 000 activations at a hook."""
        return self._medians[hook]

    def variance(self, hook: str) -> float:
        """E‖x - E x‖² of the activations at a hook, in the first block."""
        return self._moments[hook][1]


@dataclass(frozen=True)
class Store(_Shuffled):
    """Shuffled batches of a model's activations on rows of text.

    Attributes:
        model: any `TransformerBridge`. `rows`: tokens [row pos]. `hooks`: where, several in one pass.
        batch: activations in a batch. `block`: rows that are shuffled together; memory is
            2 · block · positions · Σ d_in floats. A tail smaller than a batch is dropped from every block.
        skip: token ids whose activations are left out; None for the BOS token of the model's tokenizer, if there is
            one. The first token of a row is always left out (see `counted`).
        cache: folder for blocks, one file a block and hook; one that is there is not computed again, by any store
            with that hook and those rows. They are kept in bfloat16, so that every number is rounded by up to 0.4 %,
            with a checksum. A file's name is made of all that makes its content: weights, settings, rows, hook, `skip`.
            Weights that are changed through `.data` are noticed by a new store only.

    Errors: `ValueError` for an unknown hook, rows that are not [row pos] or do not fill one batch, and, when
        they are met, activations that are not finite or do not vary, or are too large for bfloat16, and files of the
        cache whose bytes have changed.

    >>> from mechinterp.models import load
    >>> rows = torch.randint(1, 8192, (4, 65))
    >>> store = Store(load("lab"), rows, ("blocks.0.hook_mlp_out",), batch=32)
    >>> len(store), next(store.batches())["blocks.0.hook_mlp_out"].shape
    (8, torch.Size([32, 256]))
    """

    model: Any
    rows: Int[Tensor, "row pos"]
    hooks: tuple[str, ...]
    batch: int = 4096
    block: int = 512
    seed: int = 0
    skip: tuple[int, ...] | None = None
    cache: Path | None = None
    _held: dict[Any, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _digests: dict[Any, dict[str, str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_hooks(self.model, self.hooks)
        if self.rows.ndim != 2:
            raise ValueError(f"rows must have shape [row pos], got {tuple(self.rows.shape)}")
        if self.batch < 1 or self.block < 1:
            raise ValueError(f"batch and block must be at least 1, not {self.batch} and {self.block}")
        if len(self) == 0:
            raise ValueError(
                f"{self.rows.numel()} tokens in blocks of {self.block} rows do not fill one batch of {self.batch}: "
                "give more text, a larger block or a smaller batch"
            )

    def counts(self) -> list[int]:
        """Whole batches in every block of rows."""
        return [n // self.batch for n in self._tokens]

    @cached_property
    def _tokens(self) -> list[int]:
        """Tokens that count in every block."""
        return [int(counted(self.model, rows, self.skip).sum()) for rows in self.rows.split(self.block)]

    @property
    def bytes(self) -> int:
        """What the cache takes on disk when all blocks are there, but for a few hundred bytes a file."""
        return 2 * sum(self._tokens) * sum(width(self.model, hook) for hook in self.hooks)

    def fill(self) -> None:
        """Compute all blocks that the cache lacks, with a bar; killed, it goes on from the last whole block.

        Errors: `ValueError` without a cache; `OSError` before the first pass if the disk has too little space.
        """
        if self.cache is None:
            raise ValueError("this store has no cache to fill: give it a folder")
        self.cache.mkdir(parents=True, exist_ok=True)
        todo = [i for i in range(len(self._tokens)) if not all(self._path(hook, i).exists() for hook in self.hooks)]
        needed = self.bytes * sum(self._tokens[i] for i in todo) // sum(self._tokens)
        free = shutil.disk_usage(self.cache).free
        if free < needed:
            raise OSError(f"activations take {needed / 1e9:.1f} GB in {self.cache}, where {free / 1e9:.1f} GB are free")
        for index in tqdm(todo, desc=f"activations, {self.bytes / 1e9:.1f} GB", unit="block", disable=not todo):
            self.compute(index)
        self._held.clear()

    def compute(self, index: int) -> dict[str, Float[Tensor, "token d_in"]]:
        """The activations of one block of rows, in the order of the text; the last one that was asked for is kept."""
        key = index, _version(self.model)
        if key not in self._held:
            self._held.clear()
            self._held[key] = self._computed(index)
        return self._held[key]

    def _computed(self, index: int) -> dict[str, Float[Tensor, "token d_in"]]:
        """A block, from the cache what is there."""
        device = next(self.model.parameters()).device
        paths = {} if self.cache is None else {hook: self._path(hook, index) for hook in self.hooks}
        found = {hook: _read(path).to(device) for hook, path in paths.items() if path.exists()}
        missing = [hook for hook in self.hooks if hook not in found]
        if missing:
            rows = self._rows(index)
            kept = counted(self.model, rows, self.skip).to(device)
            new = {hook: x[kept] for hook, x in activations(self.model, rows, missing).items()}
            if self.cache is not None:
                self.cache.mkdir(parents=True, exist_ok=True)
                new = {hook: _rounded(hook, x) for hook, x in new.items()}
                for hook, x in new.items():
                    _write(paths[hook], x, hook)
            found |= new
        return {hook: found[hook] for hook in self.hooks}

    def _rows(self, index: int) -> Int[Tensor, "row pos"]:
        return self.rows[index * self.block : (index + 1) * self.block]

    def _path(self, hook: str, index: int) -> Path:
        assert self.cache is not None
        return self.cache / f"{self._name(hook, index)}.safetensors"

    def _name(self, hook: str, index: int) -> str:
        """A name for all that makes a block's activations at a hook; weights are read again when they have changed."""
        version = _version(self.model)
        if version not in self._digests:
            self._digests.clear()
            self._digests[version] = {"model": model_content(self.model).hex()}
        known, key = self._digests[version], f"rows {index}"
        if key not in known:
            known[key] = content(self._rows(index)).hex()
        dtype = "float32" if self.cache is None else "bfloat16"
        facts = [known["model"], known[key], hook, skipped(self.model, self.skip), "without first tokens", dtype]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    @property
    def digest(self) -> str:
        """A name for all that makes the activations (model, text, hooks, blocks, skip and precision).

        Every byte of the weights counts.
        """
        names = [self._name(hook, i) for hook in self.hooks for i in range(len(self._tokens))]
        return hashlib.sha256("".join(names).encode()).hexdigest()[:16]


def _rounded(hook: str, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
    rounded = x.bfloat16().contiguous()
    if not torch.isfinite(rounded).all():
        raise ValueError(f"activations at {hook} reach {float(x.abs().max()):.3g}: bfloat16 ends at 3.39e38")
    return rounded


def _write(path: Path, x: Tensor, hook: str) -> None:
    x = x.cpu()
    atomic_write(path, safetensors.torch.save({"x": x}, {"hook": hook, "sha256": content(x).hex()}))


def _read(path: Path) -> Tensor:
    way_out = "delete it, and it is computed again"
    try:
        with safetensors.safe_open(path, "pt") as file:
            x, known = file.get_tensor("x"), (file.metadata() or {}).get("sha256")
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no whole file of activations ({error}): {way_out}") from error
    if content(x).hex() != known:
        raise ValueError(f"{path} has changed since it was written: {way_out}")
    return x


@dataclass(frozen=True)
class Given(_Shuffled):
    """Activations [token d_in] that are already there, by hook, in place of a `Store`.

    Errors: `ValueError` for activations that do not fill one batch, or are not finite.

    >>> given = Given({"here": torch.randn(100, 8)}, batch=10)
    >>> len(given), next(given.batches())["here"].shape
    (10, torch.Size([10, 8]))
    """

    x: dict[str, Float[Tensor, "token d_in"]]
    batch: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for hook, x in self.x.items():
            if x.ndim != 2 or len(x) < self.batch:
                raise ValueError(f"activations at {hook} must be [token d_in], at least {self.batch}: {tuple(x.shape)}")
            if not torch.isfinite(x).all():
                raise ValueError(f"activations at {hook} contain NaN or infinity")

    @property
    def hooks(self) -> tuple[str, ...]:  # type: ignore[override]
        """Where they come from."""
        return tuple(self.x)

    def counts(self) -> list[int]:
        """All of them are one block."""
        return [len(self.x[self.hooks[0]]) // self.batch]

    def compute(self, index: int) -> dict[str, Float[Tensor, "token d_in"]]:
        """The activations themselves."""
        return self.x

    @property
    def digest(self) -> str:
        """A name for the activations, in which every byte counts."""
        parts = [hook.encode() + content(x) for hook, x in self.x.items()]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
