"""Paths, conditions, attended pairs, calibration and self-repair: against hooks, on organisms, on random weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp.attention import effective_embedding
from mechinterp.copy_suppression import (
    attended_pairs,
    attention_after,
    calibration,
    cases,
    head_means,
    head_paths,
    key_projection,
    query_projection,
    self_repair,
    view,
)
from mechinterp.heads import Head
from mechinterp.models import organisms, to_bridge
from mechinterp.patching import mean_reference


@pytest.fixture(scope="module")
def small(make_gpt2: Any, tokenizer: Any) -> Any:
    return to_bridge(make_gpt2(n_layer=3, vocab_size=200, seed=4), tokenizer, name="small", device="cpu")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 40, (3, 24), generator=torch.Generator().manual_seed(1))


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    return -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def test_paths_equal_hooks(small: Any, tokens: Tensor) -> None:
    head = Head(1, 2)
    paths = head_paths(small, tokens, head)
    mean = head_means(small, tokens, [head])[head]
    clean, cache = small.run_with_cache(tokens)
    torch.testing.assert_close(paths.clean, losses(clean, tokens), atol=1e-4, rtol=0)

    def ablate(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 2] = mean
        return z

    name = "blocks.1.attn.hook_z"
    both = small.run_with_hooks(tokens, fwd_hooks=[(name, ablate)])
    torch.testing.assert_close(paths.ablated, losses(both, tokens), atol=1e-4, rtol=0)

    change = (mean - cache[name][:, :, 2]) @ small.W_O[1, 2]
    end = "blocks.2.hook_resid_post"
    direct = small.run_with_hooks(tokens, fwd_hooks=[(end, lambda x, hook: x + change)])
    torch.testing.assert_close(paths.direct, losses(direct, tokens), atol=1e-4, rtol=0)
    indirect = small.run_with_hooks(tokens, fwd_hooks=[(name, ablate), (end, lambda x, hook: x - change)])
    torch.testing.assert_close(paths.indirect, losses(indirect, tokens), atol=1e-4, rtol=0)
    increase = paths.increase("ablated")
    assert increase.value == pytest.approx((paths.ablated - paths.clean).mean().item(), abs=1e-6)
    assert (increase.n, increase.unit) == (len(tokens), "documents")


def test_a_head_of_the_last_layer_has_no_paths_through_heads(small: Any, tokens: Tensor) -> None:
    """What is left is the way through the last MLP."""
    paths = head_paths(small, tokens, Head(2, 0))
    assert (paths.direct - paths.clean).abs().max() > 1e-3
    later = [Head(2, h) for h in range(4)]
    spared = head_paths(small, tokens, Head(1, 0), intact=later)
    plain = head_paths(small, tokens, Head(1, 0))
    torch.testing.assert_close(spared.direct, plain.direct)
    assert not torch.allclose(spared.indirect, plain.indirect, atol=1e-5)
    with pytest.raises(ValueError, match=r"1\.3 does not come after 1\.0"):
        head_paths(small, tokens, Head(1, 0), intact=[Head(1, 3)])


def slow_cases(model: Any, row: Tensor, head: Head, k: int) -> list[bool]:
    _, cache = model.run_with_cache(row[None])
    pattern = cache[f"blocks.{head.layer}.attn.hook_pattern"][0, head.head]
    z = cache[f"blocks.{head.layer}.attn.hook_z"][0, :, head.head]
    lens = model.ln_final(cache[f"blocks.{head.layer}.hook_resid_pre"])[0] @ model.W_U + model.b_U
    result = []
    for d in range(len(row)):
        likely = set(lens[d].topk(k).indices.tolist())
        effect = z[d] @ model.W_O[head] @ model.W_U
        lowered = {i for i in effect.topk(k, largest=False).indices.tolist() if effect[i] < 0}
        looked = pattern[d, : d + 1].topk(min(2, d + 1)).indices.tolist()
        result.append(any(int(row[s]) in likely and int(row[s]) in lowered for s in looked))
    return result


def test_cases_equal_a_loop(small: Any, tokens: Tensor) -> None:
    head = Head(1, 1)
    ours = cases(small, tokens, head, k=60)
    again = cases(small, tokens, head, k=60, paths=head_paths(small, tokens, head))
    assert torch.equal(again.increase, ours.increase)
    assert torch.equal(again.all_three, ours.all_three)
    for row, passed in zip(tokens, ours.all_three, strict=True):
        assert passed.tolist() == slow_cases(small, row, head, 60)
    assert 0 < ours.all_three.float().mean() < 1


def test_cases_of_the_organism_are_the_tokens_whose_prediction_stood_before() -> None:
    organism = organisms.copy_suppression()
    tokens = organism.tokens(8)
    ours = cases(organism.model, tokens, Head(1, 0), k=1)
    for row, passed, source in zip(tokens.tolist(), ours.all_three, ours.source, strict=True):
        for d in range(1, len(row)):
            predicted = row[d] % 63 + 1
            if predicted in row[:d]:
                assert passed[d]
                assert row[source[d]] == predicted
            else:
                assert source[d] <= 0, "at most <bos>, on which it rests"
    other = organisms.copy_suppression("copier")
    assert (cases(other.model, tokens, Head(1, 0), k=1).source <= 0).all()


def test_random_heads_have_next_to_no_cases(tiny: Any) -> None:
    tokens = torch.randint(0, 8192, (4, 32), generator=torch.Generator().manual_seed(0))
    assert cases(tiny, tokens, Head(1, 0)).all_three.float().mean() < 0.01


def test_attended_pairs_equal_a_loop(small: Any, tokens: Tensor) -> None:
    head = Head(2, 1)
    found = attended_pairs(small, tokens, [head, Head(2, 0), Head(1, 1)], threshold=0.1)
    ours = found[head]
    for other in (Head(2, 0), Head(1, 1)):
        assert torch.equal(found[other].rank, attended_pairs(small, tokens, [other], threshold=0.1)[other].rank)
    low, high = [], []
    for row in tokens:
        _, cache = small.run_with_cache(row[None])
        pattern = cache["blocks.2.attn.hook_pattern"][0, 1]
        effect = cache["blocks.2.attn.hook_v"][0, :, 1] @ small.W_O[head] @ small.W_U
        for d in range(len(row)):
            for s in range(d + 1):
                if pattern[d, s] > 0.1:
                    ahead, other = effect[s, row[s]] - effect[s], torch.arange(len(effect[s])) != row[s]
                    near = 1e-5 * effect[s].abs().max()  # two logits that rounding may exchange
                    low.append(1 + int(((ahead > near) & other).sum()))
                    high.append(1 + int(((ahead > -near) & other).sum()))
    assert len(ours.rank) == len(low)
    assert all(a <= rank <= b for a, rank, b in zip(low, ours.rank.tolist(), high, strict=True))
    assert sum(b - a for a, b in zip(low, high, strict=True)) < 0.1 * len(low), "next to no ties"
    share = ours.share()
    assert share.value == pytest.approx(sum(rank <= 10 for rank in ours.rank.tolist()) / len(ours.rank))
    assert (share.n, share.unit) == (len(tokens), "documents")
    with pytest.raises(ValueError, match="gives no token more than 100%"):
        attended_pairs(small, tokens[:, 2:], [head], threshold=1.0)
    with pytest.raises(ValueError, match="at least one head"):
        attended_pairs(small, tokens, [])


def test_the_suppressor_lowers_what_it_attends_to() -> None:
    organism = organisms.copy_suppression()
    [pairs] = attended_pairs(organism.model, organism.tokens(8), [Head(1, 0)], threshold=0.5).values()
    words = pairs.token != 0
    assert (pairs.rank[words] == 1).all()
    assert torch.equal(pairs.lowest[words], pairs.token[words])


def test_a_suppressor_lowers_confidence() -> None:
    organism = organisms.copy_suppression()
    clean, without = calibration(organism.model, organism.tokens(16), [Head(1, 0), Head(1, 2)])
    assert without[Head(1, 0)].entropy.mean() < clean.entropy.mean() - 0.1
    assert without[Head(1, 0)].overconfidence.mean() > clean.overconfidence.mean()
    inert = without[Head(1, 2)].entropy.mean() - clean.entropy.mean()
    assert abs(inert) < 1e-3


def test_calibration_is_that_of_the_model(small: Any, tokens: Tensor) -> None:
    clean, _ = calibration(small, tokens, [Head(0, 0)])
    p = small(tokens)[:, :-1].softmax(-1)
    torch.testing.assert_close(clean.entropy, -(p * p.log()).sum(-1).mean(1), atol=1e-4, rtol=1e-4)
    right = (p.argmax(-1) == tokens[:, 1:]).float().mean(1)
    torch.testing.assert_close(clean.overconfidence, p.max(-1).values.mean(1) - right, atol=1e-4, rtol=1e-4)


def repair(organism: Any) -> Any:
    data = organisms.ioi_prompts(32)
    means = mean_reference(organism.model, data.abc(1).tokens, data.group)
    movers = [Head(3, 1), Head(3, 2)]
    return self_repair(organism.model, data.tokens, data.positions["END"], data.io, data.s, movers, means.z)


def test_the_backup_and_the_negative_head_repair_the_organism() -> None:
    organism = organisms.ioi_circuit()
    result = repair(organism)
    backup, negative = Head(4, 2), Head(4, 0)
    assert result.heads[backup].mean() > 2
    assert result.share([backup, negative]).value == pytest.approx(1, abs=0.05)
    assert result.heads[3].abs().max() == 0, "the ablated heads do not repair themselves"
    inert = [Head(4, 1), Head(4, 3)]
    assert abs(result.share(inert).value) < 0.05


def test_contributions_add_up_to_the_change_of_the_logit_difference(small: Any) -> None:
    """Everything that changes behind the ablated head is in the sum: what is left is the head's own share."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 200, (6, 9), generator=g)
    at = torch.full((6,), 8)
    right, wrong = torch.randint(0, 200, (2, 6), generator=g)
    z = torch.randn(3, 6, 9, 4, 16, generator=g)
    head = Head(2, 1)
    result = self_repair(small, tokens, at, right, wrong, [head], z)
    assert result.heads.abs().max() == 0, "nothing comes after the last layer's heads but its MLP"
    assert result.mlps[2].abs().max() > 0
    assert result.mlps[:2].abs().max() == 0


