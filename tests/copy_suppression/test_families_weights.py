"""Ranks in the weights, projected queries and self-repair on every family, against dense matrices and raw runs."""

from typing import Any

import numpy as np
import pytest
import torch
from families import CONTEXT, FAMILIES, HEADS, LAYERS, PARALLEL, VOCAB, WINDOW, bridge
from slow import Slow, close, same_but_for_ties
from torch import Tensor

from mechinterp import copy_suppression as cs
from mechinterp.heads import Head

G = torch.Generator().manual_seed(9)
TOKENS = torch.randint(1, 13, (3, 9), generator=G)
"""Few different tokens, so that each is a source often enough to be fitted."""
OTHER = torch.randint(1, VOCAB, (3, 9), generator=G)
AT = torch.tensor([8, 6, 7])
RIGHT, WRONG = torch.randint(0, VOCAB, (2, 3), generator=G)
N, LENGTH = TOKENS.shape
ROWS = torch.arange(N)
TESTED = (Head(0, 1), Head(1, 2), Head(2, 3))
SAMPLE = torch.arange(0, VOCAB, 9)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Slow]:
    return bridge(request.param), Slow(request.param, TOKENS)


def some_similar() -> Tensor:
    similar = torch.full((VOCAB, 3), -1)
    similar[:, 0] = torch.arange(VOCAB)
    similar[::2, 1] = torch.arange(VOCAB).roll(1)[::2]
    similar[::4, 2] = torch.arange(VOCAB).roll(7)[::4]
    return similar


def rank(table: Tensor, own: Tensor, eps: float) -> Tensor:
    """1 + how many of each row are larger than its own entry, which never counts itself."""
    mine = table.gather(1, own[:, None])
    return (table > mine - eps).sum(1) + 1 - int(eps > 0)


def ranks_agree(ours: Tensor, table: Tensor, own: Tensor) -> None:
    scale = float(table.abs().mean())
    same_but_for_ties(ours, lambda eps: rank(table, own, eps * max(scale, 1.0)))
    assert len(ours.unique()) > 3


def at_distance(slow: Slow, head: Head, distance: int, queries: Tensor, keys: Tensor, biases: bool = False) -> Tensor:
    """[query key]: scores of vectors that stand for the normalised stream, the query so many positions behind."""
    m = slow.matrix[head.layer]

    def made(part: str, x: Tensor, position: int) -> Tensor:
        every = torch.einsum("tm,hmd->thd", x, m[part.upper()])
        every = every + m[f"b{part.upper()}"] if biases else every
        own = every if slow.joint else every[:, head.head]
        return slow.ready(part, *head, own, torch.full((len(x),), position))

    return made("q", queries, distance) @ made("k", keys, 0).T


def test_token_vectors(family: tuple[Any, Slow]) -> None:
    model, slow = family
    for side in ("W_U", "W_EE", "W_E", "MLP0"):
        close(cs.token_vectors(model, side), slow.vectors(side))  # type: ignore[arg-type]


def test_ov_ranks(family: tuple[Any, Slow]) -> None:
    model, slow = family
    for head in TESTED:
        m = slow.matrix[head.layer]
        for keys in (None, slow.vectors("W_E")):
            x = slow.vectors("W_EE") if keys is None else keys
            table = x @ m["V"][head.head] @ m["O"][head.head] @ slow.U.T
            ours = cs.ov_ranks(model, head, keys=keys, tokens=SAMPLE)
            ranks_agree(ours, -table[SAMPLE], SAMPLE)
    assert torch.equal(cs.ov_ranks(model, TESTED[0], block=64)[SAMPLE], cs.ov_ranks(model, TESTED[0], tokens=SAMPLE))


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
def test_qk_ranks(family: tuple[Any, Slow], biases: bool) -> None:
    model, slow = family
    distances = (0, 1, 3)
    queries, keys = slow.vectors("W_U"), slow.vectors("W_EE")
    for head in TESTED:
        ours = cs.qk_ranks_at(model, head, distances, biases=biases, tokens=SAMPLE)
        for i, distance in enumerate(distances):
            table = at_distance(slow, head, distance, queries, keys, biases)
            ranks_agree(ours[i], table[SAMPLE], SAMPLE)
        if slow.rotary:
            assert not torch.equal(ours[0], ours[2])
            with pytest.raises(ValueError, match="use qk_ranks_at"):
                cs.qk_ranks(model, head, biases=biases)
        else:
            assert torch.equal(cs.qk_ranks(model, head, biases=biases, tokens=SAMPLE), ours[0])
            assert torch.equal(ours[0], ours[2])
        for far in (CONTEXT, *([WINDOW] if slow.window[head.layer] else [])):
            with pytest.raises(ValueError, match="cannot see"):
                cs.qk_ranks_at(model, head, [1, far])


