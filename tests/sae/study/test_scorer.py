"""Planted rules are found and score one; shuffled activations, crossed explanations and random directions do not."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.datasets.text import generated_rows
from mechinterp.sae.study.rules import KINDS, VIEWS, Rule, Search, apply_rules, contexts, kind_of
from mechinterp.sae.study.scorer import Explanation, explain, measures, odds_ratio, study

WORDS = [" the", " of", " Mary", " 7", ",", "ing", "Old", "\n", " cat", " dog", " ran", " sat"] + [
    f" w{i}" for i in range(28)
]
P, L = 80, 60


def decode(i: int) -> str:
    return WORDS[i]


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """Random words, but that a third of all " the" is followed by " cat"."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(0, len(WORDS), (P, L), generator=g)
    follows = (rows[:, :-1] == 0) & (torch.rand(P, L - 1, generator=g) < 1 / 3)
    rows[:, 1:][follows] = 8
    return rows


def slow_views(row: list[int]) -> list[dict[str, int]]:
    """Every view of every position, by looking back."""
    found = []
    for i, t in enumerate(row):
        before = [j for j in range(i) if row[j] == t]
        last = before[-1] if before else None
        found.append(
            {
                "token": t,
                "kind": kind_of(decode(t)),
                "repeats": int(last is not None),
                "passage": int(last is not None and last > 0 and row[last - 1] == row[i - 1]),
                "previous": row[i - 1] if i else -1,
                "previous kind": kind_of(decode(row[i - 1])) if i else -1,
                "second": row[i - 2] if i > 1 else -1,
                "follower": row[last + 1] if last is not None else -1,
                "place": (i + 1).bit_length() - 1,
            }
        )
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), min_size=9, max_size=9), min_size=1, max_size=4))
def test_views_are_what_looking_back_sees(rows: list[list[int]]) -> None:
    views = contexts(torch.tensor(rows), decode)
    for p, row in enumerate(rows):
        for i, seen in enumerate(slow_views(row)):
            assert dict(zip(VIEWS, views.values[:, p, i].tolist(), strict=True)) == seen
    # An atom is a view and a value.
    assert torch.equal(views.atom_value[views.atoms], views.values)
    assert torch.equal(views.atom_view[views.atoms], torch.arange(len(VIEWS))[:, None, None].expand_as(views.atoms))


def test_one_long_and_one_short_prompt() -> None:
    assert contexts(torch.tensor([[3]]), decode).values[:, 0, 0].tolist() == [3, KINDS.index("number"), 0, 0] + [
        -1
    ] * 4 + [0]
    place = contexts(torch.zeros(1, 2048, dtype=torch.long), decode).values[VIEWS.index("place"), 0]
    assert place.tolist() == [(i + 1).bit_length() - 1 for i in range(2048)]


