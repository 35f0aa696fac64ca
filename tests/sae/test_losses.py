"""Gradients against closed forms that are written out token by token, and against kernel estimates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.sae import SAE, initial
from mechinterp.sae.losses import loss

D_IN, D_SAE, TOKENS = 5, 9, 40
KINDS = ("standard", "gated", "jumprelu", "topk", "batchtopk")


def stacked(kind: str, seeds: tuple[int, ...] = (0, 1)) -> dict[str, Tensor]:
    """Weights with nothing at its initial value, one row a seed."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        fresh = initial(kind, D_IN, D_SAE, seed=seed, threshold=0.1)
        rows.append({n: v + 0.1 * torch.randn(v.shape, generator=generator).abs() for n, v in fresh.items()})
    params = {name: torch.stack([row[name] for row in rows]).double() for name in rows[0]}
    if kind == "jumprelu":
        params["log_threshold"] = params.pop("threshold").log()
    return {name: value.requires_grad_(True) for name, value in params.items()}


def inputs(seed: int = 7) -> Tensor:
    return torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(seed)).double()


def gradients(kind: str, sparsity: float, **options: object) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    params = stacked(kind)
    loss(kind, params, inputs(), torch.tensor([sparsity, 2 * sparsity]).double(), **options).total.sum().backward()
    return {n: v.detach() for n, v in params.items()}, {n: v.grad for n, v in params.items()}, inputs()


@pytest.mark.parametrize("kind", KINDS)
def test_the_latents_are_those_of_the_sae(kind: str) -> None:
    params = {n: v.detach() for n, v in stacked(kind).items()}
    f = loss(kind, params, inputs(), torch.ones(2), k=3).f
    for i in range(2):
        own = {n: v[i] for n, v in params.items()}
        if kind == "jumprelu":
            own["threshold"] = own.pop("log_threshold").exp()
        sae = SAE(kind, own, k=3 if "topk" in kind else None)
        torch.testing.assert_close(f[i], sae.encode(inputs()))