def test_rank_tests_are_shares_over_distances(family: tuple[Any, Slow]) -> None:
    """Those that a head's window does not reach are left out, and the weights of the others still sum to 1."""
    model, slow = family
    distances, weights = (1, 2, 6, 2 * CONTEXT), torch.tensor([3.0, 1.0, 2.0, 5.0])
    ours = cs.rank_tests(model, TESTED, k=20, distances=distances, weights=weights, progress=False)
    queries, keys, own = slow.vectors("W_U"), slow.vectors("W_EE"), torch.arange(VOCAB)
    for head in TESTED:
        m = slow.matrix[head.layer]
        table = -keys @ m["V"][head.head] @ m["O"][head.head] @ slow.U.T
        share = {e: (rank(table, own, e) <= 20).float().mean() for e in (-1e-4, 1e-4)}
        assert share[1e-4] - 1e-6 <= ours.ov[head] <= share[-1e-4] + 1e-6
        reach = min(CONTEXT, slow.window[head.layer] or CONTEXT)
        seen = [i for i, d in enumerate(distances) if d < reach] if slow.rotary else [0]
        share = {}
        for e in (-1e-5, 1e-5):
            each = [(rank(at_distance(slow, head, distances[i], queries, keys), own, e) == 1) for i in seen]
            kept = weights[seen] if slow.rotary else torch.ones(1)
            share[e] = sum(w * x.float().mean() for w, x in zip(kept, each, strict=True)) / kept.sum()
        assert share[1e-5] - 1e-6 <= ours.qk[head] <= share[-1e-5] + 1e-6
    assert ours.ov[0, 0] == 0
    assert (ours.k, ours.tokens, ours.sample) == (20, VOCAB, VOCAB)
    if slow.rotary:
        with pytest.raises(ValueError, match="sees none of the distances"):
            cs.rank_tests(model, TESTED, distances=(1, CONTEXT), weights=torch.tensor([0.0, 1.0]), progress=False)


def test_ranks_of_unrelated_keys_are_uniform(family: tuple[Any, Slow]) -> None:
    """The null: vectors of other tokens leave the diagonal where chance puts it."""
    model, slow = family
    keys = slow.vectors("W_EE")[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))]
    ranks = cs.ov_ranks(model, Head(1, 2), keys=keys).float()
    assert 0.3 < ranks.mean() / VOCAB < 0.7


def test_composition(family: tuple[Any, Slow]) -> None:
    model, slow = family
    ids = torch.arange(0, VOCAB, 5)
    writer, reader = Head(0, 2), Head(2, 1)
    x, m = slow.vectors("W_EE")[ids], slow.matrix[0]
    written = slow.centred(x @ m["V"][2] @ m["O"][2])
    for distance in (1, 3):
        ours = cs.composition_ranks(model, writer, reader, ids, distance=distance)
        ranks_agree(ours, at_distance(slow, reader, distance, written, x), torch.arange(len(ids)))


def test_distance_weights() -> None:
    text = torch.tensor([[5, 6, 5, 7, 7, 5, 6]])
    assert cs.distance_weights(text, (1, 2, 5)).tolist() == pytest.approx([0.25, 0.5, 0.25])


def projected_scores(slow: Slow, head: Head, doc: int, similar: Tensor | None) -> Tensor:
    """One source at a time: the stream projected on the span of its token's unembeddings by a pseudo-inverse."""
    m, x, places = slow.matrix[head.layer], slow.normal(head.layer)[doc], torch.arange(LENGTH)
    whole = slow.got["q", head.layer][doc, :, head.head]
    keys, columns = slow.ready_of("k", head, doc), []
    for s, token in enumerate(TOKENS[doc].tolist()):
        ids = torch.tensor([token]) if similar is None else similar[token][similar[token] >= 0]
        u = slow.U[ids].T
        query = x @ (u @ torch.linalg.pinv(u)).T @ m["Q"][head.head] + m["bQ"][head.head]
        columns.append(slow.score(slow.ready("q", *head, query, places, like=whole), keys[s]))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("similar", [None, some_similar()], ids=["", "similar"])
