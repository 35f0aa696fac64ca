"""Read a model's activations at a hook, or put others in their place.

Hooks have the names of TransformerLens; what runs is `patching.engine`, on any model that `Anatomy` describes. Heads
are concatenated: a site's activations are always [prompt pos d_in]. Under post norms (Gemma 2 and 3, OLMo 2)
`hook_attn_out` and `hook_mlp_out` are what is added to the stream, after them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy, size
from mechinterp.patching.checks import check_tokens
from mechinterp.patching.engine import Keep, trace

Replace = Callable[[Float[Tensor, "prompt pos d_in"]], Float[Tensor, "prompt pos d_in"]]
"""What to put in place of a site's activations."""
_NAMES = {
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
}
"""Hooks by their names in `patching.engine`; `hook_resid_post` is the next layer's resid_pre."""


def layer_of(hook: str) -> int | None:
    """The layer in a hook's name, None outside the blocks.

    >>> layer_of("blocks.10.attn.hook_z"), layer_of("hook_embed")
    (10, None)
    """
    parts = hook.split(".")
    return int(parts[1]) if parts[0] == "blocks" and len(parts) > 2 and parts[1].isdigit() else None


def check_hooks(model: Any, hooks: Sequence[str]) -> None:
    """`ValueError` naming the first hook that the model does not have, or that cannot be read here."""
    for hook in hooks:
        place(model, hook)


def place(model: Any, hook: str) -> tuple[str, int]:
    """A hook's name and layer in `patching.engine`; `ValueError` as in `check_hooks`.

    >>> from mechinterp.models import load
    >>> place(load("lab"), "blocks.1.hook_resid_post")
    ('resid_pre', 2)
    """
    layer, name = layer_of(hook), ".".join(hook.split(".")[2:])
    known = [*_NAMES, "hook_resid_post"]
    if layer is None or name not in known or not layer < size(model).n_layers:
        last = f"{size(model).n_layers - 1}"
        raise ValueError(f"no hook {hook!r} to read; in layers 0 to {last}, for layer 0: blocks.0.{', '.join(known)}")
    return ("resid_pre", layer + 1) if name == "hook_resid_post" else (_NAMES[name], layer)


def width(model: Any, hook: str) -> int:
    """Numbers a token at a hook, heads concatenated; `ValueError` as in `check_hooks`.

    >>> from mechinterp.models import load
    >>> width(load("lab"), "blocks.1.attn.hook_z")
    256
    """
    return activations(model, torch.zeros(1, 1, dtype=torch.long), [hook])[hook].shape[-1]


@torch.no_grad()
def activations(
    model: Any, tokens: Int[Tensor, "prompt pos"], hooks: Sequence[str], *, batch_size: int = 32
) -> dict[str, Float[Tensor, "prompt pos d_in"]]:
    """Activations at some hooks, in float32. Layers after the last of them are not run.

    Errors: `ValueError` for a hook that the model does not have, or activations that are not finite.

    >>> from mechinterp.models import load
    >>> x = activations(load("lab"), torch.tensor([[0, 5, 9]]), ["blocks.1.attn.hook_z"])
    >>> x["blocks.1.attn.hook_z"].shape
    torch.Size([1, 3, 256])
    """
    places = {hook: place(model, hook) for hook in hooks}
    anatomy = check_tokens(model, tokens.to(_device(model)), batch_size, bidirectional=True)
    _has(anatomy, places)
    wanted, stop = set(places.values()), max(layer + (name != "resid_pre") for name, layer in places.values())
    parts = []
    for some in tokens.to(anatomy.device).split(batch_size):
        got = trace(anatomy, some, lambda name, layer, x: x if (name, layer) in wanted else None, stop=stop)
        parts.append({hook: got[at].reshape(*some.shape, -1).float() for hook, at in places.items()})
    found = {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}
    for hook, x in found.items():
        if not torch.isfinite(x).all():
            raise ValueError(f"activations at {hook} contain NaN or infinity; check the model and its precision")
    return found


@torch.no_grad()
def logits(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    hook: str | None = None,
    replace: Replace | None = None,
    *,
    at: Int[Tensor, " prompt"] | None = None,
    below: Float[Tensor, "prompt pos d_model"] | None = None,
) -> Float[Tensor, "prompt *pos vocab"]:
    """Logits at every position (or one of every prompt), with a site's activations replaced; one pass.

    Args:
        below: the residual stream before the hook's layer (`hook_resid_pre`), to begin there.

    Errors: `ValueError` for a hook that the model does not have, or logits that are not finite.

    >>> from mechinterp.models import load
    >>> model, tokens = load("lab"), torch.tensor([[0, 5, 9]])
    >>> same = logits(model, tokens, "blocks.1.hook_mlp_out", lambda x: x)
    >>> torch.allclose(same, model(tokens), atol=1e-3)
    True
    """
    if (hook is None) != (replace is None):
        raise ValueError("give a hook and what to put in its place, or neither")
    where = None if hook is None else place(model, hook)
    anatomy = check_tokens(model, tokens.to(_device(model)), 1, bidirectional=True)
    if hook is not None and where is not None:
        _has(anatomy, {hook: where})
    tokens, end = tokens.to(anatomy.device), ("resid_pre", anatomy.size.n_layers)

    def change(name: str, layer: int, x: Tensor) -> Tensor:
        if (name, layer) != where or replace is None:
            return x
        return replace(x.flatten(2)).view_as(x).to(x.dtype)

    keep: Keep = lambda name, layer, x: x if (name, layer) == end else None  # noqa: E731
    layer = None if hook is None else layer_of(hook)
    start = None if below is None or layer is None else (layer, below.to(anatomy.dtype))
    got = trace(anatomy, tokens, keep, start=start, change=change)
    final = got[end] if at is None else got[end][torch.arange(len(tokens), device=tokens.device), at.to(tokens.device)]
    return anatomy.unembed(final)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


def _has(anatomy: Anatomy, places: dict[str, tuple[str, int]]) -> None:
    for hook, (name, layer) in places.items():
        if name == "resid_mid" and anatomy.layers[layer].parallel:
            raise ValueError(f"attention and MLP of this model stand side by side: there is no stream at {hook}")
