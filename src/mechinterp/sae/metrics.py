"""What an SAE is worth: sparsity, reconstruction, shrinkage, and what it costs the model.

All numbers are ratios of sums over tokens, so they are kept as sums by row of text: intervals come from drawing
rows again, since tokens of one row are not independent. First tokens and BOS are neither replaced nor counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.sae.architectures import SAE
from mechinterp.sae.sites import activations, layer_of, logits
from mechinterp.sae.store import counted as counted_tokens
from mechinterp.stats import Estimate, ratio

Baseline = Literal["zero", "mean"]
Name = Literal["l0", "fvu", "gamma", "delta_loss", "loss_recovered", "recovered_mean"]
_COLUMNS = ("tokens", "l0", "error", "square", "out", "product", "predicted", "clean", "spliced", "zero", "mean")


@dataclass(frozen=True)
class Site:
    """A model's activations at a hook on some text, and its loss without them; shared by all SAEs of the site.

    Attributes:
        hook: where. `tokens` [row pos]. `x` [row pos d_in]. `counted` [row pos]: which tokens count.
        centre: mean activation. `clean`, `zero`, `mean`: summed next-token loss of every row, nats, as it is, and
            with the activations replaced by zero and by their mean. `predicted`: tokens in those sums.
        below: the residual stream before the hook's layer, from which passes begin.
    """

    hook: str
    tokens: Int[Tensor, "row pos"]
    x: Float[Tensor, "row pos d_in"]
    counted: Bool[Tensor, "row pos"]
    centre: Float[Tensor, " d_in"]
    predicted: Float[Tensor, " row"]
    clean: Float[Tensor, " row"]
    zero: Float[Tensor, " row"]
    mean: Float[Tensor, " row"]
    below: Float[Tensor, "row pos d_model"]


@dataclass(frozen=True)
class Quality:
    """Sums by row of one SAE on one text.

    Attributes:
        sums: [row, column]; see `value` for what is made of them.
        spread: E‖x - E x‖². `density`: share of tokens on which each latent is active.
    """

    sums: Float[Tensor, "row column"]
    spread: float
    density: Float[Tensor, " d_sae"]

    def value(self, name: Name) -> float:
        """One number.

        l0: active latents a token. fvu: E‖x - x̂‖² / E‖x - E x‖². gamma: relative reconstruction bias
        E‖x̂‖² / E[x̂·x], below 1 for an SAE that shrinks (arXiv:2404.16014, section 4.2). delta_loss: rise of the
        next-token loss with x̂ for x, nats. loss_recovered: 1 - that over the rise when x is replaced by zero;
        recovered_mean: the same with the mean activation for zero.

        Errors: `ValueError` for an unknown name.
        """
        top, bottom, finish = self._parts(name)
        return finish(float(top.sum() / bottom.sum()))

    def estimate(self, name: Name) -> Estimate:
        """The same with its interval over rows of text. `ValueError` for a single row."""
        top, bottom, finish = self._parts(name)
        return ratio(top, bottom, unit="rows of text").map(finish)

    def _parts(self, name: Name) -> tuple[Tensor, Tensor, Callable[[float], float]]:
        """Numerator and denominator by row, and what is made of their ratio."""
        s = dict(zip(_COLUMNS, self.sums.double().T, strict=True))
        match name:
            case "l0":
                return s["l0"], s["tokens"], float
            case "fvu":
                return s["error"], s["tokens"], lambda x: x / self.spread
            case "gamma":
                return s["out"], s["product"], float
            case "delta_loss":
                return s["spliced"] - s["clean"], s["predicted"], float
            case "loss_recovered":
                return s["spliced"] - s["clean"], s["zero"] - s["clean"], lambda x: 1 - x
            case "recovered_mean":
                return s["spliced"] - s["clean"], s["mean"] - s["clean"], lambda x: 1 - x
        raise ValueError(f"unknown measure {name!r}")

    @property
    def cost(self) -> Float[Tensor, " row"]:
        """By row the summed increase in loss with the reconstruction in place, nats."""
        return self.sums[:, _COLUMNS.index("spliced")] - self.sums[:, _COLUMNS.index("clean")]

    @property
    def dead(self) -> float:
        """Share of latents that are never active on this text."""
        return float((self.density == 0).float().mean())

    def facts(self) -> dict[str, float]:
        """All numbers by name, for a table."""
        names: tuple[Name, ...] = ("l0", "fvu", "gamma", "delta_loss", "loss_recovered", "recovered_mean")
        return {name: self.value(name) for name in names} | {"dead": self.dead}


def next_token_loss(
    logits: Float[Tensor, "row pos vocab"], tokens: Int[Tensor, "row pos"], counted: Bool[Tensor, "row pos"]
) -> Float[Tensor, " row"]:
    """Summed loss of predicting every counted token from what stands before it, nats."""
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return -(log_p * counted[:, 1:]).sum(-1)


@torch.no_grad()
def site(
    model: object, tokens: Int[Tensor, "row pos"], hook: str, *, skip: Sequence[int] | None = None, batch_size: int = 16
) -> Site:
    """Activations and losses of a model at a hook: one pass, and three from the hook's layer on.

    Args:
        skip: token ids that do not count; None for the BOS token of the model's tokenizer, if there is one. The first
            token of a row never counts (see `store.counted`).

    Errors: `ValueError` for an unknown hook, activations or logits that are not finite, no token that counts, or a
        model that does not predict the next token.
    """
    anatomy = Anatomy.of(model, bidirectional=True)
    if not anatomy.causal or len(anatomy.unembedding.weight) != anatomy.size.d_vocab:
        raise ValueError(
            "this model does not predict the next token, so that nothing is lost by that measure: measure its SAEs by "
            "reconstruction, and put them into it with hooks"
        )
    stream = f"blocks.{layer_of(hook)}.hook_resid_pre"
    found = activations(model, tokens, [hook, stream], batch_size=batch_size)
    x, below = found[hook], found[stream]
    tokens = tokens.to(x.device)
    counted = counted_tokens(model, tokens, skip)
    if not counted.any():
        raise ValueError("no token counts: but for the first of every row, all of them are in skip")
    centre = x[counted].mean(0)

    def loss(value: Tensor | None) -> Tensor:
        parts = []
        for some, keep, start in zip(*(t.split(batch_size) for t in (tokens, counted, below)), strict=True):

            def put(a: Tensor, keep: Tensor = keep) -> Tensor:
                return a if value is None else torch.where(keep[..., None], value, a)

            parts.append(next_token_loss(logits(model, some, hook, put, below=start), some, keep))
        return torch.cat(parts)

    losses = loss(None), loss(torch.zeros_like(centre)), loss(centre)
    return Site(hook, tokens, x, counted, centre, counted[:, 1:].float().sum(-1), *losses, below)


@torch.no_grad()
def evaluate(model: object, sae: SAE, at: Site, *, batch_size: int = 16) -> Quality:
    """Everything about one SAE; one pass of the model from the hook's layer on.

    Errors: `ValueError` if the SAE belongs to another width.
    """
    rows, active = [], torch.zeros(sae.d_sae, device=at.x.device)
    parts = zip(*(t.split(batch_size) for t in (at.tokens, at.x, at.counted, at.below)), strict=True)
    for tokens, x, counted, below in parts:
        f = sae.encode(x) * counted[..., None]
        out = sae.decode(f)
        active += (f > 0).float().sum((0, 1))

        def put(a: Tensor, out: Tensor = out, counted: Tensor = counted) -> Tensor:
            return torch.where(counted[..., None], out, a)

        spliced = next_token_loss(logits(model, tokens, at.hook, put, below=below), tokens, counted)
        keep = counted.float()
        columns = [
            keep,
            (f > 0).float().sum(-1),
            (x - out).square().sum(-1) * keep,
            x.square().sum(-1) * keep,
            out.square().sum(-1) * keep,
            (x * out).sum(-1) * keep,
        ]
        rows.append(torch.cat([torch.stack([c.sum(-1) for c in columns], -1), spliced[:, None]], -1))
    table = torch.cat(rows).cpu()
    others = torch.stack([at.predicted, at.clean, at.zero, at.mean], -1).cpu()
    sums = torch.cat([table[:, :6], others[:, :2], table[:, 6:], others[:, 2:]], -1)
    spread = (at.x - at.centre).square().sum(-1)[at.counted].mean().item()
    return Quality(sums, spread, (active / at.counted.float().sum()).cpu())


@dataclass(frozen=True)
class Reconstruction:
    """An SAE on activations alone: active latents a token, unexplained variance, relative reconstruction bias."""

    l0: float
    fvu: float
    gamma: float
    density: Float[Tensor, " d_sae"]


@torch.no_grad()
def reconstruction(sae: SAE, x: Float[Tensor, "token d_in"], *, batch_size: int = 8192) -> Reconstruction:
    """The measures of `Quality` that need no model.

    Errors: `ValueError` for activations that are constant or not finite.

    >>> perfect = SAE("standard", {"W_enc": torch.eye(3), "W_dec": torch.eye(3), "b_enc": torch.zeros(3),
    ...     "b_dec": torch.zeros(3)})
    >>> found = reconstruction(perfect, torch.rand(100, 3))
    >>> found.fvu, round(found.gamma, 5), found.l0
    (0.0, 1.0, 3.0)
    """
    spread = (x - x.mean(0)).square().sum().item()
    if not 0 < spread < float("inf"):
        raise ValueError("these activations are constant or not finite: nothing can be explained of them")
    total = torch.zeros(3, dtype=torch.float64, device=x.device)
    active = torch.zeros(sae.d_sae, device=x.device)
    for part in x.split(batch_size):
        f = sae.encode(part)
        out = sae.decode(f)
        active += (f > 0).float().sum(0)
        total += torch.stack([(part - out).square().sum(), out.square().sum(), (out * part).sum()]).double()
    error, square, product = total.tolist()
    gamma = square / product if product else float("nan")
    return Reconstruction(active.sum().item() / len(x), error / spread, gamma, (active / len(x)).cpu())
