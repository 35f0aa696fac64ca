"""What a head does on a text: everything that copy-suppression-preserving ablation needs, from one forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_text
from mechinterp.patching.engine import trace


@dataclass(frozen=True)
class Record:
    """One document: the residual stream's end, and what each layer under study reads and writes.

    Attributes:
        tokens: the document.
        final: the stream after the last norm; `anatomy.read(final)` are the logits before a soft cap.
        scale: what that norm divided by, frozen in every direct effect.
        resid: by layer, the stream before it. `pattern`, `z`: by layer, all heads. `v`: every head's own values.
        post_scale: by layer, what the attention's post norm divided by; 1 without one. Frozen, too.
    """

    anatomy: Anatomy
    tokens: Int[Tensor, " pos"]
    final: Float[Tensor, "pos d_model"]
    scale: Float[Tensor, "pos 1"]
    resid: dict[int, Float[Tensor, "pos d_model"]]
    pattern: dict[int, Float[Tensor, "head query key"]]
    v: dict[int, Float[Tensor, "pos head d_head"]]
    z: dict[int, Float[Tensor, "pos head d_head"]]
    post_scale: dict[int, Float[Tensor, "pos 1"]]

    def head_change(self, head: Head, change: Float[Tensor, "pos d_head"]) -> Float[Tensor, "pos d_model"]:
        """What a change of a head's z does to the final stream by itself."""
        return change @ self.anatomy.layers[head.layer].writes(head.head) / self.post_scale[head.layer]

    def through(self, change: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos vocab"]:
        """What a change of the final stream adds to the logits before a soft cap, the final norm's scale frozen."""
        return self.anatomy.final.frozen(change, self.scale) @ self.anatomy.W_U

    def logp(self, change: Float[Tensor, "pos d_model"] | None = None) -> Float[Tensor, "pos vocab"]:
        """Log-probabilities of the next token, with a change of the final stream; the final norm's scale is frozen."""
        normal = self.final if change is None else self.final + self.anatomy.final.frozen(change, self.scale)
        return self.anatomy.cap(self.anatomy.read(normal)).log_softmax(-1)


@torch.no_grad()
def records(model: Any, tokens: Int[Tensor, "doc pos"], layers: Sequence[int]) -> Iterator[Record]:
    """Run the documents one by one. Memory: one document, heads · pos² floats a layer."""
    anatomy = check_text(model, tokens)
    wanted = {("resid_pre", anatomy.size.n_layers)}
    wanted |= {(name, layer) for layer in layers for name in ("resid_pre", "pattern", "value", "z", "attn")}
    for row in tokens:
        got = trace(anatomy, row[None], lambda name, layer, x: x[0] if (name, layer) in wanted else None)
        end = got["resid_pre", anatomy.size.n_layers]
        yield Record(
            anatomy,
            row,
            anatomy.final(end),
            anatomy.final.scale(end),
            resid={i: got["resid_pre", i] for i in layers},
            pattern={i: got["pattern", i] for i in layers},
            v={i: anatomy.layers[i].expand(got["value", i]) for i in layers},
            z={i: got["z", i] for i in layers},
            post_scale={i: anatomy.layers[i].post1.scale(got["attn", i]) for i in layers},
        )


@torch.no_grad()
def head_means(
    model: Any, tokens: Int[Tensor, "doc pos"], heads: Sequence[Head], *, pooled: bool = False
) -> dict[Head, Float[Tensor, "pos d_head"]]:
    """Mean of each head's z at every position, or (`pooled`) over all positions but the first.

    A mean by position, as in the paper's code, needs many documents; the pooled one suits a small sample.
    """
    heads = check_heads(model, heads)
    total: dict[Head, Tensor] = {}
    for record in records(model, tokens, sorted({h.layer for h in heads})):
        for h in heads:
            z = record.z[h.layer][:, h.head]
            total[h] = total[h] + z if h in total else z.clone()
    means = {h: z / len(tokens) for h, z in total.items()}
    if not pooled:
        return means
    return {h: torch.cat([z[:1], z[1:].mean(0).expand(len(z) - 1, -1)]) for h, z in means.items()}
