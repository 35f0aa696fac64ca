"""From the logits back to the heads that matter, one step of path patching after another (Wang et al., section 3)."""

from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from mechinterp.heads import Head
from mechinterp.patching.checks import Metric, Receiver
from mechinterp.patching.path_patching import path_patch

KINDS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")


def follow_back(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "prompt pos"],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    least: float = 0.02,
    batch_size: int = 512,
    progress: bool = False,
) -> dict[Head, float]:
    """Heads whose paths to the logits matter, then those whose paths to these heads matter, until nothing new turns up.

    A step patches the paths to the queries, keys and values of all heads that the step before has found, everywhere
    and together: a head that helps one of them and hinders another as much is not seen.

    Args:
        least: which change of the mean metric matters, as a share of it.
        others: as of `path_patch`.

    Returns:
        Of each head the relative change, −0.1 for a tenth of the metric lost, of the step that found it, by step and
        size.

    Errors: `ValueError` if `least` is not positive; as of `path_patch`.

    >>> from mechinterp.models import organisms
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> at = data.positions["END"]
    >>> found = follow_back(organism.model, data.tokens, data.abc(1).tokens, metric=data.logit_diff, at=at)
    >>> organism.roles[next(iter(found))]
    'name mover'
    """
    if not least > 0:
        raise ValueError(f"least must be above 0, not {least}")
    found: dict[Head, float] = {}
    receivers: Literal["logits"] | list[Receiver] = "logits"
    while receivers:
        effect = path_patch(
            model,
            clean,
            corrupt,
            metric=metric,
            at=at,
            receivers=receivers,
            batch_size=batch_size,
            progress=progress,
        ).effect()
        some = [Head(*head) for head in (effect.abs() >= least).nonzero().tolist()]
        new = sorted((head for head in some if head not in found), key=lambda head: -abs(float(effect[head])))
        found |= {head: float(effect[head]) for head in new}
        receivers = [(head, kind) for head in new if head.layer > 0 for kind in KINDS]
    return found
