"""Sparse autoencoders: four encoders, one decoder.

An input x [d_in] is centred, encoded into d_sae latents, most of them zero, and decoded:

    pre = (x - b_dec) W_enc + b_enc        f = activation(pre)        x̂ = f W_dec + b_dec

| kind | activation | source |
|---|---|---|
| standard | relu(pre) | Bricken et al. 2023 |
| gated | relu(exp(r_mag) pre + b_mag) where pre + b_gate > 0 (no b_enc) | arXiv:2404.16014, section 3 |
| jumprelu | pre where pre > threshold | arXiv:2407.14435, equation 1 |
| topk | relu of the k largest pre of a token | arXiv:2406.04093, section 2.3 |
| batchtopk | relu of the batch · k largest pre of a batch; once trained it is a jumprelu | arXiv:2412.06410 |

The decoder's rows have unit norm, so that f is in the units of x. Tensors have the names and the orientation that
SAELens writes to disk.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["standard", "gated", "jumprelu", "topk", "batchtopk"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Params = dict[str, Tensor]

_OWN = {
    "standard": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "batchtopk": ("b_enc",),
}


def tensor_shapes(kind: Kind, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of an SAE.

    >>> tensor_shapes("jumprelu", 4, 16)["threshold"]
    (16,)
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of SAE {kind!r}; choose one of {', '.join(KINDS)}")
    shared = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    return shared | {name: (d_sae,) for name in _OWN[kind]}


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder, ready for use, in the units of the activations it was trained on.

    Attributes:
        kind: which activation. `params`: its tensors, see `tensor_shapes`.
        k: active latents a token, for topk.
        hook: where it belongs in a model, such as `blocks.2.attn.hook_z` (heads concatenated).
        facts: how it came about, kept in its file.

    Errors: `ValueError` for missing, superfluous or misshapen tensors, a threshold that is not positive, or topk
        without a k.

    >>> sae = SAE("standard", initial("standard", 4, 16, seed=0))
    >>> x = torch.randn(3, 4)
    >>> sae.encode(x).shape, sae(x).shape
    (torch.Size([3, 16]), torch.Size([3, 4]))
    """

    kind: Kind
    params: Params
    k: int | None = None
    hook: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "W_enc" not in self.params or self.params["W_enc"].ndim != 2:
            raise ValueError("an SAE needs W_enc of shape [d_in, d_sae]")
        expected = tensor_shapes(self.kind, self.d_in, self.d_sae)
        found = {name: tuple(value.shape) for name, value in self.params.items()}
        if found != expected:
            turned = found.get("W_dec") == expected["W_enc"] and self.d_in != self.d_sae
            hint = "; W_enc is [d_in, d_sae], W_dec [d_sae, d_in]: is one of them transposed?" if turned else ""
            raise ValueError(f"a {self.kind} SAE needs tensors {expected}, got {found}{hint}")
        if self.kind == "jumprelu" and not (self.params["threshold"] > 0).all():
            raise ValueError("thresholds of a jumprelu SAE must be positive")
        if (self.kind in ("topk", "batchtopk")) != (self.k is not None):
            raise ValueError(f"k belongs to topk and batchtopk: kind {self.kind}, k {self.k}")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k must lie in 1..{self.d_sae}, not {self.k}")

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.params["W_enc"].shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.params["W_enc"].shape[1]

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Encoder directions, one column a latent."""
        return self.params["W_enc"]

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """Decoder directions, one row a latent."""
        return self.params["W_dec"]

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """What is subtracted before the encoder and added after the decoder."""
        return self.params["b_dec"]

    def pre(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Pre-activations; of a gated SAE those of its magnitudes."""
        return pre_activations(self.kind, self.params, x)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Latents of activations.

        Errors: `ValueError` for another width.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(f"this SAE reads activations of width {self.d_in}, got {tuple(x.shape)}")
        p = self.params
        if self.kind == "gated":
            inner = (x - p["b_dec"]) @ p["W_enc"]
            magnitude = (inner * p["r_mag"].exp() + p["b_mag"]).relu()
            return torch.where(inner + p["b_gate"] > 0, magnitude, 0.0)
        pre = self.pre(x)
        if self.kind == "jumprelu":
            return torch.where(pre > p["threshold"], pre, 0.0)
        if self.kind == "topk":
            assert self.k is not None
            return keep_largest(pre.relu(), self.k)
        if self.kind == "batchtopk":
            assert self.k is not None
            return keep_largest_of_batch(pre.relu(), self.k)
        return pre.relu()

    def decode(self, f: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_in"]:
        """Activations of latents."""
        return f @ self.W_dec + self.b_dec

    def __call__(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """The reconstruction."""
        return self.decode(self.encode(x))

    def to(self, where: str | torch.device | torch.dtype) -> "SAE":
        """The same SAE on another device or in another precision."""
        return replace(self, params={name: value.to(where) for name, value in self.params.items()})

    def __repr__(self) -> str:
        return f"SAE({self.kind}, {self.d_in} -> {self.d_sae}{f', k={self.k}' if self.k else ''}, {self.hook or '?'})"


def pre_activations(kind: Kind, params: Params, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
    """(x - b_dec) W_enc + b_enc; of a gated SAE the pre-activation of its magnitudes."""
    inner = (x - params["b_dec"]) @ params["W_enc"]
    if kind == "gated":
        return inner * params["r_mag"].exp() + params["b_mag"]
    return inner + params["b_enc"]


def keep_largest(f: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """The k largest entries of every row, zeros elsewhere.

    >>> keep_largest(torch.tensor([3.0, 1.0, 2.0]), 2)
    tensor([3., 0., 2.])
    """
    top = f.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(f).scatter_(-1, top.indices, top.values)


def keep_largest_of_batch(f: Float[Tensor, "... token d_sae"], k: int) -> Float[Tensor, "... token d_sae"]:
    """The k · tokens largest entries of all rows together, zeros elsewhere."""
    flat = f.flatten(-2)
    return keep_largest(flat, k * f.shape[-2]).view_as(f)


def gated_to_jumprelu(sae: SAE) -> SAE:
    """The jumprelu SAE that is the same function as a gated one (arXiv:2404.16014, appendix E).

    >>> sae = SAE("gated", initial("gated", 4, 16, seed=0))
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(gated_to_jumprelu(sae).encode(x), sae.encode(x), atol=1e-6)
    True
    """
    if sae.kind != "gated":
        raise ValueError(f"expected a gated SAE, got {sae!r}")
    p, rate = sae.params, sae.params["r_mag"].exp()
    smallest = torch.finfo(p["W_enc"].dtype).tiny
    threshold = (p["b_mag"] - rate * p["b_gate"]).clamp(min=smallest)
    same = {"W_dec": p["W_dec"], "b_dec": p["b_dec"]}
    params = same | {"W_enc": p["W_enc"] * rate, "b_enc": p["b_mag"], "threshold": threshold}
    return replace(sae, kind="jumprelu", params=params)


def scale_input(sae: SAE, c: float) -> SAE:
    """The SAE for x = c · (what it was trained on): same directions, latents c times as large.

    Training uses inputs of mean square norm one; this folds the scale away (arXiv:2408.05147, appendix B).
    """
    stretched = ("b_enc", "b_gate", "b_mag", "b_dec", "threshold")
    return replace(sae, params={n: v * c if n in stretched else v for n, v in sae.params.items()})


def initial(kind: Kind, d_in: int, d_sae: int, *, seed: int, threshold: float = 1e-3) -> Params:
    """Fresh weights: random unit decoder rows, the encoder their transpose, biases zero.

    Errors: `ValueError` for a dictionary smaller than the input.
    """
    shapes = tensor_shapes(kind, d_in, d_sae)
    if d_sae < d_in:
        raise ValueError(f"a dictionary of {d_sae} latents is smaller than its input, {d_in}; make d_sae larger")
    generator = torch.Generator().manual_seed(seed)
    # He-uniform rows made unit: the bound does not matter.
    rows = torch.rand(d_sae, d_in, generator=generator) * 2 - 1
    W_dec = rows / rows.norm(dim=1, keepdim=True)
    params = {name: torch.zeros(shape) for name, shape in shapes.items()}
    params |= {"W_dec": W_dec, "W_enc": W_dec.T.contiguous()}
    if kind == "jumprelu":
        params["threshold"] = torch.full((d_sae,), threshold)
    return params
