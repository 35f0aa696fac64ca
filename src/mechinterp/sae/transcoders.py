"""Transcoders: sparse latents that read one place of a model and predict another (arXiv:2406.11944).

    f = activation(x W_enc + b_enc)        ŷ = f W_dec + b_dec  (+ x W_skip)

The input is never centred: b_dec belongs to the output. A skip connection W_skip (arXiv:2501.18823) carries what is
linear. Kinds are those of SAEs.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.sae.kinds import KINDS, Params, kind_named


@dataclass(frozen=True)
class Transcoder:
    """A transcoder, ready for use.

    Attributes:
        kind: which activation, one of `KINDS`. `k`: active latents a token, for kinds that take it.
        params: `W_enc` [d_in d_sae], `b_enc` [d_sae], `W_dec` [d_sae d_out], `b_dec` [d_out], and `threshold` [d_sae]
            of a jumprelu. `W_skip`: [d_in d_out], or None.
        reads, predicts: hooks of its input and of what it predicts. `facts`: how it came about.

    Errors: `ValueError` for tensors that are missing, superfluous or misshapen.

    >>> p = {"W_enc": torch.eye(2, 3), "b_enc": torch.zeros(3), "W_dec": torch.ones(3, 4), "b_dec": torch.ones(4)}
    >>> transcoder = Transcoder("standard", p)
    >>> transcoder(torch.tensor([[1.0, -1.0]]))
    tensor([[2., 2., 2., 2.]])
    """

    kind: str
    params: Params
    k: int | None = None
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    reads: str = ""
    predicts: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = kind_named(self.kind)
        wide = {"W_enc", "W_dec", "b_dec", *kind.own}
        if set(self.params) != wide or any(self.params[n].ndim != 2 for n in ("W_enc", "W_dec")):
            raise ValueError(f"a {self.kind} transcoder needs {', '.join(sorted(wide))}, got {', '.join(self.params)}")
        (d_in, d_sae), (_, d_out) = self.params["W_enc"].shape, self.params["W_dec"].shape
        expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
        expected |= {name: (d_sae,) for name in kind.own}
        found = {name: tuple(value.shape) for name, value in self.params.items()}
        if found != expected:
            raise ValueError(f"tensors of a transcoder must have shapes {expected}, got {found}")
        if self.W_skip is not None and tuple(self.W_skip.shape) != (d_in, d_out):
            raise ValueError(f"W_skip must have shape {(d_in, d_out)}, got {tuple(self.W_skip.shape)}")
        if kind.takes_k != (self.k is not None):
            raise ValueError(f"k belongs to kinds that take it: kind {self.kind}, k {self.k}")
        kind.check(self.params)

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.params["W_enc"].shape[0]

    @property
    def d_out(self) -> int:
        """Width of what it predicts."""
        return self.params["W_dec"].shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.params["W_enc"].shape[1]

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Latents; the input is not centred.

        Errors: `ValueError` for another width.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(f"this transcoder reads activations of width {self.d_in}, got {tuple(x.shape)}")
        return KINDS[self.kind].encode(self.params | {"b_dec": x.new_zeros(self.d_in)}, x, self.k)

    def decode(
        self, f: Float[Tensor, "... d_sae"], x: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_out"]:
        """The prediction of latents; one with a skip connection needs the input, too.

        Errors: `ValueError` without it.
        """
        out = f @ self.params["W_dec"] + self.params["b_dec"]
        if self.W_skip is None:
            return out
        if x is None:
            raise ValueError("this transcoder has a skip connection: decode(f, x) needs what it read")
        return out + x @ self.W_skip

    def __call__(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """The prediction."""
        return self.decode(self.encode(x), x)

    def to(self, where: str | torch.device | torch.dtype) -> "Transcoder":
        """The same on another device or in another precision."""
        skip = None if self.W_skip is None else self.W_skip.to(where)
        return replace(self, params={name: value.to(where) for name, value in self.params.items()}, W_skip=skip)

    def __repr__(self) -> str:
        k, skip = f", k={self.k}" if self.k else "", ", skip" if self.W_skip is not None else ""
        shape = f"{self.d_in} -> {self.d_sae} -> {self.d_out}"
        return f"Transcoder({self.kind}, {shape}{k}{skip}, {self.reads or '?'} to {self.predicts or '?'})"
