"""Copy-suppression-preserving ablation: how much of a head is copy suppression? (McDougall et al., section 3.3)

A head's output at a destination d is a sum over sources s of r(d, s) = A[d, s] · v_s W_O. Mean ablation replaces each
by m(d, s) = A[d, s] · μ_d. CSPA keeps of each term only what copy suppression would do:

    QK  only the sources whose token the stream before the head predicts most (5 % of them) keep anything
    OV  of what they add beyond the mean only the part that lowers the logit of their own token,
        the negative part of the projection on that token's unembedding

    out_d = μ_d + Σ_{s kept} min(c, 0) û_s,    c(d, s) = (r(d, s) − m(d, s)) · û_s,    û_s = W_U[s] / |W_U[s]|

The effect explained is 1 − D(CSPA) / D(mean ablation), D the mean KL divergence from the clean prediction; only the
direct path to the logits is ablated, with the last layer norm's scale frozen (and a post norm's, where there is one).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.copy_suppression.recording import Record, head_means, records
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_text
from mechinterp.stats import Estimate, ratio

Part = Literal["both", "ov", "qk"]
PARTS: tuple[Part, ...] = ("both", "ov", "qk")
Measure = Literal["kl", "loss", "absolute loss"]


@dataclass(frozen=True)
class CSPA:
    """What is left of a head's direct effect under each ablation, token by token.

    Attributes:
        loss: of the clean model (nats), predicting the next token.
        ablated_kl, ablated_loss: with the head's direct effect mean-ablated.
        kl, loss_of: the same for each part of CSPA.
    """

    loss: Float[Tensor, "doc pos"]
    ablated_kl: Float[Tensor, "doc pos"]
    ablated_loss: Float[Tensor, "doc pos"]
    kl: dict[Part, Float[Tensor, "doc pos"]]
    loss_of: dict[Part, Float[Tensor, "doc pos"]]

    def effects(self, part: Part = "both", by: Measure = "kl") -> Float[Tensor, "doc pos two"]:
        """Effect of CSPA and of the mean ablation at every token, in nats.

        `loss` is the net increase of the loss, `absolute loss` its modulus (Appendix J.2).
        """
        if by == "kl":
            return torch.stack([self.kl[part], self.ablated_kl], -1)
        pair = torch.stack([self.loss_of[part] - self.loss, self.ablated_loss - self.loss], -1)
        return pair if by == "loss" else pair.abs()

    def explained(
        self, part: Part = "both", by: Measure = "kl", *, where: Bool[Tensor, "doc pos"] | None = None
    ) -> Estimate:
        """1 − D(CSPA) / D(mean ablation), over documents: 0 is as bad as no head, 1 as good as the head.

        Args:
            where: count only these tokens.
        """
        pairs = self.effects(part, by)
        kept = torch.ones_like(pairs[..., 0], dtype=torch.bool) if where is None else where
        document = torch.arange(len(pairs))[:, None].expand_as(kept)[kept]
        left, whole = pairs[kept].unbind(-1)
        return ratio(left, whole, unit="documents", clusters=document).map(lambda x: 1 - x)

    def most_affected(self, top: float) -> Bool[Tensor, "doc pos"]:
        """The fraction `top` of all tokens with the largest effect of mean ablation, in KL."""
        effect = self.ablated_kl.flatten()
        marked = torch.zeros(len(effect), dtype=torch.bool)
        marked[effect.topk(max(1, round(top * len(effect)))).indices] = True
        return marked.view_as(self.ablated_kl)

    def percentiles(self, part: Part = "both", bins: int = 100) -> Float[Tensor, "bin two"]:
        """Mean KL of CSPA and of the mean ablation in bins of tokens sorted by the latter (Figure 5)."""
        pairs = self.effects(part).flatten(0, 1)
        ordered = pairs[pairs[:, 1].argsort()]
        return torch.stack([chunk.mean(0) for chunk in ordered.tensor_split(bins)])


@torch.no_grad()
def cspa(
    model: Any,
    tokens: Int[Tensor, "doc pos"],
    heads: Sequence[Head],
    *,
    parts: Sequence[Part] = PARTS,
    keep: float = 0.05,
    means: Mapping[Head, Float[Tensor, "pos d_head"]] | None = None,
    similar: Int[Tensor, "token k"] | None = None,
    progress: bool = True,
) -> dict[Head, CSPA]:
    """CSPA of some heads on a text; the model runs once a document whatever the number of heads.

    Args:
        keep: share of the sources that the QK part keeps, at least one.
        means: z that stands for a head without information, `head_means` of this text by default.
        similar: for each token of the vocabulary tokens that mean the same, itself first; what a source does to any
            of them counts as suppression of it (Appendix K). −1 fills up short rows.

    Memory: a few times pos · vocabulary floats. Errors: `ValueError` for a text of less than two tokens.
    """
    from tqdm.auto import tqdm

    heads = check_heads(model, heads)
    check_text(model, tokens)
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the sources, between 0 and 1, not {keep}")
    means = head_means(model, tokens, heads) if means is None else means
    layers = sorted({h.layer for h in heads})
    rows: dict[Head, list[Tensor]] = {h: [] for h in heads}
    every = tqdm(records(model, tokens, layers), total=len(tokens), desc="CSPA", unit="doc", disable=not progress)
    for record in every:
        clean = record.logp()
        kept = {layer: predicted_sources(record, layer, keep) for layer in layers}
        basis = directions(record.anatomy, record.tokens, similar)
        loss = next_loss(clean, record.tokens)
        for h in heads:
            values = [loss]
            for change in _changes(record, h, means[h], kept[h.layer], basis, parts):
                after = record.logp(change)
                values += [token_kl(clean, after), next_loss(after, record.tokens)]
            rows[h].append(torch.stack(values))
    result = {}
    for h in heads:
        loss, kl, ablated, *rest = torch.stack(rows[h], 1).cpu()
        result[h] = CSPA(
            loss, kl, ablated, dict(zip(parts, rest[::2], strict=True)), dict(zip(parts, rest[1::2], strict=True))
        )
    return result


def predicted_sources(record: Record, layer: int, keep: float) -> Bool[Tensor, "query key"]:
    """The ⌈keep · (d + 1)⌉ sources whose tokens the stream before `layer` predicts most, by the logit lens."""
    lens = lens_of(record.anatomy, record.resid[layer], record.tokens)
    n = len(lens)
    masked = lens.masked_fill(later(lens), -torch.inf)
    order = torch.argsort(masked, dim=-1, descending=True, stable=True).argsort(-1)
    many = torch.ceil(keep * torch.arange(1, n + 1, device=lens.device, dtype=torch.float64))
    return (order < many[:, None]) & ~later(lens)


def lens_of(
    anatomy: Anatomy, resid: Float[Tensor, "query d_model"], tokens: Int[Tensor, " key"]
) -> Float[Tensor, "query key"]:
    """Logits of some tokens if the model ended here, before a soft cap."""
    bias = anatomy.unembedding.bias
    logits = anatomy.final(resid) @ anatomy.W_U[:, tokens]
    return logits if bias is None else logits + bias[tokens]


def _changes(
    record: Record,
    head: Head,
    mean: Tensor,
    kept: Tensor,
    basis: Tensor,
    parts: Sequence[Part],
) -> Iterator[Float[Tensor, "pos d_model"]]:
    """How the stream's end changes under mean ablation, then under each part of CSPA."""
    pattern = record.pattern[head.layer][head.head]
    v, z = record.v[head.layer][:, head.head], record.z[head.layer][:, head.head]
    w_o = record.anatomy.layers[head.layer].writes(head.head)
    post = record.post_scale[head.layer]
    gone = mean - z
    yield gone @ w_o / post
    if set(parts) & {"ov", "both"}:
        read = torch.einsum("skd,ed->ske", basis, w_o)  # what a unit of z adds along each source's directions
        own, base = torch.einsum("se,ske->sk", v, read), torch.einsum("qe,ske->qsk", mean, read)
        lowered = (pattern[..., None] * (own - base)).clamp(max=0)
    for part in parts:
        if part == "qk":
            share = pattern * kept
            yield (share @ v + (1 - share.sum(-1, keepdim=True)) * mean - z) @ w_o / post
        else:
            these = lowered if part == "ov" else lowered * kept[..., None]
            yield (gone @ w_o + torch.einsum("qsk,skd->qd", these, basis)) / post


