"""What heads do on text, on every family: paths, cases, CSPA, records, against raw runs and raw matrices."""

import math
from typing import Any

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, VOCAB, bridge
from slow import Slow, close, same_but_for_ties
from torch import Tensor

from mechinterp import copy_suppression as cs
from mechinterp.heads import Head

G = torch.Generator().manual_seed(8)
TOKENS = torch.stack([1 + torch.randperm(90, generator=G)[:9] for _ in range(3)])
"""Without repetitions: equal tokens have equal lenses, and which of them comes first would be a matter of rounding."""
N, LENGTH = TOKENS.shape
HEADS_TESTED = (Head(0, 1), Head(1, 2), Head(2, 3))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Slow]:
    return bridge(request.param), Slow(request.param, TOKENS)


def raw_mean(slow: Slow, head: Head) -> Tensor:
    return slow.got["z", head.layer][:, :, head.head].mean(0)


def gone(slow: Slow, head: Head) -> Tensor:
    """The change of a head's z by mean ablation; biases of values cancel."""
    return raw_mean(slow, head) - slow.got["z", head.layer][:, :, head.head]


def kl(clean: Tensor, after: Tensor) -> Tensor:
    return (clean.exp() * (clean - after)).sum(-1)


def test_the_reference_s_scores_and_reading_are_the_raw_model_s(family: tuple[Any, Slow]) -> None:
    _, slow = family
    close(slow.capped(slow.read(slow.end)), slow.logits)
    for head in HEADS_TESTED:
        for doc in range(N):
            ours = slow.pattern(head.layer, slow.scores(head, doc))
            close(ours, slow.got["pattern", head.layer][doc, head.head])


def test_records_and_means(family: tuple[Any, Slow]) -> None:
    model, slow = family
    for doc, record in enumerate(cs.records(model, TOKENS, [0, 2])):
        close(record.logp(), slow.logits[doc].log_softmax(-1))
        close(record.scale, slow.scale(slow.end[doc], slow.raw.final))
        assert torch.equal(record.tokens, TOKENS[doc])
        raw = slow.read(slow.end)[doc]
        gap = record.anatomy.read(record.final) - raw  # the mean over the vocabulary
        close(gap, gap.mean(-1, keepdim=True).expand_as(gap))
        for layer in (0, 2):
            gap = record.resid[layer] - slow.got["resid_pre", layer][doc]
            close(gap, gap.mean(-1, keepdim=True).expand_as(gap))
            close(record.pattern[layer], slow.got["pattern", layer][doc])
            close(record.post_scale[layer], slow.post(layer)[doc])
            for h in range(HEADS):
                close(record.z[layer][:, h], slow.bare_z(layer, h)[doc])
                close(record.v[layer][:, h], slow.bare_v(layer, h)[doc])
    means = cs.head_means(model, TOKENS, HEADS_TESTED)
    pooled = cs.head_means(model, TOKENS, HEADS_TESTED, pooled=True)
    for head in HEADS_TESTED:
        z = slow.bare_z(*head)
        close(means[head], z.mean(0))
        close(pooled[head], torch.cat([z[:, 0].mean(0)[None], z[:, 1:].mean((0, 1)).expand(LENGTH - 1, -1)]))


@pytest.mark.parametrize("intact", [(), (Head(1, 2), Head(2, 0))], ids=["", "intact"])
def test_paths(family: tuple[Any, Slow], intact: tuple[Head, ...]) -> None:
    model, slow = family
    head = Head(0, 1)
    ours = cs.head_paths(model, TOKENS, head, intact=intact)
    mean = raw_mean(slow, head)

    def edit(layer: int) -> Any:
        def change(z: Tensor) -> Tensor:
            if layer == head.layer:
                z[:, :, head.head] = mean
            for other in intact:
                if other.layer == layer:
                    z[:, :, other.head] = slow.got["z", layer][:, :, other.head]
            return z

        return change

    ablated, got = slow.raw.run(TOKENS, {("z", i): edit(i) for i in range(LAYERS)})
    direct = slow.written(head, gone(slow, head))
    close(ours.clean, slow.loss(slow.logits.log_softmax(-1)))
    close(ours.ablated, slow.loss(ablated.log_softmax(-1)))
    for stream, loss in ((slow.end + direct, ours.direct), (got["resid_pre", LAYERS] - direct, ours.indirect)):
        close(loss, slow.loss(slow.capped(slow.read(stream)).log_softmax(-1)))
    assert (ours.indirect - ours.clean).abs().max() > 1e-3


