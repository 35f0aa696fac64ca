"""Short rules about the context of a token, and the search for those that explain an activation best.

A rule such as "token ' the' when it repeats" matches where all of its conditions do; of a list of rules the first that
matches decides. Rules are chosen one after the other by how much squared error they save when every position is
predicted from the others that match (leave-one-out, in closed form), so that a context seen once explains nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

VIEWS = ("token", "kind", "repeats", "passage", "previous", "previous kind", "second", "follower", "place")
"""What a condition may be about: the token and its class, whether it or the pair it ends occurred before in the
prompt, the token before and its class, the token before that, what followed the token last time, the position."""
KINDS = ("word", "capitalised word", "piece of a word", "capitalised piece", "number", "sign", "line break", "blank")


@dataclass(frozen=True)
class Contexts:
    """What the rules can see of a text, computed once for many latents; made by `contexts`.

    Attributes:
        values: of every view at every position, -1 for none. `words`: the text of every token.
        atoms: (view, value) as one number, for counting. `atom_view`, `atom_value`: and back.
    """

    values: Int[Tensor, "view prompt pos"]
    atoms: Int[Tensor, "view prompt pos"]
    atom_view: Int[Tensor, " atom"]
    atom_value: Int[Tensor, " atom"]
    words: dict[int, str]

    def phrase(self, view: int, value: int) -> str:
        """A condition in words."""
        match VIEWS[view]:
            case "token":
                return f"token {self.words[value]!r}"
            case "kind":
                return f"a {KINDS[value]}"
            case "repeats":
                return "when it repeats" if value else "when it is new"
            case "passage":
                return "in a repeated passage" if value else "outside repeated passages"
            case "previous":
                return f"after {self.words[value]!r}"
            case "previous kind":
                return f"after a {KINDS[value]}"
            case "second":
                return f"two after {self.words[value]!r}"
            case "follower":
                return f"followed last time by {self.words[value]!r}"
        first, last = 2**value - 1, min(2 * (2**value - 1), self.values.shape[2] - 1)
        return f"at positions {first}-{last}" if last > first else f"at position {first}"


def kind_of(word: str) -> int:
    """Class of a token's text, an index of `KINDS`.

    >>> [KINDS[kind_of(w)] for w in (" the", " Mary", "ing", " 12", ",")]
    ['word', 'capitalised word', 'piece of a word', 'number', 'sign']
    """
    body = word.strip()
    if not body:
        return KINDS.index("line break" if "\n" in word else "blank")
    if body[0].isnumeric():
        return KINDS.index("number")
    if not body[0].isalpha():
        return KINDS.index("sign")
    return 2 * (not word[0].isspace()) + body[0].isupper()


def contexts(tokens: Int[Tensor, "prompt pos"], decode: Callable[[int], str]) -> Contexts:
    """All views of a text.

    Args:
        decode: text of a token, such as `lambda i: tokenizer.decode([i])`; asked once a distinct token.

    Errors: `ValueError` for tokens that are not [prompt pos] or negative.
    """
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.min() < 0:
        raise ValueError(f"tokens must be [prompt pos] and not negative, got shape {tuple(tokens.shape)}")
    tokens = tokens.cpu().long()
    words = {i: decode(i) for i in tokens.unique().tolist()}
    kinds = torch.zeros(max(words) + 1, dtype=torch.long)
    kinds[list(words)] = torch.tensor([kind_of(w) for w in words.values()])
    kind = kinds[tokens]
    # The last occurrence before: the neighbour in a stable sort of the prompt.
    order = tokens.argsort(dim=1, stable=True)
    ranked = tokens.gather(1, order)
    same = torch.zeros_like(tokens, dtype=torch.bool)
    same[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    last = torch.full_like(tokens, -1).scatter_(1, order, torch.where(same, order.roll(1, 1), -1))
    seen, previous = last >= 0, _shift(tokens, 1)
    passage = seen & (last > 0) & (previous.gather(1, last.clamp(min=0)) == previous)
    place = torch.frexp(torch.arange(1.0, tokens.shape[1] + 1)).exponent.long().sub(1).expand_as(tokens)
    by_view = {
        "token": tokens,
        "kind": kind,
        "repeats": seen.long(),
        "passage": passage.long(),
        "previous": previous,
        "previous kind": _shift(kind, 1),
        "second": _shift(tokens, 2),
        "follower": torch.where(seen, tokens.gather(1, (last + 1).clamp(max=tokens.shape[1] - 1)), -1),
        "place": place,
    }
    values = torch.stack([by_view[name] for name in VIEWS])
    key = values + 1 + torch.arange(len(VIEWS))[:, None, None] * (int(values.max()) + 2)
    distinct, atoms = key.unique(return_inverse=True)
    width = int(values.max()) + 2
    return Contexts(values, atoms, distinct // width, distinct % width - 1, words)


def _shift(x: Tensor, by: int) -> Tensor:
    """What stood `by` positions before, -1 for nothing."""
    return torch.cat([torch.full_like(x[:, :by], -1), x[:, :-by]], 1)[:, : x.shape[1]]


@dataclass(frozen=True)
class Rule:
    """Where all conditions (view, value) hold, the latent is at `level`, as a share of its maximum."""

    conditions: tuple[tuple[int, int], ...]
    level: float
    text: str


class Search:
    """Finds rules for latents on some positions of a text.

    Args:
        where: the positions. `support`: prompts in which a rule must match.
    """

    def __init__(self, views: Contexts, where: Bool[Tensor, "prompt pos"], *, support: int = 3) -> None:
        self.views, self.where, self.support = views, where, support
        self.ids = views.atoms[:, where]
        self.prompt = where.nonzero()[:, 0]
        self.size = len(views.atom_value)
        atoms = (self.ids * len(where) + self.prompt).unique() // len(where)
        prompts = torch.bincount(atoms, minlength=self.size)
        self.usable = (views.atom_value >= 0) & (prompts >= support)

    def fit(
        self, activations: Float[Tensor, "prompt pos"], *, rules: int = 5, depth: int = 3, least: float = 0.005
    ) -> tuple[tuple[Rule, ...], float]:
        """A list of rules for one latent, and its mean where none of them matches.

        Args:
            rules: at most so many. `depth`: conditions in a rule, at most.
            least: share of the latent's variance that each rule must save.
        """
        y = activations[self.where].double()
        total = (y - y.mean()).square().sum().item()
        left = torch.arange(len(y))
        sums = self._sums(y, left)
        found: list[Rule] = []
        while len(found) < rules and len(left):
            base = y[left].mean().item()
            gain, chosen, at = self._grow(y, left, sums, base, depth)
            if not chosen or gain < least * total:
                break
            level = ((y[at].sum() + base) / (len(at) + 1)).item()
            found.append(self._rule(chosen, level))
            sums = sums - self._sums(y, at)
            left = left[~torch.isin(left, at, assume_unique=True)]
        return tuple(found), y[left].mean().item() if len(left) else 0.0

    def _sums(self, y: Tensor, at: Tensor) -> Float[Tensor, "three atom"]:
        """Number of positions, Σ y and Σ y² of every atom over the positions `at`."""
        n = torch.bincount(self.ids[:, at].flatten(), minlength=self.size).double()
        on = at[y[at] > 0]
        ids, values = self.ids[:, on].flatten(), y[on].repeat(len(self.ids))
        return torch.stack([n] + [torch.bincount(ids, weights=values**k, minlength=self.size) for k in (1, 2)])

    def _grow(self, y: Tensor, at: Tensor, sums: Tensor, base: float, depth: int) -> tuple[float, list[int], Tensor]:
        """The condition that saves most, narrowed by further ones as long as they save more; where it matches."""
        gain, chosen = 0.0, list[int]()
        gains = torch.where(self.usable, _saved(sums, base), -torch.inf)
        while len(chosen) < depth:
            best = int(gains.argmax())
            if gains[best] <= gain * (1 + 1e-9):
                break
            narrower = at[self.ids[self.views.atom_view[best], at] == best]
            if len(self.prompt[narrower].unique()) < self.support:
                gains[best] = -torch.inf
                continue
            chosen, at, gain = [*chosen, best], narrower, gains[best].item()
            gains = torch.where(self.usable, _saved(self._sums(y, at), base), -torch.inf)
        return gain, chosen, at

    def _rule(self, chosen: list[int], level: float) -> Rule:
        conditions = tuple(sorted((int(self.views.atom_view[c]), int(self.views.atom_value[c])) for c in chosen))
        words = " ".join(self.views.phrase(*c) for c in conditions)
        return Rule(conditions, level, f"any token {words}" if words.startswith("when") else words)


def _saved(sums: Tensor, base: float) -> Float[Tensor, " atom"]:
    """Squared error that a level of its own saves over `base`, each position predicted from the others of the atom.

    A level is the mean with one more position at `base`. Leaving out position i makes its error (n + 1) / n times
    y_i - level, so that a position without others saves nothing.
    """
    n, first, second = sums
    level = (first + base) / (n + 1)
    after = ((n + 1) / n.clamp(min=1)).square() * (second - 2 * level * first + n * level.square())
    return torch.where(n > 0, second - 2 * base * first + n * base**2 - after, 0.0)


def apply_rules(rules: tuple[Rule, ...], otherwise: float, views: Contexts) -> Float[Tensor, "prompt pos"]:
    """The level that a list of rules gives every position."""
    out = torch.full(views.values.shape[1:], otherwise, dtype=torch.float64)
    for rule in reversed(rules):
        match = torch.stack([views.values[view] == value for view, value in rule.conditions]).all(0)
        out[match] = rule.level
    return out
