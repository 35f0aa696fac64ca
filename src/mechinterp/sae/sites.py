"""Read a model's activations at a hook, or put others in their place.

Models of `patching.engine` (GPT-2 and its like) run there, others through hooks; the answers are the same. Heads of
`hook_z` are concatenated: a site's activations are always [prompt pos d_in].
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.patching.checks import check_model
from mechinterp.patching.engine import trace, unembed

Replace = Callable[[Float[Tensor, "prompt pos d_in"]], Float[Tensor, "prompt pos d_in"]]
"""What to put in place of a site's activations."""
_NAMES = {
    "attn.hook_z": "z",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_resid_pre": "resid_pre",
}
"""Hooks by their names in `patching.engine`."""


def layer_of(hook: str) -> int | None:
    """The layer in a hook's name, None outside the blocks.

    >>> layer_of("blocks.10.attn.hook_z"), layer_of("hook_embed")
    (10, None)
    """
    parts = hook.split(".")
    return int(parts[1]) if parts[0] == "blocks" and len(parts) > 2 and parts[1].isdigit() else None


def check_hooks(model: Any, hooks: Sequence[str]) -> None:
    """`ValueError` naming the first hook that the model does not have, and those that sound like it."""
    for hook in hooks:
        if hook not in model.hook_dict:
            last = hook.split(".")[-1].removeprefix("hook_")
            near = [name for name in model.hook_dict if name.startswith("blocks.0.") and name.endswith(f"hook_{last}")]
            raise ValueError(
                f"this model has no hook {hook!r}; in layer 0 there are {', '.join(near) or 'none of that name'}"
            )


def _engine_name(hook: str) -> tuple[str, int] | None:
    layer, name = layer_of(hook), ".".join(hook.split(".")[2:])
    if layer is None:
        return None
    if name == "hook_resid_post":
        return "resid_pre", layer + 1
    return (_NAMES[name], layer) if name in _NAMES else None


def _runs_in_engine(model: Any) -> bool:
    try:
        check_model(model)
    except (ValueError, AttributeError):
        return False
    return True


@torch.no_grad()
def activations(
    model: Any, tokens: Int[Tensor, "prompt pos"], hooks: Sequence[str], *, batch_size: int = 32
) -> dict[str, Float[Tensor, "prompt pos d_in"]]:
    """Activations at some hooks. Layers behind the last of them are not run.

    Errors: `ValueError` for a hook that the model does not have, or activations that are not finite.

    >>> from mechinterp.models import load
    >>> x = activations(load("lab"), torch.tensor([[0, 5, 9]]), ["blocks.1.attn.hook_z"])
    >>> x["blocks.1.attn.hook_z"].shape
    torch.Size([1, 3, 256])
    """
    check_hooks(model, hooks)
    parts = [_read(model, some.to(model.W_E.device), hooks) for some in tokens.split(batch_size)]
    found = {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}
    for hook, x in found.items():
        if not torch.isfinite(x).all():
            raise ValueError(f"activations at {hook} contain NaN or infinity; check the model and its precision")
    return found


def _read(model: Any, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
    layers = [layer_of(hook) for hook in hooks]
    last = None if None in layers else max(layer for layer in layers if layer is not None) + 1
    wanted = {_engine_name(hook): hook for hook in hooks}
    got: dict[str, Tensor] = {}
    if None not in wanted and _runs_in_engine(model):

        def keep(name: str, layer: int, x: Tensor) -> None:
            if (name, layer) in wanted:
                got[wanted[name, layer]] = x

        trace(model, tokens, keep, stop=last)
    else:

        def grab(x: Tensor, hook: Any) -> None:
            got[hook.name] = x

        stop = {} if last is None else {"stop_at_layer": last}
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(hook, grab) for hook in hooks], **stop)
    return {hook: got[hook].reshape(*tokens.shape, -1).float() for hook in hooks}


@torch.no_grad()
def logits(
    model: Any, tokens: Int[Tensor, "prompt pos"], hook: str | None = None, replace: Replace | None = None
) -> Float[Tensor, "prompt pos vocab"]:
    """Logits at every position, with a site's activations replaced; one pass, all of it in memory.

    Errors: `ValueError` for a hook that the model does not have, or logits that are not finite.

    >>> from mechinterp.models import load
    >>> model, tokens = load("lab"), torch.tensor([[0, 5, 9]])
    >>> same = logits(model, tokens, "blocks.1.hook_mlp_out", lambda x: x)
    >>> torch.allclose(same, model(tokens), atol=1e-3)
    True
    """
    if hook is not None:
        check_hooks(model, [hook])
    name = None if hook is None else _engine_name(hook)
    tokens = tokens.to(model.W_E.device)

    def put(x: Tensor) -> Tensor:
        assert replace is not None
        return replace(x.flatten(2)).view_as(x).to(x.dtype)

    if (hook is None or name is not None) and _runs_in_engine(model):
        end = ("resid_pre", model.cfg.n_layers)
        return unembed(
            model,
            trace(
                model,
                tokens,
                lambda n, layer, x: x if (n, layer) == end else None,
                change=None if hook is None else lambda n, layer, x: put(x) if (n, layer) == name else x,
            )[end],
        )
    hooks = [] if hook is None else [(hook, lambda x, hook: put(x))]
    found = model.run_with_hooks(tokens, fwd_hooks=hooks)
    if not torch.isfinite(found).all():
        raise ValueError(f"logits with {hook} replaced contain NaN or infinity; check what was put there")
    return found
