"""Where does a successor head matter on text, and what is it doing there? (Gould et al., section 4)"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.datasets.ordinals import HELD_OUT_TASK, TASKS
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_text
from mechinterp.patching.engine import trace
from mechinterp.stats import Estimate, population, share

CATEGORIES = ("succession", "copying", "acronym", "greater-than", "other")


@dataclass(frozen=True)
class Winning:
    """Which head helps the right token most, at every position but the last.

    Attributes:
        effect: of each head's direct path on the logit of the right token: what its mean ablation takes away.
        winner: index of the head (layer · heads + head) with the largest effect.
    """

    effect: Float[Tensor, "doc pos head"]
    winner: Int[Tensor, "doc pos"]
    heads: int

    def cases(self, head: Head) -> Bool[Tensor, "doc pos"]:
        """The positions at which a head wins, with a positive effect."""
        index = head.layer * self.heads + head.head
        return (self.winner == index) & (self.effect[..., index] > 0)


@torch.no_grad()
def direct_effects(model: Any, tokens: Int[Tensor, "doc pos"], *, block: int = 4) -> Winning:
    """Direct effect of every head on the right token's logit, against its mean over the text; norms' scales frozen.

    The logit is that before a soft cap.

    Args:
        block: documents at a time. Memory: block · layers · heads · d_head · positions floats.

    Errors: `ValueError` for a text of less than two tokens.
    """
    anatomy = check_text(model, tokens)
    sizes, end = anatomy.size, ("resid_pre", anatomy.size.n_layers)
    z, scales, posts = [], [], []
    for rows in tokens.split(block):
        got = trace(anatomy, rows, lambda name, i, x: x[:, :-1] if name in ("z", "attn") or (name, i) == end else None)
        z.append(torch.stack([got["z", i] for i in range(sizes.n_layers)]))
        scales.append(anatomy.final.scale(got[end]))
        posts.append(torch.stack([layer.post1.scale(got["attn", i]) for i, layer in enumerate(anatomy.layers)]))
    mean = torch.cat(z, 1).mean((1, 2))  # layer, head, d_head
    writes = [layer.writes() for layer in anatomy.layers]
    parts = []
    for rows, own, scale, post in zip(tokens.split(block), z, scales, posts, strict=True):
        d = anatomy.along(anatomy.unembedding.weight[rows[:, 1:]]) / scale
        effects = []
        for i in range(sizes.n_layers):
            read = torch.einsum("hem,npm->nphe", writes[i], d)
            effects.append(((own[i] - mean[i]) * read).sum(-1) / post[i])
        parts.append(torch.stack(effects, 2).flatten(2))
    effect = torch.cat(parts)
    return Winning(effect.cpu(), effect.argmax(-1).cpu(), sizes.n_heads)


@torch.no_grad()
def total_effects(
    model: Any,
    tokens: Int[Tensor, "doc pos"],
    head: Head,
    cases: Bool[Tensor, "doc case_pos"],
    *,
    everywhere: bool = False,
    batch_size: int = 16,
) -> Float[Tensor, " case"]:
    """Effect of a head on the right token's logit through all later layers, at chosen positions of a text.

    The model runs again with the head's output at that position replaced by its mean over the text (all positions but
    each row's last, as in `direct_effects`); the value is the clean logit minus the ablated one.

    Args:
        cases: which positions, all but the last, as `Winning.cases` gives them; results are in its order of `nonzero`.
        everywhere: replace the head's output at every position up to that one, too.
        batch_size: runs side by side; the results do not depend on it.

    Errors: `ValueError` for a mask of another shape, or one that chooses nothing.
    """
    [head] = check_heads(model, [head])
    if cases.shape != (tokens.shape[0], tokens.shape[1] - 1):
        raise ValueError(
            f"cases must have shape {(tokens.shape[0], tokens.shape[1] - 1)}, one less position than the "
            f"tokens, not {tuple(cases.shape)}"
        )
    if not cases.any():
        raise ValueError("no case is chosen")
    anatomy, place = check_text(model, tokens), ("z", head.layer)
    before, last = ("resid_pre", head.layer), ("resid_pre", anatomy.size.n_layers)
    total = torch.zeros((), device=tokens.device)
    for rows in tokens.split(batch_size):
        got = trace(anatomy, rows, lambda name, i, x: x if (name, i) == place else None, stop=head.layer + 1)
        total = total + got[place][:, :-1, head.head].sum((0, 1))
    mean = total / cases.numel()
    parts = []
    for chosen in cases.nonzero().to(tokens.device).split(batch_size):
        rows, position = tokens[chosen[:, 0]], chosen[:, 1]
        run = torch.arange(len(chosen), device=tokens.device)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        gone = places <= position[:, None] if everywhere else places == position[:, None]

        def ablate(name: str, i: int, x: Tensor, gone: Tensor = gone) -> Tensor:
            if (name, i) != place:
                return x
            x = x.clone()
            x[:, :, head.head][gone] = mean
            return x

        got = trace(anatomy, rows, lambda name, i, x: x if (name, i) == before else None, stop=head.layer)
        start, logits = (head.layer, got[before]), []
        for change in (None, ablate):
            got = trace(anatomy, rows, lambda name, i, x: x if (name, i) == last else None, start=start, change=change)
            logits.append(anatomy.unembed(got[last][run, position])[run, rows[run, position + 1]])
        parts.append(logits[0] - logits[1])
    return torch.cat(parts).cpu()


_NEXT = {
    (a.lower(), b.lower()) for task in (*TASKS.values(), HELD_OUT_TASK) for a, b in task.pairs()
}  # every pair of every task, in any case


def category(attended: str, predicted: str) -> str:
    """What turns the attended token into the predicted one.

    >>> category(" Monday", " Tuesday"), category(" 7", " 12"), category(" House", " house"), category("United", " U")
    ('succession', 'greater-than', 'copying', 'acronym')
    """
    a, b = attended.strip(), predicted.strip()
    if (a.lower(), b.lower()) in _NEXT or (a.isdecimal() and b.isdecimal() and int(b) == int(a) + 1):
        return "succession"
    if a.isdecimal() and b.isdecimal() and int(b) > int(a):
        return "greater-than"
    if a and a.lower() == b.lower():
        return "copying"
    if a[:1].isalpha() and b.isalpha() and b.isupper() and b[0] == a[0].upper() and len(b) <= 5:
        return "acronym"
    return "other"


@dataclass(frozen=True)
class Shares:
    """How a head's winning cases divide into categories, over documents; no interval if one document has them all."""

    share: dict[str, Estimate]
    cases: int
    examples: dict[str, list[tuple[str, str]]]


