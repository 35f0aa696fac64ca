"""Interventions on the latents of an SAE while its model runs: ablated, steered, or changed by any function.

The activations x at the SAE's hook have latents f = encode(x); an edit makes f' of them. Then x becomes

    x + decode(f') - decode(f)      with the SAE's error kept: an edit that changes nothing changes nothing
    decode(f')                      without it

Marks et al. (arXiv:2403.19647) and Kissane et al. (arXiv:2406.17759) keep the error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy, size
from mechinterp.patching.checks import Metric, check_tokens, measure
from mechinterp.patching.engine import Window, pick, resume, trace
from mechinterp.sae.architectures import SAE
from mechinterp.sae.kinds import KINDS
from mechinterp.sae.sites import activations, check_hooks, layer_of, logits

Edit = Callable[[Float[Tensor, "batch pos d_sae"]], Float[Tensor, "batch pos d_sae"]]
"""From latents to latents of the same shape."""
SITES = ("attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_pre", "hook_resid_post")
"""Where an SAE may stand, since what is there reaches the rest of the model through nothing else."""


def check_sae(model: Any, sae: SAE, sites: Sequence[str] = SITES) -> int:
    """The SAE's layer; `ValueError` if it does not belong to this model, or its latents depend on the batch."""
    if not sae.hook:
        raise ValueError(
            f"{sae!r} does not say where it belongs; dataclasses.replace(sae, hook='blocks.2.attn.hook_z')"
        )
    check_hooks(model, [sae.hook])
    layer, site = layer_of(sae.hook), ".".join(sae.hook.split(".")[2:])
    if layer is None or site not in sites:
        raise ValueError(f"an SAE at {sae.hook} is not supported here; in a layer: {', '.join(sites)}")
    sizes, device = size(model), next(model.parameters()).device
    width = sizes.n_heads * sizes.d_head if site == "attn.hook_z" else sizes.d_model
    if sae.d_in != width:
        raise ValueError(f"{sae!r} reads activations of width {sae.d_in}; at its hook this model has {width}")
    if sae.W_enc.device != device:
        raise ValueError(f"the SAE is on {sae.W_enc.device}, the model on {device}: use sae.to(device)")
    if not all(torch.isfinite(value.sum()) for value in sae.params.values()):
        raise ValueError(f"the weights of {sae!r} contain NaN or infinity")
    if KINDS[sae.kind].batchwise:
        raise ValueError(f"latents of a {sae.kind} SAE depend on the whole batch; convert it to jumprelu for use")
    return layer


def check_latents(sae: SAE, latents: Int[Tensor, "..."]) -> None:
    """`ValueError` for a latent that the SAE does not have."""
    if latents.numel() and not (int(latents.min()) >= 0 and int(latents.max()) < sae.d_sae):
        raise ValueError(f"latents must lie in 0..{sae.d_sae - 1}, got {int(latents.min())}..{int(latents.max())}")