def test_a_head_that_keeps_its_own_z_changes_nothing(family: tuple[Any, Slow]) -> None:
    """The null of every ablation: one document is its own mean."""
    model, _ = family
    for head in HEADS_TESTED:
        paths = cs.head_paths(model, TOKENS[:1], head)
        for way in (paths.ablated, paths.direct, paths.indirect):
            close(way, paths.clean)
        result = cs.cspa(model, TOKENS[:1], [head], parts=["qk"], progress=False)[head]
        close(result.ablated_kl, torch.zeros_like(result.ablated_kl))
        clean, without = cs.calibration(model, TOKENS[:1], [head])
        close(without[head].entropy, clean.entropy)


def top(values: Tensor, own: Tensor, k: int, eps: float) -> Tensor:
    """Is `own` among the k largest of each row's values?"""
    return own >= values.topk(k).values[..., -1:] - eps


@pytest.mark.parametrize("head", HEADS_TESTED, ids=str)
def test_cases(family: tuple[Any, Slow], head: Head) -> None:
    model, slow = family
    ours = cs.cases(model, TOKENS, head, k=10, most_attended=2)
    paths = cs.head_paths(model, TOKENS, head)
    close(ours.increase, paths.ablated - paths.clean)
    columns = TOKENS[:, None].expand(-1, LENGTH, -1)
    lens = slow.read(slow.got["resid_pre", head.layer])
    effect = slow.bare_z(*head) @ slow.matrix[head.layer]["O"][head.head] @ slow.U.T
    pattern = slow.got["pattern", head.layer][:, head.head]
    before = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()

    def conditions(eps: float) -> tuple[Tensor, ...]:
        own = effect.gather(-1, columns)
        likely = top(lens, lens.gather(-1, columns), 10, eps) & before
        looked = top(pattern, pattern, 2, eps) & before
        lowered = top(-effect, -own, 10, eps) & (own < eps) & before
        return likely, looked, lowered, likely & looked & lowered

    for i, field in enumerate((ours.predicted, ours.attended, ours.lowered, ours.all_three)):
        same_but_for_ties(field, lambda eps, i=i: conditions(eps)[i].any(-1))
    for doc, d in ours.all_three.nonzero().tolist():
        source = int(ours.source[doc, d])
        assert conditions(1e-5)[3][doc, d, source]
        assert not conditions(-1e-5)[3][doc, d, :source].any()
    assert (ours.source[~ours.all_three] == -1).all()


def test_attended_pairs(family: tuple[Any, Slow]) -> None:
    model, slow = family
    for head, ours in cs.attended_pairs(model, TOKENS, HEADS_TESTED, threshold=0.15).items():
        pattern = slow.got["pattern", head.layer][:, head.head]
        assert ((pattern - 0.15).abs() > 1e-5).all(), "this seed has a pair on the threshold"
        pairs = (pattern > 0.15).nonzero().tolist()
        effect = slow.bare_v(*head) @ slow.matrix[head.layer]["O"][head.head] @ slow.U.T
        rows = torch.stack([effect[doc, s] for doc, _, s in pairs])
        token = torch.stack([TOKENS[doc, s] for doc, _, s in pairs])
        assert torch.equal(ours.token, token)
        assert ours.place.tolist() == [s for _, _, s in pairs]
        beyond = [bool(rank <= 10) for rank, place in zip(ours.rank, ours.place, strict=True) if place > 0]
        assert ours.share(first=False).value == pytest.approx(sum(beyond) / len(beyond))
        own = rows.gather(1, token[:, None])
        same_but_for_ties(ours.rank, lambda eps, rows=rows, own=own: rank_below(rows, own, eps))
        lowest = rows.gather(1, ours.lowest[:, None])[:, 0]
        close(lowest, rows.min(1).values)


def rank_below(rows: Tensor, own: Tensor, eps: float) -> Tensor:
    """1 + how many are smaller; more with a larger slack, the token itself never."""
    return (rows < own + eps).sum(1) + 1 - int(eps > 0)


def test_calibration(family: tuple[Any, Slow]) -> None:
    model, slow = family
    clean, without = cs.calibration(model, TOKENS, HEADS_TESTED)

    def certainty(logp: Tensor) -> tuple[Tensor, Tensor]:
        p = logp[:, :-1].exp()
        right = (p.argmax(-1) == TOKENS[:, 1:]).float()
        return -(p * p.log()).sum(-1).mean(1), p.max(-1).values.mean(1) - right.mean(1)

    expected = [(clean, slow.logits.log_softmax(-1))]
    expected += [(without[h], slow.logp(slow.written(h, gone(slow, h)))) for h in HEADS_TESTED]
    for ours, logp in expected:
        entropy, overconfidence = certainty(logp)
        close(ours.entropy, entropy)
        close(ours.overconfidence, overconfidence)