def test_view_shows_what_the_head_does() -> None:
    organism = organisms.copy_suppression()
    row = organism.tokens(1)[0]
    for d, shown in enumerate(view(organism.model, row, Head(1, 0))):
        predicted = int(row[d]) % 63 + 1
        if d and predicted in row[:d].tolist():
            where, much = shown.attended[0]
            assert row[where] == predicted
            assert much > 0.9
            word, change = shown.lowered[0]
            assert word == organism.vocabulary[predicted]
            assert change < -4
            assert shown.predicted[0] == word


def test_bad_input(small: Any, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"no head 12\.3"):
        cases(small, tokens, Head(12, 3))
    with pytest.raises(ValueError, match="at least two tokens"):
        view(small, tokens[0, :1], Head(0, 0))
    with pytest.raises(ValueError, match="no heads to ablate"):
        self_repair(small, tokens, tokens[:, 0], tokens[:, 0], tokens[:, 0], [], torch.zeros(3, 3, 24, 4, 16))


def test_key_projection_equals_a_softmax_with_one_key_replaced(small: Any, tokens: Tensor) -> None:
    head = Head(1, 1)
    where = torch.zeros(tokens.shape, dtype=torch.bool)
    where[0, 5] = where[2, 20] = True
    ours = key_projection(small, tokens, head, where)
    expected = []
    for doc, d in ((0, 5), (2, 20)):
        _, cache = small.run_with_cache(tokens[doc : doc + 1])
        x = small.blocks[1].ln1(cache["blocks.1.hook_resid_pre"])[0]
        query = x[d] @ small.W_Q[head] + small.b_Q[head]
        scores = (x[: d + 1] @ small.W_K[head] + small.b_K[head]) @ query / 4.0
        for s in scores.topk(2).indices.tolist():
            e = effective_embedding(small, tokens[doc, s : s + 1])[0]
            part = (x[s] @ e) / (e @ e) * e
            changed = scores.clone()
            changed[s] = (part @ small.W_K[head] + small.b_K[head]) @ query / 4.0
            expected.append([scores.softmax(0)[s].item(), changed.softmax(0)[s].item()])
    torch.testing.assert_close(ours.flatten(0, 1), torch.tensor(expected), atol=1e-4, rtol=1e-3)


