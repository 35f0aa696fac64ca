"""What latents are and where they come from, in loops over the definitions; no function of the package is called."""

from typing import Any

import numpy as np
import pytest
import torch


def recorded(model: Any, tokens: torch.Tensor, *names: str) -> list[np.ndarray]:
    """What the model itself has at some hooks, in double precision."""
    got: dict[str, np.ndarray] = {}

    def keep(x: torch.Tensor, hook: Any) -> None:
        got[hook.name] = x.detach().double().numpy()

    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(name, keep) for name in names])
    return [got[name] for name in names]


class Slow:
    """The definitions, one number at a time."""

    @staticmethod
    def topk(model: Any, sae: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Latents [prompt pos d_sae] of a topk SAE: relu of (x - b_dec) W_enc + b_enc, the k largest of each token."""
        p = {name: value.double().numpy() for name, value in sae.params.items()}
        [x] = recorded(model, tokens, sae.hook)
        x = x.reshape(*tokens.shape, -1)
        f = np.zeros((*tokens.shape, p["b_enc"].size))
        for place in np.ndindex(*tokens.shape):
            pre = [float((x[place] - p["b_dec"]) @ p["W_enc"][:, i] + p["b_enc"][i]) for i in range(p["b_enc"].size)]
            for i in sorted(range(len(pre)), key=lambda i: -pre[i])[: sae.k]:
                f[place][i] = max(pre[i], 0.0)
        return torch.from_numpy(f).float()

    @staticmethod
    def dfa(model: Any, sae: Any, tokens: torch.Tensor, latent: int, destination: int) -> np.ndarray:
        """[head source]: attention times value times the encoder's column, for one prompt [pos]."""
        at = sae.hook.removesuffix("hook_z")
        pattern, v = recorded(model, tokens[None], f"{at}hook_pattern", f"{at}hook_v")
        column = sae.W_enc[:, latent].double().numpy()
        n_heads, d_head = v.shape[2:]
        found = np.zeros((n_heads, len(tokens)))
        for h in range(n_heads):
            for s in range(destination + 1):
                found[h, s] = pattern[0, h, destination, s] * sum(
                    v[0, s, h, d] * column[h * d_head + d] for d in range(d_head)
                )
        return found

    @staticmethod
    def logits(model: Any, direction: torch.Tensor) -> np.ndarray:
        """[vocab]: what a vector in the stream adds to each logit, up to the final norm's scale, less their mean."""
        weight = getattr(model.ln_final, "weight", None)
        gain = np.ones(len(direction)) if weight is None else weight.detach().double().numpy()
        centred = direction.double().numpy() - direction.double().mean().item()
        columns = model.W_U.detach().double().numpy().T
        found = np.array([float(sum(centred * gain * column)) for column in columns])
        return found - found.mean()


@pytest.fixture(scope="session")
def slow() -> type[Slow]:
    """The slow definitions."""
    return Slow
