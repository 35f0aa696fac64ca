"""A circuit as an object, and how it behaves when everything else is knocked out (Wang et al., section 4)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.heads import Head, all_heads, check_heads
from mechinterp.patching import Activations, logits_at, mask
from mechinterp.patching.ablation import replaced_metric

POSITIONS: dict[str, tuple[str, ...]] = {
    "name mover": ("END",),
    "negative name mover": ("END",),
    "backup name mover": ("END",),
    "S-inhibition": ("END",),
    "S2 informant": ("S2",),
    "induction": ("S2",),
    "duplicate token": ("S2",),
    "previous token": ("S1+1",),
}
"""Where each role of the IOI circuit acts (Figure 2); informants at S2 are of no type that the paper names."""
MARKS_AT_ONCE = 2**28
"""Bytes of masks that are held at a time."""


@dataclass(frozen=True)
class Node:
    """A head's place in a circuit: its role, and the named positions at which it is kept."""

    role: str
    positions: tuple[str, ...]


@dataclass(frozen=True)
class Circuit:
    """Heads with roles and positions.

    Errors: `ValueError` for a circuit without heads or a node without positions.

    >>> circuit = from_roles({"name mover": [Head(9, 9)], "S-inhibition": [Head(8, 6)]})
    >>> len(circuit), circuit.role(Head(8, 6)), circuit.heads("name mover")
    (2, 'S-inhibition', [Head(layer=9, head=9)])
    """

    nodes: Mapping[Head, Node]

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError("a circuit needs at least one head")
        for head, node in self.nodes.items():
            if not node.positions:
                raise ValueError(f"head {head} is kept at no position; name at least one")

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Any:
        return iter(self.nodes)

    def role(self, head: Head) -> str:
        """The role of one of its heads; `ValueError` for another head."""
        if head not in self.nodes:
            raise ValueError(f"{Head(*head)} is not in this circuit")
        return self.nodes[head].role

    @property
    def roles(self) -> list[str]:
        """Every role, in the order of first appearance."""
        return list(dict.fromkeys(node.role for node in self.nodes.values()))

    def heads(self, role: str | None = None) -> list[Head]:
        """Its heads, or those of one role."""
        return [head for head, node in self.nodes.items() if role is None or node.role == role]

    def without(self, heads: Iterable[Head]) -> "Circuit":
        """The circuit without some of its heads."""
        gone = set(heads)
        return Circuit({head: node for head, node in self.nodes.items() if head not in gone})


def from_roles(roles: Mapping[str, Sequence[Head]], positions: Mapping[str, tuple[str, ...]] = POSITIONS) -> Circuit:
    """A circuit from lists of heads by role; empty roles are left out.

    Errors: `ValueError` for a role without positions, or a head with two roles.
    """
    nodes: dict[Head, Node] = {}
    for role, heads in roles.items():
        if heads and role not in positions:
            raise ValueError(f"no positions for the role {role!r}; known roles: {', '.join(positions)}")
        for head in heads:
            if head in nodes:
                raise ValueError(f"head {head} has two roles, {nodes[head].role} and {role}")
            nodes[Head(*head)] = Node(role, tuple(positions[role]))
    return Circuit(nodes)


@dataclass(frozen=True)
class Setting:
    """Everything a circuit is judged by: model, prompts, named positions, metric, and what a knock-out puts in place.

    Attributes:
        tokens: prompts. `positions`: their named positions. `at`: where the logits are read.
        metric: from logits at `at` [prompt vocab] to one value a prompt.
        means: the values of the knock-out, `patching.mean_reference` of prompts that lack the information.
        batch_size: sequences (variant · prompt) at a time.
        unit, clusters: what intervals count, and the unit of each prompt, as in `mechinterp.stats.mean`.
    """

    model: Any
    tokens: Int[Tensor, "prompt pos"]
    positions: Mapping[str, Int[Tensor, " prompt"]]
    at: Int[Tensor, " prompt"]
    metric: Callable[[Float[Tensor, "prompt vocab"]], Float[Tensor, " prompt"]]
    means: Activations
    batch_size: int = 512
    unit: str = "prompts"
    clusters: Int[Tensor, " prompt"] | None = None


def keep(
    setting: Setting, circuit: Circuit | None, removed: Iterable[Head] = ()
) -> Bool[Tensor, "layer head prompt pos"]:
    """Which head outputs survive: a circuit's at its positions (None: all of them), less those of removed heads."""
    model, shape = setting.model, setting.tokens.shape
    if circuit is None:
        kept = mask(model, shape, dict.fromkeys(all_heads(model)))
    else:
        check_heads(model, circuit.nodes)
        kept = mask(model, shape, {})
        for head, node in circuit.nodes.items():
            for name in node.positions:
                if name not in setting.positions:
                    raise ValueError(f"unknown position {name!r} of head {head}; one of {', '.join(setting.positions)}")
                kept |= mask(model, shape, {head: setting.positions[name]})
    for layer, index in check_heads(model, removed):
        kept[layer, index] = False
    return kept


def evaluate(
    setting: Setting, kept: Iterable[Bool[Tensor, "layer head prompt pos"]]
) -> Float[Tensor, "variant prompt"]:
    """The metric with every head output outside each mask mean-ablated; variants are run together."""
    kept, values = iter(kept), []
    at_once = max(1, MARKS_AT_ONCE // (len(all_heads(setting.model)) * setting.tokens.numel()))
    while some := list(islice(kept, at_once)):
        values.append(
            replaced_metric(
                setting.model,
                setting.tokens,
                setting.means,
                heads=~torch.stack(some),
                at=setting.at,
                metric=setting.metric,
                batch_size=setting.batch_size,
            )
        )
    return torch.cat(values)


def knock_out(
    setting: Setting, sets: Sequence[Iterable[Head]], *, position: str | None = None
) -> Float[Tensor, "set prompt"]:
    """The metric of the whole model with each set of heads mean-ablated, at one named position or everywhere.

    Errors: `ValueError` for a position or a head that is not there.
    """
    if position is not None and position not in setting.positions:
        raise ValueError(f"unknown position {position!r}; one of {', '.join(setting.positions)}")
    shape = setting.tokens.shape
    where = None if position is None else setting.positions[position]
    return evaluate(setting, (~mask(setting.model, shape, dict.fromkeys(heads, where)) for heads in sets))


def score(setting: Setting, circuit: Circuit, removed: Iterable[Head] = ()) -> Float[Tensor, " prompt"]:
    """F(C∖K): the metric with everything outside the circuit, and the removed heads, mean-ablated. MLPs stay."""
    return evaluate(setting, [keep(setting, circuit, removed)])[0]


def score_without(setting: Setting, removed: Iterable[Head]) -> Float[Tensor, " prompt"]:
    """F(M∖K): the metric of the whole model with some heads mean-ablated at every position."""
    removed = list(removed)
    if not removed:
        return setting.metric(logits_at(setting.model, setting.tokens, setting.at, batch_size=setting.batch_size))
    return evaluate(setting, [keep(setting, None, removed)])[0]