def test_standard_gradients_are_the_closed_form() -> None:
    p, grad, x = gradients("standard", 0.3)
    for i, lam in enumerate((0.3, 0.6)):
        W, D, b, c = (p[n][i] for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
        expected = {n: torch.zeros_like(p[n][i]) for n in p}
        for token in x:
            pre = (token - c) @ W + b
            f = pre.clamp(min=0)
            e = f @ D + c - token
            back = (2 * D @ e + lam) * (pre > 0)
            expected["W_enc"] += torch.outer(token - c, back) / TOKENS
            expected["b_enc"] += back / TOKENS
            expected["W_dec"] += torch.outer(f, 2 * e) / TOKENS
            expected["b_dec"] += (2 * e - W @ back) / TOKENS
        for name, value in expected.items():
            torch.testing.assert_close(grad[name][i], value, msg=name)


@pytest.mark.parametrize("variant", ["", "unfrozen decoder", "no auxiliary loss", "no r_mag"])
def test_gated_gradients_are_the_closed_form(variant: str) -> None:
    p, grad, x = gradients("gated", 0.3, variant=variant)
    for i, lam in enumerate((0.3, 0.6)):
        W, D, c, r = (p[n][i] for n in ("W_enc", "W_dec", "b_dec", "r_mag"))
        rate = torch.ones_like(r) if variant == "no r_mag" else r.exp()
        expected = {n: torch.zeros_like(p[n][i]) for n in p}
        for token in x:
            shared = (token - c) @ W
            gate, mag = shared + p["b_gate"][i], shared * rate + p["b_mag"][i]
            on = (gate > 0).double()
            f = on * mag.clamp(min=0)
            e = f @ D + c - token
            to_mag = 2 * D @ e * on * (mag > 0)
            opened = gate.clamp(min=0)
            aux = opened @ D + c - token
            weight = 0.0 if variant == "no auxiliary loss" else 1.0
            to_gate = (weight * 2 * D @ aux + lam) * on
            back = to_gate + to_mag * rate
            expected["W_enc"] += torch.outer(token - c, back) / TOKENS
            expected["b_gate"] += to_gate / TOKENS
            expected["b_mag"] += to_mag / TOKENS
            expected["r_mag"] += (to_mag * shared * rate if variant != "no r_mag" else 0 * r) / TOKENS
            expected["W_dec"] += torch.outer(f, 2 * e) / TOKENS
            expected["b_dec"] += (2 * e - W @ back) / TOKENS
            if variant == "unfrozen decoder":
                expected["W_dec"] += torch.outer(opened, 2 * aux) / TOKENS
                expected["b_dec"] += 2 * aux / TOKENS
        for name, value in expected.items():
            found = grad[name][i] if grad[name] is not None else torch.zeros_like(value)
            torch.testing.assert_close(found, value, msg=name)


@pytest.mark.parametrize("variant", ["", "gradient to pre"])
def test_jumprelu_gradients_are_the_sheets_pseudo_derivatives(variant: str) -> None:
    eps = 0.8
    p, grad, x = gradients("jumprelu", 0.3, bandwidth=eps, variant=variant)
    for i, lam in enumerate((0.3, 0.6)):
        W, D, c = (p[n][i] for n in ("W_enc", "W_dec", "b_dec"))
        theta = p["log_threshold"][i].exp()
        d_theta, d_bias = torch.zeros(D_SAE).double(), torch.zeros(D_SAE).double()
        for token in x:
            pi = (token - c) @ W + p["b_enc"][i]
            on = (pi > theta).double()
            back = 2 * D @ ((pi * on) @ D + c - token)
            kernel = ((pi - theta).abs() < eps / 2).double() / eps
            d_theta += (-theta * kernel * back - lam * kernel) / TOKENS
            d_bias += back * on / TOKENS
            if variant == "gradient to pre":
                d_bias += (theta * kernel * back + lam * kernel) / TOKENS
        torch.testing.assert_close(grad["log_threshold"][i], d_theta * theta)
        torch.testing.assert_close(grad["b_enc"][i], d_bias)


def test_the_threshold_gradient_estimates_the_slope_of_the_expected_loss() -> None:
    """One latent in one dimension, a million inputs: the pseudo-gradient against differences of the mean loss."""
    x = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0)).double()
    one = torch.ones(1, 1, 1).double()
    params = {"W_enc": one, "W_dec": one, "b_enc": one[0] * 0, "b_dec": one[0] * 0}
    lam = torch.tensor([0.3]).double()

    def total(theta: float, grad: bool = False) -> Tensor:
        log = torch.tensor([[theta]]).double().log().requires_grad_(grad)
        found = loss("jumprelu", params | {"log_threshold": log}, x, lam, bandwidth=0.05).total.sum()
        if not grad:
            return found.detach()
        found.backward()
        return log.grad[0, 0] / theta

    for theta in (0.3, 0.7, 1.2):
        slope = (total(theta + 0.025) - total(theta - 0.025)) / 0.05
        assert abs(total(theta, grad=True) - slope) < 0.02 * slope.abs() + 0.005


def test_a_topk_loss_revives_the_dead_and_only_them() -> None:
    params = stacked("topk")
    dead = torch.zeros(2, D_SAE, dtype=torch.bool)
    dead[0, :4] = True
    with torch.no_grad():  # below all others, so never among the k
        params["b_enc"][:, :4] -= 10
        params["W_enc"][0, 0, :4] += 30  # but positive on some inputs when only the dead are asked
    plain = loss("topk", params, inputs(), torch.zeros(2), k=2).total
    revived = loss("topk", params, inputs(), torch.zeros(2), k=2, dead=dead).total
    assert revived[1] == plain[1]
    assert revived[0] > plain[0]


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 10), kind=st.sampled_from(KINDS))
def test_rows_of_a_stack_do_not_mix(scale: float, kind: str) -> None:
    params = {n: v.detach() for n, v in stacked(kind).items()}
    both = loss(kind, params, inputs(), torch.tensor([0.1, 0.2]), k=2)
    other = {n: torch.stack([v[0], v[1] * scale if n != "log_threshold" else v[1]]) for n, v in params.items()}
    changed = loss(kind, other, inputs(), torch.tensor([0.1, 0.2]), k=2)
    torch.testing.assert_close(both.total[0], changed.total[0])
    torch.testing.assert_close(both.f[0], changed.f[0])
