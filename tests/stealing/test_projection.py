"""A projection that is known comes back up to what no logit shows, and no further."""

import pytest
import torch

from mechinterp.stealing import align, projection, up_to_rotation

TOKENS, D = 80, 8


def model(norm: str = "rms", n: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of streams after a norm with a gain, and the projection with that gain folded in."""
    generator = torch.Generator().manual_seed(seed)
    weights, stream = (torch.randn(k, D, generator=generator, dtype=torch.float64) for k in (TOKENS, n))
    gain = 1 + torch.rand(D, generator=generator, dtype=torch.float64)
    if norm != "none":
        stream = stream / stream.square().mean(-1, keepdim=True).sqrt()
    if norm == "bias":
        stream = stream + 1
    return stream * gain @ weights.T, weights * gain


def test_up_to_a_linear_map() -> None:
    logits, true = model()
    found = align(projection(logits, D), true)
    assert found.rms < 1e-12 * found.scale
    torch.testing.assert_close(projection(logits, D) @ found.map, true, atol=1e-9, rtol=0)


def test_another_projection_does_not_fit() -> None:
    logits, true = model()
    other = torch.randn(true.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = align(other, true)
    assert found.rms == pytest.approx(found.scale, rel=0.1)
    assert align(projection(logits, D), other).rms > 0.8


@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e3])
def test_any_map_and_any_constant_of_the_softmax_are_no_error(gain: float) -> None:
    _, true = model()
    mixed = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert align(true @ mixed * gain, true).rms < 1e-10
    assert align(true + torch.arange(D), true).rms < 1e-10


def test_up_to_a_rotation() -> None:
    """All inner products of rows are known then, up to a number: the Gram matrix says so without solving for a map."""
    logits, true = model()
    found = up_to_rotation(logits, D)
    grams = [x @ x.T for x in (found, true)]
    torch.testing.assert_close(grams[0] / grams[0].norm(), grams[1] / grams[1].norm(), atol=1e-10, rtol=0)
    plain = projection(logits, D)
    gram = plain @ plain.T
    assert (gram / gram.norm() - grams[1] / grams[1].norm()).abs().max() > 1e-3, "the map before it is not one"


@pytest.mark.parametrize("norm", ["none", "bias"])
def test_without_a_sphere_there_is_no_rotation(norm: str) -> None:
    with pytest.raises(ValueError, match="lie on no ellipsoid"):
        up_to_rotation(model(norm)[0], D)


def test_senseless_arguments() -> None:
    logits, true = model()
    with pytest.raises(ValueError, match="36 prompts, got 30"):
        up_to_rotation(logits[:30], D)
    with pytest.raises(ValueError, match="size must lie within"):
        projection(logits, 61)
    with pytest.raises(ValueError, match="80 and 70 tokens"):
        align(true, true[:70])
    with pytest.raises(ValueError, match="fit anything"):
        align(true[:8], true[:8])
