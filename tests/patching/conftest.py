"""Prompts, and slow obvious references: one full forward pass with hooks for every question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp.heads import Head
from mechinterp.patching import Activations

N, LENGTH = 6, 9


@dataclass(frozen=True)
class Prompts:
    """Random clean and corrupted prompts, read at different positions; receivers at or before these."""

    clean: Tensor
    corrupt: Tensor
    at: Tensor
    receiver: Tensor
    answer: Tensor

    def metric(self, logits: Tensor) -> Tensor:
        """The logit of a random token, minus that of another."""
        return logits.gather(1, self.answer[:, :1])[:, 0] - logits.gather(1, self.answer[:, 1:])[:, 0]


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    g = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.randint(0, 8192, (N, LENGTH), generator=g) for _ in range(2))
    at = torch.tensor([5, 8, 7, 6, 8, 5])
    receiver = torch.tensor([2, 8, 1, 3, 5, 4])
    return Prompts(clean, corrupt, at, receiver, torch.randint(0, 8192, (N, 2), generator=g))


def hook_count(model: Any) -> int:
    """Hooks on a model now."""
    points = model.hook_dict.values()
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) + len(p._forward_hooks) for p in points)


@pytest.fixture(scope="session")
def hooks() -> Callable[[Any], int]:
    return hook_count


@pytest.fixture(autouse=True)
def no_hook_left(tiny: Any):  # type: ignore[no-untyped-def]
    before = hook_count(tiny)
    yield
    assert hook_count(tiny) == before


def slow_path_patch(
    model: Any,
    prompts: Prompts,
    sender: Head,
    receivers: str | Sequence[tuple[Head, str]] = "logits",
    positions: Tensor | None = None,
) -> Tensor:
    """Appendix B, literally: the metric with the path from one sender to the receivers patched."""
    rows = torch.arange(len(prompts.clean))
    _, clean = model.run_with_cache(prompts.clean)
    _, corrupt = model.run_with_cache(prompts.corrupt)

    def freeze(z: Tensor, hook: Any) -> Tensor:
        z = clean[hook.name].clone()
        if hook.name == f"blocks.{sender.layer}.attn.hook_z":
            z[:, :, sender.head] = corrupt[hook.name][:, :, sender.head]
        return z

    frozen = [(f"blocks.{layer}.attn.hook_z", freeze) for layer in range(model.cfg.n_layers)]
    if isinstance(receivers, str):
        return prompts.metric(model.run_with_hooks(prompts.clean, fwd_hooks=frozen)[rows, prompts.at])
    names = {f"blocks.{h.layer}.attn.hook_{part}" for h, part in receivers}
    got = {}

    def listen(x: Tensor, hook: Any) -> None:
        got[hook.name] = x.clone()

    model.run_with_hooks(prompts.clean, fwd_hooks=[*frozen, *((name, listen) for name in names)])

    def override(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        for h, part in receivers:
            if hook.name == f"blocks.{h.layer}.attn.hook_{part}":
                if positions is None:
                    x[:, :, h.head] = got[hook.name][:, :, h.head]
                else:
                    x[rows, positions, h.head] = got[hook.name][rows, positions, h.head]
        return x

    logits = model.run_with_hooks(prompts.clean, fwd_hooks=[(name, override) for name in names])
    return prompts.metric(logits[rows, prompts.at])


@pytest.fixture(scope="session")
def slow_path() -> Callable[..., Tensor]:
    return slow_path_patch


def slow_replace(
    model: Any, tokens: Tensor, values: Activations, heads: Tensor | None, mlps: Tensor | None, at: Tensor
) -> Tensor:
    """Logits at `at` with marked outputs of one variant replaced, in one hooked forward."""

    def layer(hook: Any) -> int:
        return int(hook.name.split(".")[1])

    def edit_z(z: Tensor, hook: Any) -> Tensor:
        return torch.where(heads[layer(hook)].permute(1, 2, 0)[..., None], values.z[layer(hook)], z)

    def edit_mlp(out: Tensor, hook: Any) -> Tensor:
        return torch.where(mlps[layer(hook)][..., None], values.mlp[layer(hook)], out)

    hooks = []
    for i in range(model.cfg.n_layers):
        hooks += [(f"blocks.{i}.attn.hook_z", edit_z)] if heads is not None else []
        hooks += [(f"blocks.{i}.hook_mlp_out", edit_mlp)] if mlps is not None else []
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[torch.arange(len(tokens)), at]


@pytest.fixture(scope="session")
def slow_ablation() -> Callable[..., Tensor]:
    return slow_replace