def test_the_suppressor_s_keys_are_effective_embeddings() -> None:
    organism = organisms.copy_suppression()
    tokens = organism.tokens(8)
    head = Head(1, 0)
    where = cases(organism.model, tokens, head, k=1).all_three
    pairs = key_projection(organism.model, tokens, head, where, keys=1)
    assert (pairs[..., 0] - pairs[..., 1]).abs().max() < 0.05


def test_without_the_movers_message_the_organism_s_readers_lose_sight_of_the_answer() -> None:
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(32)
    rows, at = torch.arange(len(data)), data.positions["END"]
    inhibition = organism.heads("S-inhibition")
    for reader in organism.heads("name mover"):
        same = attention_after(organism.model, data.tokens, data.tokens, inhibition, reader, at)
        _, cache = organism.model.run_with_cache(data.tokens)
        clean = cache[f"blocks.{reader.layer}.attn.hook_pattern"][rows, reader.head, at]
        torch.testing.assert_close(same, clean, atol=1e-4, rtol=0)
        gone = attention_after(organism.model, data.tokens, data.abc(1).tokens, inhibition, reader, at)
        preference = [x[rows, data.positions["IO"]] - x[rows, data.positions["S1"]] for x in (same, gone)]
        assert preference[0].mean() > 0.8
        assert preference[1].mean().abs() < 0.1
    with pytest.raises(ValueError, match=r"4\.0 does not come before 3\.1"):
        attention_after(organism.model, data.tokens, data.tokens, [Head(4, 0)], Head(3, 1), at)


