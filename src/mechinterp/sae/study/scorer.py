"""Automatic interpretability without a judge: rules about the context, scored blind on text they have not seen.

A latent's activations on half of the prompts are explained by a few rules such as "token ' the' when it repeats" or
"after ' of'", each with a level (see `rules`). The list is the whole explanation: what it predicts on the other half is
compared with the truth, by correlation (simulation, Bills et al. 2023), by telling active from inactive positions
(detection and fuzzing, Paulo et al., arXiv:2410.13928). A study of several SAEs hides from the scorer which column is
whose (arXiv:2407.14435, section 5.3).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.sae.study.rules import Rule, Search, apply_rules, contexts
from mechinterp.stats import Estimate, mean, share

Measure = Literal["correlation", "auc", "fuzzing"]
Scorer = Callable[[Float[Tensor, "prompt pos"]], "Explanation"]


@dataclass(frozen=True)
class Explanation:
    """Rules for one latent, and how well they predict it on held-out prompts.

    Attributes:
        rules: the first that matches decides. `otherwise`: the level where none does.
        correlation: Pearson's r of simulated and true activations; 0 where no rule was found.
        auc: how often an active position has the higher simulated activation than an inactive one, ties counting one
            half; 0.5 by chance. `fuzzing`: the same, of strongly active against inactive positions near them.
        active: share of the positions where the latent is active, held-out prompts.
    """

    rules: tuple[Rule, ...]
    otherwise: float
    correlation: float
    auc: float
    fuzzing: float
    active: float

    @property
    def text(self) -> str:
        """The rules in words, with their levels."""
        if not self.rules:
            return "no rule"
        return "; ".join([f"{r.text} ({r.level:.2f})" for r in self.rules] + [f"otherwise {self.otherwise:.2f}"])

    def __str__(self) -> str:
        return self.text


def explain(
    tokens: Int[Tensor, "prompt pos"],
    activations: Float[Tensor, "prompt pos"],
    decode: Callable[[int], str],
    *,
    seed: int = 0,
    rules: int = 5,
    depth: int = 3,
    support: int = 3,
    counted: Bool[Tensor, "prompt pos"] | None = None,
) -> Explanation:
    """Explain a latent on one half of the prompts, score the explanation on the other.

    For many latents of one text `study` is faster.

    Args:
        decode: text of a token, such as `lambda i: tokenizer.decode([i])`; asked once a distinct token.
        seed: which prompts are held out. `rules`: at most so many. `depth`: conditions in a rule, at most.
        support: a rule must match in so many prompts, and the latent be active in so many of each half.
        counted: tokens at which something is fitted or scored, as in `sae.Site`; by default all.

    Errors: `ValueError` for shapes that differ, activations that are negative or not finite, or a latent that is
        active in too few prompts, or everywhere.

    >>> tokens = torch.randint(0, 10, (40, 20), generator=torch.Generator().manual_seed(0))
    >>> latent = torch.zeros(40, 20)
    >>> latent[:, 1:] = (tokens[:, :-1] == 3).float()
    >>> found = explain(tokens, latent, "{}".format)
    >>> print(found, round(found.correlation, 2))
    after '3' (0.98); otherwise 0.00 1.0
    """
    if activations.shape != tokens.shape:
        raise ValueError(f"activations must be {tuple(tokens.shape)} like tokens, got {tuple(activations.shape)}")
    _check_values("the latent", activations)
    text = _Text(tokens, decode, seed, support, counted)
    if not text.usable(activations[..., None]):
        on = activations > 0
        raise ValueError(
            f"the latent must be active in {support} prompts of each half and inactive somewhere; it is active in "
            f"{int(on.any(1).sum())} of {len(on)} prompts and at {on.double().mean().item():.2%} of positions"
        )
    return text.explain(activations, rules, depth)


def _check_values(name: str, f: Tensor) -> None:
    if not torch.isfinite(f).all() or (f < 0).any():
        raise ValueError(f"activations of {name} must be finite and not negative; take them after the encoder")


class _Text:
    """A text cut in two halves by prompt, made ready for many latents."""

    def __init__(
        self, tokens: Tensor, decode: Callable[[int], str], seed: int, support: int, counted: Tensor | None
    ) -> None:
        if support < 1:
            raise ValueError(f"support must be at least 1, not {support}")
        self.views, self.support = contexts(tokens, decode), support
        if counted is not None and counted.shape != tokens.shape:
            raise ValueError(f"counted must be {tuple(tokens.shape)} like tokens, got {tuple(counted.shape)}")
        scored = torch.ones(tokens.shape, dtype=torch.bool) if counted is None else counted.cpu()
        shuffled = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
        first = torch.zeros(len(tokens), 1, dtype=torch.bool)
        first[shuffled[: (len(tokens) + 1) // 2]] = True
        self.train, self.test = scored & first, scored & ~first
        self.search = Search(self.views, self.train, support=support)

    def usable(self, f: Float[Tensor, "prompt pos latent"]) -> Bool[Tensor, " latent"]:
        """Which latents are active in enough prompts of both halves, and not everywhere."""
        on, good = (f > 0).cpu(), torch.ones(f.shape[2], dtype=torch.bool)
        for half in (self.train, self.test):
            prompts = (on & half[..., None]).any(1).int().sum(0)
            good &= (prompts >= self.support) & (~on & half[..., None]).flatten(0, 1).any(0)
        return good

    def explain(self, activations: Tensor, rules: int, depth: int) -> Explanation:
        if min(rules, depth) < 1:
            raise ValueError(f"rules and depth must be at least 1, got {rules} and {depth}")
        a = activations.detach().cpu().double()
        a = a / a[self.train].max()
        found, otherwise = self.search.fit(a, rules=rules, depth=depth)
        scores = measures(apply_rules(found, otherwise, self.views), a, self.test)
        return Explanation(found, otherwise, *scores, (a[self.test] > 0).double().mean().item())


def measures(
    simulated: Float[Tensor, "prompt pos"], true: Float[Tensor, "prompt pos"], where: Bool[Tensor, "prompt pos"]
) -> tuple[float, float, float]:
    """Correlation, detection and fuzzing of simulated activations, as in `Explanation`, over the positions `where`.

    Strongly active is above 0.3 of the maximum, near is up to 16 positions away in the same prompt (thresholds and
    windows of arXiv:2410.13928). No inactive position near, and fuzzing is 0.5.
    """
    on = (true > 0) & where
    strong = on & (true > 0.3 * true[where].max())
    near = torch.nn.functional.max_pool1d(strong[:, None].float(), 33, stride=1, padding=16)[:, 0] > 0
    off = where & ~on
    return (
        _pearson(simulated[where].double(), true[where].double()),
        _auc(simulated[on], simulated[off]),
        _auc(simulated[strong], simulated[off & near]),
    )


def _pearson(x: Tensor, y: Tensor) -> float:
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x.norm() * y.norm())).item()


def _auc(positive: Tensor, negative: Tensor) -> float:
    """P(positive > negative) + P(equal) / 2 over all pairs: both classes weigh the same, whatever their sizes."""
    if len(positive) == 0 or len(negative) == 0:
        return 0.5
    levels, rank = torch.cat([positive, negative]).unique(return_inverse=True)
    p, n = (torch.bincount(r, minlength=len(levels)).double() for r in rank.split([len(positive), len(negative)]))
    return (p @ (n.cumsum(0) - n / 2) / (p.sum() * n.sum())).item()


@dataclass(frozen=True)
class Scores:
    """Explanations of latents of one SAE.

    Attributes:
        latents: which ones. `left_out`: how many were too rarely active, or always, to be scored.
    """

    latents: Int[Tensor, " latent"]
    explanations: tuple[Explanation, ...]
    left_out: int

    def values(self, measure: Measure = "correlation") -> Float[Tensor, " latent"]:
        """One measure of every latent."""
        if measure not in get_args(Measure):
            raise ValueError(f"unknown measure {measure!r}; choose one of {', '.join(get_args(Measure))}")
        return torch.tensor([getattr(e, measure) for e in self.explanations], dtype=torch.float64)

    def mean(self, measure: Measure = "correlation") -> Estimate:
        """Mean over latents."""
        return mean(self.values(measure), unit="latents")

    def share(self, above: float = 0.9, measure: Measure = "correlation") -> Estimate:
        """Share of latents above a limit, by default the well simulated ones."""
        return share((self.values(measure) > above).double(), unit="latents")


@dataclass(frozen=True)
class Study:
    """What a blind study found, unblinded.

    Attributes:
        scores: by SAE. `order`: (SAE, latent) as the scorer met them.
    """

    scores: dict[str, Scores]
    order: tuple[tuple[str, int], ...]

    def odds_ratio(self, one: str, other: str, *, above: float = 0.9, measure: Measure = "correlation") -> Estimate:
        """Odds of a well simulated latent of one SAE over those of another (arXiv:2407.14435, section 5.3)."""
        for name in (one, other):
            if name not in self.scores:
                raise ValueError(f"no SAE {name!r} in this study; it has {', '.join(self.scores)}")
        passed = [self.scores[name].values(measure) > above for name in (one, other)]
        (a, n), (c, m) = ((int(p.sum()), len(p)) for p in passed)
        return odds_ratio(a, n, c, m)


def odds_ratio(successes: int, n: int, other_successes: int, other_n: int) -> Estimate:
    """Odds ratio of two shares of latents, with Woolf's 95 % interval, exp(log OR ± 1.96 √(1/a + 1/b + 1/c + 1/d)).

    The same as a logistic regression on one binary variable. If a cell of the table is empty, one half is added to all
    (Haldane, Anscombe).

    Errors: `ValueError` for counts that are no shares.

    >>> odds_ratio(10, 20, 5, 20).value
    3.0
    """
    if not (0 <= successes <= n and 0 <= other_successes <= other_n and n > 0 and other_n > 0):
        raise ValueError(f"no shares: {successes} of {n}, {other_successes} of {other_n}")
    cells: Sequence[float] = (successes, n - successes, other_successes, other_n - other_successes)
    if min(cells) == 0:
        cells = [c + 0.5 for c in cells]
    a, b, c, d = cells
    value, width = a * d / (b * c), 1.959964 * math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    return Estimate(value, (value * math.exp(-width), value * math.exp(width)), n + other_n, "latents")


def study(
    tokens: Int[Tensor, "prompt pos"],
    columns: Mapping[str, Float[Tensor, "prompt pos latent"]],
    decode: Callable[[int], str],
    *,
    seed: int = 0,
    latents: int | None = None,
    counted: Bool[Tensor, "prompt pos"] | None = None,
    rules: int = 5,
    depth: int = 3,
    support: int = 3,
    scorer: Scorer | None = None,
    progress: bool = True,
) -> Study:
    """Explain and score latents of several SAEs on the same text, blind.

    The scorer gets one column of activations at a time, scaled to a maximum of one, in shuffled order, and learns
    neither its SAE nor its number; the seed of the held-out half is the same for all.

    Args:
        columns: by SAE its latents' activations. `latents`: score a sample of so many of each, drawn by the seed.
        scorer: from an anonymous column to an `Explanation`; if None, `explain` with the other arguments. A person or
            a language model can take its place.
        seed, counted, rules, depth, support: as for `explain`. `progress`: show a bar.

    Memory: the columns, and one of them in float64. Errors: `ValueError` for no columns, shapes that do not fit, or an
        SAE of which no latent can be scored.

    >>> tokens = torch.randint(0, 10, (40, 20), generator=torch.Generator().manual_seed(0))
    >>> f = torch.stack([tokens == 3, tokens == 4], -1).float()
    >>> found = study(tokens, {"a": f, "b": 2 * f}, "{}".format, progress=False)
    >>> found.scores["a"].explanations[1].text, round(found.scores["b"].mean().value, 6)
    ("token '4' (0.98); otherwise 0.00", 1.0)
    """
    if not columns:
        raise ValueError("no columns to explain; give at least one SAE's activations")
    if latents is not None and latents < 1:
        raise ValueError(f"latents must be at least 1, or None for all, not {latents}")
    for name, f in columns.items():
        if f.ndim != 3 or f.shape[:2] != tokens.shape:
            shape = (*tokens.shape, "latent")
            raise ValueError(f"columns of {name!r} must have shape {shape}, got {tuple(f.shape)}")
        _check_values(repr(name), f)
    text = _Text(tokens, decode, seed, support, counted)
    usable = {name: text.usable(f).nonzero()[:, 0].tolist() for name, f in columns.items()}
    generator = torch.Generator().manual_seed(seed)
    queue: list[tuple[str, int]] = []
    for name, found in usable.items():
        if not found:
            raise ValueError(f"no latent of {name!r} is active in {support} prompts of each half; give more text")
        drawn = torch.randperm(len(found), generator=generator)[: len(found) if latents is None else latents]
        queue += [(name, found[i]) for i in drawn.tolist()]
    order = tuple(queue[i] for i in torch.randperm(len(queue), generator=generator).tolist())
    score = scorer or (lambda column: text.explain(column, rules, depth))
    results = {}
    for name, latent in tqdm(order, unit="latent", disable=not progress):
        column = columns[name][..., latent].detach().cpu().double()
        results[name, latent] = score(column / column.max())
    by_name = {name: sorted(i for n, i in order if n == name) for name in columns}
    scores = {
        name: Scores(
            torch.tensor(chosen),
            tuple(results[name, i] for i in chosen),
            columns[name].shape[2] - len(usable[name]),
        )
        for name, chosen in by_name.items()
    }
    return Study(scores, order)