def planted(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Latents that follow a rule, by the text of the rule."""
    rows = [slow_views(row) for row in tokens.tolist()]

    def where(rule: Callable[[dict[str, int]], bool]) -> torch.Tensor:
        return torch.tensor([[float(rule(seen)) for seen in row] for row in rows])

    return {
        "token ' the'": where(lambda s: s["token"] == 0),
        "after ' of'": where(lambda s: s["previous"] == 1),
        "two after ','": where(lambda s: s["second"] == 4),
        "followed last time by ' Mary'": where(lambda s: s["follower"] == 2),
        "token ' the' when it repeats": where(lambda s: s["token"] == 0 and s["repeats"] == 1),
        "token ' cat' after ' the'": where(lambda s: s["token"] == 8 and s["previous"] == 0),
        "in a repeated passage": where(lambda s: s["passage"] == 1),
        "any token when it is new": where(lambda s: s["repeats"] == 0),
        "a piece of a word": where(lambda s: s["kind"] == KINDS.index("piece of a word")),
        "at positions 3-6": where(lambda s: s["place"] == 2),
    }


def test_planted_rules_are_found(tokens: torch.Tensor) -> None:
    # "ing" is the only piece of a word; what is on unless a token repeats is off when it does.
    same = {
        "a piece of a word": ("a piece of a word", "token 'ing'"),
        "any token when it is new": ("any token when it is new", "any token when it repeats"),
    }
    for text, latent in planted(tokens).items():
        found = explain(tokens, 3.7 * latent, decode, support=2)
        assert found.rules[0].text in same.get(text, (text,)), (text, str(found))
        assert found.correlation > 0.99, str(found)
        assert found.auc > 0.99
        assert found.fuzzing > 0.99
        assert found.active == pytest.approx(latent.mean().item(), rel=0.5)
        assert str(found).startswith(f"{found.rules[0].text} ({found.rules[0].level:.2f}); ")


def test_two_rules_with_levels_and_noise(tokens: torch.Tensor) -> None:
    plant = planted(tokens)
    level = torch.maximum(plant["token ' the'"], 0.4 * plant["after ' of'"])
    noise = 0.05 * torch.randn(P, L, generator=torch.Generator().manual_seed(1))
    found = explain(tokens, (2 * (level + noise)).relu() * (level > 0), decode)
    assert [r.text for r in found.rules[:2]] == ["token ' the'", "after ' of'"]
    assert found.rules[1].level / found.rules[0].level == pytest.approx(0.4, abs=0.05)
    assert found.correlation == pytest.approx(0.98, abs=0.02)


def test_shuffled_activations_score_nothing(tokens: torch.Tensor) -> None:
    g = torch.Generator().manual_seed(3)
    columns = torch.stack(list(planted(tokens).values()) * 4, -1) * torch.rand(P, L, 40, generator=g)
    order = torch.rand(P * L, 40, generator=g).argsort(0)
    shuffled = columns.flatten(0, 1).gather(0, order).view(P, L, -1)
    scores = study(tokens, {"s": shuffled}, decode, progress=False).scores["s"]
    assert len(scores.latents) > 30
    assert scores.values().abs().max() < 0.2
    assert abs(scores.mean().value) < 0.02
    assert scores.mean("auc").value == pytest.approx(0.5, abs=0.02)
    assert scores.mean("fuzzing").value == pytest.approx(0.5, abs=0.02)


def test_an_explanation_of_another_latent_is_at_chance(tokens: torch.Tensor) -> None:
    """I2: explanations shuffled across latents; latents about one token each, so that none can hint at another."""
    f = torch.stack([tokens == i for i in range(12)], -1).double()
    everywhere = torch.ones(P, L, dtype=torch.bool)
    found = study(tokens, {"a": f}, decode, support=2, progress=False).scores["a"]
    views = contexts(tokens, decode)
    crossed = [
        measures(apply_rules(e.rules, e.otherwise, views), f[..., (int(i) + 1) % 12], everywhere)
        for i, e in zip(found.latents, found.explanations, strict=True)
    ]
    values = torch.tensor(crossed).mean(0)
    assert found.mean().value == pytest.approx(1, abs=1e-6)
    assert abs(values[0]) < 0.05
    assert values[1:].tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_saved_error_is_that_of_leaving_out_every_position() -> None:
    """The closed form against the loop, for the first rule of a random column."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 6, (10, 12), generator=g)
    a = torch.rand(10, 12, generator=g).double() * (torch.rand(10, 12, generator=g) < 0.4)
    views = contexts(tokens, decode)
    search = Search(views, torch.ones(10, 12, dtype=torch.bool), support=1)
    y, base = a.flatten(), a.mean().item()
    from mechinterp.sae.study.rules import _saved

    saved = _saved(search._sums(y, torch.arange(len(y))), base)
    for atom in range(len(views.atom_value)):
        own = y[(search.ids == atom).any(0)].tolist()
        n, total = len(own), sum(own)
        out = sum((v - ((total - v + base) / n if n else base)) ** 2 for v in own)
        assert saved[atom].item() == pytest.approx(sum((v - base) ** 2 for v in own) - out, abs=1e-9)


def test_a_context_seen_in_too_few_prompts_explains_nothing() -> None:
    tokens = torch.randint(2, len(WORDS), (20, 50), generator=torch.Generator().manual_seed(0))
    tokens[:2, ::3] = 0  # one token, often, in two prompts
    latent = (tokens == 0).float()
    where = torch.ones(20, 50, dtype=torch.bool)
    views = contexts(tokens, decode)
    for support, found in ((2, True), (3, False)):
        rules, _ = Search(views, where, support=support).fit(latent)
        assert any("token ' the'" in r.text for r in rules) == found


def test_a_narrower_rule_needs_its_prompts_too() -> None:
    """' cat' after ' the' is stronger than ' cat', but in two prompts only."""
    tokens = torch.randint(9, len(WORDS), (20, 50), generator=torch.Generator().manual_seed(0))
    tokens[:, 10] = 8
    tokens[:2, 20:40:2], tokens[:2, 21:40:2] = 0, 8
    latent = (tokens == 8) * 0.2
    latent[:2, 21:40:2] = 1.0
    views, where = contexts(tokens, decode), torch.ones(20, 50, dtype=torch.bool)
    [rare], [common] = (Search(views, where, support=s).fit(latent, rules=1)[0] for s in (2, 3))
    assert rare.level > 0.9
    assert common.text == "token ' cat'"


def test_rules_that_save_little_are_not_listed(tokens: torch.Tensor) -> None:
    search = Search(contexts(tokens, decode), torch.ones(P, L, dtype=torch.bool))
    latent = (tokens == 0) + 0.02 * (tokens == 1)
    assert [r.text for r in search.fit(latent)[0]] == ["token ' the'"]
    assert [r.text for r in search.fit(latent, least=0.0001)[0]] == ["token ' the'", "token ' of'"]
    both = (tokens == 0) + 0.8 * (tokens == 1) + 0.6 * (tokens == 2)
    assert len(search.fit(both)[0]) == 3
    assert len(search.fit(both, rules=2)[0]) == 2


def test_the_first_rule_that_matches_decides(tokens: torch.Tensor) -> None:
    token, previous = (VIEWS.index(v) for v in ("token", "previous"))
    rules = (
        Rule(((token, 0),), 0.9, "one"),
        Rule(((previous, 1),), 0.4, "two"),
        Rule(((token, 8), (previous, 0)), 0.2, ""),
    )
    levels = apply_rules(rules, 0.1, contexts(tokens, decode))
    for p in range(P):
        for i in range(1, L):
            now, before = tokens[p, i].item(), tokens[p, i - 1].item()
            expected = 0.9 if now == 0 else 0.4 if before == 1 else 0.2 if (now, before) == (8, 0) else 0.1
            assert levels[p, i] == expected


def test_the_seed_chooses_the_held_out_half(tokens: torch.Tensor) -> None:
    f = torch.where(torch.arange(P)[:, None] < P // 2, 1.0, 0.3) * (tokens < 2)
    f[P // 2 :, ::2] = 0
    shares = {explain(tokens, f, decode, seed=s).active for s in range(4)}
    assert len(shares) == 4
    whole = (f > 0).double().mean().item()
    assert all(share == pytest.approx(whole, rel=0.2) for share in shares)


def test_measures_by_hand() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (6, 150), generator=g).double()
    y = (torch.randn(6, 150, generator=g) + 0.5 * x - 3).relu().double()
    where = torch.rand(6, 150, generator=g) < 0.8
    r, auc, fuzzing = measures(x, y, where)
    assert r == pytest.approx(torch.corrcoef(torch.stack([x[where], y[where]]))[0, 1].item())
    assert auc == pytest.approx(pairs(x[where & (y > 0)], x[where & (y == 0)]))
    strong = where & (y > 0.3 * y[where].max())
    near = torch.zeros_like(where)
    for p, i in strong.nonzero().tolist():
        near[p, max(0, i - 16) : i + 17] = True
    assert fuzzing == pytest.approx(pairs(x[strong], x[where & near & (y == 0)]))
    assert 0.1 < near.double().mean() < 0.9
    assert measures(torch.ones(6, 150), y, where) == (0.0, 0.5, 0.5)


def pairs(positive: torch.Tensor, negative: torch.Tensor) -> float:
    difference = positive[:, None] - negative
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()


def assert_same(one: Explanation, other: Explanation) -> None:
    """The same rules, and the same numbers up to the rounding of sums in double precision."""
    assert [(r.conditions, r.text) for r in one.rules] == [(r.conditions, r.text) for r in other.rules]
    numbers = [
        [*(r.level for r in e.rules), e.otherwise, e.correlation, e.auc, e.fuzzing, e.active] for e in (one, other)
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6, abs=1e-9)


def test_neither_order_nor_name_nor_scale_matters(tokens: torch.Tensor) -> None:
    f = torch.stack(list(planted(tokens).values()), -1) * torch.rand(
        P, L, 1, generator=torch.Generator().manual_seed(5)
    )
    one = study(tokens, {"a": f, "b": f[..., :3]}, decode, support=2, progress=False)
    other = study(tokens, {"x": f[..., :3], "y": 4 * f.flip(-1)}, decode, support=2, progress=False)
    whole, part = one.scores["a"].explanations, one.scores["b"].explanations
    for found, expected in (
        (other.scores["y"].explanations[::-1], whole),
        (part, whole[:3]),
        (other.scores["x"].explanations, part),
        ([whole[0]], [explain(tokens, f[..., 0], decode, support=2)]),
    ):
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)


def test_same_seed_same_study(tokens: torch.Tensor) -> None:
    f = torch.stack(list(planted(tokens).values()), -1)
    one, same, other = (
        study(tokens, {"a": f, "b": f}, decode, seed=s, latents=4, support=2, progress=False) for s in (0, 0, 1)
    )
    assert one.order == same.order != other.order
    assert one.scores["a"].explanations == same.scores["a"].explanations
    assert one.scores["a"].mean() == same.scores["a"].mean()
    assert len(one.scores["a"].latents) == 4


def test_the_scorer_is_blind(tokens: torch.Tensor) -> None:
    """A scorer sees columns of maximum one, mixed, and what it returns comes back under the right name."""
    f = torch.stack([(tokens == i).float() for i in range(12)], -1)
    met: list[torch.Tensor] = []

    def scorer(*given: Any) -> Explanation:
        [column] = given
        met.append(column)
        which = int(tokens[column > 0][0])
        return Explanation((), 0.0, which / 100, 0.5, 0.5, 0.0)

    found = study(tokens, {"a": 5 * f, "b": 0.1 * f}, decode, scorer=scorer, progress=False)
    assert all(column.max() == 1 and set(column.unique().tolist()) == {0, 1} for column in met)
    names = [name for name, _ in found.order]
    assert sorted(names) == ["a"] * 12 + ["b"] * 12
    assert names not in (sorted(names), sorted(names, reverse=True))
    for name in ("a", "b"):
        assert (100 * found.scores[name].values()).round().tolist() == list(range(12))
    assert [int(tokens[column > 0][0]) for column in met] == [latent for _, latent in found.order]


def test_latents_that_cannot_be_scored_are_counted(tokens: torch.Tensor) -> None:
    f = torch.stack([tokens == 0, tokens < 0, tokens >= 0, (tokens == 1) & (torch.arange(P) < 2)[:, None]], -1).float()
    found = study(tokens, {"a": f}, decode, progress=False).scores["a"]
    assert found.latents.tolist() == [0]
    assert found.left_out == 3
    for latent, words in ((1, "in 0 of 80 prompts"), (2, "100.00% of positions"), (3, "in 2 of 80")):
        with pytest.raises(ValueError, match=words):
            explain(tokens, f[..., latent], decode)


def test_skipped_tokens_do_not_count(tokens: torch.Tensor) -> None:
    """A latent that is strong on the first token and otherwise a token's."""
    rows = torch.cat([torch.zeros(P, 1, dtype=torch.long), tokens.clamp(min=1)], 1)
    latent = (rows == 5).double()
    latent[:, 0] = 50.0
    with_it, without = (explain(rows, latent, decode, counted=counted) for counted in (None, rows != 0))
    assert without.rules[0].text == "token 'ing'" or without.rules[0].text == "a piece of a word"
    assert without.correlation == pytest.approx(1, abs=1e-6)
    assert len(without.rules) == 1
    assert with_it.rules[0].text in ("token ' the'", "at position 0")


def test_odds_ratio_is_logistic_regression() -> None:
    a, n, c, m = 14, 40, 22, 50
    x = torch.tensor([1.0] * n + [0.0] * m, dtype=torch.float64)
    y = torch.tensor([1.0] * a + [0.0] * (n - a) + [1.0] * c + [0.0] * (m - c), dtype=torch.float64)
    X = torch.stack([torch.ones_like(x), x], 1)
    w = torch.zeros(2, dtype=torch.float64)
    for _ in range(20):  # Newton
        p = (X @ w).sigmoid()
        H = X.T @ (X * (p * (1 - p))[:, None])
        w = w + torch.linalg.solve(H, X.T @ (y - p))
    found = odds_ratio(a, n, c, m)
    width = 1.959964 * torch.linalg.inv(H)[1, 1].sqrt()
    assert found.value == pytest.approx(w[1].exp().item())
    assert found.interval == pytest.approx(((w[1] - width).exp().item(), (w[1] + width).exp().item()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(9, 20), st.integers(0, 9), st.integers(9, 20))
def test_odds_turn_around(a: int, n: int, c: int, m: int) -> None:
    one, other = odds_ratio(a, n, c, m), odds_ratio(c, m, a, n)
    assert one.value * other.value == pytest.approx(1)
    assert one.interval[0] * other.interval[1] == pytest.approx(1)
    assert 0 < one.interval[0] < one.value < one.interval[1] < math.inf


def test_an_empty_cell_counts_half() -> None:
    assert odds_ratio(0, 10, 5, 10).value == pytest.approx((0.5 / 10.5) / (5.5 / 5.5))


def test_the_interval_of_the_odds_covers() -> None:
    """95 % of intervals of two equal shares contain one."""
    g = torch.Generator().manual_seed(0)
    draws = torch.rand(2, 600, 60, generator=g).lt(0.3).sum(-1).tolist()
    inside = [lo <= 1 <= hi for a, c in zip(*draws, strict=True) for lo, hi in [odds_ratio(a, 60, c, 60).interval]]
    assert sum(inside) / len(inside) == pytest.approx(0.95, abs=0.025)


def test_odds_of_a_study(tokens: torch.Tensor) -> None:
    """Ten latents with rules against ten of which half are shuffled."""
    f = torch.stack(list(planted(tokens).values()), -1)
    worse = f.clone()
    order = torch.randperm(P * L, generator=torch.Generator().manual_seed(0))
    worse[..., :5] = f[..., :5].flatten(0, 1)[order].view(P, L, 5)
    found = study(tokens, {"a": f, "b": worse}, decode, support=2, progress=False)
    assert found.scores["a"].share(0.9).value == 1.0
    assert found.scores["b"].share(0.9).value == 0.5
    assert found.odds_ratio("a", "b") == odds_ratio(10, 10, 5, 10)
    lo, hi = found.scores["b"].share(0.9).interval
    assert 0 < lo < 0.5 < hi < 1
    assert found.scores["a"].mean().interval[0] > found.scores["b"].mean().interval[1]


def test_random_directions_of_the_lab_model_are_harder(lab: Any, tokenizer: Any) -> None:
    rows = generated_rows(tokenizer, 40, 80, seed=0)
    got: list[torch.Tensor] = []
    hook = "blocks.1.hook_mlp_out"
    with torch.no_grad():
        lab.run_with_hooks(
            rows, return_type=None, stop_at_layer=2, fwd_hooks=[(hook, lambda x, hook: got.append(x.clone()))]
        )
    [x] = got
    x = x.flatten(0, 1)
    project = (x - x.mean(0)) @ torch.randn(x.shape[1], 12, generator=torch.Generator().manual_seed(0))
    random = (project - project.quantile(0.97, dim=0)).relu().view(*rows.shape, 12)
    common = rows.flatten().bincount().topk(6).indices.tolist()
    before = torch.cat([torch.full_like(rows[:, :1], -1), rows[:, :-1]], 1)
    plant = torch.stack([rows == i for i in common] + [before == i for i in common], -1).float()
    found = study(
        rows, {"planted": plant, "random": random}, lambda i: tokenizer.decode([i]), counted=rows != 0, progress=False
    ).scores
    for measure in ("correlation", "auc", "fuzzing"):
        one, other = found["planted"].mean(measure), found["random"].mean(measure)  # type: ignore[arg-type]
        assert one.interval[0] > other.interval[1]
    assert found["planted"].mean().value > 0.99
    assert found["random"].share(0.9).value < 0.3


def test_it_is_fast() -> None:
    """Thirty latents, 200 prompts of 256 tokens: as long as sorting all nine views of the text once a latent.

    Measured: 0.8 of that time with vector instructions, 1.4 without and with two threads.
    """
    g = torch.Generator().manual_seed(0)
    ranks = torch.arange(1.0, 3001) ** -1.0
    rows = ranks.multinomial(200 * 256, replacement=True, generator=g).view(200, 256)
    f = torch.rand(200, 256, 30, generator=g) * (torch.rand(200, 256, 30, generator=g) < 0.02)
    f = f + torch.stack([rows == i for i in range(30)], -1)
    start = time.process_time()
    found = study(rows, {"a": f}, " {}".format, progress=False).scores["a"]
    taken = time.process_time() - start
    start = time.process_time()
    for _ in range(30):
        rows.expand(len(VIEWS), -1, -1).flatten().sort()
    assert taken < 6 * (time.process_time() - start)
    assert len(found.latents) == 30
    assert found.mean().value > 0.3


def test_errors(tokens: torch.Tensor) -> None:
    f = (tokens == 0).float()
    found = study(tokens, {"a": f[..., None]}, decode, progress=False)
    for make, words in [
        (lambda: explain(tokens, f[:, :5], decode), "like tokens"),
        (lambda: explain(tokens, -f, decode), "not negative"),
        (lambda: explain(tokens, f / 0, decode), "finite"),
        (lambda: explain(tokens, f, decode, rules=0), "rules and depth"),
        (lambda: explain(tokens, f, decode, support=0), "support"),
        (lambda: contexts(tokens[0], decode), "prompt pos"),
        (lambda: study(tokens, {}, decode), "no columns"),
        (lambda: study(tokens, {"a": f}, decode), "columns of 'a'"),
        (lambda: study(tokens, {"a": f[..., None]}, decode, latents=0), "latents must be"),
        (lambda: study(tokens, {"a": 0 * f[..., None]}, decode), "no latent of 'a'"),
        (lambda: found.odds_ratio("a", "z"), "no SAE 'z'"),
        (lambda: found.scores["a"].values("text"), "unknown measure"),  # type: ignore[arg-type]
        (lambda: odds_ratio(3, 2, 1, 2), "no shares"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()  # type: ignore[no-untyped-call]
