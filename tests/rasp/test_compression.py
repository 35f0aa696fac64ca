"""Compressed streams: what no compression leaves alone, what training does, and that it can be interrupted."""

import pytest
import torch

from mechinterp.rasp import compile_program, programs
from mechinterp.rasp.compression import all_inputs, begin, quality, train

FRAC = compile_program(**programs()["frac_prevs"])


@pytest.mark.parametrize("name", ["frac_prevs", "reverse", "sort_unique"])
def test_a_rotation_of_the_stream_changes_nothing(name):
    compiled = compile_program(**programs()[name])
    D = len(compiled.layout.directions)
    turned = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0))).Q
    found = quality(compiled, torch.stack([torch.eye(D), turned]), all_inputs(compiled, 3))
    assert (found.right == 1).all()
    assert (found.output < 1e-6).all()
    assert (found.layers < 1e-5).all()
    torch.testing.assert_close(found.cosine, torch.ones_like(found.cosine), atol=1e-3, rtol=0)


def test_the_cosine_is_that_of_a_whole_half_layer():
    """frac_prevs' MLP writes one number: position by position its cosine is 1 whatever is written."""
    tokens, half = all_inputs(FRAC, 3), torch.eye(14)
    flag = FRAC.layout.directions.index(("is_a", None))
    half[flag] *= 2**-0.5
    found = quality(FRAC, half[None], tokens)
    assert found.cosine[0, 1].item() == pytest.approx(1, abs=1e-5), "a half of the number is written everywhere"
    shifted = torch.eye(14)
    shifted[flag, FRAC.layout.directions.index(("one", None))] = 1.0
    other = quality(FRAC, shifted[None], tokens)
    assert other.cosine[0, 2] < 0.99


def test_a_stream_of_nothing_says_nothing():
    found = quality(FRAC, torch.zeros(1, 3, 14), all_inputs(FRAC, 3))
    shares = FRAC.decode(FRAC.model(all_inputs(FRAC, 3)))
    assert found.right.item() == pytest.approx((torch.tensor(shares).abs() < 0.02).float().mean().item())
    assert found.cosine[0, 1] == 0, "the flag that the first MLP writes"


def test_training_goes_on_where_it_was_interrupted_and_runs_do_not_disturb_each_other():
    options = {"batch": 32, "lr": 0.01, "log_every": 5}
    whole = train(FRAC, begin(FRAC, [4, 10], [0, 1]), 40, **options)
    halves = train(FRAC, train(FRAC, begin(FRAC, [4, 10], [0, 1]), 15, **options), 25, **options)
    torch.testing.assert_close(halves.W, whole.W, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(halves.history, whole.history, atol=1e-4, rtol=1e-3)
    alone = train(FRAC, begin(FRAC, [4], [1]), 40, **options)
    torch.testing.assert_close(alone.W[0], whole.W[1, :4], atol=1e-4, rtol=1e-3)
    assert whole.dims == (4, 4, 10, 10)
    assert (whole.W[:2, 4:] == 0).all(), "a run keeps its own size"
    assert whole.history is not None
    assert (whole.history[-1] < 0.8 * whole.history[0]).all()


def test_what_is_trained_becomes_the_original():
    started = begin(FRAC, [6], [0])
    trained = train(FRAC, started, 400, batch=64, lr=0.01)
    before, after = (quality(FRAC, x.W, all_inputs(FRAC, 4)) for x in (started, trained))
    assert after.layers.item() < before.layers.item() / 20
    assert after.output.item() < before.output.item() / 10
    assert (after.cosine > 0.99).all()


@pytest.mark.parametrize(("dims", "seeds"), [([0], [0]), ([15], [0]), ([], [0]), ([3], [])])
def test_sizes_that_the_stream_does_not_have_are_refused(dims, seeds):
    with pytest.raises(ValueError, match=r"sizes must lie in 1\.\.14"):
        begin(FRAC, dims, seeds)


@pytest.mark.parametrize("wrong", ["steps", "lr", "batch", "log_every"])
def test_numbers_that_are_not_positive_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{wrong} must be positive, not 0"):
        train(FRAC, begin(FRAC, [3], [0]), **({"steps": 1} | {wrong: 0}))
