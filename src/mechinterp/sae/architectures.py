"""Sparse autoencoders: an encoder of some kind, one decoder.

An input x [d_in] is centred, encoded into d_sae latents, most of them zero, and decoded:

    pre = (x - b_dec) W_enc + b_enc        f = activation(pre)        x̂ = f W_dec + b_dec

The activations are in `kinds`. The decoder's rows have unit norm, so that f is in the units of x. Tensors have the
names and the orientation that SAELens writes to disk.
"""

from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.sae.kinds import KINDS, Params, kind_named


def tensor_shapes(kind: str, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of an SAE.

    Errors: `ValueError` for an unknown kind.

    >>> tensor_shapes("jumprelu", 4, 16)["threshold"]
    (16,)
    """
    return kind_named(kind).shapes(d_in, d_sae)


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder, ready for use, in the units of the activations it was trained on.

    Attributes:
        kind: which activation, one of `KINDS`. `params`: its tensors, see `tensor_shapes`.
        k: active latents a token, for kinds that take it.
        hook: where it belongs in a model, such as `blocks.2.attn.hook_z` (heads concatenated).
        facts: how it came about, kept in its file.

    Errors: `ValueError` for missing, superfluous or misshapen tensors, a threshold that is not positive, or topk
        without a k.

    >>> sae = SAE("standard", initial("standard", 4, 16, seed=0))
    >>> x = torch.randn(3, 4)
    >>> sae.encode(x).shape, sae(x).shape
    (torch.Size([3, 16]), torch.Size([3, 4]))
    """

    kind: str
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
        KINDS[self.kind].check(self.params)
        if KINDS[self.kind].takes_k != (self.k is not None):
            takers = " and ".join(name for name, kind in KINDS.items() if kind.takes_k)
            raise ValueError(f"k belongs to {takers}: kind {self.kind}, k {self.k}")
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
        return KINDS[self.kind].pre(self.params, x)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Latents of activations.

        Errors: `ValueError` for another width or device.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(f"this SAE reads activations of width {self.d_in}, got {tuple(x.shape)}")
        if x.device != self.W_enc.device:
            raise ValueError(f"the SAE is on {self.W_enc.device}, the activations on {x.device}: use sae.to(device)")
        return KINDS[self.kind].encode(self.params, x, self.k)

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


def same_function(sae: SAE, kind: str) -> SAE:
    """An SAE written as one of another kind of which its own is a special case.

    Errors: `ValueError` naming the kinds for which that is so.

    >>> sae = SAE("standard", initial("standard", 4, 16, seed=0))
    >>> same_function(sae, "gated")
    SAE(gated, 4 -> 16, ?)
    """
    forms = KINDS[sae.kind].forms()
    if kind not in forms:
        others = " or ".join(name for name, other in KINDS.items() if kind in other.forms())
        raise ValueError(f"expected a {others} SAE, got {sae!r}")
    return replace(sae, kind=kind, params=forms[kind](sae.params))


def gated_to_jumprelu(sae: SAE) -> SAE:
    """The jumprelu SAE that is the same function as a gated one (arXiv:2404.16014, appendix E).

    >>> sae = SAE("gated", initial("gated", 4, 16, seed=0))
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(gated_to_jumprelu(sae).encode(x), sae.encode(x), atol=1e-6)
    True
    """
    return same_function(sae, "jumprelu")


def scale_input(sae: SAE, c: float) -> SAE:
    """The SAE for x = c · (what it was trained on): same directions, latents c times as large.

    Training uses inputs of mean square norm one; this folds the scale away (arXiv:2408.05147, appendix B).
    """
    lengths = KINDS[sae.kind].lengths
    return replace(sae, params={n: v * c if n in lengths else v for n, v in sae.params.items()})


def _energy(share: float) -> float:
    """E[z²; z among the largest of this share], z normal and positive."""
    normal = NormalDist()
    t = max(0.0, normal.inv_cdf(1 - share)) if share < 1 else 0.0
    return t * normal.pdf(t) + 1 - normal.cdf(t)


def initial(kind: str, d_in: int, d_sae: int, *, seed: int, threshold: float = 1e-3, k: int | None = None) -> Params:
    """Fresh weights: random unit decoder rows, the encoder their transpose times a scale, biases zero.

    The scale is that at which such a reconstruction has the least expected error. Random directions write their
    input r times, r = d_sae / d_in · E[z²; on] with z normal, and as much again across it, so that the scale is
    1 / (1 + r). Half of them are on, or, where k are, those of the largest z. At scale one an SAE begins at several
    times its input; it unlearns that with thousands of biases, and at equal L0 a short run leaves more unexplained.

    Args:
        k: of the kinds that take one; None leaves their encoder at the decoder's length.

    Errors: `ValueError` for a dictionary smaller than the input.

    >>> x = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> sae = SAE("standard", initial("standard", 64, 1024, seed=0))
    >>> 0.8 < ((sae(x) * x).sum() / x.square().sum()).item() < 1
    True
    """
    own = kind_named(kind).fresh(d_sae, threshold)
    if d_sae < d_in:
        raise ValueError(f"a dictionary of {d_sae} latents is smaller than its input, {d_in}; make d_sae larger")
    generator = torch.Generator().manual_seed(seed)
    # He-uniform rows made unit: the bound does not matter.
    rows = torch.rand(d_sae, d_in, generator=generator) * 2 - 1
    W_dec = rows / rows.norm(dim=1, keepdim=True)
    share = 1 / 2 if k is None else k / d_sae
    scale = 1.0 if KINDS[kind].takes_k and k is None else 1 / (1 + d_sae / d_in * _energy(share))
    return {"W_enc": scale * W_dec.T.contiguous(), "W_dec": W_dec, "b_dec": torch.zeros(d_in)} | own
