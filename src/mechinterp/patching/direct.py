"""Straight to the logits: direct logit attribution and the logit lens.

A final stream is a sum: embedding, every head, every MLP, biases. With the final norm's scale held at what it is, each
summand has a share of any logit difference, and the shares add up to it exactly. Under post norms (Gemma 2 and 3,
OLMo 2) a head's summand is taken with that norm's scale held as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.heads import Head
from mechinterp.patching.checks import check_tokens
from mechinterp.patching.engine import Change, pick, trace


@dataclass(frozen=True)
class Written:
    """What every component writes at one position of every prompt, before it is read by anything.

    Attributes:
        start: the embedding, positions included. `end`: the final stream, the sum of all.
        z: heads before W_O. `scale`: of the attention's post norm, 1 without one. `mlps`: after theirs.
    """

    start: Float[Tensor, "prompt d_model"]
    z: Float[Tensor, "layer prompt head d_head"]
    scale: Float[Tensor, "layer prompt 1"]
    mlps: Float[Tensor, "layer prompt d_model"]
    end: Float[Tensor, "prompt d_model"]

    def heads_along(self, anatomy: Anatomy, d: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "layer head prompt"]:
        """Every head's contribution to the stream times d, without b_O."""
        rows = []
        for layer, z, scale in zip(anatomy.layers, self.z, self.scale, strict=True):
            # From d_model down to d_head first: `heads` times cheaper than forming every head's output.
            read = torch.einsum("hem,pm->phe", layer.writes(), d)
            rows.append(((z * read).sum(-1) / scale).T)
        return torch.stack(rows)