@dataclass(frozen=True)
class LatentEdit:
    """Some latents become times · f + plus, everywhere or at one position of every prompt (see `ablate`, `steer`)."""

    latents: tuple[int, ...]
    times: float
    plus: float
    at: Int[Tensor, " prompt"] | None = None

    def __call__(self, f: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_sae"]:
        """New latents; `f` stays as it is."""
        if not all(0 <= i < f.shape[-1] for i in self.latents):
            raise ValueError(f"latents must lie in 0..{f.shape[-1] - 1}, got {self.latents}")
        if self.at is not None and len(self.at) != len(f):
            raise ValueError(f"positions of {len(self.at)} prompts, latents of {len(f)}: pass the edit itself, uncut")
        if self.at is not None and not (int(self.at.min()) >= 0 and int(self.at.max()) < f.shape[1]):
            raise ValueError(f"at must lie in 0..{f.shape[1] - 1}, got {int(self.at.min())}..{int(self.at.max())}")
        new, which = f.clone(), list(self.latents)
        changed = self.times * f[..., which] + self.plus
        if self.at is None:
            new[..., which] = changed
        else:
            rows, at = torch.arange(len(f), device=f.device)[:, None], self.at.to(f.device)[:, None]
            new[rows, at, torch.tensor(which, dtype=torch.long, device=f.device)] = changed[rows[:, 0], at[:, 0]]
        return new

    def __getitem__(self, prompts: Tensor) -> "LatentEdit":
        """The edit of some prompts."""
        return self if self.at is None else replace(self, at=self.at[prompts.to(self.at.device)])


def ablate(latents: int | Sequence[int], at: Int[Tensor, " prompt"] | None = None) -> LatentEdit:
    """Set latents to zero.

    Args:
        at: one position a prompt; None for all positions.

    >>> ablate([0, 2])(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[0., 2., 0.]]])
    """
    return LatentEdit(_several(latents), 0.0, 0.0, at)


def steer(latents: int | Sequence[int], strength: float, at: Int[Tensor, " prompt"] | None = None) -> LatentEdit:
    """Add to latents: x moves by strength · W_dec[latent], in units of x (h + α v of arXiv:2411.02193).

    Args:
        at: one position a prompt; None for all positions.

    >>> steer(1, 5.0)(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[1., 7., 3.]]])
    """
    return LatentEdit(_several(latents), 1.0, strength, at)


def _several(latents: int | Sequence[int]) -> tuple[int, ...]:
    return (latents,) if isinstance(latents, int) else tuple(int(i) for i in latents)


def splice(sae: SAE, edit: Edit | None = None, *, error: bool = True) -> Callable[[Tensor, Any], Tensor]:
    """A hook that puts edited latents in place of activations; heads of `hook_z` are taken together.

    For uses that `spliced_logits` does not cover, such as several SAEs at once:

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import SAE, initial
    >>> model = load("lab", device="cpu")
    >>> sae = SAE("standard", initial("standard", 256, 512, seed=0), hook="blocks.1.hook_mlp_out")
    >>> hooks = [(sae.hook, splice(sae, steer(7, 2.0)))]
    >>> model.run_with_hooks(torch.tensor([[0, 5, 9]]), fwd_hooks=hooks).shape
    torch.Size([1, 3, 8192])
    """

    put = _spliced(sae, edit, error)
    return lambda x, hook: put(x.flatten(2)).view_as(x).to(x.dtype)


def _spliced(sae: SAE, edit: Edit | None, error: bool) -> Callable[[Tensor], Tensor]:
    """From activations [prompt pos d_in] to those with edited latents."""

    def put(x: Tensor) -> Tensor:
        flat = x.to(sae.W_enc.dtype)
        f = sae.encode(flat)
        # A clone, so that an edit in place does not change what is subtracted.
        new = f if edit is None else edit(f.clone())
        if new.shape != f.shape:
            raise ValueError(f"an edit must return latents of shape {tuple(f.shape)}, got {tuple(new.shape)}")
        return flat + (new - f) @ sae.W_dec if error else sae.decode(new)

    return put


@torch.no_grad()
def spliced_logits(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    sae: SAE,
    edit: Edit | None = None,
    *,
    error: bool = True,
    at: Int[Tensor, " prompt"] | None = None,
    batch_size: int = 32,
) -> Float[Tensor, "prompt *pos vocab"]:
    """Logits with the SAE's latents edited at all positions of its hook.

    Without an edit these are the model's own logits, or (`error=False`) those with the SAE in place of x.

    Args:
        edit: see `ablate` and `steer`, or any function of latents [batch pos d_sae] that treats prompts alike.
        error: keep the SAE's error.
        at: where the logits are read, one position a prompt; None for all positions.
        batch_size: prompts at a time; does not change results. Memory beside the result:
            batch_size · positions · (3 · d_sae + vocab) floats.

    Errors: `ValueError` for an SAE that does not belong to the model, an edit that changes the shape, or logits
        that are not finite. No hook stays on the model.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import SAE, initial
    >>> model, tokens = load("lab", device="cpu"), torch.tensor([[0, 5, 9], [0, 7, 7]])
    >>> sae = SAE("standard", initial("standard", 256, 512, seed=0), hook="blocks.2.attn.hook_z")
    >>> spliced_logits(model, tokens, sae, ablate(3)).shape
    torch.Size([2, 3, 8192])
    """
    check_sae(model, sae)
    check_tokens(model, tokens, batch_size, at)
    parts = []
    for some in torch.arange(len(tokens)).split(batch_size):
        own = edit[some] if isinstance(edit, LatentEdit) else edit
        where = None if at is None else at[some]
        parts.append(logits(model, tokens[some], sae.hook, _spliced(sae, own, error), at=where))
    return torch.cat(parts)


@dataclass(frozen=True)
class AblationEffects:
    """What it does to a metric to set one latent to zero, or to its mean, at one position of every prompt.

    Attributes:
        before: the metric, nothing changed.
        latents: which. `values`: metric after minus before, exactly 0 where the latent has that value anyway.
        active: where it is on. `error`: the same with the SAE's error set to zero instead.
    """

    before: Float[Tensor, " prompt"]
    latents: Int[Tensor, " latent"]
    values: Float[Tensor, "prompt latent"]
    active: Bool[Tensor, "prompt latent"]
    error: Float[Tensor, " prompt"]

    def top(self, n: int = 10) -> list[tuple[int, float]]:
        """Latents of the largest mean effect by absolute value, with that mean over all prompts."""
        means = self.values.mean(0)
        order = means.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(int(self.latents[i]), means[i].item()) for i in order]


