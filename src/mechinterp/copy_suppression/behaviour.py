"""What a head does on text: its paths, the cases that copy suppression explains, calibration (McDougall et al.)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.attention import effective_embedding
from mechinterp.copy_suppression.cspa import lens_of
from mechinterp.copy_suppression.recording import head_means, records
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_text
from mechinterp.patching.engine import trace
from mechinterp.stats import Estimate, mean, share


@dataclass(frozen=True)
class Paths:
    """Loss at every token (nats): clean, with a head mean-ablated, and with only some of its paths ablated (Figure 2).

    Attributes:
        direct: only the head's way straight to the logits is ablated.
        indirect: only its ways through later components are.
    """

    clean: Float[Tensor, "doc pos"]
    ablated: Float[Tensor, "doc pos"]
    direct: Float[Tensor, "doc pos"]
    indirect: Float[Tensor, "doc pos"]

    def increase(self, path: str) -> Estimate:
        """Mean increase of the loss by ablating `path` (ablated, direct, indirect), over documents."""
        return mean((getattr(self, path) - self.clean).mean(1), unit="documents")


@torch.no_grad()
def head_paths(
    model: Any,
    tokens: Int[Tensor, "doc pos"],
    head: Head,
    *,
    intact: Sequence[Head] = (),
    means: Mapping[Head, Float[Tensor, "pos d_head"]] | None = None,
) -> Paths:
    """Mean-ablate a head along all of its paths, the direct one only, and the indirect ones only.

    Args:
        intact: later heads that keep their clean output, so that paths through them are not ablated (Appendix C).

    The direct path is the change of what the head writes; a post norm's scale is frozen in it, the final norm's is not.

    Errors: `ValueError` if a head of `intact` does not come after the head.
    """
    [(layer, index)] = check_heads(model, [head])
    anatomy = check_text(model, tokens)
    for later in check_heads(model, intact):
        if later.layer <= layer:
            raise ValueError(f"{later} does not come after {Head(*head)}: no path leads through it")
    mean = (head_means(model, tokens, [head]) if means is None else means)[head]
    head, block, end = Head(layer, index), anatomy.layers[layer], ("resid_pre", anatomy.size.n_layers)
    kept = {end, ("resid_pre", layer), ("attn", layer)} | {("z", h.layer) for h in (head, *intact)}
    rows = []
    for row in tokens:
        clean = trace(anatomy, row[None], lambda name, i, x: x if (name, i) in kept else None)

        def edit(name: str, i: int, x: Tensor, clean: Any = clean) -> Tensor:
            if name != "z" or i < layer:
                return x
            x = x.clone()
            if i == layer:
                x[:, :, index] = mean
            for other in intact:
                if other.layer == i:
                    x[:, :, other.head] = clean["z", i][:, :, other.head]
            return x

        start = (layer, clean["resid_pre", layer])
        ablated = trace(
            anatomy, row[None], lambda name, i, x: x if (name, i) == end else None, start=start, change=edit
        )[end]
        gone = (mean - clean["z", layer][0, :, index]) @ block.writes(index)
        direct = gone / block.post1.scale(clean["attn", layer][0])
        streams = torch.cat([clean[end], ablated, clean[end] + direct, ablated - direct])
        logp = anatomy.unembed(streams).log_softmax(-1)[:, :-1]
        rows.append(-logp.gather(-1, row[None, 1:, None].expand(4, -1, 1))[..., 0])
    return Paths(*torch.stack(rows, 1).cpu())


@dataclass(frozen=True)
class Cases:
    """Which tokens pass each of the three conditions of copy suppression (section 2.1).

    Attributes:
        increase: of the loss when the head is mean-ablated.
        predicted, attended, lowered: some source is among the 10 likeliest tokens by the logit lens at the head's
            input; among the 2 most attended; among the 10 that the head lowers most.
        all_three: one and the same source does all of it.
        source: that source's position, or −1.
    """

    increase: Float[Tensor, "doc pos"]
    predicted: Bool[Tensor, "doc pos"]
    attended: Bool[Tensor, "doc pos"]
    lowered: Bool[Tensor, "doc pos"]
    all_three: Bool[Tensor, "doc pos"]
    source: Int[Tensor, "doc pos"]

    def share(self, top: float = 0.05) -> Estimate:
        """Share of the `top` tokens by increase of the loss that are copy suppression, over documents."""
        increase = self.increase.flatten()
        chosen = increase.topk(max(1, int(top * len(increase)))).indices
        passed = self.all_three[:, :-1].flatten()[chosen].float()
        return share(passed, unit="documents", clusters=chosen // self.increase.shape[1])


@torch.no_grad()
def cases(
    model: Any,
    tokens: Int[Tensor, "doc pos"],
    head: Head,
    *,
    k: int = 10,
    most_attended: int = 2,
    means: Mapping[Head, Float[Tensor, "pos d_head"]] | None = None,
    paths: Paths | None = None,
) -> Cases:
    """The three conditions at every token. The last position, whose target is not there, has no increase.

    Args:
        paths: `head_paths` of this head and text, if they have been measured; half of the time goes into them.
    """
    [(layer, index)] = check_heads(model, [head])
    paths = head_paths(model, tokens, head, means=means) if paths is None else paths
    rows = []
    write = _writes(model, Head(layer, index))
    for record in records(model, tokens, [layer]):
        pattern = record.pattern[layer][index]
        lens = record.anatomy.read(record.anatomy.final(record.resid[layer]))
        likely = lens.gather(1, record.tokens.expand(len(lens), -1)) >= lens.topk(k).values[:, -1:]
        effect = record.z[layer][:, index] @ write
        own = effect.gather(1, record.tokens.expand(len(lens), -1))
        lowest = (own <= effect.topk(k, largest=False).values[:, -1:]) & (own < 0)
        seen = torch.ones_like(pattern, dtype=torch.bool).tril()
        looked = pattern >= pattern.topk(min(most_attended, len(pattern))).values[:, -1:]
        together = likely & lowest & looked & seen
        source = torch.where(together.any(1), together.int().argmax(1), -1)
        rows.append([(x & seen).any(1) for x in (likely, looked, lowest, together)] + [source])
    predicted, attended, lowered, passed, source = (torch.stack(x).cpu() for x in zip(*rows, strict=True))
    return Cases(paths.ablated - paths.clean, predicted, attended, lowered, passed, source)


def _writes(model: Any, head: Head) -> Float[Tensor, "d_head vocab"]:
    """What a unit of z does to the logits, up to the positive scales of norms."""
    anatomy = Anatomy.of(model)
    return anatomy.layers[head.layer].writes(head.head) @ anatomy.directions().T


@dataclass(frozen=True)
class AttendedPairs:
    """Pairs (destination, source) with much attention, and where the source ranks among what the head lowers.

    Attributes:
        rank: 1 if attending there lowers the source's own token most.
        token: the source. `lowest`: the token that is lowered most. `document`: the row of text.
        place: the source's position; attention rests on position 0 when it has nothing to look at.
    """

    rank: Int[Tensor, " pair"]
    token: Int[Tensor, " pair"]
    lowest: Int[Tensor, " pair"]
    document: Int[Tensor, " pair"]
    place: Int[Tensor, " pair"]

    def share(self, k: int = 10, *, first: bool = True) -> Estimate:
        """Share of pairs whose source is among the k most lowered tokens, over documents.

        Args:
            first: count pairs whose source is the first position, too.

        Errors: `ValueError` if no pair is left.
        """
        kept = torch.ones_like(self.place, dtype=torch.bool) if first else self.place > 0
        return share((self.rank <= k).float()[kept], unit="documents", clusters=self.document[kept])


@torch.no_grad()
def attended_pairs(
    model: Any, tokens: Int[Tensor, "doc pos"], heads: Sequence[Head], *, threshold: float = 0.1
) -> dict[Head, AttendedPairs]:
    """The OV test in practice (section 3.1, Appendix F): what do heads do to tokens that they do attend to?

    Errors: `ValueError` for no heads, or one for which no pair has more attention than the threshold.
    """
    heads = check_heads(model, heads)
    if not heads:
        raise ValueError("give at least one head")
    writes = {h: _writes(model, h) for h in heads}
    parts: dict[Head, list[tuple[Tensor, ...]]] = {h: [] for h in heads}
    for number, record in enumerate(records(model, tokens, sorted({h.layer for h in heads}))):
        for h in heads:
            _, source = (record.pattern[h.layer][h.head] > threshold).nonzero(as_tuple=True)
            # What a source adds does not depend on the destination but for a positive factor.
            where, back = source.unique(return_inverse=True)
            effect = record.v[h.layer][where, h.head] @ writes[h]
            own = effect.gather(1, record.tokens[where, None])
            # Flags as floats: torch adds up booleans ten times slower, and counts below 2²⁴ are exact.
            rank, lowest = torch.lt(effect, own, out=torch.empty_like(effect)).sum(1).long() + 1, effect.argmin(1)
            document = torch.full_like(source, number)
            parts[h].append((rank[back], record.tokens[source], lowest[back], document, source))
    found = {h: AttendedPairs(*(torch.cat(x).cpu() for x in zip(*rows, strict=True))) for h, rows in parts.items()}
    for h, pairs in found.items():
        if len(pairs.rank) == 0:
            raise ValueError(f"{h} gives no token more than {threshold:.0%} of its attention in this text")
    return found


@dataclass(frozen=True)
class Calibration:
    """Mean entropy (nats) of the predictions and overconfidence (mean top probability − accuracy), by document."""

    entropy: Float[Tensor, " doc"]
    overconfidence: Float[Tensor, " doc"]


@torch.no_grad()
def calibration(
    model: Any,
    tokens: Int[Tensor, "doc pos"],
    heads: Sequence[Head],
    *,
    means: Mapping[Head, Float[Tensor, "pos d_head"]] | None = None,
) -> tuple[Calibration, dict[Head, Calibration]]:
    """Of the clean model, and with each head's direct effect mean-ablated (Appendix D); final norm's scale frozen."""
    heads = check_heads(model, heads)
    means = head_means(model, tokens, heads) if means is None else means
    clean, without = [], {h: [] for h in heads}  # type: ignore[var-annotated]
    for record in records(model, tokens, sorted({h.layer for h in heads})):
        clean.append(_certainty(record.logp(), record.tokens))
        for h in heads:
            change = record.head_change(h, means[h] - record.z[h.layer][:, h.head])
            without[h].append(_certainty(record.logp(change), record.tokens))
    return _calibration(clean), {h: _calibration(rows) for h, rows in without.items()}


def _certainty(logp: Tensor, tokens: Tensor) -> Float[Tensor, " two"]:
    logp = logp[:-1]
    top, guess = logp.max(-1)
    entropy = -torch.linalg.vecdot(logp.exp(), logp).mean()
    return torch.stack([entropy, top.exp().mean() - (guess == tokens[1:]).float().mean()])


def _calibration(rows: list[Tensor]) -> Calibration:
    entropy, overconfidence = torch.stack(rows, 1).cpu()
    return Calibration(entropy, overconfidence)


@torch.no_grad()
def key_projection(
    model: Any, tokens: Int[Tensor, "doc pos"], head: Head, where: Bool[Tensor, "doc pos"], *, keys: int = 2
) -> Float[Tensor, "destination key two"]:
    """Attention to the most attended keys, and with such a key made from its part along W_EE only (Appendix M.2).

    Args:
        where: destinations to look at. `keys`: how many of the most attended sources of each.

    Each key is replaced by itself: its score changes, the others stay. Errors: `ValueError` for keys that are normed
        over all heads together (OLMo 2).
    """
    [(layer, index)] = check_heads(model, [head])
    block = Anatomy.of(model).layers[layer]
    if block.joint:
        raise ValueError("keys of this model are normed over all heads together: one head's cannot be replaced alone")
    every = effective_embedding(model)
    parts = []
    for record, marked in zip(records(model, tokens, [layer]), where, strict=True):
        positions = torch.arange(len(record.tokens), device=every.device)
        x = block.norm1(record.resid[layer])
        e = torch.nn.functional.normalize(every[record.tokens], dim=-1)
        along = (x * e).sum(-1, keepdim=True) * e
        query = block.ready("q", block.project("q", x, [index]), positions)
        old, new = (block.ready("k", block.project("k", key, [index]), positions) for key in (x, along))
        gain = (block.scores(query, new) - block.scores(query, old))[0]
        d = marked.to(x.device).nonzero()[:, 0]
        d = d[d >= keys - 1]
        pattern = record.pattern[layer][index][d]
        most, which = pattern.topk(keys)
        factor = gain[d].gather(1, which).exp()
        parts.append(torch.stack([most, most * factor / (1 - most + most * factor)], -1))
    return torch.cat(parts).cpu()


@dataclass(frozen=True)
class TokenView:
    """What a head does at one position of a text: the page's explorer shows it on hovering.

    Attributes:
        attended: (position, attention) of the most attended sources.
        lowered: (token, change of logit) of the most lowered tokens.
        predicted: tokens of the context that the stream before the head predicts most.
    """

    attended: list[tuple[int, float]]
    lowered: list[tuple[str, float]]
    predicted: list[str]


@torch.no_grad()
def view(model: Any, tokens: Int[Tensor, " pos"], head: Head, *, k: int = 5) -> list[TokenView]:
    """One `TokenView` a position; logit changes are direct effects with the final norm's scale frozen."""
    [(layer, index)] = check_heads(model, [head])
    [record] = records(model, tokens[None], [layer])
    write = record.through(record.head_change(Head(layer, index), record.z[layer][:, index]))
    lens = lens_of(record.anatomy, record.resid[layer], record.tokens)
    name = model.tokenizer.decode
    views = []
    for d in range(len(tokens)):
        pattern = record.pattern[layer][index, d, : d + 1]
        most, where = pattern.topk(min(k, d + 1))
        low, ids = write[d].topk(k, largest=False)
        likely = lens[d, : d + 1].topk(min(k, d + 1)).indices
        views.append(
            TokenView(
                list(zip(where.tolist(), most.tolist(), strict=True)),
                [(name([i]), x) for i, x in zip(ids.tolist(), low.tolist(), strict=True)],
                list(dict.fromkeys(name([int(record.tokens[s])]) for s in likely)),
            )
        )
    return views
