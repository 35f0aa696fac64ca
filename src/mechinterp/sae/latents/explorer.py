"""What the latents of a layer do on a reader's own prompt, as lists for `viz.token_explorer`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.heads import Head
from mechinterp.sae.architectures import SAE
from mechinterp.sae.latents.attribution import dfa_by_source, recursive_dfa
from mechinterp.sae.latents.dashboard import token_text
from mechinterp.sae.latents.features import logit_weights
from mechinterp.sae.sites import activations


@torch.no_grad()
def latent_views(
    model: Any, saes: Mapping[int, SAE], tokens: Int[Tensor, " pos"], layer: int, *, n: int = 4
) -> list[dict[str, Sequence[Any]]]:
    """At each token the latents that are on, and of the strongest: which heads and tokens it comes from, what it
    promotes, and what it is made of upstream.

    Args:
        saes: attention-output SAEs by layer. `tokens`: one prompt. `n`: entries in a list.

    Errors: `ValueError` as in `attribution.recursive_dfa`.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae.files import shipped
    >>> views = latent_views(load("lab"), {1: shipped("lab/attention-1")}, torch.tensor([0, 5, 9]), 1)
    >>> len(views), list(views[0])[0]
    (3, 'latents that are on')
    """
    sae, tokens = saes[layer], tokens.to(next(model.parameters()).device)
    on = sae.encode(activations(model, tokens[None], [sae.hook])[sae.hook][0])
    strongest = on.argmax(1)
    moved = dfa_by_source(model, sae, tokens.expand(len(tokens), -1), strongest, torch.arange(len(tokens)))
    promoted = logit_weights(model, sae, strongest, n=n + 2).promoted
    views: list[dict[str, Sequence[Any]]] = []
    for d, j in enumerate(strongest.tolist()):
        by_head, by_source = moved[d].sum(1), moved[d].sum(0)
        first = by_head.topk(min(3, len(by_head))).indices.tolist()
        reach = by_source.abs().max().clamp(min=1e-9)
        parts = recursive_dfa(model, saes, tokens, layer, d, j, top=2)
        views.append(
            {
                "latents that are on": [(f"{layer}.{int(k)}", on[d, k].item()) for k in on[d].topk(n).indices],
                f"{layer}.{j} comes from": [
                    (s, (by_source[s] / reach).item())
                    for s in by_source.topk(min(n, d + 1)).indices.tolist()
                    if by_source[s] > 0
                ],
                "through heads": [(str(Head(layer, h)), by_head[h].item()) for h in first],
                "it promotes": [token_text(model.tokenizer, t) for t in promoted[d].tolist()],
                "made of": [str(t) for t in parts.top(n + 2)],
                "and those of": [
                    f"{a.layer}.{a.latent} at {a.position}: " + ", ".join(str(t) for t in a.top(3))
                    for a in parts.upstream
                ]
                or ["nothing upstream"],
            }
        )
    return views