def written(
    anatomy: Anatomy, tokens: Tensor, at: Tensor, *, change: Change | None = None, batch_size: int = 64
) -> Written:
    """Run the prompts and keep what is at `at`; with a `change`, as in `trace`, they run as one batch."""
    parts = []
    batches = torch.arange(len(tokens), device=tokens.device).split(batch_size if change is None else len(tokens))
    for some in batches:
        where = at[some][:, None]

        def keep(name: str, layer: int, x: Tensor, where: Tensor = where) -> Tensor | None:
            ends = name == "resid_pre" and layer in (0, anatomy.size.n_layers)
            return pick(x, where)[:, 0] if ends or name in ("z", "attn", "mlp_out") else None

        got = trace(anatomy, tokens[some], keep, change=change)
        z, attn, mlps = ([got[name, i] for i in range(anatomy.size.n_layers)] for name in ("z", "attn", "mlp_out"))
        scale = torch.stack([layer.post1.scale(x) for layer, x in zip(anatomy.layers, attn, strict=True)])
        end = got["resid_pre", anatomy.size.n_layers]
        parts.append((got["resid_pre", 0], torch.stack(z), scale, torch.stack(mlps), end))
    return Written(*(torch.cat(column, int(column[0].ndim > 2)) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class LogitAttribution:
    """A logit difference, prompt by prompt, as a sum.

    Attributes:
        embedding: the token's own, and its position's where positions are in the stream.
        heads: without biases. `mlps`: with theirs.
        biases: of the attention, layer by layer (value biases are part of them in a model that `load` has folded).
        constant: the final norm's bias and the unembedding's.
    """

    embedding: Float[Tensor, " prompt"]
    heads: Float[Tensor, "layer head prompt"]
    mlps: Float[Tensor, "layer prompt"]
    biases: Float[Tensor, "layer prompt"]
    constant: Float[Tensor, " prompt"]

    def total(self) -> Float[Tensor, " prompt"]:
        """The logit difference, before a soft cap."""
        layers = self.heads.sum((0, 1)) + self.mlps.sum(0) + self.biases.sum(0)
        return self.embedding + layers + self.constant

    def top(self, n: int = 5) -> list[tuple[Head, float]]:
        """The heads of largest mean contribution, for or against, with that mean."""
        means = self.heads.mean(-1)
        order = means.abs().flatten().argsort(descending=True)[:n].tolist()
        return [(Head(*divmod(i, means.shape[1])), means.flatten()[i].item()) for i in order]


@torch.no_grad()
def direct_logit_attribution(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    at: Int[Tensor, " prompt"],
    right: Int[Tensor, " prompt"],
    wrong: Int[Tensor, " prompt"] | None = None,
    *,
    batch_size: int = 64,
) -> LogitAttribution:
    """How much every component adds to logit(right) − logit(wrong) by itself, scales of norms frozen (Elhage et al.).

    Args:
        at: where the logits are read. `right`, `wrong`: token ids, one a prompt; without `wrong`, the logit itself.
        batch_size: prompts at a time; does not change results.

    Errors: `ValueError` for a model that `Anatomy` does not describe, ids or positions out of range.

    >>> from mechinterp.models import organisms
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> parts = direct_logit_attribution(organism.model, data.tokens, data.positions["END"], data.io, data.s)
    >>> [organism.roles[head] for head, _ in parts.top(1)]
    ['name mover']
    >>> torch.allclose(parts.total(), data.logit_diff(organism.model(data.tokens)), atol=1e-3)
    True
    """
    anatomy = check_tokens(model, tokens, batch_size, at, bidirectional=True)
    rows, bias, at = anatomy.unembedding.weight, anatomy.unembedding.bias, at.to(anatomy.device)
    for name, ids in (("right", right), ("wrong", wrong)):
        if ids is not None and ids.shape != tokens.shape[:1]:
            raise ValueError(f"{name} must hold one token id a prompt, shape {(len(tokens),)}, got {tuple(ids.shape)}")
        if ids is not None and not (int(ids.min()) >= 0 and int(ids.max()) < len(rows)):
            raise ValueError(f"{name}: ids must lie in 0..{len(rows) - 1}")
    direction = rows[right] if wrong is None else rows[right] - rows[wrong]
    parts = written(anatomy, tokens, at, batch_size=batch_size)
    scale = anatomy.final.scale(parts.end)
    d = anatomy.along(direction) / scale
    biases = []
    for layer, own in zip(anatomy.layers, parts.scale, strict=True):
        fixed = torch.zeros_like(parts.end) if layer.o.bias is None else layer.o.bias.expand_as(parts.end)
        fixed = layer.post1.frozen(fixed, own)
        biases.append(((fixed if layer.post1.bias is None else fixed + layer.post1.bias) * d).sum(-1))
    constant = torch.zeros_like(d[:, 0])
    if anatomy.final.bias is not None:
        constant = constant + (direction * anatomy.final.bias).sum(-1)
    if bias is not None:
        constant = constant + (bias[right] if wrong is None else bias[right] - bias[wrong])
    heads, mlps = parts.heads_along(anatomy, d), (parts.mlps * d).sum(-1)
    return LogitAttribution((parts.start * d).sum(-1), heads, mlps, torch.stack(biases), constant)


@torch.no_grad()
def logit_lens(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    at: Int[Tensor, " prompt"],
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "layer prompt vocab"]:
    """The logits if the model ended before a layer: final norm and unembedding of the stream there (nostalgebraist).

    Args:
        at: where the stream is read, one position a prompt.
        layers: before which layers, 0 to n_layers; None for all of them. The last are the model's own logits.

    Memory: layers · prompts · vocabulary floats. Errors: `ValueError` for a layer that the model does not have.

    >>> from mechinterp.models import load
    >>> model, tokens = load("lab"), torch.tensor([[0, 5, 9]])
    >>> lens = logit_lens(model, tokens, torch.tensor([2]))
    >>> lens.shape, torch.allclose(lens[-1], model(tokens)[:, 2], atol=1e-3)
    (torch.Size([6, 1, 8192]), True)
    """
    anatomy = check_tokens(model, tokens, batch_size, at, bidirectional=True)
    at = at.to(anatomy.device)
    layers = range(anatomy.size.n_layers + 1) if layers is None else layers
    for layer in layers:
        if not 0 <= layer <= anatomy.size.n_layers:
            raise ValueError(f"no stream before layer {layer}: this model has 0..{anatomy.size.n_layers}")
    parts = []
    for some in torch.arange(len(tokens), device=tokens.device).split(batch_size):
        where = at[some][:, None]

        def keep(name: str, layer: int, x: Tensor, where: Tensor = where) -> Tensor | None:
            return pick(x, where)[:, 0] if name == "resid_pre" and layer in layers else None

        got = trace(anatomy, tokens[some], keep, stop=max(layers))
        parts.append(torch.stack([anatomy.unembed(got["resid_pre", layer]) for layer in layers]))
    return torch.cat(parts, 1)
