"""What the latents of a head have in common: one role, one theme, or nothing (arXiv:2406.17759, section 4.1)."""

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.sae.latents.families import ROLES, Role, Sources


@dataclass(frozen=True)
class Themes:
    """What the sources of latents have in common.

    Attributes:
        vector: mean of the unit embeddings of a latent's sources. `coherence`: mean cosine of two of them.
    """

    vector: Float[Tensor, "latent d_model"]
    coherence: Float[Tensor, " latent"]


def themes(found: Sources, embedding: Float[Tensor, "vocab d_model"]) -> Themes:
    """Do the tokens that a latent reads resemble each other? By their embeddings, less the mean of all sources.

    Errors: `ValueError` for less than two examples a latent.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import SAE, initial
    >>> from mechinterp.sae.latents.families import sources
    >>> from mechinterp.sae.latents.features import feature_activations
    >>> model, params = load("lab", device="cpu"), initial("topk", 256, 512, seed=0)
    >>> sae = SAE("topk", params, 8, "blocks.2.attn.hook_z")
    >>> record = feature_activations(model, sae, torch.randint(1, 8192, (12, 16)), top=3)
    >>> found = sources(model, sae, record, n=3)
    >>> theme = themes(found, model.W_E)
    >>> theme.vector.shape == (len(found.latents), 256), bool((theme.coherence <= 1).all())
    (True, True)
    """
    n = found.word.shape[1]
    if n < 2:
        raise ValueError("what do sources have in common? There must be two examples of each latent at least")
    e = embedding.detach().cpu().float()[found.word]
    e = e - e.mean((0, 1))
    e = e / e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    vector = e.mean(1)
    return Themes(vector, (n * vector.square().sum(-1) - 1) / (n - 1))


@dataclass(frozen=True)
class HeadKinds:
    """Whether the latents in which a head has its largest shares are of one kind.

    Attributes:
        latents: places in `Sources` of the top latents of each head. `role`: the commonest of their roles but "none",
            and `agree`: how many have it, as a share.
        across: mean cosine of two sources of different ones. `within`: of two sources of the same one.
    """

    latents: Int[Tensor, "head top"]
    role: tuple[Role, ...]
    agree: Float[Tensor, " head"]
    across: Float[Tensor, " head"]
    within: Float[Tensor, " head"]

    @property
    def likeness(self) -> Float[Tensor, " head"]:
        """`across` over `within`: 1 if the sources of any two latents are as alike as those of one, 0 if not at all.

        Where those of one latent have next to nothing in common (0.02), there is no theme: 0.
        """
        return torch.where(self.within > 0.02, self.across / self.within.clamp(min=0.02), 0.0)

    def one_kind(self, *, role: float = 0.9, theme: float = 0.5) -> Bool[Tensor, " head"]:
        """Nearly all of the latents have one role, or they have one theme."""
        return (self.agree >= role - 1e-6) | (self.likeness >= theme)


def head_kinds(found: Sources, themes: Themes, shares: Float[Tensor, "d_sae head"], *, top: int = 10) -> HeadKinds:
    """Are the `top` latents of every head's largest decoder shares of one kind?

    One kind is one role, such as induction of whatever token, or one theme: sources that are nearly as much alike
    across latents as within one.

    Args:
        shares: of `attribution.head_shares`. Latents that are not in `found` are left out.

    Errors: `ValueError` for fewer than `top` latents.
    """
    if not 2 <= top <= len(found.latents):
        raise ValueError(f"top must lie in 2..{len(found.latents)}, the latents with examples, not {top}")
    chosen = shares.cpu()[found.latents].topk(top, dim=0).indices.T
    v = themes.vector[chosen]  # head top d_model
    across = (v.sum(1).square().sum(-1) - v.square().sum(-1).sum(1)) / (top * (top - 1))
    names: list[Role] = []
    agree, roles = [], found.role
    for row in chosen.tolist():
        counts = Counter(role for role in (roles[i] for i in row) if role != "none")
        role, count = counts.most_common(1)[0] if counts else (ROLES[-1], 0)
        names.append(role)
        agree.append(count / top)
    return HeadKinds(chosen, tuple(names), torch.tensor(agree), across, themes.coherence[chosen].mean(1))