@torch.no_grad()
def ablation_effects(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    sae: SAE,
    latents: Int[Tensor, " latent"] | None,
    at: Int[Tensor, " prompt"],
    metric: Metric,
    *,
    read: Int[Tensor, " prompt"] | None = None,
    to: Literal["zero", "mean"] = "zero",
    batch_size: int = 64,
) -> AblationEffects:
    """Zero every active latent by itself, at one position a prompt; errors kept (Kissane et al.).

    Zero takes away what a latent says on every prompt, too; its mean over the prompts takes away only what differs.
    Only latents that change cost anything. What comes before the SAE's layer and before `at` is computed once.

    Args:
        latents: None for all.
        at: where latents are changed. `read`: where the logits are read, by default the last position.
        to: the new value: zero, or the latent's mean over all prompts at `at`.
        metric: from logits at `read` of all prompts to one value a prompt, each from its own row.
        batch_size: (prompt, latent) pairs at a time; does not change results. Memory:
            (2 · layers · positions · d_model + vocab) · batch_size + prompts · (vocab + 3 · d_sae) floats.

    Errors: `ValueError` as in `spliced_logits`, and for positions read before the one that is changed.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import SAE, initial
    >>> model, tokens = load("lab", device="cpu"), torch.tensor([[0, 5, 9], [0, 7, 7]])
    >>> sae = SAE("topk", initial("topk", 256, 512, seed=0), k=4, hook="blocks.2.attn.hook_z")
    >>> effects = ablation_effects(model, tokens, sae, None, torch.tensor([1, 2]), lambda logits: logits[:, 5])
    >>> effects.values.shape, effects.active.sum(1).tolist()
    (torch.Size([2, 512]), [4, 4])
    """
    layer = check_sae(model, sae)
    anatomy = check_tokens(model, tokens, batch_size, at)
    read = torch.full_like(at, tokens.shape[1] - 1) if read is None else read
    check_tokens(model, tokens, batch_size, read, "read")
    if (read < at).any():
        raise ValueError("nothing read before the position that is changed can differ: read must be at least at")
    latents = torch.arange(sae.d_sae) if latents is None else latents
    check_latents(sae, latents)
    device = anatomy.device
    tokens, at, read = tokens[:, : int(read.max()) + 1].to(device), at.to(device), read.to(device)
    clean = spliced_logits(model, tokens, sae, at=read, batch_size=batch_size)
    before = measure(metric, clean)
    values, active, error = before.new_zeros(len(tokens), len(latents)), [], torch.zeros_like(before)
    if to not in ("zero", "mean"):
        raise ValueError(f"to must be zero or mean, not {to!r}")
    xs = []
    for some in torch.arange(len(tokens), device=device).split(batch_size):
        site = activations(model, tokens[some], [sae.hook])[sae.hook]
        xs.append(pick(site, at[some][:, None])[:, 0].to(sae.W_enc))
    x = torch.cat(xs)
    f = sae.encode(x)
    target = f[:, latents].mean(0) if to == "mean" else f.new_zeros(len(latents))

    def effect(logits: Tensor, prompts: Tensor) -> Tensor:
        changed = clean.clone()
        changed[prompts] = logits
        return (measure(metric, changed) - before)[prompts]

    for some in torch.arange(len(tokens), device=device).split(batch_size):
        run = _rest(anatomy, sae.hook, layer, tokens[some], at[some], read[some])
        every = torch.arange(len(some), device=device)
        error[some] = effect(run(every, sae.decode(f[some]) - x[some]), some)
        own = f[some][:, latents]
        active.append(own != 0)
        changes = own != target
        prompt, column = changes.nonzero().T
        # One latent of every prompt, then the next one of every prompt: few calls of the metric.
        turn = changes.cumsum(1)[prompt, column]
        order = turn.argsort(stable=True)
        for pairs in order.split(batch_size) if len(order) else ():
            p, c = prompt[pairs], column[pairs]
            logits = run(p, (target[c] - own[p, c])[:, None] * sae.W_dec[latents[c.cpu()]])
            for now in turn[pairs].unique():
                here = turn[pairs] == now
                values[some[p[here]], c[here]] = effect(logits[here], some[p[here]])
    return AblationEffects(before, latents, values, torch.cat(active), error)


