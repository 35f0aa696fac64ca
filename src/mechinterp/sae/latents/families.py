"""What kind of thing a latent of an attention-output SAE speaks for, by rules instead of by eye.

Kissane et al. (arXiv:2406.17759, section 3) read the strongest examples of latents and meet three families: induction,
local context, high-level context. Here a latent is asked three things. Where do its activations come from (direct
feature attribution, DFA)? That gives its family. Is that so (`context_test`): may all be replaced that the family says
does not matter, and nothing that matters? And do its sources have something in common (`themes`)? `control` makes
random directions of the same layer. They show which of the questions are about latents, and which about heads.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import size
from mechinterp.patching.checks import check_tokens
from mechinterp.patching.engine import trace
from mechinterp.sae.architectures import SAE
from mechinterp.sae.latents.attribution import Z, encoder_map
from mechinterp.sae.latents.features import FeatureActivations
from mechinterp.sae.latents.interventions import check_sae
from mechinterp.sae.sites import activations

Family = Literal["induction", "local", "long-range", "mixed"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Role = Literal["induction", "previous token", "present token", "none"]
ROLES: tuple[Role, ...] = get_args(Role)


def folded(tokenizer: Any, d_vocab: int) -> Int[Tensor, " vocab"]:
    """For every token the first one that is the same word up to blanks around it and capitals.

    >>> from mechinterp.models import load_tokenizer
    >>> lab = load_tokenizer("lab")
    >>> same, ids = folded(lab, 8192), lab.convert_tokens_to_ids(["ĠThe", "Ġthe", "the"])
    >>> len({int(same[i]) for i in ids})
    1
    """
    first: dict[str, int] = {}
    words = [str(tokenizer.decode([i])).strip().lower() or str(tokenizer.decode([i])) for i in range(d_vocab)]
    return torch.tensor([first.setdefault(word, i) for i, word in enumerate(words)])


@dataclass(frozen=True)
class Sources:
    """Where activations of some latents come from, by direct feature attribution.

    Attributes:
        hook: where the SAE stands. `latents`: those with enough examples.
        prompt, position, value: examples of each, from its strongest down to the last of its record.
        induction: share of the positive DFA that comes from tokens behind an earlier copy of the present one. `itself`,
            `previous`: from the present token and the one before. `local`: from the present one and `near` before it;
            `far`: from more than `distant` back, both without the tokens that count as induction.
        source: the position that adds most. `word`: the token there.
    """

    hook: str
    latents: Int[Tensor, " latent"]
    prompt: Int[Tensor, "latent n"]
    position: Int[Tensor, "latent n"]
    value: Float[Tensor, "latent n"]
    induction: Float[Tensor, "latent n"]
    itself: Float[Tensor, "latent n"]
    previous: Float[Tensor, "latent n"]
    local: Float[Tensor, "latent n"]
    far: Float[Tensor, "latent n"]
    source: Int[Tensor, "latent n"]
    word: Int[Tensor, "latent n"]
    near: int
    distant: int

    @property
    def family(self) -> list[Family]:
        """For each latent, the first of the three whose median share over the examples is at least one half."""
        return [FAMILIES[i] for i in _first(self.induction, self.local, self.far)]

    @property
    def role(self) -> list[Role]:
        """For each latent, the one relation of source and present token with at least one half, by medians."""
        return [ROLES[i] for i in _first(self.induction, self.previous, self.itself)]

    def __getitem__(self, which: Tensor) -> "Sources":
        """Those of some latents, by place."""
        picked: dict[str, Any] = {n: x[which] if isinstance(x, Tensor) else x for n, x in vars(self).items()}
        return Sources(**picked)


def _first(*shares: Float[Tensor, "latent n"]) -> list[int]:
    """Which share is the first with a median of at least one half; their number if none is."""
    medians = torch.stack([share.median(1).values for share in shares])
    enough = torch.cat([medians >= 0.5, torch.ones_like(medians[:1], dtype=torch.bool)])
    return [int(i) for i in enough.int().argmax(0)]


@torch.no_grad()
def sources(
    model: Any,
    sae: SAE,
    record: FeatureActivations,
    same: Int[Tensor, " vocab"] | None = None,
    *,
    n: int = 8,
    near: int = 4,
    distant: int = 16,
    batch_size: int = 16,
) -> Sources:
    """DFA by source for `n` examples of every latent that has as many as the record holds.

    The examples are spread over the record by rank, from the strongest to the last: a family that only the very
    strongest show would not count. Tokens that the record does not count (BOS) are no sources.

    Args:
        same: from `folded`, for what is a copy of what; by default only equal tokens are.

    Memory: latents · n · positions floats.

    Errors: `ValueError` for an SAE that does not read this model's z, a record of another one, or more examples than
        it holds.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import initial
    >>> from mechinterp.sae.latents.features import feature_activations
    >>> model = load("lab", device="cpu")
    >>> sae = SAE("topk", initial("topk", 256, 512, seed=0), 8, "blocks.2.attn.hook_z")
    >>> record = feature_activations(model, sae, torch.randint(1, 8192, (12, 16)), top=2)
    >>> found = sources(model, sae, record, n=2)
    >>> found.local.shape == (len(found.latents), 2), set(found.family) <= set(FAMILIES)
    (True, True)
    """
    layer = check_sae(model, sae, Z)
    anatomy = check_tokens(model, record.tokens.to(next(model.parameters()).device), batch_size)
    top = record.value.shape[1]
    if len(record.value) != sae.d_sae or record.hook != sae.hook:
        raise ValueError(f"this record is of {len(record.value)} latents at {record.hook}, not of {sae!r}")
    if not 1 <= n <= top:
        raise ValueError(f"n must lie in 1..{top}, the examples of the record, not {n}")
    device, n_heads = anatomy.device, anatomy.size.n_heads
    ranks = torch.linspace(0, top - 1, n).round().long()
    latents = (record.prompt[:, -1] >= 0).nonzero()[:, 0]
    prompt, position = (x[latents][:, ranks].flatten() for x in (record.prompt, record.position))
    latent = latents.repeat_interleave(n)
    weight = rearrange(encoder_map(sae)[0], "(head d_head) i -> head d_head i", head=n_heads)
    wanted = {("pattern", layer), ("value", layer)}
    dfa = torch.zeros(len(latent), record.tokens.shape[1])
    for some in prompt.unique().split(batch_size):
        rows = record.tokens[some].to(device)
        got = trace(anatomy, rows, lambda name, i, x: x if (name, i) in wanted else None, stop=layer + 1)
        every = anatomy.layers[layer].expand(got["value", layer])
        for row, p in enumerate(some.tolist()):
            here = (prompt == p).nonzero()[:, 0]
            v, own = every[row], weight[:, :, latent[here].to(device)]
            values = einsum(v.to(own), own, "source head d, head d e -> e head source")
            pattern = got["pattern", layer][row][:, position[here].to(device)].transpose(0, 1)
            dfa[here] = (values * pattern).sum(1).float().cpu()
    tokens, d = record.tokens[prompt], position[:, None]
    same = torch.arange(int(tokens.max()) + 1) if same is None else same.cpu()
    positive = dfa.clamp(min=0) * record.counted[prompt]
    total = positive.sum(1).clamp(min=1e-12)
    back = d - torch.arange(tokens.shape[1])
    copied = (same[tokens] == same[tokens.gather(1, d)]) & (back > 0)
    behind = torch.cat([torch.zeros_like(copied[:, :1]), copied[:, :-1]], 1) & (back > 0)

    def share(mask: Bool[Tensor, "example source"]) -> Float[Tensor, "latent n"]:
        return ((positive * mask).sum(1) / total).view(-1, n)

    return Sources(
        hook=sae.hook,
        latents=latents,
        prompt=prompt.view(-1, n),
        position=position.view(-1, n),
        value=record.value[latents][:, ranks],
        induction=share(behind),
        itself=share((back == 0) & ~behind),
        previous=share((back == 1) & ~behind),
        local=share((back <= near) & ~behind),
        far=share((back > distant) & ~behind),
        source=positive.argmax(1).view(-1, n),
        word=tokens.gather(1, positive.argmax(1)[:, None]).view(-1, n),
        near=near,
        distant=distant,
    )


@dataclass(frozen=True)
class ContextTest:
    """What is left of activations when text is replaced, as a share.

    | family | must stay when this is replaced | must fall when this is replaced |
    |---|---|---|
    | induction | as many other tokens | every earlier copy of the present token |
    | local | all before the near ones | the near ones and the token itself |
    | long-range | the near ones | all that is more than `distant` tokens back |

    Attributes:
        stay, fall: by latent and example. A mixed latent has nothing that it promises: 0 and 1.
    """

    stay: Float[Tensor, "latent n"]
    fall: Float[Tensor, "latent n"]

    @property
    def passed(self) -> Bool[Tensor, " latent"]:
        """Medians of at least a half, and of less than a half."""
        return (self.stay.median(1).values >= 0.5) & (self.fall.median(1).values < 0.5)


@torch.no_grad()
def context_test(
    model: Any,
    sae: SAE,
    record: FeatureActivations,
    found: Sources,
    same: Int[Tensor, " vocab"] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> ContextTest:
    """Replace what the family of a latent says does not matter, and what it says does; two runs an example.

    Tokens are replaced by those at the same positions of another prompt of the record, for induction by random ones.

    Errors: `ValueError` for sources of another SAE.
    """
    check_sae(model, sae, Z)
    if found.hook != sae.hook or record.hook != sae.hook:
        raise ValueError(f"sources at {found.hook} and record at {record.hook} do not belong to {sae!r}")
    generator = torch.Generator().manual_seed(seed)
    n = found.prompt.shape[1]
    prompt, position = found.prompt.flatten(), found.position.flatten()
    tokens, counted, d = record.tokens[prompt], record.counted[prompt], position[:, None]
    shift = torch.randint(1, max(2, len(record.tokens)), prompt.shape, generator=generator)
    other = record.tokens[(prompt + shift) % len(record.tokens)]
    random = torch.randint(1, size(model).d_vocab, tokens.shape, generator=generator)
    same = torch.arange(size(model).d_vocab) if same is None else same.cpu()
    back = d - torch.arange(tokens.shape[1])
    before = (back > 0) & counted
    copies = (same[tokens] == same[tokens.gather(1, d)]) & before
    behind = torch.cat([torch.zeros_like(copies[:, :1]), copies[:, :-1]], 1)
    score = torch.rand(tokens.shape, generator=generator) * (before & ~copies & ~behind)
    others = score.argsort(1, descending=True).argsort(1) < copies.sum(1, keepdim=True)
    others = others & (score > 0)
    masks = {
        "induction": (others, copies),
        "local": (before & (back > found.near), counted & (back >= 0) & (back <= found.near)),
        "long-range": (before & (back <= found.near), before & (back > found.distant)),
    }
    family = [name for name in found.family for _ in range(n)]
    left = torch.tensor([0.0, 1.0]).repeat(len(family), 1)
    jobs = [i for i, name in enumerate(family) if name != "mixed"]
    jobs = sorted(jobs, key=lambda i: int(position[i]))  # of like length together
    for turn in (0, 1):
        for start in range(0, len(jobs), batch_size):
            some = torch.tensor(jobs[start : start + batch_size])
            edited = torch.stack(
                [
                    torch.where(
                        masks[family[i]][turn][i], (random if family[i] == "induction" else other)[i], tokens[i]
                    )
                    for i in some.tolist()
                ]
            )[:, : int(position[some].max()) + 1]
            x = activations(model, edited, [sae.hook], batch_size=batch_size)[sae.hook].to(sae.W_enc)
            f = sae.encode(x[torch.arange(len(some)), position[some].to(x.device)]).cpu()
            which = found.latents[some // n]
            left[some, turn] = f[torch.arange(len(some)), which].float() / found.value.flatten()[some]
    return ContextTest(left[:, 0].view(-1, n), left[:, 1].view(-1, n))


@torch.no_grad()
def control(
    sae: SAE, x: Float[Tensor, "token d_in"], density: Float[Tensor, " latent"], *, seed: int = 0, block: int = 256
) -> SAE:
    """Random directions in place of latents, each on as often as one of them is: what the same tests find by chance.

    Args:
        x: activations on which biases are set. `density`: share of them on which each direction is to be on.

    Errors: `ValueError` for activations of another width.

    >>> from mechinterp.sae import initial
    >>> sae = SAE("standard", initial("standard", 4, 16, seed=0))
    >>> x = torch.randn(1000, 4)
    >>> (control(sae, x, torch.full((8,), 0.1)).encode(x) > 0).float().mean().round(decimals=2)
    tensor(0.1000)
    """
    if x.ndim != 2 or x.shape[1] != sae.d_in:
        raise ValueError(f"x must be [token {sae.d_in}], got {tuple(x.shape)}")
    rows = torch.randn(len(density), sae.d_in, generator=torch.Generator().manual_seed(seed)).to(x)
    rows = rows / rows.norm(dim=1, keepdim=True)
    rank = (density.to(x.device) * len(x)).round().long().clamp(0, len(x) - 1)
    bias = []
    for some in torch.arange(len(density)).split(block):
        level = ((x - sae.b_dec) @ rows[some].T).sort(0, descending=True).values
        # Halfway between the last that is on and the first that is off: on the value itself rounding would decide.
        last, first = (level.gather(0, (rank[some] - i).clamp(min=0)[None])[0] for i in (1, 0))
        bias.append(-(last + first) / 2)
    params = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_dec": sae.b_dec, "b_enc": torch.cat(bias)}
    return SAE("standard", params, hook=sae.hook)
