"""The one-layer transformer of modular addition, many independent networks in one tensor.

The input is [a, b, =] and only the last position is read. Two facts make the forward pass cheap without
changing a single value: the last position's query is the same for every input, and the key and value
of position 0 (or 1) depend on a (or b) alone. So attention is a few tables of p rows, and what is left
for each pair is looking up two rows, the MLP and the unembedding of one position.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are those of Nanda et al. (arXiv:2301.05217)."""

    p: int = 113
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 512

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model = {self.d_model} is not a multiple of n_heads = {self.n_heads}")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight of one network, in the order in which they lie in memory."""
        d, h = self.d_model, self.d_head
        return {
            "W_E": (self.p + 1, d),
            "W_pos": (3, d),
            "W_Q": (self.n_heads, d, h),
            "W_K": (self.n_heads, d, h),
            "W_V": (self.n_heads, d, h),
            "W_O": (self.n_heads, h, d),
            "W_in": (d, self.d_mlp),
            "b_in": (self.d_mlp,),
            "W_out": (self.d_mlp, d),
            "b_out": (d,),
            "W_U": (d, self.p),
        }

    @property
    def n_params(self) -> int:
        return sum(math.prod(shape) for shape in self.weights().values())


def initial(shape: Shape, seeds: list[int]) -> Float[Tensor, "runs params"]:
    """Fresh networks, one row a seed: N(0, 1/d_model), the unembedding N(0, 1/(p + 1)), biases zero."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for name, size in shape.weights().items():
            std = (shape.p + 1 if name == "W_U" else shape.d_model) ** -0.5
            draw = torch.randn(size, generator=generator) * std
            parts.append(torch.zeros(size) if name.startswith("b_") else draw)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def unpack(flat: Float[Tensor, "runs params"], shape: Shape) -> Weights:
    """Views of the rows as weights, each with a leading axis of runs."""
    sizes = shape.weights()
    parts = flat.split([math.prod(size) for size in sizes.values()], dim=-1)
    return {name: part.view(-1, *size) for (name, size), part in zip(sizes.items(), parts, strict=True)}


def pack(weights: Weights) -> Float[Tensor, "runs params"]:
    """The inverse of `unpack`."""
    return torch.cat([w.flatten(1) for w in weights.values()], dim=1)


def hidden(
    weights: Weights, a: Int[Tensor, "runs batch"], b: Int[Tensor, "runs batch"]
) -> tuple[Float[Tensor, "runs batch d_model"], Float[Tensor, "runs batch d_mlp"]]:
    """The last position's residual stream before the MLP, and the MLP's activations after the ReLU."""
    w = weights
    runs, p = w["W_E"].shape[0], w["W_U"].shape[-1]
    tokens, last = w["W_E"][:, :p], w["W_E"][:, p] + w["W_pos"][:, 2]
    d_head = w["W_Q"].shape[-1]
    query = torch.einsum("rd,rhde->rhe", last, w["W_Q"]) * d_head**-0.5
    reader = torch.einsum("rhe,rhde->rhd", query, w["W_K"])
    # Sources: the p tokens at position 0, the p tokens at position 1, and the equals sign.
    sources = torch.cat([tokens + w["W_pos"][:, :1], tokens + w["W_pos"][:, 1:2], last[:, None]], dim=1)
    scores = sources @ reader.transpose(1, 2)
    values = torch.einsum("rsd,rhde->rshe", sources, w["W_V"])
    # One look-up a position brings scores and values together.
    heads = scores.shape[-1]
    rows = torch.cat([values.flatten(2), scores], dim=-1)
    flat = rows.flatten(0, 1)
    offset = (torch.arange(runs, device=a.device) * (2 * p + 1))[:, None]
    first, second = F.embedding(a + offset, flat), F.embedding(b + offset + p, flat)
    third = rows[:, None, -1].expand_as(first)
    three = (first, second, third)
    pattern = torch.stack([row[..., -heads:] for row in three]).softmax(0)
    mixed = sum(
        share[..., None] * row[..., :-heads].unflatten(-1, (heads, d_head))
        for share, row in zip(pattern, three, strict=True)
    )
    assert isinstance(mixed, Tensor)
    mid = torch.baddbmm(last[:, None], mixed.flatten(2), w["W_O"].flatten(1, 2))
    return mid, torch.baddbmm(w["b_in"][:, None], mid, w["W_in"]).relu_()


def logits(
    weights: Weights, a: Int[Tensor, "runs batch"], b: Int[Tensor, "runs batch"]
) -> Float[Tensor, "runs batch p"]:
    """Logits of every answer at the equals sign."""
    mid, act = hidden(weights, a, b)
    out = torch.baddbmm(mid + weights["b_out"][:, None], act, weights["W_out"])
    return out @ weights["W_U"]


def norm(flat: Float[Tensor, "runs params"]) -> Float[Tensor, " runs"]:
    """Parameter norm sqrt(Σ θ²) of every network."""
    return flat.norm(dim=-1)
