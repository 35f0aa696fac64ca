"""Interpolation against numpy, and the least-squares repair against gradient descent."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechinterp.sae import SAE, initial
from mechinterp.sae.metrics import reconstruction
from mechinterp.sae.study.frontier import Curve, by_seed, common, costs, curve, rescale_and_shift

FLOATS = st.lists(st.floats(0.5, 200), min_size=3, max_size=8, unique_by=lambda x: round(x, 3))


@given(l0=FLOATS, seed=st.integers(0, 99))
def test_interpolation_is_numpys(l0: list[float], seed: int) -> None:
    x = torch.tensor(sorted(l0), dtype=torch.float64)
    y = torch.randn(len(x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at = torch.linspace(0.4, 220, 41, dtype=torch.float64)
    found = Curve(x[None], y[None]).at(at)[0].numpy()
    expected = np.interp(at.log(), x.log(), y, left=np.nan, right=np.nan)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(l0=FLOATS)
def test_l0_at_undoes_at(l0: list[float]) -> None:
    x = torch.tensor(sorted(l0), dtype=torch.float64)
    falling = Curve(x[None], (-x.log())[None])
    inside = x[:-1] * 1.0000001
    torch.testing.assert_close(falling.l0_at(falling.at(inside)[0])[0], inside, rtol=1e-5, atol=0)


def test_curves_from_a_sweep() -> None:
    saes = [{"seed": s, "sparsity": k, "l0": 10.0 - k + s, "fvu": 0.1 * k} for s in (1, 0) for k in (3, 1, 2)]
    found = curve(saes, "fvu")
    assert found.l0.tolist() == [[7, 8, 9], [8, 9, 10]]
    torch.testing.assert_close(found.y[0], torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64))
    shared = common(found)
    assert 8 < shared.min() < shared.max() < 9
    assert curve(saes[:-1], "fvu").l0.tolist() == [[8, 9, 10]], "seed 0 lacks a level"
    with pytest.raises(ValueError, match="of 4 SAEs at 3 levels of sparsity no seed has every level once"):
        curve([saes[0], saes[1], saes[4], saes[5]], "fvu")
    with pytest.raises(ValueError, match="no seed has every level once"):
        curve([*saes, saes[0]], "fvu")
    far = Curve(found.l0 + 100, found.y)
    with pytest.raises(ValueError, match="no L0 in common"):
        common(found, far)


def power(seed: int, sparsity: float, l0: float, gain: float) -> dict[str, float]:
    """An SAE whose FVU is gain / sqrt(L0)."""
    return {"seed": seed, "sparsity": sparsity, "l0": l0, "fvu": gain / l0**0.5}


def test_seeds_are_compared_at_one_l0() -> None:
    levels = [power(0, 40 / l0, l0, 1.0) for l0 in np.geomspace(5, 80, 40)]
    others = [power(1, levels[20]["sparsity"], 17.0, 1.1), power(2, levels[20]["sparsity"], 26.0, 0.8)]
    found = by_seed([*others, *levels], "fvu", 20.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.1, 0.8], dtype=torch.float64) / 20**0.5, rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="this sweep has L0s from 5 to 80, and not 90"):
        by_seed([*others, *levels], "fvu", 90.0)


def test_costs_by_row() -> None:
    rng = np.random.default_rng(0)
    saes = [power(0, 1 / l0, l0, 1.0) | {"rows": (rng.normal(size=6) / l0).tolist()} for l0 in (64.0, 4.0, 16.0)]
    found = costs([*saes, power(1, 1 / 16, 15.0, 1.0)])
    assert found.l0.tolist() == [4, 16, 64]
    at = found.at(torch.tensor([4.0, 8.0, 100.0], dtype=torch.float64))
    expected = (np.array(saes[1]["rows"]) + np.array(saes[2]["rows"])) / 2
    np.testing.assert_allclose(at[:, 0], saes[1]["rows"])
    np.testing.assert_allclose(at[:, 1], expected, rtol=1e-9)
    assert at[:, 2].isnan().all()
    assert common(found, found, points=1).tolist() == [16.0]


def test_rescaling_is_what_gradient_descent_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    sae = SAE("standard", initial("standard", 6, 10, seed=1) | {"b_enc": torch.full((10,), -0.3)})
    x = torch.randn(2000, 6, generator=generator)
    fitted = rescale_and_shift(sae, x)
    f, on = sae.encode(x), (sae.encode(x) > 0).float()
    a, c = torch.ones(10, requires_grad=True), torch.zeros(10, requires_grad=True)
    adam = torch.optim.LBFGS([a, c], max_iter=200, tolerance_grad=1e-9)

    def step() -> torch.Tensor:
        adam.zero_grad()
        loss = (sae.b_dec + (a * f + c * on) @ sae.W_dec - x).square().mean()
        loss.backward()
        return loss

    adam.step(step)
    torch.testing.assert_close(fitted.params["r_mag"].exp(), a.detach(), atol=2e-3, rtol=0)
    assert reconstruction(fitted, x).fvu < reconstruction(sae, x).fvu
    assert torch.equal(fitted.encode(x)[:, :0], sae.encode(x)[:, :0])


def test_a_shrunken_sae_is_mended_and_a_perfect_one_left_alone() -> None:
    eye = torch.eye(4)
    shrunk = SAE("standard", {"W_enc": eye, "W_dec": eye, "b_enc": torch.full((4,), -0.5), "b_dec": torch.zeros(4)})
    f = torch.rand(400, 4, generator=torch.Generator().manual_seed(0)) + 1.0
    x = f * (torch.rand(400, 4, generator=torch.Generator().manual_seed(1)) < 0.3)
    before, after = reconstruction(shrunk, x), reconstruction(rescale_and_shift(shrunk, x), x)
    assert before.gamma < 0.8
    assert after.gamma == pytest.approx(1, abs=1e-3)
    assert after.fvu < 1e-4
    with pytest.raises(ValueError, match="expected a standard SAE"):
        rescale_and_shift(SAE("topk", initial("topk", 4, 8, seed=0), k=2), x)
