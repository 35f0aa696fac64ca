"""What a kind of SAE says about itself, and the mathematics that kinds share.

Losses and gradients are those of a stack of SAEs: weights carry a leading axis `sae`, the batch is shared. Gradients
are closed forms, on `cells`: no graph, no loss where nobody reads it, nothing for latents that are off, and what is
large is changed in place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.sae.kinds.cells import Cells, product

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """Settings of a loss, each for the kinds that ask for it.

    Attributes:
        k: active latents a token. `bandwidth`: ε of the straight-through kernel.
        variant: an ablation. `dead`: latents to revive; None if there are none.
    """

    k: int = 0
    bandwidth: float = 0.01
    variant: str = ""
    dead: Bool[Tensor, "sae d_sae"] | None = None


@dataclass(frozen=True)
class Loss:
    """What a step needs: the loss of each SAE, and detached numbers to log.

    Attributes:
        total: to be minimised. `error`: mean of ‖x - x̂‖². `f`: the latents.
    """

    total: Float[Tensor, " sae"]
    error: Float[Tensor, " sae"]
    f: Float[Tensor, "sae token d_sae"]


@dataclass(frozen=True)
class Gradients:
    """Gradients of the total loss, by the names of the parameters, and what is known on the way.

    Attributes:
        error: mean of ‖x - x̂‖². `f`: the latents of the cells. `penalty`: the other terms of the loss, if they were
            asked for. `cells`: where all other latents are zero.
    """

    grads: Params
    error: Float[Tensor, " sae"]
    f: Tensor
    penalty: Float[Tensor, " sae"] | None
    cells: Cells = Cells()  # noqa: RUF009  (it has no state)


class Kind:
    """A kind of SAE. What is written here is what most kinds do.

    Attributes:
        name: in files and settings. `own`: its tensors [d_sae] beside W_enc, W_dec and b_dec, a bias first.
        unitless: those of `own` that do not grow with the activations.
        takes_k: how many latents are active is a setting, so that latents are compared with one another.
        batchwise: latents of a token depend on the other tokens: for training only.
        variants: what can be left out or done otherwise.
        at_median: b_dec begins at the median of the activations, not at zero.
        resampled: dead latents may start again from badly reconstructed inputs. `revived`: the loss revives them.
        thresholds: trained tensors whose learning rate is `Config.threshold_rate` times that of all else.
    """

    name: ClassVar[str]
    own: ClassVar[tuple[str, ...]] = ("b_enc",)
    unitless: ClassVar[tuple[str, ...]] = ()
    takes_k: ClassVar[bool] = False
    batchwise: ClassVar[bool] = False
    variants: ClassVar[tuple[str, ...]] = ()
    at_median: ClassVar[bool] = False
    resampled: ClassVar[bool] = False
    revived: ClassVar[bool] = False
    thresholds: ClassVar[tuple[str, ...]] = ()

    def shapes(self, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors."""
        shared = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        return shared | {name: (d_sae,) for name in self.own}

    @property
    def lengths(self) -> tuple[str, ...]:
        """Names of the tensors in units of the activations."""
        return ("b_dec", *(name for name in self.own if name not in self.unitless))

    def check(self, p: Params) -> None:
        """`ValueError` for tensors of the right shapes that are none of this kind."""

    def fresh(self, d_sae: int, threshold: float) -> Params:
        """Its own tensors before training."""
        return {name: torch.zeros(d_sae) for name in self.own}

    # What it computes: p are the tensors of one SAE.

    def linear(self, p: Params) -> tuple[Float[Tensor, "d_in d_sae"], Float[Tensor, " d_sae"]]:
        """(W, b) with pre = (x - b_dec) W + b."""
        return p["W_enc"], p["b_enc"]

    def pre(self, p: Params, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Pre-activations."""
        return (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]

    def encode(self, p: Params, x: Float[Tensor, "... d_in"], k: int | None) -> Float[Tensor, "... d_sae"]:
        """Latents."""
        raise NotImplementedError

    def forms(self) -> dict[str, Callable[[Params], Params]]:
        """Kinds of which it is a special case: its tensors as theirs, the same function."""
        return {}

    # How it is trained: p are the tensors of a stack, but for `finished`.

    def loss(
        self, p: Params, x: Float[Tensor, "token d_in"], sparsity: Float[Tensor, " sae"], o: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, squared error and total loss, for autograd."""
        raise NotImplementedError

    def gradients(
        self, p: Params, x: Float[Tensor, "token d_in"], sparsity: Float[Tensor, " sae"], o: Options, value: bool
    ) -> Gradients:
        """Gradients of `loss`; `value`: the penalty, too."""
        raise NotImplementedError

    def trained(self, p: Params) -> Params:
        """The tensors that are trained in place of p."""
        return p

    def level(self, old: Float[Tensor, " sae"], f: Tensor) -> Float[Tensor, " sae"]:
        """A number that is followed from one entry of the log to the next; f as in `Gradients`."""
        return old

    def finished(self, p: Params, level: Float[Tensor, ""]) -> tuple[str, Params]:
        """What leaves the training: a kind and the tensors of one SAE, from those trained."""
        return self.name, p

    # How files of other conventions become ours.

    def centre(self, p: Params) -> Params:
        """For an encoder that read x: the biases with which it may read x - b_dec."""
        return p | {"b_enc": p["b_enc"] + p["b_dec"] @ p["W_enc"]}

    def fold_norms(self, p: Params, norm: Float[Tensor, " d_sae"]) -> Params:
        """Unit decoder rows, latents n times as large. A row of zeros stays, and its latent is silent."""
        fixed = ("W_dec", "b_dec", *self.unitless)
        grown = {name: v if name in fixed else v * norm for name, v in p.items()}
        return grown | {"W_dec": p["W_dec"] / torch.where(norm > 0, norm, 1.0)[:, None]}

    def sound(self, p: Params) -> Params:
        """What a file may hold and `check` refuses, put right."""
        return p


def inner(p: Params, x: Float[Tensor, "token d_in"], bias: str | None = "b_enc") -> Float[Tensor, "sae token d_sae"]:
    """(x - b_dec) W_enc + bias, with b_dec folded into the bias: no gradient has to pass through the input."""
    offset = product(p["b_dec"][:, None], p["W_enc"])
    shift = -offset if bias is None else p[bias][:, None] - offset
    return product(x.expand(len(shift), -1, -1), p["W_enc"]).add_(shift)


def decode(p: Params, f: Float[Tensor, "sae token d_sae"]) -> Float[Tensor, "sae token d_in"]:
    """x̂ = f W_dec + b_dec."""
    return torch.baddbmm(p["b_dec"][:, None], f, p["W_dec"])


def squared(e: Float[Tensor, "sae token d_in"]) -> Float[Tensor, " sae"]:
    """Mean over tokens of the squared norm."""
    return e.square().sum((-2, -1)) / e.shape[-2]


def per_token(sparsity: Float[Tensor, " sae"], x: Float[Tensor, "token d_in"]) -> Float[Tensor, "sae 1 1"]:
    """λ / tokens, the derivative of the mean penalty."""
    return (sparsity / len(x))[:, None, None]


def error_of(
    p: Params, f: Tensor, x: Tensor, cells: Cells
) -> tuple[Float[Tensor, "sae token d_in"], Float[Tensor, " sae"]]:
    """The derivative of the mean squared norm of x̂ - x by x̂, and that mean."""
    e = cells.decode(f, p["W_dec"]).add_(p["b_dec"][:, None]).sub_(x)
    error = e.square().sum((1, 2)) / len(x)
    return e.mul_(2 / len(x)), error


def where_on(d: Tensor, f: Tensor) -> Tensor:
    """d, zero where f is not positive, in place."""
    return torch.ops.aten.threshold_backward.grad_input(d, f, 0.0, grad_input=d)


def into_weights(p: Params, x: Tensor, f: Tensor, e: Tensor, d: Tensor, cells: Cells) -> Params:
    """Gradients of W_enc, W_dec, b_dec and b_enc, from the derivatives e by x̂ and d by (x - b_dec) W_enc + b_enc."""
    mass = cells.total(d)
    W_enc = cells.columns(d, x).sub_(p["b_dec"][..., None] * mass[:, None])
    into_input = product(mass[:, None], p["W_enc"].mT)[:, 0]
    return {"b_enc": mass, "W_enc": W_enc, "W_dec": cells.rows(f, e), "b_dec": e.sum(1) - into_input}
