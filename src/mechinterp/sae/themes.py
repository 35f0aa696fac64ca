"""What the latents of a head have in common: one role, one theme, or nothing (Kissane et al., arXiv:2406.17759, §4.1)."""

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.sae.families import ROLES, Role, Sources


@dataclass(frozen=True)
class Themes:
    """What the sources of latents have in common.

    Attributes:
        vector: mean of the unit embeddings of a latent's sources. `coherence`: mean cosine of two of them.
    """

    vector: Float[Tensor, "latent d_model"]
    coherence: Float[Tensor, " latent"]


def themes(found: Sources, embedding: Float[Tensor, "vocab d_model"]) -> Themes:
    """Do the tokens that a latent reads resemble each other? By their embeddings, mean of the vocabulary taken away.

    Errors: `ValueError` for less than two examples a latent.

    >>> import torch
    >>> same = torch.zeros(2, 3, dtype=torch.long)
    >>> same[1] = torch.tensor([0, 1, 2])  # the first latent always reads token 0
    >>> blank = dict.fromkeys(("prompt", "position", "value", "induction", "itself", "previous", "local", "far"), same)
    >>> found = Sources("", same[:, 0], source=same, word=same, near=4, distant=16, **blank)
    >>> themes(found, torch.eye(3)).coherence.tolist()
    [1.0, -0.5]
    """
    n = found.word.shape[1]
    if n < 2:
        raise ValueError("what do sources have in common? There must be two examples of each latent at least")
    e = embedding.detach().cpu().float()
    e = e - e.mean(0)
    e = e / e.norm(dim=1, keepdim=True).clamp(min=1e-12)
    vector = e[found.word].mean(1)
    return Themes(vector, (n * vector.square().sum(-1) - 1) / (n - 1))


@dataclass(frozen=True)
class HeadKinds:
    """Whether the latents in which a head has its largest shares are of one kind.

    Attributes:
        latents: places in `Sources` of the top latents of each head. `role`: the commonest of their roles but "none",
            and `agree`: how many have it, as a share. `alike`: mean cosine of two of their themes. `limit`: what
            `alike` has to exceed: a quantile over random sets of as many latents of the layer.
        least: how large `agree` has to be.
    """

    latents: Int[Tensor, "head top"]
    role: tuple[Role, ...]
    agree: Float[Tensor, " head"]
    alike: Float[Tensor, " head"]
    limit: float
    least: float

    @property
    def one_kind(self) -> Bool[Tensor, " head"]:
        """One role or one theme."""
        return (self.agree >= self.least) | (self.alike > self.limit)


def head_kinds(
    found: Sources,
    themes: Themes,
    shares: Float[Tensor, "d_sae head"],
    *,
    top: int = 10,
    least: float = 0.9,
    quantile: float = 0.99,
    draws: int = 2000,
    seed: int = 0,
) -> HeadKinds:
    """Are the `top` latents of every head's largest decoder shares of one kind (Kissane et al., section 4.1)?

    One kind is one role, shared by nearly all of them, or one theme: their sources are more alike than those of random
    latents of the layer.

    Args:
        shares: of `attribution.head_shares`. Latents that are not in `found` are left out.

    Errors: `ValueError` for fewer than `top` latents.
    """
    if not 2 <= top <= len(found.latents):
        raise ValueError(f"top must lie in 2..{len(found.latents)}, the latents with examples, not {top}")
    chosen = shares.cpu()[found.latents].topk(top, dim=0).indices.T
    unit = themes.vector / themes.vector.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def alike(sets: Int[Tensor, "set top"]) -> Float[Tensor, " set"]:
        return (unit[sets].sum(1).square().sum(-1) - top) / (top * (top - 1))

    generator = torch.Generator().manual_seed(seed)
    random = torch.stack([torch.randperm(len(unit), generator=generator)[:top] for _ in range(draws)])
    roles, agree = found.role, []
    names: list[Role] = []
    for row in chosen.tolist():
        counts = Counter(role for role in (roles[i] for i in row) if role != "none")
        role, count = counts.most_common(1)[0] if counts else (ROLES[-1], 0)
        names.append(role)
        agree.append(count / top)
    limit = alike(random).quantile(quantile).item()
    return HeadKinds(chosen, tuple(names), torch.tensor(agree), alike(chosen), limit, least)
