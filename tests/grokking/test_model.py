"""The stacked network against the obvious one: embed three tokens, attend, MLP, unembed, one example at a time."""

import torch
from torch import Tensor

from mechinterp.grokking import Shape, initial, logits, pack, unpack

SHAPE = Shape(p=7, d_model=12, n_heads=3, d_mlp=20)


def obvious(w: dict[str, Tensor], a: int, b: int) -> Tensor:
    """Logits at the last of the three tokens, every position and head computed in full."""
    p = w["W_U"].shape[-1]
    x = w["W_E"][torch.tensor([a, b, p])] + w["W_pos"]
    out = torch.zeros_like(x)
    for h in range(len(w["W_Q"])):
        q, k, v = x @ w["W_Q"][h], x @ w["W_K"][h], x @ w["W_V"][h]
        scores = q @ k.T / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
        out = out + scores.softmax(-1) @ v @ w["W_O"][h]
    x = x + out
    x = x + (x @ w["W_in"] + w["b_in"]).relu() @ w["W_out"] + w["b_out"]
    return (x @ w["W_U"])[-1]


def test_logits_equal_the_obvious_network() -> None:
    flat = initial(SHAPE, [0, 5])
    flat += 0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))  # biases, too
    w = unpack(flat, SHAPE)
    a, b = torch.cartesian_prod(torch.arange(7), torch.arange(7)).T
    got = logits(w, a.expand(2, -1), b.flip(0).expand(2, -1))
    for run in range(2):
        one = {name: value[run] for name, value in w.items()}
        expected = torch.stack([obvious(one, int(i), int(j)) for i, j in zip(a, b.flip(0), strict=True)])
        torch.testing.assert_close(got[run], expected, atol=1e-4, rtol=1e-4)


def test_gradients_equal_those_of_the_obvious_network() -> None:
    flat = initial(SHAPE, [2]).double().requires_grad_(True)
    a, b = torch.tensor([[0, 3, 6]]), torch.tensor([[1, 3, 2]])
    upstream = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.enable_grad():
        (ours,) = torch.autograd.grad((logits(unpack(flat, SHAPE), a, b)[0] * upstream).sum(), flat)
        one = {name: value[0] for name, value in unpack(flat, SHAPE).items()}
        rows = torch.stack([obvious(one, int(i), int(j)) for i, j in zip(a[0], b[0], strict=True)])
        (theirs,) = torch.autograd.grad((rows * upstream).sum(), flat)
    torch.testing.assert_close(ours, theirs)


def test_large_scores_do_not_overflow() -> None:
    flat = 60 * initial(SHAPE, [0])
    a = torch.arange(7)[None]
    assert torch.isfinite(logits(unpack(flat, SHAPE), a, a)).all()


def test_rows_unpack_and_pack() -> None:
    flat = initial(SHAPE, [3, 4])
    assert flat.shape == (2, SHAPE.n_params)
    assert torch.equal(pack(unpack(flat, SHAPE)), flat)
    assert torch.equal(initial(SHAPE, [4])[0], flat[1]), "a row depends on its seed alone"
    w = unpack(initial(Shape(), [0]), Shape())
    assert abs(w["W_in"].std().item() - 128**-0.5) < 1e-3
    assert abs(w["W_U"].std().item() - 114**-0.5) < 1e-3
    assert w["b_in"].abs().max() == 0
