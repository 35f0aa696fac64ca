"""Is a head's attention explained by what the stream predicts? (McDougall et al., Appendix N)

The attention score of a source s is computed anew from only a part of the query's input: its projection on the
unembedding of the token at s, or on the span of the unembeddings of tokens that mean the same. The
improved version then corrects the scores of each token by a scale and a bias of its own, fitted on other text.
The new pattern moves the head's own values, over the sources in its window. Rotary positions turn both queries by their
positions; where queries are normed (Qwen 3, Gemma 3), a projected query is divided by what the whole one is; where they
are clipped (OLMo), so is it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Layer
from mechinterp.copy_suppression.cspa import CSPA, directions, next_loss, token_kl
from mechinterp.copy_suppression.recording import Record, head_means, records
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_text


@dataclass(frozen=True)
class ScoreFit:
    """By token of the vocabulary: true score ≈ scale · projected score + bias."""

    scale: Float[Tensor, " token"]
    bias: Float[Tensor, " token"]


def _scores(
    record: Record, head: Head, similar: Tensor | None
) -> tuple[Float[Tensor, "query key"], Float[Tensor, "query key"]]:
    """Attention scores before the softmax: the head's own, and those from the query's projections."""
    layer, index = record.anatomy.layers[head.layer], head.head
    if layer.joint:
        raise ValueError("queries of this model are normed over all heads together: one head's cannot be projected")
    positions = torch.arange(len(record.tokens), device=record.tokens.device)
    x = layer.norm1(record.resid[head.layer])
    query = layer.project("q", x, [index])
    key = layer.ready("k", layer.project("k", x, [index]), positions)
    basis = directions(record.anatomy, record.tokens, similar)
    along = torch.einsum("qd,skd->qsk", x, basis)
    # A projected query of each pair: Σ_k along · (basis W_Q) + b_Q, which is linear up to the soft cap.
    read = basis @ layer.weight("q", index)
    fixed = layer.q.bias.unflatten(0, (-1, layer.d_head))[index] if layer.q.bias is not None else None
    ready = _linear(layer, query[:, 0], positions)
    scores = layer.scores(layer.ready("q", query, positions), key)[0]
    if layer.rotary is None and not layer.q_norm and layer.clip is None:
        reads = torch.einsum("ske,se->sk", read, key[:, 0])
        projected = torch.einsum("qsk,sk->qs", along, reads)
        projected = projected if fixed is None else projected + key[:, 0] @ fixed
    else:
        projected = torch.stack(
            [
                torch.einsum("qe,e->q", ready(along[:, s] @ read[s] + (0.0 if fixed is None else fixed)), key[s, 0])
                for s in range(len(positions))
            ],
            1,
        )
    projected = projected * layer.scale
    return scores, projected if layer.cap is None else layer.cap * torch.tanh(projected / layer.cap)


def _linear(layer: Layer, query: Float[Tensor, "pos d_head"], positions: Tensor) -> Callable[[Tensor], Tensor]:
    """Queries made ready with the scale of a norm frozen at what it is for these."""
    scale = layer.q_norm.scale(query)

    def ready(x: Tensor) -> Tensor:
        x = layer.q_norm.frozen(x, scale)
        x = x if layer.clip is None else x.clamp(-layer.clip, layer.clip)
        return x if layer.rotary is None else layer.rotary(x[:, None], positions)[:, 0]

    return ready


def _unseen(record: Record, layer: int) -> Bool[Tensor, "query key"]:
    places = torch.arange(len(record.tokens), device=record.tokens.device)
    return record.anatomy.layers[layer].hidden(places[:, None] - places)


@torch.no_grad()
def fit_scores(
    model: Any,
    tokens: Int[Tensor, "doc pos"],
    head: Head,
    *,
    similar: Int[Tensor, "token k"] | None = None,
    prior: float = 100.0,
) -> ScoreFit:
    """A scale and a bias for every token as a source, by ridge regression towards those of all tokens together.

    Args:
        tokens: text to fit on; keep it apart from the text that is then explained.
        similar: as for `cspa`. prior: with how many (destination, source) pairs the common fit counts, so that
            a token that is rare keeps it.

    Errors: `ValueError` for queries that are normed over all heads together (OLMo 2), or a text of less than two
        tokens.
    """
    [head] = check_heads(model, [head])
    anatomy = check_text(model, tokens)
    n_tokens = anatomy.size.d_vocab
    # By token: the number of pairs, and the sums of x, y, x², xy.
    sums = torch.zeros(n_tokens, 5, dtype=torch.float64, device=anatomy.device)
    for record in records(model, tokens, [head.layer]):
        true, projected = (s.double() for s in _scores(record, head, similar))
        seen = ~_unseen(record, head.layer)
        columns = [seen.double(), projected, true, projected**2, projected * true]
        sums.index_add_(0, record.tokens, torch.stack([(c * seen).sum(0) for c in columns], -1))
    n, x, y, xx, xy = sums.unbind(-1)
    mean_x, mean_y = x.sum() / n.sum(), y.sum() / n.sum()
    variance = xx.sum() / n.sum() - mean_x**2
    common = (xy.sum() / n.sum() - mean_x * mean_y) / variance.clamp(min=1e-12)
    # What is left after the common fit, x centred: residual r = y − mean_y − common · (x − mean_x).
    cx = x - n * mean_x
    cxx = xx - 2 * mean_x * x + n * mean_x**2 + prior * variance
    r = y - n * mean_y - common * cx
    xr = (xy - mean_x * y) - mean_y * cx - common * (cxx - prior * variance)
    count = n + prior
    determinant = (cxx * count - cx**2).clamp(min=1e-12)
    slope = common + (count * xr - cx * r) / determinant
    shift = mean_y + (cxx * r - cx * xr) / determinant - slope * mean_x
    return ScoreFit(slope.to(anatomy.dtype), shift.to(anatomy.dtype))


@torch.no_grad()
def qk_projection(
    model: Any,
    tokens: Int[Tensor, "doc pos"],
    head: Head,
    *,
    means: Any = None,
    similar: Int[Tensor, "token k"] | None = None,
    fit: ScoreFit | None = None,
    progress: bool = True,
) -> CSPA:
    """Effect explained if attention came from the query's projections; the result has one part, `qk`.

    Args:
        means: as for `cspa`. similar: project on the span of these tokens' unembeddings.
        fit: correct the scores by token (`fit_scores` on other text); with `similar` the improved version.

    Memory: pos² · k floats. Errors: as `fit_scores`.
    """
    from tqdm.auto import tqdm

    [head] = check_heads(model, [head])
    means = head_means(model, tokens, [head]) if means is None else means
    rows = []
    layer, index = head
    for record in tqdm(records(model, tokens, [layer]), total=len(tokens), unit="doc", disable=not progress):
        clean = record.logp()
        _, score = _scores(record, head, similar)
        if fit is not None:
            score = fit.scale[record.tokens] * score + fit.bias[record.tokens]
        pattern = score.masked_fill(_unseen(record, layer), -torch.inf).softmax(-1)
        z, v = record.z[layer][:, index], record.v[layer][:, index]
        values = [next_loss(clean, record.tokens)]
        for new in (means[head], pattern @ v):
            after = record.logp(record.head_change(head, new - z))
            values += [token_kl(clean, after), next_loss(after, record.tokens)]
        rows.append(torch.stack(values))
    loss, kl, ablated, part_kl, part_loss = torch.stack(rows, 1).cpu()
    return CSPA(loss, kl, ablated, {"qk": part_kl}, {"qk": part_loss})
