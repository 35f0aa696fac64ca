"""Finding heads (latents, edges) without fooling oneself: chosen on one half of the samples, measured on the other."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from mechinterp.heads import Head
from mechinterp.stats import Estimate, holm, mean

SPLITS = 20


@dataclass(frozen=True)
class Found:
    """A set that was found by its effects.

    Attributes:
        members: what one half of the samples selects, largest effect first.
        estimates: the mean effect of each member on the other half.
        splits: what the selecting half finds in each of many random splits; the first is `members`.
    """

    members: tuple[Any, ...]
    estimates: Mapping[Any, Estimate]
    splits: tuple[frozenset[Any], ...]

    def __iter__(self) -> Any:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def recurs(self, rule: Callable[[Sequence[str]], bool]) -> float:
        """Fraction of the splits whose set satisfies a rule on names.

        >>> found = Found(("9.9",), {}, (frozenset(["9.9"]), frozenset()))
        >>> found.recurs(lambda names: "9.9" in names)
        0.5
        """
        return sum(rule([str(name) for name in split]) for split in self.splits) / len(self.splits)

    def only(self, keep: Callable[[Any], bool]) -> "Found":
        """The members that pass a second rule, which must not be measured on the selecting half."""
        return Found(
            tuple(name for name in self.members if keep(name)),
            {name: value for name, value in self.estimates.items() if keep(name)},
            tuple(frozenset(name for name in split if keep(name)) for split in self.splits),
        )


def select(
    effects: Any,
    names: Sequence[Hashable],
    *,
    least: float,
    unit: str,
    clusters: Any = None,
    strata: Any = None,
    sign: int = 0,
    most: int | None = None,
    level: float = 0.05,
    splits: int = SPLITS,
    seed: int = 0,
) -> Found:
    """Whatever has a mean effect of at least `least` on half of the samples, beyond chance.

    A member's mean over the selecting half is at least `least` in size, and differs from 0 in a t test over units at
    `level`, corrected for all items at once (Holm). Its estimate comes from the other half. That is repeated for
    random halves, to see whether the set recurs.

    Args:
        effects: `[item sample]`, such as `PathPatch.relative()` flattened over heads.
        names: of the items.
        unit, clusters: as in `mechinterp.stats.mean`. Every half has samples of every cluster.
        strata: `[sample]`, finer groups to halve separately (template and order); by default the clusters.
        sign: −1 or 1 for effects of that sign only.
        most: at most this many members, the largest.

    Errors: `ValueError` for shapes that differ, effects that are not finite, or a stratum with a single sample.

    >>> import torch
    >>> effects = torch.tensor([[0.3, 0.31, 0.29, 0.3, 0.31, 0.3], [0.01, -0.01, 0.0, 0.0, 0.01, -0.01]])
    >>> select(effects, ["a", "b"], least=0.02, unit="prompts").members
    ('a',)
    """
    x = np.asarray(effects.detach().cpu().double() if hasattr(effects, "detach") else effects, dtype=float)
    if x.ndim != 2 or len(x) != len(names):
        raise ValueError(f"effects are [item sample] for {len(names)} names, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("the effects contain NaN or infinity")
    labels = np.arange(x.shape[1]) if clusters is None else _labels(clusters, x.shape[1])
    layers = _labels(strata if strata is not None else clusters, x.shape[1])
    generator = np.random.default_rng(seed)
    halves = [_halves(layers, generator) for _ in range(splits)]
    chosen = [_members(x[:, half], names, labels[half], least, sign, most, level) for half, _ in halves]
    other = halves[0][1]
    index = {name: i for i, name in enumerate(names)}
    estimates = {
        name: mean(x[index[name], other], unit=unit, clusters=None if clusters is None else labels[other])
        for name in chosen[0]
    }
    return Found(tuple(chosen[0]), estimates, tuple(frozenset(names) for names in chosen))


def matched(
    heads: Sequence[Head], n_heads: int, n: int = 100, *, exclude: Sequence[Head] = (), seed: int = 0
) -> list[list[Head]]:
    """Sets of other heads for a null: as many heads of each layer as the given ones, drawn at random.

    Args:
        heads: what was found. `n_heads`: heads a layer.
        n: how many sets.
        exclude: heads that must not be drawn either, such as those of the same role.

    Errors: `ValueError` for no heads, or a layer without enough others.

    >>> sorted(matched([Head(3, 0), Head(3, 1)], 4, n=1)[0])
    [Head(layer=3, head=2), Head(layer=3, head=3)]
    """
    if not heads:
        raise ValueError("nothing to match: no heads were given")
    generator, taken = np.random.default_rng(seed), {*heads, *exclude}
    sets: list[list[Head]] = [[] for _ in range(n)]
    for layer in dict.fromkeys(head.layer for head in heads):
        wanted = sum(head.layer == layer for head in heads)
        others = [Head(layer, i) for i in range(n_heads) if Head(layer, i) not in taken]
        if len(others) < wanted:
            raise ValueError(f"layer {layer} has {len(others)} other heads, {wanted} are needed for a null")
        for drawn in sets:
            drawn += [others[i] for i in generator.choice(len(others), wanted, replace=False)]
    return sets


def _labels(clusters: Any, n: int) -> np.ndarray:
    if clusters is None:
        return np.zeros(n, dtype=int)
    labels = clusters.detach().cpu().numpy() if hasattr(clusters, "detach") else np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"clusters name the unit of each of {n} samples, got shape {labels.shape}")
    return labels


def _halves(strata: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of every stratum; the odd sample goes to either."""
    first, second = [], []
    for label in np.unique(strata):
        index = generator.permutation(np.flatnonzero(strata == label))
        if len(index) < 2:
            raise ValueError(f"stratum {label} has {len(index)} sample; both halves need one: take more samples")
        cut = len(index) // 2 + (len(index) % 2) * int(generator.integers(2))
        first.append(index[:cut])
        second.append(index[cut:])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def _members(
    x: np.ndarray,
    names: Sequence[Hashable],
    labels: np.ndarray,
    least: float,
    sign: int,
    most: int | None,
    level: float,
) -> list[Hashable]:
    units, which = np.unique(labels, return_inverse=True)
    if len(units) < 2:
        raise ValueError("a test needs at least two units in each half")
    average = x.mean(1)
    sums = np.zeros((len(x), len(units)))
    np.add.at(sums.T, which, (x - average[:, None]).T)
    error = np.sqrt(len(units) / (len(units) - 1) * (sums**2).sum(1)) / x.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, np.abs(average) / error, np.where(average != 0, np.inf, 0.0))
    p = np.array(holm((2 * scipy_stats.t.sf(t, len(units) - 1)).tolist()))
    passed = (np.abs(average) >= least) & (p < level) & ((sign == 0) | (np.sign(average) == sign))
    order = [int(i) for i in np.argsort(-np.abs(average), kind="stable") if passed[i]]
    return [names[i] for i in order[:most]]
