"""The closed forms of the training step against autograd of the loss, whose own gradients have a test of their own."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.sae import KINDS, tensor_shapes
from mechinterp.sae.kinds import cells
from mechinterp.sae.losses import gradients, loss

CASES = [(name, variant) for name, kind in KINDS.items() for variant in ("", *kind.variants)]


def stack(kind: str, n: int, d_in: int, d_sae: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = tensor_shapes(kind, d_in, d_sae)
    params = {name: torch.randn(n, *shape, generator=g, dtype=torch.float64) / 2 for name, shape in shapes.items()}
    if "threshold" in params:
        params["log_threshold"] = (params.pop("threshold").abs() + 0.1).log()
    return params


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 3), tokens=st.integers(2, 9))
@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_gradients_are_those_of_autograd(kind: str, variant: str, seed: int, n: int, tokens: int) -> None:
    with patch.object(cells, "DENSEST", 0.0):
        check(kind, variant, seed, n, tokens)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(2, 9))
@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_gradients_from_a_list_of_cells_are_those_of_autograd(kind: str, variant: str, seed: int, tokens: int) -> None:
    with patch.object(cells, "DENSEST", 1.0):
        check(kind, variant, seed, 1, tokens)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 3), tokens=st.integers(2, 9), share=st.sampled_from([0, 0.2, 0.7, 1])
)
@pytest.mark.parametrize("listed", [0.0, 1.0])
@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.revived])
def test_gradients_that_revive_are_those_of_autograd(
    kind: str, listed: float, seed: int, n: int, tokens: int, share: float
) -> None:
    dead = torch.rand(n, 8, generator=torch.Generator().manual_seed(seed + 2)) < share
    with patch.object(cells, "DENSEST", listed):
        check(kind, "", seed, n if listed == 0 else 1, tokens, dead if listed == 0 else dead[:1])


def whole(cells_: cells.Cells, f: Tensor, like: Tensor) -> Tensor:
    """Latents of a list of cells in their places, entry by entry."""
    if not isinstance(cells_, cells.Listed):
        return f
    out = torch.zeros_like(like)
    for token, latent, value in zip(cells_.token.tolist(), cells_.latent.tolist(), f[0, 0].tolist(), strict=True):
        out[0, token, latent] += value
    return out


def check(kind: str, variant: str, seed: int, n: int, tokens: int, dead: Tensor | None = None) -> None:
    params = stack(kind, n, 5, 8, seed)
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(tokens, 5, generator=g, dtype=torch.float64)
    sparsity = torch.rand(n, generator=g, dtype=torch.float64)
    options = {"k": 3, "bandwidth": 0.7, "variant": variant, "dead": dead}
    leaves = {name: value.clone().requires_grad_(True) for name, value in params.items()}
    slow = loss(kind, leaves, x, sparsity, **options)
    slow.total.sum().backward()
    before = {name: value.clone() for name, value in params.items()}
    fast = gradients(kind, params, x, sparsity, value=True, **options)
    assert fast.penalty is not None
    assert isinstance(fast.cells, cells.Listed) == (cells.DENSEST == 1 and bool(slow.f.any() or "topk" in kind))
    torch.testing.assert_close(whole(fast.cells, fast.f, slow.f), slow.f)
    torch.testing.assert_close(fast.cells.active(fast.f), (slow.f > 0).double().sum(1))
    torch.testing.assert_close(fast.error, slow.error)
    torch.testing.assert_close(fast.error + fast.penalty, slow.total.detach())
    assert set(fast.grads) == {name for name, leaf in leaves.items() if leaf.grad is not None}
    for name, grad in fast.grads.items():
        torch.testing.assert_close(grad, leaves[name].grad, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(params[name], before[name]) for name in params), "parameters stay as they are"
    quiet = gradients(kind, params, x, sparsity, **options)
    assert quiet.penalty is None
    assert all(torch.equal(quiet.grads[name], fast.grads[name]) for name in fast.grads)


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk"])
def test_a_latent_that_is_off_everywhere_gets_nothing_from_the_reconstruction(kind: str) -> None:
    params = stack(kind, 1, 5, 8, 0)
    for name in ("b_enc", "b_gate"):
        if name in params:
            params[name][:, 2] = -100
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = gradients(kind, params, x, torch.ones(1, dtype=torch.float64), k=8, bandwidth=0.1)
    assert (found.f[..., 2] == 0).all()
    assert (found.grads["W_dec"][:, 2] == 0).all()
    assert (found.grads["W_enc"][..., 2] == 0).all()
