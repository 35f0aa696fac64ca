"""The cells of a training step: which latents of which tokens it has to look at, all of them or a list.

A token has some dozens of its thousands of latents on, and only what is on has gradients. Once so few are, four of the
five large matrix products of a step shrink to sums over a list of cells: nothing but the encoder's own product looks
at every latent. The numbers are the same, in another order of summation. That is for one SAE on a CPU; elsewhere a
list would have to be waited for, and matrix products are cheap.

Values of cells have the shape [sae token d_sae], or [1 1 cell] for a list.
"""

import warnings
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DENSEST = 1 / 16
"""Share of cells that are on from which all are looked at: about where it costs the same."""


def product(a: Float[Tensor, "sae i j"], b: Float[Tensor, "sae j k"]) -> Float[Tensor, "sae i k"]:
    """a @ b of every SAE. `bmm` would copy what is transposed, on a CPU."""
    return torch.mm(a[0], b[0])[None] if len(a) == 1 else torch.bmm(a, b)


class Cells:
    """All cells of a stack of SAEs."""

    def take(self, full: Float[Tensor, "sae token d_sae"]) -> Tensor:
        """Their values, which may be changed in place."""
        return full

    def each(self, p: Float[Tensor, "sae d_sae"]) -> Tensor:
        """What belongs to a latent, for every cell."""
        return p[:, None]

    def total(self, v: Tensor) -> Float[Tensor, "sae d_sae"]:
        """Sums over tokens."""
        return v.sum(1)

    def active(self, f: Tensor) -> Float[Tensor, "sae d_sae"]:
        """On how many tokens each latent is above zero."""
        return self.total(f.sign())

    def decode(self, v: Tensor, W: Float[Tensor, "sae d_sae d_in"]) -> Float[Tensor, "sae token d_in"]:
        """Sums over latents of values times rows of W."""
        return product(v, W)

    def back(self, e: Float[Tensor, "sae token d_in"], W: Float[Tensor, "sae d_sae d_in"]) -> Tensor:
        """For every cell the product of its token's e with its latent's row of W."""
        return product(e, W.mT)

    def rows(self, v: Tensor, y: Float[Tensor, "sae token d_in"]) -> Float[Tensor, "sae d_sae d_in"]:
        """For every latent the sum over tokens of values times y."""
        return product(v.mT, y)

    def columns(self, v: Tensor, y: Float[Tensor, "token d_in"]) -> Float[Tensor, "sae d_in d_sae"]:
        """The same, transposed, of a y that all SAEs share."""
        return product(y.T.expand(len(v), -1, -1), v)


class Listed(Cells):
    """Some cells of one SAE, row by row.

    Args:
        token, latent: where they are, by increasing token. `start`: where each token's begin, and the end.
    """

    def __init__(self, token: Int[Tensor, " cell"], latent: Int[Tensor, " cell"], start: Tensor, d_sae: int) -> None:
        self.token, self.latent, self.start, self.d_sae = token, latent, start, d_sae

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The cells by latent, their tokens, and where each latent's begin."""
        order = self.latent.argsort(stable=True)
        ends = torch.bincount(self.latent, minlength=self.d_sae).cumsum(0)
        return order, self.token[order], torch.cat([ends.new_zeros(1), ends[:-1]])

    def take(self, full: Tensor) -> Tensor:
        """Copies."""
        return full[0].reshape(-1).index_select(0, self.token * self.d_sae + self.latent)[None, None]

    def each(self, p: Tensor) -> Tensor:
        """Copies."""
        return p[:, None].index_select(2, self.latent)

    def total(self, v: Tensor) -> Tensor:
        """Sums over tokens."""
        return v.new_zeros(1, self.d_sae).index_add_(1, self.latent, v[0])

    def decode(self, v: Tensor, W: Tensor) -> Tensor:
        """A bag of latents a token."""
        bags = torch.nn.functional.embedding_bag(
            self.latent, W[0], self.start[:-1], mode="sum", per_sample_weights=v[0, 0]
        )
        return bags[None]

    def back(self, e: Tensor, W: Tensor) -> Tensor:
        """Products that are formed only where they are wanted."""
        size = (len(e[0]), self.d_sae)
        zeros = e.new_zeros(len(self.latent))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(self.start, self.latent, zeros, size, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, e[0], W[0].mT, beta=0.0).values()[None, None]

    def rows(self, v: Tensor, y: Tensor) -> Tensor:
        """A bag of tokens a latent."""
        order, token, start = self._by_latent
        return torch.nn.functional.embedding_bag(
            token, y[0], start, mode="sum", per_sample_weights=v[0, 0].index_select(0, order)
        )[None]

    def columns(self, v: Tensor, y: Tensor) -> Tensor:
        """The same, transposed."""
        return self.rows(v, y[None]).mT.contiguous()


def may_list(values: Tensor) -> bool:
    """Whether there may be a list: for one SAE on a CPU."""
    return len(values) == 1 and values.device.type == "cpu"


def where(on: Bool[Tensor, "sae token d_sae"]) -> Cells:
    """Cells of which those that matter are marked."""
    if not may_list(on) or not 0 < int(on.count_nonzero()) <= DENSEST * on.numel():
        return Cells()
    tokens, d_sae = on.shape[1:]
    flat = torch.from_numpy(on.numpy().reshape(-1).nonzero()[0])
    token = flat // d_sae
    start = torch.searchsorted(token, torch.arange(tokens + 1))
    return Listed(token, flat - token * d_sae, start, d_sae)


def of_each_token(
    latent: Int[Tensor, "sae token k"], value: Float[Tensor, "sae token k"], d_sae: int
) -> tuple[Cells, Tensor]:
    """As many cells of every token, and their values."""
    _, tokens, k = latent.shape
    if not may_list(latent) or k > DENSEST * d_sae:
        return Cells(), value.new_zeros(*latent.shape[:2], d_sae).scatter_(-1, latent, value)
    token = torch.arange(tokens).repeat_interleave(k)
    cells = Listed(token, latent.flatten(), torch.arange(0, tokens * k + 1, k), d_sae)
    return cells, value.reshape(1, 1, -1)