def test_query_projection_equals_hooks(small: Any) -> None:
    """The query of one head, edited behind its norm in a run that is clean otherwise, read as a direct contribution."""
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 200, (4, 9), generator=g)
    at, rows = torch.tensor([8, 5, 7, 8]), torch.arange(4)
    right, wrong = torch.randint(0, 200, (2, 4), generator=g)
    z = torch.randn(3, 4, 9, 4, 16, generator=g)
    mover, reader = Head(0, 2), Head(1, 3)
    got = query_projection(small, tokens, at, right, wrong, [mover], z, [reader])[reader]

    _, clean = small.run_with_cache(tokens)

    def ablate(x: Tensor, hook: Any) -> Tensor:
        x[:, :, mover.head] = z[0][:, :, mover.head]
        return x

    seen: dict[str, Tensor] = {}
    small.run_with_hooks(
        tokens,
        fwd_hooks=[
            ("blocks.0.attn.hook_z", ablate),
            ("blocks.1.hook_resid_pre", lambda x, hook: seen.update(x=x[rows, at])),
        ],
    )
    before = clean["blocks.1.hook_resid_pre"][rows, at]
    scale = ((before - before.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + small.cfg.eps).sqrt()
    change = (seen["x"] - seen["x"].mean(-1, keepdim=True) - before + before.mean(-1, keepdim=True)) / scale
    unit = small.W_U[:, right].T / small.W_U[:, right].T.norm(dim=-1, keepdim=True)
    along = (change * unit).sum(-1, keepdim=True) * unit
    end = clean["blocks.2.hook_resid_post"][rows, at]
    final = ((end - end.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + small.cfg.eps).sqrt()
    for name, part in {"full": change, "along": along, "away": change - along}.items():

        def edit(q: Tensor, hook: Any, part: Tensor = part) -> Tensor:
            q[rows, at, reader.head] += part @ small.W_Q[reader]
            return q

        found: dict[str, Tensor] = {}
        small.run_with_hooks(
            tokens,
            fwd_hooks=[
                ("blocks.1.attn.hook_q", edit),
                ("blocks.1.attn.hook_z", lambda x, hook, found=found: found.update(z=x[rows, at, reader.head])),
            ],
        )
        written = (found["z"] - clean["blocks.1.attn.hook_z"][rows, at, reader.head]) @ small.W_O[reader]
        written = (written - written.mean(-1, keepdim=True)) / final
        expected = (written * (small.W_U[:, right] - small.W_U[:, wrong]).T).sum(-1)
        torch.testing.assert_close(getattr(got, name), expected, atol=1e-4, rtol=1e-3)


def test_the_organism_s_backup_listens_to_the_predicted_name() -> None:
    """Head 4.2 reads what the name movers wrote: the answer's direction, and nothing beside it."""
    organism = organisms.ioi_circuit()
    data = organisms.ioi_prompts(32)
    means = mean_reference(organism.model, data.abc(1).tokens, data.group)
    end, backup, inert = data.positions["END"], Head(4, 2), Head(4, 1)
    movers = [Head(3, 1), Head(3, 2)]
    found = query_projection(organism.model, data.tokens, end, data.io, data.s, movers, means.z, [backup, inert])
    assert found[backup].full.mean() > 2
    assert found[backup].along.mean().item() == pytest.approx(found[backup].full.mean().item(), rel=0.05)
    assert found[backup].away.abs().mean() < 0.05
    assert found[inert].full.abs().max() < 0.05
    with pytest.raises(ValueError, match=r"no ablated head comes before 2\.0"):
        query_projection(organism.model, data.tokens, end, data.io, data.s, movers, means.z, [Head(2, 0)])
