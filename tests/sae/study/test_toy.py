"""The one-dimensional toys: closed forms against simulation, estimators against closed forms and the trainer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.sae.losses import loss
from mechinterp.sae.study import toy
from mechinterp.sae.study.toy import Encoder, Mixture

BOTH = [Mixture(), Mixture(target="input")]
OTHER = Mixture(p=0.2, on=(3.0, 1.0), off=(-0.5, 0.7))
N = 200_000


def within(values: torch.Tensor, expected: float, errors: float = 4.5) -> None:
    """The mean of a sample is what was expected, up to its standard error."""
    error = values.std() / len(values) ** 0.5
    assert (values.mean() - expected).abs() < errors * error + 1e-12, (values.mean(), expected, error)


@settings(max_examples=20, deadline=None)
@given(st.floats(-2, 4), st.floats(-2, 4), st.floats(-1, 3), st.sampled_from([*BOTH, OTHER]))
def test_the_loss_of_an_encoder_is_that_of_a_simulation(t: float, d: float, m: float, mixture: Mixture) -> None:
    pi, on = mixture.sample(100_000, seed=0)
    f = Encoder(t, d, m)(pi)
    within((mixture.wanted(pi, on) - f).square(), toy.mse(mixture, t, d, m).item())
    within((pi > t).double(), toy.firing(mixture, t).item())


def test_the_paper_s_comparison() -> None:
    """G7, with N(2, 1/4) read as a variance of 1/4; read as a standard deviation the ReLU wins."""
    jump, relu = toy.mse(Mixture(), 1.0, 0.0, 1.0), toy.mse(Mixture(), 1.0, 1.0, 2.0)
    assert jump.item() == pytest.approx(0.2082, abs=1e-4)
    assert relu.item() == pytest.approx(0.2672, abs=1e-4)
    narrow = Mixture(on=(2.0, 0.25))
    assert toy.mse(narrow, 1.0, 0.0, 1.0) > toy.mse(narrow, 1.0, 1.0, 2.0)
    for threshold in (1.0, 1.2, 1.5, 2.0):  # as rarely active, even the best rescaled ReLU is behind
        losses = {
            family: toy.mse(Mixture(), e.threshold, e.shift, e.magnitude).item()
            for family in ("relu", "rescaled relu", "jumprelu", "jump")
            for e in [toy.fit(Mixture(), family, threshold)]  # type: ignore[arg-type]
        }
        assert losses["jump"] < losses["jumprelu"] < losses["rescaled relu"] < losses["relu"]


@pytest.mark.parametrize("mixture", [*BOTH, OTHER])
@pytest.mark.parametrize("family", ["rescaled relu", "jump"])
def test_fits_are_least_squares(mixture: Mixture, family: toy.Family) -> None:
    pi, on = mixture.sample(N, seed=1)
    found = toy.fit(mixture, family, 0.8)
    above = pi > 0.8
    x = pi[above]
    columns = [x - 0.8] if family == "rescaled relu" else [x, torch.ones_like(x)]
    solution = torch.linalg.lstsq(torch.stack(columns, 1), mixture.wanted(pi, on)[above][:, None]).solution[:, 0]
    assert found.magnitude == pytest.approx(solution[0].item(), abs=0.02)
    if family == "jump":
        assert -found.magnitude * found.shift == pytest.approx(solution[1].item(), abs=0.03)
    else:
        assert found.shift == found.threshold == 0.8


@pytest.mark.parametrize("family", ["relu", "rescaled relu", "jumprelu", "jump"])
def test_no_threshold_beats_the_best_and_nothing_beats_bayes(family: toy.Family) -> None:
    def value(e: Encoder) -> float:
        return toy.mse(Mixture(), e.threshold, e.shift, e.magnitude).item()

    least = value(toy.best(Mixture(), family))
    assert all(value(toy.fit(Mixture(), family, t / 50)) >= least - 1e-12 for t in range(-100, 200))
    assert toy.bayes_mse(Mixture()) < least
    if family == "jump":
        assert least < toy.bayes_mse(Mixture()) * 1.05


def test_bayes_by_bins() -> None:
    pi, on = Mixture().sample(N, seed=2)
    wanted = Mixture().wanted(pi, on)
    bins = (pi * 50).long()
    bins -= bins.min()
    count = torch.bincount(bins).clamp(min=1)
    mean = (torch.bincount(bins, weights=wanted) / count)[bins]
    assert (wanted - mean).square().mean().item() == pytest.approx(toy.bayes_mse(Mixture()), abs=0.003)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 4), st.floats(0, 1), st.sampled_from([*BOTH, OTHER]))
def test_the_gradient_is_the_slope_of_the_loss(theta: float, sparsity: float, mixture: Mixture) -> None:
    h = 1e-5
    up, down = (toy.expected_loss(mixture, theta + s, sparsity).item() for s in (h, -h))
    assert toy.loss_gradient(mixture, theta, sparsity).item() == pytest.approx((up - down) / (2 * h), abs=1e-7)


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 1.0])
def test_the_best_threshold(sparsity: float) -> None:
    assert toy.optimal_threshold(BOTH[1], sparsity) == pytest.approx(math.sqrt(sparsity), abs=1e-6)
    theta = toy.optimal_threshold(BOTH[0], sparsity)
    assert toy.loss_gradient(BOTH[0], theta, sparsity).item() == pytest.approx(0, abs=1e-6)
    grid = torch.linspace(0.01, 6, 2000)
    assert (toy.expected_loss(BOTH[0], grid, sparsity) >= toy.expected_loss(BOTH[0], theta, sparsity) - 1e-12).all()
    with pytest.raises(ValueError, match="never fire"):
        toy.optimal_threshold(BOTH[0], 100.0)


def pseudo(mixture: Mixture, theta: float, sparsity: float, seed: int, **how: object) -> torch.Tensor:
    pi, on = mixture.sample(N, seed=seed)
    residual = mixture.wanted(pi, on) - pi * (pi > theta)
    return toy.ste_gradient(pi, theta, residual, sparsity, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["rectangle", "triangle", "gaussian"])
@pytest.mark.parametrize("mixture", BOTH)
@pytest.mark.parametrize("theta", [0.7, 1.4])
def test_the_estimator_is_the_loss_s_slope_up_to_its_error(kernel: toy.Kernel, mixture: Mixture, theta: float) -> None:
    """Against finite differences of the loss of another sample, and of the expected loss."""
    values = pseudo(mixture, theta, 0.2, 3, bandwidth=0.01, kernel=kernel)
    pi, on = mixture.sample(N, seed=4)
    wanted, h = mixture.wanted(pi, on), 0.05
    losses = [(wanted - pi * (pi > t)).square() + 0.2 * (pi > t) for t in (theta + h, theta - h)]
    slopes = (losses[0] - losses[1]) / (2 * h)
    error = math.hypot(*((v.std() / N**0.5).item() for v in (values, slopes)))
    assert abs((values.mean() - slopes.mean()).item()) < 4 * error + 0.01  # the bias of ε and of h
    within(values - (toy.ste_moments(mixture, theta, 0.2, bandwidth=0.01, kernel=kernel)[0]), 0.0)
    assert abs(values.mean() - toy.loss_gradient(mixture, theta, 0.2)) < 4 * values.std() / N**0.5 + 0.005


@pytest.mark.parametrize("kernel", ["rectangle", "triangle", "gaussian"])
def test_moments_are_those_of_a_sample(kernel: toy.Kernel) -> None:
    values = pseudo(Mixture(), 1.0, 0.2, 5, bandwidth=0.3, kernel=kernel)
    mean, std = toy.ste_moments(Mixture(), 1.0, 0.2, bandwidth=0.3, kernel=kernel)
    within(values, mean)
    assert values.std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize(("kernel", "mean_size", "square"), [("rectangle", 1 / 4, 1.0), ("triangle", 1 / 3, 2 / 3)])
def test_bias_and_variance_by_bandwidth(kernel: toy.Kernel, mean_size: float, square: float) -> None:
    """Bias is linear in ε, for r jumps at the threshold; the variance is ∫K² / ε times a constant."""
    theta, sparsity, mixture = 1.0, 0.1, Mixture(target="input")
    exact = toy.loss_gradient(mixture, theta, sparsity).item()

    def moments(bandwidth: float) -> tuple[float, float]:
        mean, std = toy.ste_moments(mixture, theta, sparsity, bandwidth=bandwidth, kernel=kernel)
        return mean - exact, std

    # Below the threshold 2θπ p(π) is averaged over π = θ − ε|u|: to first order its slope times −ε E|u| / 2.
    h = 1e-5
    p = [(toy.firing(mixture, theta + s - h) - toy.firing(mixture, theta + s + h)).item() / (2 * h) for s in (-h, 0, h)]
    slope = 2 * theta * (p[1] + theta * (p[2] - p[0]) / (2 * h))
    assert moments(1e-3)[0] == pytest.approx(-1e-3 * mean_size / 2 * slope, rel=0.02)
    ratio = moments(1e-3)[0] / moments(5e-4)[0]
    assert ratio == pytest.approx(2, rel=0.02)
    spread = (2 * theta**2 - sparsity) ** 2 / 2 + sparsity**2 / 2
    assert moments(1e-3)[1] == pytest.approx(math.sqrt(spread * p[1] * square / 1e-3), rel=0.01)


def test_a_step_on_what_has_jumped_loses_half_of_the_penalty() -> None:
    for theta in (0.8, 1.5):
        none = pseudo(Mixture(), theta, 0.0, 6, bandwidth=0.1)
        full, half = (pseudo(Mixture(), theta, 1.0, 6, bandwidth=0.1, step_on=on) - none for on in ("pre", "post"))
        edges = toy.firing(Mixture(), torch.tensor([theta - 0.05, theta, theta + 0.05]))
        within(full, ((edges[2] - edges[0]) / 0.1).item())
        within(half, ((edges[2] - edges[1]) / 0.1).item())
        assert (half.mean() / full.mean()).item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("mixture", BOTH)
def test_training_finds_the_best_threshold(mixture: Mixture) -> None:
    best = toy.optimal_threshold(mixture, 0.4)
    narrow = toy.train_threshold(mixture, 0.4, seed=0, bandwidth=0.05, steps=1500)
    assert narrow[-1].item() == pytest.approx(best, abs=0.03)
    assert torch.equal(narrow, toy.train_threshold(mixture, 0.4, seed=0, bandwidth=0.05, steps=1500))
    # A wide kernel leads to the root of its own expectation, which lies elsewhere.
    wide = toy.train_threshold(mixture, 0.4, seed=0, bandwidth=0.5, steps=1500)[-1].item()
    low, high = 0.3, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        below = toy.ste_moments(mixture, middle, 0.4, bandwidth=0.5)[0] < 0
        low, high = (middle, high) if below else (low, middle)
    assert wide == pytest.approx(low, abs=0.03)
    assert wide - best > 0.05


def test_training_with_the_step_after_the_jump_finds_the_threshold_of_half_the_penalty() -> None:
    found = toy.train_threshold(BOTH[1], 0.8, seed=0, bandwidth=0.05, step_on="post", steps=1500)[-1].item()
    assert found == pytest.approx(math.sqrt(0.4), abs=0.03)
    assert abs(found - math.sqrt(0.8)) > 0.2


def test_a_narrow_kernel_hardly_moves_the_threshold() -> None:
    moved = [
        abs(toy.train_threshold(BOTH[1], 1.0, seed=0, steps=300, bandwidth=e, batch=64)[-1] - 0.5) for e in (1e-4, 0.1)
    ]
    assert moved[0] < 0.3 * moved[1]


def test_the_trainer_s_gradient_is_the_same() -> None:
    pi, _ = BOTH[1].sample(5000, seed=7)
    log_theta = torch.full((1, 1), math.log(0.9), dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    params = {"W_enc": one, "W_dec": one, "b_enc": zero, "b_dec": zero, "log_threshold": log_theta}
    loss(
        "jumprelu", params, pi[:, None], torch.tensor([0.3], dtype=torch.float64), bandwidth=0.2
    ).total.sum().backward()
    ours = toy.ste_gradient(pi, 0.9, pi - pi * (pi > 0.9), 0.3, bandwidth=0.2).mean() * 0.9
    assert log_theta.grad is not None
    assert log_theta.grad.item() == pytest.approx(ours.item(), rel=1e-9)


def test_kernels_are_densities() -> None:
    u = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    for kernel in ("rectangle", "triangle", "gaussian"):
        assert torch.trapezoid(toy.kernel_weight(u, kernel), u).item() == pytest.approx(1, abs=1e-3)


def test_errors() -> None:
    x = torch.zeros(3)
    for make, words in [
        (lambda: Mixture(p=1.0), "share"),
        (lambda: Mixture(on=(1.0, 0.0)), "standard deviations"),
        (lambda: Mixture(target="x"), "unknown target"),  # type: ignore[arg-type]
        (lambda: toy.fit(Mixture(), "x", 1.0), "unknown family"),  # type: ignore[arg-type]
        (lambda: toy.fit(Mixture(), "jump", 50.0), "nothing lies above"),
        (lambda: toy.ste_gradient(x, 1.0, x, 0.1, bandwidth=0.0), "bandwidth"),
        (lambda: toy.ste_gradient(x, 1.0, x[:2], 0.1, bandwidth=1.0), "one shape"),
        (lambda: toy.ste_gradient(x, 1.0, x, 0.1, bandwidth=1.0, step_on="f"), "'pre' or 'post'"),  # type: ignore[arg-type]
        (lambda: toy.kernel_weight(x, "box"), "unknown kernel"),  # type: ignore[arg-type]
        (lambda: toy.train_threshold(Mixture(), 0.1, seed=0, start=0.0), "starts above 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()  # type: ignore[no-untyped-call]
