"""Costs, critical sizes and the toy: closed forms, known curves, and controls."""

import math

import pytest
import torch

from mechinterp.grokking import (
    Run,
    Shape,
    Toy,
    crossing,
    fourier_network,
    initial,
    norm_at_loss,
    scaling_exponent,
    simulate,
)


def test_the_scaling_exponent_of_a_product_of_six_matrices() -> None:
    """The organism's answer passes W_E, W_V, W_O, W_in, W_out, W_U, with uniform attention and no biases: κ = 6."""
    shape = Shape(p=31, d_model=32, n_heads=4, d_mlp=128)
    assert scaling_exponent(fourier_network(shape, [2, 5], "circle"), shape, Run(100)) == pytest.approx(6, abs=1e-3)
    with pytest.raises(ValueError, match="not positive"):
        scaling_exponent(-initial(shape, [0])[0] * 0, shape, Run(100))


def test_norms_are_matched_on_a_line() -> None:
    loss = torch.tensor([1e-3, 1e-5, 1e-7])
    norm = 10 - 2 * loss.log()
    assert norm_at_loss(loss, norm, 1e-6) == pytest.approx(10 - 2 * math.log(1e-6), rel=1e-5)
    with pytest.raises(ValueError, match="two weight decays"):
        norm_at_loss(loss[:1], norm[:1], 1e-6)


def test_a_crossing_of_known_curves() -> None:
    sizes = torch.tensor([10.0, 20.0, 40.0, 80.0, 160.0])
    curves = sizes.log()[None] + torch.tensor([[-0.1], [0.0], [0.1]])
    found = crossing(sizes, curves, torch.tensor([math.log(50)] * 2))
    assert found.size == pytest.approx(50, rel=1e-5)
    low, high = found.interval
    assert 50 * math.exp(-0.1) - 1e-3 <= low < 50 < high <= 50 * math.exp(0.1) + 1e-3


def test_curves_that_do_not_cross_have_no_critical_size() -> None:
    sizes = torch.tensor([10.0, 20.0])
    flat = torch.ones(4, 2)
    for level in (2.0, 0.5):
        found = crossing(sizes, flat, torch.tensor([level]))
        assert math.isnan(found.size)
        assert math.isnan(found.interval[0])
    with pytest.raises(ValueError, match="rise"):
        crossing(sizes.flip(0), flat, torch.tensor([2.0]))


def test_the_toy_groks_and_ends_at_the_closed_form() -> None:
    toy = Toy()
    course = simulate(toy)
    assert course.test_loss.max().item() == pytest.approx(6.85, abs=0.05)
    assert course.test_loss[-1] < 0.1
    assert course.train_loss[1000] < 0.2
    assert (course.gen[-1] / course.mem[-1]).item() == pytest.approx(8, rel=0.005)
    assert toy.ratio() == pytest.approx(8)


def test_the_toy_s_gradient_is_that_of_its_loss() -> None:
    """One step from an arbitrary start equals autograd's."""
    toy = Toy(start=(0.7, 0.9, 1.1, 0.8))
    weights = torch.tensor(toy.start, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        x, y = weights[0] * weights[1], weights[2] * weights[3]
        loss = torch.logaddexp(x + y, torch.tensor(112.0, dtype=torch.float64).log()) - (x + y)
        loss = loss + toy.alpha * (toy.cost_gen**2 * x**toy.exponent + toy.cost_mem**2 * y**toy.exponent)
        (gradient,) = torch.autograd.grad(loss, weights)
    new = weights.detach() - toy.lr * gradient
    course = simulate(toy, steps=2)
    assert course.gen[1].item() == pytest.approx((new[0] * new[1]).item(), abs=1e-12)
    assert course.mem[1].item() == pytest.approx((new[2] * new[3]).item(), abs=1e-12)


@pytest.mark.parametrize(
    ("toy", "groks"),
    [
        (Toy(start=(0.0, 0.0, 0.0, 1.0)), False),
        (Toy(cost_gen=2.0, cost_mem=1.0), False),
        (Toy(start=(0.0, 1.0, 0.0, 1.0)), False),
        (Toy(), True),
    ],
)
def test_every_ingredient_is_needed(toy: Toy, groks: bool) -> None:
    """Grokking: a test loss that is worse than chance for long, and good in the end."""
    loss = simulate(toy).test_loss
    late = (loss[1000] > math.log(113)).item() and (loss[-1] < 0.1).item()
    assert late == groks


def test_a_toy_without_an_inner_minimum() -> None:
    with pytest.raises(ValueError, match="only the more efficient"):
        Toy(kappa=2.5).ratio()