Run = Callable[[Int[Tensor, " pair"], Float[Tensor, "pair d_in"]], Float[Tensor, "pair vocab"]]
"""(prompts, what is added to their activations at `at`) -> logits at `read`."""


def _rest(anatomy: Anatomy, hook: str, index: int, tokens: Tensor, at: Tensor, read: Tensor) -> Run:
    """Only the layers and positions that can change."""
    layer, site = anatomy.layers[index], hook.split(".", 2)[2]
    start = index + (site != "hook_resid_pre")
    into = {"attn.hook_z": "attn", "hook_attn_out": "attn_out"}.get(site)

    def keep(name: str, i: int, x: Tensor) -> Tensor | None:
        if i == index and into is not None and name in ("resid_pre", into):
            return pick(x, at[:, None])[:, 0]
        return x if (name, i) == ("resid_pre", start) or (name in ("key", "value") and i >= start) else None

    cache = trace(anatomy, tokens, keep)
    seen = int(at.max())

    def run(prompts: Tensor, change: Tensor) -> Tensor:
        window = Window(at[prompts], read[prompts], read[prompts])
        x = pick(cache["resid_pre", start][prompts], window.positions)
        if into is None:
            x[:, 0] = x[:, 0] + change
        else:
            if into == "attn":
                change = layer.write(change.unflatten(-1, (layer.n_heads, -1)), range(layer.n_heads))
            now = cache[into, index][prompts] + change
            x[:, 0] = layer.finish(cache["resid_pre", index][prompts], layer.post1(now) if into == "attn" else now)
        own = {(name, i): cache[name, i][prompts, :seen] for name, i in cache if name in ("key", "value")}
        return anatomy.unembed(resume(anatomy, own, x[None], window, layer=start)[0])

    return run
