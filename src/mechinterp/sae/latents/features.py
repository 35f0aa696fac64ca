"""What latents are about: where they are on, how often and how strongly, and which tokens they speak for.

One pass over text gives a compact record of every latent (Bricken et al. 2023, "Towards Monosemanticity"): density,
a histogram of its activations, and the places where it is strongest. Weights alone give its logit weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy, size
from mechinterp.patching.checks import check_tokens
from mechinterp.sae.architectures import SAE
from mechinterp.sae.latents.attribution import dfa_by_source
from mechinterp.sae.latents.interventions import SITES, check_latents, check_sae
from mechinterp.sae.sites import activations
from mechinterp.sae.store import counted as counted_tokens

BINS = 32
"""Bins of a histogram; at least half of them lie below the largest activation."""
_SMALLEST = -60
_SITES = (*SITES, "hook_resid_mid")


@dataclass(frozen=True)
class FeatureActivations:
    """Where every latent of an SAE is on in a text, on the CPU.

    Attributes:
        hook: where the SAE stands. `tokens`: the text. `counted`: which of its tokens count.
        prompt, position, value: the strongest activations of every latent, strongest first; where there are fewer,
            prompt and position are -1 and the value is 0.
        active: number of tokens on which it is on.
        histogram: tokens by activation, in `BINS` equal bins from 0 to 2 ** `exponent`; tokens at 0 are left out.
    """

    hook: str
    tokens: Int[Tensor, "prompt pos"]
    counted: Bool[Tensor, "prompt pos"]
    prompt: Int[Tensor, "latent n"]
    position: Int[Tensor, "latent n"]
    value: Float[Tensor, "latent n"]
    active: Int[Tensor, " latent"]
    histogram: Int[Tensor, "latent bin"]
    exponent: Int[Tensor, " latent"]

    @property
    def density(self) -> Float[Tensor, " latent"]:
        """Share of the counted tokens on which a latent is on."""
        return self.active / self.counted.sum()

    @property
    def maximum(self) -> Float[Tensor, " latent"]:
        """Largest activation; 0 for a latent that is never on."""
        return self.value[:, 0]


@torch.no_grad()
def feature_activations(
    model: Any,
    sae: SAE,
    tokens: Int[Tensor, "prompt pos"],
    *,
    top: int = 16,
    skip: Sequence[int] | None = None,
    one_per_prompt: bool = True,
    batch_size: int = 16,
    progress: bool = False,
) -> FeatureActivations:
    """Density, histogram and strongest activations of every latent, in one pass over a text.

    Args:
        top: how many of the strongest to keep. Of equal ones the first in the text.
        skip: token ids that do not count; None for the BOS token of the model's tokenizer, if there is one. The first
            token of a row never counts (see `store.counted`).
        one_per_prompt: keep at most one activation a prompt, so that the strongest are different contexts.
        batch_size: prompts at a time; does not change results. Memory: batch_size · positions · d_sae and
            d_sae · (3 · top + 32) numbers, whatever the length of the text.

    Errors: `ValueError` for an SAE that does not belong to the model, or a text without a token that counts.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import initial
    >>> sae = SAE("topk", initial("topk", 256, 512, seed=0), k=8, hook="blocks.2.attn.hook_z")
    >>> record = feature_activations(load("lab", device="cpu"), sae, torch.randint(1, 8192, (4, 16)), top=3)
    >>> record.value.shape, round(record.density.sum().item(), 3)  # k latents per token
    (torch.Size([512, 3]), 8.0)
    """
    check_sae(model, sae, _SITES)
    check_tokens(model, tokens, batch_size)
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    counted = counted_tokens(model, tokens, skip)
    if not counted.any():
        raise ValueError("no token of the text counts: but for the first of every row, all are among those to skip")
    device, n = sae.W_enc.device, sae.d_sae
    active = torch.zeros(n, dtype=torch.long, device=device)
    exponent = torch.full((n,), _SMALLEST, device=device)
    histogram = torch.zeros(n, BINS, dtype=torch.long, device=device)
    none = torch.zeros(0, dtype=torch.long, device=device)
    best = _Entries(none, none, none, torch.zeros(0, device=device))
    floor = torch.zeros(n, device=device)
    blocks = torch.arange(len(tokens)).split(batch_size)
    for some in tqdm(blocks, desc="latents", unit="batch", disable=not progress):
        f = sae.encode(activations(model, tokens[some], [sae.hook], batch_size=batch_size)[sae.hook].to(sae.W_enc))
        f = torch.where(counted[some].to(device)[..., None], f, 0.0)
        prompt, position, latent = f.nonzero().T
        value = f[prompt, position, latent].float()
        active += torch.bincount(latent, minlength=n)
        high = f.float().amax((0, 1))
        needed = torch.where(high > 0, torch.maximum(exponent, torch.frexp(high).exponent), exponent)
        merged = torch.arange(BINS, device=device) >> (needed - exponent).clamp(max=BINS)[:, None]
        histogram, exponent = torch.zeros_like(histogram).scatter_add_(1, merged, histogram), needed
        bins = (torch.ldexp(value, -exponent[latent]) * BINS).long()
        histogram.view(-1).index_add_(0, latent * BINS + bins, torch.ones_like(bins))
        new = _Entries(latent, prompt + some[0].to(device), position, value)[value > floor[latent]]
        if one_per_prompt:
            new = new.strongest(new.latent * len(tokens) + new.prompt, 1)
        best = best.followed_by(new)
        best = best.strongest(best.latent, top)
        full = torch.bincount(best.latent, minlength=n) == top
        floor[full] = best.value[best.rank(best.latent) == top - 1]
    place = best.latent, best.rank(best.latent)
    where = torch.full((2, n, top), -1, device=device)
    values = torch.zeros(n, top, device=device)
    where[0][place], where[1][place], values[place] = best.prompt, best.position, best.value
    found = (where[0], where[1], values, active, histogram, exponent)
    return FeatureActivations(sae.hook, tokens.cpu(), counted.cpu(), *(x.cpu() for x in found))


@dataclass(frozen=True)
class _Entries:
    """Activations as coordinates, in the order of the text among those of equal value."""

    latent: Int[Tensor, " entry"]
    prompt: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]

    def __getitem__(self, which: Tensor) -> "_Entries":
        return _Entries(self.latent[which], self.prompt[which], self.position[which], self.value[which])

    def followed_by(self, other: "_Entries") -> "_Entries":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Entries(*(torch.cat(pair) for pair in pairs))

    @staticmethod
    def rank(group: Int[Tensor, " entry"]) -> Int[Tensor, " entry"]:
        """Place of each entry within its group; groups are contiguous."""
        _, counts = group.unique_consecutive(return_counts=True)
        starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        return torch.arange(len(group), device=group.device) - starts

    def strongest(self, group: Int[Tensor, " entry"], n: int) -> "_Entries":
        """The n largest of each group, sorted by group and falling value; of equal ones the first."""
        order = self.value.argsort(descending=True, stable=True)
        order = order[group[order].argsort(stable=True)]
        return self[order[self.rank(group[order]) < n]]


@dataclass(frozen=True)
class Example:
    """One place where a latent is on, with its surroundings.

    Attributes:
        prompt, position: where. `value`: how strongly.
        positions: the positions that are shown, in order; where one is left out there is a gap.
        tokens, activations: token and latent at each of them.
        heads: DFA by head. `sources`: DFA by position shown, all heads together. Both only for `hook_z`.
    """

    prompt: int
    position: int
    value: float
    positions: Int[Tensor, " shown"]
    tokens: Int[Tensor, " shown"]
    activations: Float[Tensor, " shown"]
    heads: Float[Tensor, " head"] | None = None
    sources: Float[Tensor, " shown"] | None = None


@torch.no_grad()
def top_examples(
    model: Any,
    sae: SAE,
    record: FeatureActivations,
    latents: Sequence[int],
    *,
    n: int = 8,
    before: int = 20,
    after: int = 6,
    batch_size: int = 16,
) -> dict[int, tuple[Example, ...]]:
    """The strongest examples of some latents in context; for an attention-output SAE with direct feature attribution.

    The source that adds most is always shown, with its neighbours, however far back it lies.

    Args:
        n: examples a latent, at most the record's. before, after: how many tokens around are shown.
        batch_size: prompts at a time. Memory: batch_size · positions · d_sae floats, and
            examples · heads · positions.

    Errors: `ValueError` for a latent that the SAE does not have, or a record of another SAE.
    """
    check_sae(model, sae, _SITES)
    check_latents(sae, torch.tensor([*latents]))
    if len(record.value) != sae.d_sae or record.hook != sae.hook:
        raise ValueError(f"this record is of {len(record.value)} latents at {record.hook}, not of {sae!r}")
    which = torch.tensor([*latents], dtype=torch.long)
    row, place = (record.prompt[which, :n] >= 0).nonzero().T
    latent = which[row]
    prompt, position = record.prompt[latent, place], record.position[latent, place]
    if len(latent) == 0:
        return {int(i): () for i in latents}
    needed, at = prompt.unique(return_inverse=True)
    tokens, found = record.tokens[needed], torch.zeros(len(latent), record.tokens.shape[1])
    for some in torch.arange(len(needed)).split(batch_size):
        f = sae.encode(activations(model, tokens[some], [sae.hook], batch_size=batch_size)[sae.hook].to(sae.W_enc))
        here = torch.isin(at, some)
        found[here] = f[at[here].to(f.device) - int(some[0]), :, latent[here].to(f.device)].float().cpu()
    found = torch.where(record.counted[prompt], found, 0.0)
    dfa = None
    if sae.hook.endswith("hook_z"):
        rows = record.tokens[prompt].to(sae.W_enc.device)
        dfa = dfa_by_source(model, sae, rows, latent, position, batch_size=batch_size).cpu()
    examples: dict[int, tuple[Example, ...]] = {int(i): () for i in latents}
    for i, (j, p, d) in enumerate(zip(latent.tolist(), prompt.tolist(), position.tolist(), strict=True)):
        centres = [(d, before, after)]
        if dfa is not None:
            centres.append((int(dfa[i].sum(0).argmax()), 3, 2))
        shown = sorted({s for c, lo, hi in centres for s in range(max(0, c - lo), min(len(found[i]), c + hi + 1))})
        parts = (None, None) if dfa is None else (dfa[i].sum(1), dfa[i].sum(0)[shown])
        one = Example(p, d, found[i, d].item(), torch.tensor(shown), record.tokens[p][shown], found[i][shown], *parts)
        examples[j] += (one,)
    return examples


@dataclass(frozen=True)
class LogitWeights:
    """The tokens that latents promote and suppress most through the direct path.

    Attributes:
        latents: which. `promoted`, `suppressed`: token ids, strongest first. `up`, `down`: their logit weights.
    """

    latents: Int[Tensor, " latent"]
    promoted: Int[Tensor, "latent n"]
    up: Float[Tensor, "latent n"]
    suppressed: Int[Tensor, "latent n"]
    down: Float[Tensor, "latent n"]


@torch.no_grad()
def direct_logits(model: Any, sae: SAE, latents: Int[Tensor, " latent"]) -> Float[Tensor, "latent vocab"]:
    """Logit weights W_dec[i] W_U of latents, mean over the vocabulary 0 (Bricken et al. 2023, "logit weights").

    For `hook_z` each head's piece of W_dec[i] goes through its W_O first (and a post norm's gain). The final norm's
    gain counts, and its centring where it has one; scales are left out: sizes compare within a latent, not with
    logits. Later layers and a soft cap are left out, too.

    Errors: `ValueError` for an SAE or a latent that does not belong to the model.
    """
    layer = check_sae(model, sae, _SITES)
    check_latents(sae, latents)
    anatomy = Anatomy.of(model)
    directions = sae.W_dec[latents.to(sae.W_dec.device)].to(anatomy.dtype)
    if sae.hook.endswith("hook_z"):
        directions = directions @ anatomy.layers[layer].writes().flatten(0, 1)
    logits = anatomy.final.frozen(directions, torch.ones((), device=anatomy.device)) @ anatomy.W_U
    return logits - logits.mean(-1, keepdim=True)


@torch.no_grad()
def logit_weights(
    model: Any, sae: SAE, latents: Int[Tensor, " latent"] | None = None, *, n: int = 10, block: int = 512
) -> LogitWeights:
    """The n tokens that each latent promotes and suppresses most, by `direct_logits`.

    Args:
        latents: None for all. block: latents at a time; does not change results. Memory: block · vocab floats.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import initial
    >>> sae = SAE("standard", initial("standard", 256, 512, seed=0), hook="blocks.4.hook_resid_post")
    >>> found = logit_weights(load("lab", device="cpu"), sae, torch.tensor([3, 5]), n=4)
    >>> found.promoted.shape, bool((found.up > 0).all()), bool((found.down < 0).all())
    (torch.Size([2, 4]), True, True)
    """
    if not 1 <= n <= size(model).d_vocab:
        raise ValueError(f"n must lie in 1..{size(model).d_vocab}, the size of the vocabulary, not {n}")
    latents = torch.arange(sae.d_sae) if latents is None else latents.cpu()
    parts = []
    for some in latents.split(block):
        logits = direct_logits(model, sae, some)
        high, low = logits.topk(n), logits.topk(n, largest=False)
        parts.append([x.cpu() for x in (high.indices, high.values, low.indices, low.values)])
    return LogitWeights(latents, *(torch.cat(columns) for columns in zip(*parts, strict=True)))