def test_view(family: tuple[Any, Slow]) -> None:
    model, slow = family
    head, row = Head(1, 2), TOKENS[0]
    name = model.tokenizer.decode
    effect = slow.to_logits(slow.written(head, slow.bare_z(*head)), slow.end)[0]
    effect = effect if slow.cap else effect - effect.mean(-1, keepdim=True)
    lens = slow.read(slow.got["resid_pre", head.layer])[0][:, row]
    for d, ours in enumerate(cs.view(model, row, head, k=3)):
        pattern = slow.got["pattern", 1][0, 2, d]
        many = min(3, d + 1)
        close(torch.tensor([a for _, a in ours.attended]), pattern[: d + 1].topk(many).values)
        close(torch.tensor([a for _, a in ours.attended]), pattern[[s for s, _ in ours.attended]])
        low, ids = effect[d].topk(3, largest=False)
        close(torch.tensor([x for _, x in ours.lowered]), low)
        assert [text for text, _ in ours.lowered] == [name([int(i)]) for i in ids]
        likely = lens[d, : d + 1].topk(many).indices
        assert ours.predicted == list(dict.fromkeys(name([int(row[s])]) for s in likely))


def some_similar() -> Tensor:
    similar = torch.full((VOCAB, 3), -1)
    similar[:, 0] = torch.arange(VOCAB)
    similar[::2, 1] = torch.arange(VOCAB).roll(1)[::2]
    similar[::4, 2] = torch.arange(VOCAB).roll(7)[::4]
    return similar


@pytest.mark.parametrize("similar", [None, some_similar()], ids=["", "similar"])
def test_cspa(family: tuple[Any, Slow], similar: Tensor | None) -> None:
    """Sources one at a time, by the formula."""
    model, slow = family
    heads, keep = [Head(0, 1), Head(2, 3)], 0.3
    ours = cs.cspa(model, TOKENS, heads, keep=keep, similar=similar, progress=False)
    clean = slow.logp()
    for head in heads:
        result, write = ours[head], slow.matrix[head.layer]["O"][head.head]
        v = slow.bare_v(*head)
        mean = raw_mean(slow, head) - slow.matrix[head.layer]["bV"][head.head]
        lens = slow.read(slow.got["resid_pre", head.layer])
        out = {part: torch.zeros_like(slow.end) for part in ("ablated", "both", "ov", "qk")}
        for doc, row in enumerate(TOKENS):
            basis = [orthonormal(slow, int(t), similar) for t in row]
            for d in range(LENGTH):
                order = sorted(range(d + 1), key=lambda s, doc=doc, d=d, row=row: -lens[doc, d, row[s]].item())
                kept = order[: math.ceil(keep * (d + 1))]
                for part in out:
                    out[part][doc, d] = (mean[d] - slow.bare_z(*head)[doc, d]) @ write
                for s in range(d + 1):
                    a = slow.got["pattern", head.layer][doc, head.head, d, s]
                    gain = (a * v[doc, s] - a * mean[d]) @ write
                    if s in kept:
                        out["qk"][doc, d] += gain
                    for u in basis[s]:
                        lowered = (gain @ u).clamp(max=0) * u
                        out["ov"][doc, d] += lowered
                        if s in kept:
                            out["both"][doc, d] += lowered
        close(result.loss[:, :-1], slow.loss(clean))
        for part, change in out.items():
            after = slow.logp(change / slow.post(head.layer))
            divergence = result.ablated_kl if part == "ablated" else result.kl[part]  # type: ignore[index]
            loss = result.ablated_loss if part == "ablated" else result.loss_of[part]  # type: ignore[index]
            close(divergence, kl(clean, after))
            close(loss[:, :-1], slow.loss(after))
        assert (result.kl["both"] - result.ablated_kl).abs().max() > 1e-4


def orthonormal(slow: Slow, token: int, similar: Tensor | None) -> list[Tensor]:
    ids = torch.tensor([token]) if similar is None else similar[token][similar[token] >= 0]
    q, r = torch.linalg.qr(slow.U[ids].T)
    return list((q * r.diagonal().sign()).T)
