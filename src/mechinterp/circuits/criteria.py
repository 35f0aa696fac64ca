"""Is it the circuit? Faithfulness, completeness and minimality (Wang et al., section 4).

F(C) is the mean metric with everything outside C mean-ablated, M is the whole model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mechinterp.circuits.circuit import Circuit, Setting, evaluate, keep, score, score_without
from mechinterp.heads import Head
from mechinterp.stats import Estimate, mean, ratio


@dataclass(frozen=True)
class Faithfulness:
    """F(M), F(C), their difference, the recovered fraction F(C)/F(M), and how far single prompts are from it.

    `absolute` is the mean of |f(C) − f(M)| over prompts, over F(M): errors of opposite sign do not cancel in it.
    """

    model: Estimate
    circuit: Estimate
    difference: Estimate
    recovered: Estimate
    absolute: Estimate


@dataclass(frozen=True)
class Completeness:
    """F(M∖K) and F(C∖K) for one set K of removed heads; `gap` is F(C∖K) − F(M∖K), `absolute` as in `Faithfulness`."""

    removed: tuple[Head, ...]
    model: Estimate
    circuit: Estimate
    gap: Estimate
    absolute: Estimate

    @property
    def incompleteness(self) -> float:
        """|F(C∖K) − F(M∖K)| (section 4.1)."""
        return abs(self.gap.value)


@dataclass(frozen=True)
class Minimality:
    """How much a head matters beside the removed set K.

    `before` is F(C∖(K∪{v})), `after` is F(C∖K), `change` is (after − before) / F(M).
    """

    removed: tuple[Head, ...]
    before: Estimate
    after: Estimate
    change: Estimate

    @property
    def share(self) -> float:
        """|F(C∖(K∪{v})) − F(C∖K)| / F(M) (section 4.2)."""
        return abs(self.change.value)


def compare_runs(setting: Setting, model: Tensor, circuit: Tensor, whole: Tensor | None = None) -> Faithfulness:
    """Two runs on the same prompts, prompt by prompt: a circuit's metric and the model's.

    Args:
        model, circuit: `[prompt]`.
        whole: what fractions are taken of, by default `model`.
    """
    average, fraction, whole = *_over_prompts(setting), model if whole is None else whole
    return Faithfulness(
        model=average(model),
        circuit=average(circuit),
        difference=average(model - circuit),
        recovered=fraction(circuit, whole),
        absolute=fraction((circuit - model).abs(), whole),
    )


def _over_prompts(setting: Setting) -> tuple[Callable[..., Estimate], Callable[..., Estimate]]:
    """Means and ratios over the setting's units."""
    average = partial(mean, unit=setting.unit, clusters=setting.clusters)
    return average, partial(ratio, unit=setting.unit, clusters=setting.clusters)


def faithfulness(setting: Setting, circuit: Circuit) -> Faithfulness:
    """|F(M) − F(C)| (section 4): what the circuit leaves unexplained."""
    return compare_runs(setting, score_without(setting, []), score(setting, circuit))


def completeness(setting: Setting, circuit: Circuit, sets: Sequence[Sequence[Head]]) -> list[Completeness]:
    """|F(C∖K) − F(M∖K)| for each set K (section 4.1). All sets are run together."""
    masks = [keep(setting, circuit, k) for k in sets] + [keep(setting, None, k) for k in sets]
    values = evaluate(setting, masks)
    whole = score_without(setting, [])
    results = []
    for k, alone, model in zip(sets, values[: len(sets)], values[len(sets) :], strict=True):
        run = compare_runs(setting, model, alone, whole)
        gap = _over_prompts(setting)[0](alone - model)
        results.append(Completeness(tuple(k), run.model, run.circuit, gap, run.absolute))
    return results


