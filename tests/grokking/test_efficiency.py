"""Costs, critical sizes and the toy: closed forms, known curves, and controls."""

import math

import pytest
import torch

from mechinterp.grokking import (
    Run,
    Shape,
    Toy,
    common_losses,
    critical_sizes,
    crossings,
    fourier_network,
    initial,
    largest_gap,
    norm_at_loss,
    norms_at_loss,
    over_seeds,
    scaling_exponent,
    simulate,
    slopes_at_equal_loss,
    without_an_ingredient,
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


def test_norms_of_seeds_and_sizes() -> None:
    runs = [
        {"seed": seed, "size": size, "train_loss": loss, "norm": 10 * seed + math.log(size) - 2 * math.log(loss)}
        for seed in (1, 0)
        for size in (10, 20)
        for loss in (1e-5, 1e-7)
    ]
    found = norms_at_loss(runs, [10, 20], 1e-6)
    offset = -2 * math.log(1e-6)
    expected = [[10 * seed + math.log(size) + offset for size in (10, 20)] for seed in (0, 1)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert common_losses(runs) == (1e-7, 1e-5)
    with pytest.raises(ValueError, match="no train loss is common"):
        common_losses([*runs, {"seed": 0, "size": 30, "train_loss": 1e-3}])
    with pytest.raises(ValueError, match="two weight decays"):
        norms_at_loss(runs[:1], [10], 1e-6)


def test_crossings_of_known_curves() -> None:
    sizes = torch.tensor([10.0, 20.0, 40.0, 80.0, 160.0])
    curves = sizes.log()[None] + torch.tensor([[-0.1], [0.0], [0.1]])
    found = crossings(sizes, curves, math.log(50))
    expected = 50 * torch.tensor([math.exp(0.1), 1.0, math.exp(-0.1)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    by_seed = crossings(sizes, curves, torch.tensor([math.log(50) + shift for shift in (-0.1, 0.0, 0.1)]))
    torch.testing.assert_close(by_seed, torch.full((3,), 50.0, dtype=torch.float64), rtol=1e-5, atol=0)
    estimate = over_seeds(found)
    assert estimate.value == pytest.approx(50, rel=1e-5)
    assert estimate.interval is not None
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of two degrees of freedom
    assert estimate.interval == pytest.approx((50 * math.exp(-half), 50 * math.exp(half)), rel=1e-4)
    assert (estimate.n, estimate.unit) == (3, "seeds")
    with pytest.raises(ValueError, match="positive"):
        over_seeds(torch.tensor([1.0, 0.0]))


def test_curves_that_do_not_cross_are_refused_or_bounded() -> None:
    sizes = torch.tensor([10.0, 20.0])
    flat = torch.ones(4, 2)
    for level, side, end in ((2.0, "below", 20.0), (0.5, "above", 10.0)):
        with pytest.raises(ValueError, match=f"a curve is {side}"):
            crossings(sizes, flat, level)
        assert crossings(sizes, flat, level, bound=True).tolist() == [end] * 4
    with pytest.raises(ValueError, match="rise"):
        crossings(sizes.flip(0), flat, 2.0)
    with pytest.raises(ValueError, match="seed size"):
        crossings(sizes, flat.T, 2.0)


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.25])
def test_critical_sizes_solve_their_equation(wrong: float) -> None:
    """Against a search on a grid."""
    sizes, power = [100, 200, 400, 800], 0.4
    memorising = torch.tensor([[2 * d**power for d in sizes], [3 * d**power for d in sizes]], dtype=torch.float64)
    adding = torch.tensor([24.0, 30.0], dtype=torch.float64)
    grid = torch.logspace(1, 4, 30_001, dtype=torch.float64)
    for factor, level, found in zip(
        (2, 3), adding, critical_sizes(sizes, memorising, adding, wrong=wrong), strict=True
    ):
        paid = level**2 + (factor * (wrong * grid) ** power) ** 2 * (wrong > 0)
        first = grid[((factor * grid**power) ** 2 > paid).nonzero()[0, 0]]
        assert found.item() == pytest.approx(first.item(), rel=1e-3)
    with pytest.raises(ValueError, match="below 1"):
        critical_sizes(sizes, memorising, adding, wrong=1.0)
    with pytest.raises(ValueError, match="does not rise"):
        critical_sizes(sizes, memorising.flip(1), adding)


def test_the_slope_at_equal_loss_is_not_moved_by_losses() -> None:
    """Larger sets have higher losses and lower norms for it; the slope in log size is known."""
    runs = [
        {"seed": seed, "size": size, "train_loss": loss * size, "norm": 5 * math.log(size) - 3 * math.log(loss * size)}
        for seed in (0, 1)
        for size in (100, 200, 400)
        for loss in (1e-7, 1e-6)
    ]
    torch.testing.assert_close(slopes_at_equal_loss(runs), torch.full((2,), 5.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="do not tell size from loss"):
        slopes_at_equal_loss(runs[:2])


def test_the_largest_gap_does_not_count_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(300, 3, 3, 8, generator=generator, dtype=torch.float64)
    found = torch.tensor([largest_gap(table).value for table in tables])
    means = tables.mean(2)
    naive = (means.max(1).values - means.min(1).values).max(1).values
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found)) < naive.mean() / 5
    noise = torch.randn(3, 400, 8, generator=generator, dtype=torch.float64)
    noise[2, :, 5] += 2
    loud = largest_gap(noise)
    assert loud.value == pytest.approx(2, abs=0.3)
    with pytest.raises(ValueError, match="at least two decays"):
        largest_gap(noise[:1])


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


def test_toys_that_lack_an_ingredient_never_grok_whatever_their_other_constants() -> None:
    def groks(toy: Toy) -> bool:
        found = simulate(toy).grokking()
        return found["memorised"] > math.log(113) and found["delay"] > 3 and found["final"] < 0.1

    assert groks(Toy())
    toys = without_an_ingredient(4)
    assert not any(groks(toy) for kind in toys.values() for toy in kind)
    assert toys == without_an_ingredient(4)


def test_a_toy_that_never_learns_is_late_in_everything() -> None:
    course = simulate(Toy(start=(0.0, 0.0, 0.0, 0.0)), steps=100)
    assert course.first_below(1.0) == course.first_below(1.0, test=True) == 100
    assert course.grokking()["delay"] == 1


def test_a_toy_without_an_inner_minimum() -> None:
    with pytest.raises(ValueError, match="only the more efficient"):
        Toy(kappa=2.5).ratio()