def test_attention_from_projected_queries(family: tuple[Any, Slow], similar: Tensor | None) -> None:
    model, slow = family
    options: Any = dict(similar=similar)
    if slow.joint:
        with pytest.raises(ValueError, match="normed over all heads"):
            cs.qk_projection(model, TOKENS, TESTED[1], progress=False, **options)
        with pytest.raises(ValueError, match="normed over all heads"):
            cs.fit_scores(model, TOKENS, TESTED[1], **options)
        return
    fit = cs.ScoreFit(torch.linspace(0.5, 2, VOCAB), torch.linspace(-1, 1, VOCAB).roll(5))
    clean = slow.logp()
    for head in TESTED[1:]:
        for some in (None, fit):
            ours = cs.qk_projection(model, TOKENS, head, fit=some, progress=False, **options)
            new = []
            for doc, row in enumerate(TOKENS):
                score = projected_scores(slow, head, doc, similar)
                score = score if some is None else some.scale[row] * score + some.bias[row]
                new.append(slow.pattern(head.layer, score) @ slow.bare_v(*head)[doc])
            z = slow.bare_z(*head)
            for change, divergence, loss in (
                (torch.stack(new) - z, ours.kl["qk"], ours.loss_of["qk"]),
                (z.mean(0) - z, ours.ablated_kl, ours.ablated_loss),
            ):
                after = slow.logp(slow.written(head, change))
                close(divergence, (clean.exp() * (clean - after)).sum(-1))
                close(loss[:, :-1], slow.loss(after))


def test_fitted_scores_are_least_squares(family: tuple[Any, Slow]) -> None:
    """With pairs on everybody's line, as many as the prior says, spread as all pairs are."""
    model, slow = family
    if slow.joint:
        pytest.skip("refused, see above")
    head, prior = Head(2, 3), 5.0
    ours = cs.fit_scores(model, TOKENS, head, prior=prior)
    points: dict[int, list[tuple[float, float]]] = {}
    for doc, row in enumerate(TOKENS.tolist()):
        x, y = projected_scores(slow, head, doc, None), slow.scores(head, doc)
        for s, token in enumerate(row):
            seen = [d for d in range(s, LENGTH) if not slow.unseen(head.layer, d, s)]
            points.setdefault(token, []).extend((x[d, s].item(), y[d, s].item()) for d in seen)
    x, y = np.array([p for own in points.values() for p in own]).T
    line, mean, spread = np.polyfit(x, y, 1), x.mean(), x.std()
    for token in range(VOCAB):
        own = np.array(points.get(token, [])).reshape(-1, 2)
        ends = np.array([mean - spread, mean + spread])
        xs, ys = np.append(own[:, 0], ends), np.append(own[:, 1], np.polyval(line, ends))
        root = np.sqrt(np.append(np.ones(len(own)), [prior / 2] * 2))
        (scale, bias), *_ = np.linalg.lstsq(np.stack([xs, np.ones(len(xs))], 1) * root[:, None], ys * root)
        assert ours.scale[token].item() == pytest.approx(scale, abs=2e-4, rel=2e-4)
        assert ours.bias[token].item() == pytest.approx(bias, abs=2e-4, rel=2e-4)


def test_keys_made_of_their_token_only(family: tuple[Any, Slow]) -> None:
    model, slow = family
    where = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    if slow.joint:
        with pytest.raises(ValueError, match="normed over all heads"):
            cs.key_projection(model, TOKENS, TESTED[1], where)
        return
    for head in TESTED[1:]:
        m, expected = slow.matrix[head.layer], []
        for doc, row in enumerate(TOKENS):
            x, scores = slow.normal(head.layer)[doc], slow.scores(head, doc)
            e = slow.W_EE[row] / slow.W_EE[row].norm(dim=-1, keepdim=True)
            key = (x * e).sum(-1, keepdim=True) * e @ m["K"][head.head] + m["bK"][head.head]
            key = slow.ready("k", *head, key, torch.arange(LENGTH))
            changed = slow.score(slow.ready_of("q", head, doc)[:, None], key[None])
            old = slow.got["pattern", head.layer][doc, head.head]
            for d in range(1, LENGTH):
                if where[doc, d]:
                    most = old[d].topk(2).indices.tolist()
                    pairs = []
                    for s in most:
                        one = scores.clone()
                        one[d, s] = changed[d, s]
                        pairs.append([old[d, s], slow.pattern(head.layer, one)[d, s]])
                    expected.append(torch.tensor(pairs))
        close(cs.key_projection(model, TOKENS, head, where), torch.stack(expected))


def ablation(slow: Slow, heads: list[Head]) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """Raw runs in which heads say what they say on other prompts."""
    other = slow.raw.run(OTHER)[1]

    def edit(layer: int) -> Any:
        def change(z: Tensor) -> Tensor:
            for h in heads:
                if h.layer == layer:
                    z[:, :, h.head] = other["z", layer][:, :, h.head]
            return z

        return change

    return slow.raw.run(TOKENS, {("z", i): edit(i) for i in range(LAYERS)})


def means_of(slow: Slow) -> Tensor:
    other = slow.raw.run(OTHER)[1]
    return torch.stack([slow.z(other, layer) for layer in range(LAYERS)])


def difference(slow: Slow, change: Tensor, end: Tensor) -> Tensor:
    logits = slow.to_logits(change, end)
    return logits[ROWS, RIGHT] - logits[ROWS, WRONG]