@torch.no_grad()
def winning_cases(
    model: Any, tokens: Int[Tensor, "doc pos"], head: Head, winning: Winning | None = None, *, examples: int = 5
) -> Shares:
    """Categories of the cases that a head wins, by its most attended token and the right one.

    Errors: `ValueError` if it wins none.
    """
    [head] = check_heads(model, [head])
    winning = direct_effects(model, tokens) if winning is None else winning
    won = winning.cases(head)
    kinds: list[str] = []
    documents: list[int] = []
    seen: dict[str, list[tuple[str, str]]] = {name: [] for name in CATEGORIES}
    anatomy, place = check_text(model, tokens), ("pattern", head.layer)
    for number, (row, mask) in enumerate(zip(tokens, won, strict=True)):
        if not mask.any():
            continue
        got = trace(anatomy, row[None], lambda name, i, x: x if (name, i) == place else None, stop=head.layer + 1)
        source = got[place][0, head.head].argmax(-1)
        for d in mask.nonzero()[:, 0].tolist():
            pair = model.tokenizer.decode([int(row[source[d]])]), model.tokenizer.decode([int(row[d + 1])])
            kinds.append(category(*pair))
            documents.append(number)
            if len(seen[kinds[-1]]) < examples and pair not in seen[kinds[-1]]:
                seen[kinds[-1]].append(pair)
    if not kinds:
        raise ValueError(f"{head} wins nowhere in this text; give more of it")
    shares = {kind: _share([float(k == kind) for k in kinds], documents) for kind in CATEGORIES}
    return Shares(shares, len(kinds), seen)


def _share(flags: list[float], documents: list[int]) -> Estimate:
    if len(set(documents)) < 2:
        return population(sum(flags) / len(flags), len(flags), "cases")
    return share(flags, unit="documents", clusters=documents)