def random_subsets(circuit: Circuit, n: int = 10, *, seed: int = 0) -> list[list[Head]]:
    """n uniformly random subsets of the circuit's heads: each head is in or out by a fair coin."""
    generator = torch.Generator().manual_seed(seed)
    coins = torch.rand(n, len(circuit), generator=generator) < 0.5
    return [[head for head, coin in zip(circuit, row, strict=True) if coin] for row in coins.tolist()]


def by_class(circuit: Circuit) -> list[list[Head]]:
    """The empty set, and each role's heads."""
    return [[], *(circuit.heads(role) for role in circuit.roles)]


def greedy_sets(
    setting: Setting, circuit: Circuit, *, runs: int = 10, steps: int = 10, candidates: int = 10, seed: int = 0
) -> list[list[Head]]:
    """Sets K found by greedy search for the largest effect on the circuit (Appendix M), intermediate ones too.

    Each step draws `candidates` heads v of C∖K at random and adds the one that maximises
    |F(C∖(K∪{v})) − F(C∖K)|. Runs go side by side, so that one call evaluates all their candidates.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = list(circuit)
    found: list[list[Head]] = []
    current: list[list[Head]] = [[] for _ in range(runs)]
    now = score(setting, circuit).mean().repeat(runs)
    for _ in range(min(steps, len(heads))):
        options = []
        for k in current:
            left = [h for h in heads if h not in k]
            order = torch.randperm(len(left), generator=generator)[:candidates].tolist()
            options.append([left[i] for i in order])
        masks = [keep(setting, circuit, [*k, v]) for k, drawn in zip(current, options, strict=True) for v in drawn]
        values = evaluate(setting, masks).mean(1).split([len(drawn) for drawn in options])
        for run, (drawn, scores) in enumerate(zip(options, values, strict=True)):
            best = int((scores - now[run]).abs().argmax())
            current[run] = [*current[run], drawn[best]]
            now[run] = scores[best]
            found.append(current[run])
    return [list(k) for k in dict.fromkeys(tuple(sorted(k)) for k in found)]


def greedy_completeness(
    setting: Setting,
    circuit: Circuit,
    *,
    runs: int = 10,
    steps: int = 10,
    candidates: int = 10,
    worst: int = 5,
    seed: int = 0,
) -> list[Completeness]:
    """The `worst` sets of `greedy_sets` with the largest incompleteness, worst first."""
    sets = greedy_sets(setting, circuit, runs=runs, steps=steps, candidates=candidates, seed=seed)
    return sorted(completeness(setting, circuit, sets), key=lambda r: -r.incompleteness)[:worst]


def companions(circuit: Circuit) -> dict[Head, list[Head]]:
    """The set K beside which each head has to show that it matters (section 4.2, Figure 20).

    The rest of its role; for name movers the ones before it, for backups all name movers and the
    backups before it. The order is the circuit's own.
    """
    movers, backups = circuit.heads("name mover"), circuit.heads("backup name mover")
    sets = {head: [h for h in circuit.heads(circuit.role(head)) if h != head] for head in circuit}
    sets |= {head: movers[:i] for i, head in enumerate(movers)}
    return sets | {head: [*movers, *backups[:i]] for i, head in enumerate(backups)}


def minimality(
    setting: Setting, circuit: Circuit, sets: Mapping[Head, Sequence[Head]] | None = None
) -> dict[Head, Minimality]:
    """|F(C∖(K∪{v})) − F(C∖K)| / F(M) for every head v (section 4.2); K from `sets`, by default `companions`."""
    sets = companions(circuit) if sets is None else sets
    masks = [keep(setting, circuit, sets[v]) for v in circuit]
    masks += [keep(setting, circuit, [*sets[v], v]) for v in circuit]
    values, model = evaluate(setting, masks), score_without(setting, [])
    average, fraction = _over_prompts(setting)
    return {
        v: Minimality(tuple(sets[v]), average(before), average(after), fraction(after - before, model))
        for v, after, before in zip(circuit, values[: len(circuit)], values[len(circuit) :], strict=True)
    }