def contributions(slow: Slow, got: Any) -> tuple[Tensor, Tensor]:
    end = got["resid_pre", LAYERS][ROWS, AT]
    heads = torch.zeros(LAYERS, HEADS, N)
    mlps = torch.stack([difference(slow, got["mlp_out", i][ROWS, AT], end) for i in range(LAYERS)])
    for layer in range(LAYERS):
        z, post = slow.z(got, layer)[ROWS, AT], slow.post(layer, got)[ROWS, AT]
        for h in range(HEADS):
            heads[layer, h] = difference(slow, z[:, h] @ slow.matrix[layer]["O"][h] / post, end)
    return heads, mlps


@pytest.mark.parametrize("ablated", [[Head(0, 1)], [Head(1, 0), Head(2, 2)]], ids=str)
def test_self_repair(family: tuple[Any, Slow], ablated: list[Head]) -> None:
    model, slow = family
    ours = cs.self_repair(model, TOKENS, AT, RIGHT, WRONG, ablated, means_of(slow))
    (heads, mlps), (heads_after, mlps_after) = (
        contributions(slow, got) for got in (slow.got, ablation(slow, ablated)[1])
    )
    first = ablated[0].layer
    for layer in range(LAYERS):
        for h in range(HEADS):
            later = layer > first and Head(layer, h) not in ablated
            close(ours.heads[layer, h], (heads_after - heads)[layer, h] * later)
        later = layer > first or (layer == first and slow.name not in PARALLEL)
        close(ours.mlps[layer], (mlps_after - mlps)[layer] * later)
    assert ours.heads.abs().max() > 1e-3


def test_nothing_repairs_what_is_not_broken(family: tuple[Any, Slow]) -> None:
    model, slow = family
    own = torch.stack([slow.z(slow.got, layer) for layer in range(LAYERS)])
    ours = cs.self_repair(model, TOKENS, AT, RIGHT, WRONG, [Head(0, 1)], own)
    close(ours.heads, torch.zeros_like(ours.heads))
    close(ours.mlps, torch.zeros_like(ours.mlps))


def test_attention_after_other_messages(family: tuple[Any, Slow]) -> None:
    model, slow = family
    writers, reader = [Head(0, 1), Head(1, 3)], Head(2, 2)
    ours = cs.attention_after(model, TOKENS, OTHER, writers, reader, AT)
    other = slow.raw.run(OTHER)[1]

    def freeze(layer: int) -> Any:
        z = slow.got["z", layer].clone()
        for h in writers:
            if h.layer == layer:
                z[ROWS, AT, h.head] = other["z", layer][ROWS, AT, h.head]
        return lambda x: z

    _, got = slow.raw.run(TOKENS, {("z", i): freeze(i) for i in range(reader.layer)})
    close(ours, got["pattern", 2][ROWS, 2, AT])
    same = cs.attention_after(model, TOKENS, TOKENS, writers, reader, AT)
    close(same, slow.got["pattern", 2][ROWS, 2, AT])


def test_queries_that_see_an_ablation(family: tuple[Any, Slow]) -> None:
    model, slow = family
    ablated, readers = [Head(0, 1), Head(0, 2)], [Head(1, 2), Head(2, 3)]
    arguments = (model, TOKENS, AT, RIGHT, WRONG, ablated, means_of(slow), readers)
    if slow.joint:
        with pytest.raises(ValueError, match="normed over all heads"):
            cs.query_projection(*arguments)
        return
    ours, (_, streams) = cs.query_projection(*arguments), ablation(slow, ablated)
    answer = slow.U[RIGHT] / slow.U[RIGHT].norm(dim=-1, keepdim=True)
    for reader in readers:
        layer, head = reader
        m, end = slow.matrix[layer], slow.end[ROWS, AT]
        before = slow.got["resid_pre", layer][ROWS, AT]
        scale = slow.scale(before, slow.norm_of(layer))
        change = slow.centred(streams["resid_pre", layer][ROWS, AT] - before) / scale
        along = (change * answer).sum(-1, keepdim=True) * answer
        for part, got in (
            (change, ours[reader].full),
            (along, ours[reader].along),
            (change - along, ours[reader].away),
        ):
            for p, at in enumerate(AT.tolist()):
                raw = slow.got["q", layer][p, :, head].clone()
                raw[at] = raw[at] + part[p] @ m["Q"][head]
                query = slow.ready("q", *reader, raw, torch.arange(LENGTH))
                pattern = slow.pattern(layer, slow.score(query[:, None], slow.ready_of("k", reader, p)[None]))
                new = pattern[at] @ slow.bare_v(*reader)[p] - slow.bare_z(*reader)[p, at]
                logits = slow.to_logits(new @ m["O"][head] / slow.post(layer)[p, at], end[p])
                close(got[p], logits[RIGHT[p]] - logits[WRONG[p]])
    assert max(ours[r].full.abs().max() for r in readers) > 1e-4