def directions(anatomy: Anatomy, tokens: Tensor, similar: Tensor | None) -> Float[Tensor, "source k d_model"]:
    """Orthonormal directions of each source token's unembedding and of those that mean the same."""
    if similar is None:
        return torch.nn.functional.normalize(anatomy.directions(tokens), dim=-1)[:, None]
    ids = similar.to(tokens.device)[tokens]
    vectors = anatomy.directions(ids.clamp(min=0)) * (ids >= 0)[..., None]
    basis: list[Tensor] = []
    for x in vectors.unbind(1):  # Gram-Schmidt; a row that is spanned already becomes zero
        for b in basis:
            x = x - (x * b).sum(-1, keepdim=True) * b
        size = x.norm(dim=-1, keepdim=True)
        basis.append(torch.where(size > 1e-4, x / size.clamp(min=1e-4), torch.zeros_like(x)))
    return torch.stack(basis, 1)


def token_kl(clean: Tensor, after: Tensor) -> Float[Tensor, " pos"]:
    return torch.linalg.vecdot(clean.exp(), clean - after).clamp(min=0)


def next_loss(logp: Tensor, tokens: Tensor) -> Float[Tensor, " pos"]:
    """Loss at every position but the last, where 0 stands for a target that is not there."""
    loss = -logp[:-1].gather(1, tokens[1:, None])[:, 0]
    return torch.cat([loss, loss.new_zeros(1)])


def later(x: Tensor) -> Bool[Tensor, "query key"]:
    return torch.ones_like(x, dtype=torch.bool).triu(1)
