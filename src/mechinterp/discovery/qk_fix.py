"""The QK fix of AtP* (Kramár et al., arXiv:2403.00745): queries and keys through the exact softmax.

The gradient of a saturated softmax is almost zero although another query or key would move all of its attention. So
the change of the pattern is computed in full, and only what comes after it is linear: score = Σ change · ∂L/∂pattern.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.anatomy import Input, Layer
from mechinterp.patching.engine import Cache

Read = Callable[[Float[Tensor, "prompt head query key"]], Float[Tensor, "prompt pos unit"]]
"""From the gradient with respect to the pattern to the scores of one layer's queries or keys."""
NEEDED = ("q", "k", "query", "key", "pattern")
"""What must be known of the clean pass."""


def query_effects(layer: Layer, clean: Cache, corrupt: Float[Tensor, "prompt pos head d_head"]) -> Read:
    """Each query by itself: its row's new softmax.

    Args:
        clean: `NEEDED` of this layer. `corrupt`: queries as the model's hooks have them.
    """
    positions = torch.arange(corrupt.shape[1], device=corrupt.device)
    key, pattern = clean["key", layer.index], clean["pattern", layer.index]
    moved = [
        _scores(layer, query, key, positions).softmax(-1).sub_(pattern)
        for query in _each(layer, "q", clean["q", layer.index], corrupt, positions)
    ]
    return lambda slope: _by_unit([(change * slope).sum(-1) for change in moved], corrupt.shape[2])


def key_effects(layer: Layer, clean: Cache, corrupt: Float[Tensor, "prompt pos kv_head d_head"]) -> Read:
    """Each key by itself: one score of every row that sees it, in all heads that share it.

    Args:
        clean: `NEEDED` of this layer. `corrupt`: keys as the model's hooks have them.
    """
    positions = torch.arange(corrupt.shape[1], device=corrupt.device)
    query = clean["query", layer.index]
    scores = _scores(layer, query, clean["key", layer.index], positions)
    moved = [
        rescored(scores, _scores(layer, query, key, positions))
        for key in _each(layer, "k", clean["k", layer.index], corrupt, positions)
    ]
    return lambda slope: _by_unit([change(slope).sum(-2) for change in moved], corrupt.shape[2])


def rescored(
    scores: Float[Tensor, "*row key"], new: Float[Tensor, "*row key"]
) -> Callable[[Float[Tensor, "*row key"]], Float[Tensor, "*row key"]]:
    """How the average of some values under a softmax changes if one score alone becomes the new one: for each key.

    With p = softmax(scores)_s, the new weight is σ(logit p + Δ), and all others scale by (1 − p') / (1 − p). So the
    average moves by (p' − p) · (value_s − average of the others), which costs O(keys) a row for all keys together. The
    odds of the likeliest key are taken from the others' scores, not from 1 − p, and hold where p rounds to 1.

    Returns: a function of the values [... key]. A score of −∞ in both is a key that is not seen.

    >>> change = rescored(torch.tensor([0.0, 0.0]), torch.tensor([-1.0, 1.0]))
    >>> change(torch.tensor([0.0, 4.0])).round(decimals=2).tolist()  # 4 (1 − σ(−1)) − 2 and 4 σ(1) − 2
    [0.9200000166893005, 0.9200000166893005]
    """
    pattern = scores.softmax(-1)
    top = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.argmax(-1, keepdim=True), True)
    others, below = scores.masked_fill(top, -torch.inf), pattern.masked_fill(top, 0.0)
    rest = others.logsumexp(-1, keepdim=True)  # −∞ where one key alone is seen
    log_rest = torch.where(top, rest, scores.logsumexp(-1, keepdim=True) + torch.log1p(-below))
    old, new = scores - log_rest, new - log_rest  # logits of p and p'
    moved = torch.where(old > 0, (-old).sigmoid() - (-new).sigmoid(), new.sigmoid() - old.sigmoid())
    share = (others - rest.clamp(min=torch.finfo(scores.dtype).min)).exp()

    def change(values: Tensor) -> Tensor:
        without_top = (share * values).sum(-1, keepdim=True)
        weighed = pattern * values
        without = (weighed.sum(-1, keepdim=True) - weighed) / (1 - below)
        return moved * (values - torch.where(top, without_top, without))

    return change


def _scores(layer: Layer, query: Tensor, key: Tensor, positions: Tensor) -> Float[Tensor, "prompt head query key"]:
    unseen = layer.hidden(positions[:, None] - positions)
    return layer.scores(query, layer.expand(key)).masked_fill(unseen, -torch.inf)


def _each(layer: Layer, name: Input, clean: Tensor, corrupt: Tensor, positions: Tensor) -> list[Tensor]:
    """Corrupted queries or keys, ready for scores: all heads' in one, for none sees another's.

    Where one norm spans all heads, a head's query changes every other's: then one pass for each that is corrupted.
    """
    if not layer.joint:
        return [layer.ready(name, corrupt, positions)]
    units = torch.arange(clean.shape[2], device=clean.device)[:, None]
    return [layer.ready(name, torch.where(units == unit, corrupt, clean), positions) for unit in range(len(units))]


def _by_unit(found: list[Float[Tensor, "prompt head pos"]], units: int) -> Float[Tensor, "prompt pos unit"]:
    """What was found in every head, added up over the heads that a query or key has a part in."""
    if len(found) == 1:
        return found[0].unflatten(1, (units, -1)).sum(2).transpose(1, 2)
    return torch.stack([x.sum(1) for x in found], -1)
