"""Measures against what their definitions give when written out, and the limits that are known."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor

from mechinterp.models import load
from mechinterp.sae import SAE, evaluate, initial, reconstruction, site
from mechinterp.sae.metrics import Quality, Site

HOOK = "blocks.2.attn.hook_z"


@pytest.fixture(scope="module")
def model() -> Any:
    return load("lab", device="cpu")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    rows = torch.randint(1, 8192, (6, 20), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 0
    rows[3, 9] = 0
    return rows


@pytest.fixture(scope="module")
def at(model: Any, tokens: Tensor) -> Site:
    return site(model, tokens, HOOK, batch_size=4)


def exact(d: int = 256) -> SAE:
    """Passes everything through."""
    eye = torch.eye(d)
    params = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye]), "b_enc": torch.zeros(2 * d)}
    return SAE("standard", params | {"b_dec": torch.zeros(d)}, hook=HOOK)


def test_every_number_written_out(model: Any, tokens: Tensor, at: Site) -> None:
    sae = SAE("standard", initial("standard", 256, 512, seed=0), hook=HOOK)
    sae = SAE("standard", sae.params | {"b_enc": torch.full((512,), -1.0), "W_dec": 0.3 * sae.W_dec})
    found = evaluate(model, sae, at, batch_size=4)
    cache = {}
    clean = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda x, hook: cache.update(z=x.clone()))])
    z, counted = cache["z"].flatten(2), tokens != 0
    recon = sae(z)
    x, y = z[counted], recon[counted]

    def loss(logits: Tensor) -> Tensor:
        each = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return each[counted[:, 1:].flatten()].mean()

    def with_z(value: Tensor) -> Tensor:
        put = torch.where(counted[..., None], value, z).view_as(cache["z"])
        return loss(model.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda x, hook: put)]))

    zero, mean, spliced = with_z(0 * z), with_z(x.mean(0).expand_as(z)), with_z(recon)
    expected = {
        "l0": (sae.encode(x) > 0).float().sum(-1).mean(),
        "fvu": (x - y).square().sum() / (x - x.mean(0)).square().sum(),
        "gamma": y.square().sum() / (x * y).sum(),
        "delta_loss": spliced - loss(clean),
        "loss_recovered": (zero - spliced) / (zero - loss(clean)),
        "recovered_mean": (mean - spliced) / (mean - loss(clean)),
    }
    for name, value in expected.items():
        assert found.value(name) == pytest.approx(value.item(), rel=2e-2, abs=2e-4), name
    torch.testing.assert_close(found.density, (sae.encode(x) > 0).float().mean(0), atol=2e-3, rtol=0)
    assert found.dead == (found.density == 0).float().mean()
    alone = reconstruction(sae, x)
    assert (alone.l0, alone.fvu, alone.gamma) == pytest.approx(
        [found.value(n) for n in ("l0", "fvu", "gamma")], rel=1e-3
    )


def test_a_perfect_sae_costs_nothing_and_none_costs_everything(model: Any, at: Site) -> None:
    perfect = evaluate(model, exact(), at)
    assert perfect.value("fvu") < 1e-6
    assert perfect.value("gamma") == pytest.approx(1)
    assert perfect.value("loss_recovered") == pytest.approx(1, abs=1e-3)
    nothing = exact()
    nothing = SAE("standard", nothing.params | {"b_enc": torch.full((512,), -1e6)})
    empty = evaluate(model, nothing, at)
    assert empty.value("l0") == 0
    assert empty.value("loss_recovered") == pytest.approx(0, abs=1e-3)
    assert empty.dead == 1


def test_a_sae_that_halves_has_gamma_one_half(model: Any, at: Site) -> None:
    half = SAE("standard", exact().params | {"W_dec": 0.5 * exact().W_dec})
    assert evaluate(model, half, at).value("gamma") == pytest.approx(0.5)


def test_intervals_cover_the_value_and_shrink(model: Any, at: Site) -> None:
    sae = SAE("topk", initial("topk", 256, 512, seed=0), k=8)
    found = evaluate(model, sae, at)
    fvu, rows = found.estimate("fvu"), len(found.sums)
    assert fvu.value == pytest.approx(found.value("fvu"))
    assert (fvu.n, fvu.unit) == (rows, "rows of text")
    assert found.estimate("l0").interval == pytest.approx((8.0, 8.0))
    # The jackknife over rows, an estimator of its own, is close.
    left = [Quality(found.sums[torch.arange(rows) != i], found.spread, found.density).value("fvu") for i in range(rows)]
    error = ((rows - 1) * torch.tensor(left, dtype=torch.float64).var(correction=0)).sqrt().item()
    assert fvu.interval[1] - fvu.value == pytest.approx(student.ppf(0.975, rows - 1) * error, rel=0.1)


def test_the_result_does_not_depend_on_the_batches(model: Any, tokens: Tensor, at: Site) -> None:
    sae = SAE("topk", initial("topk", 256, 512, seed=0), k=8)
    other = site(model, tokens, HOOK, batch_size=1)
    torch.testing.assert_close(other.zero, at.zero, atol=1e-2, rtol=1e-4)
    one, two = evaluate(model, sae, at, batch_size=5), evaluate(model, sae, other, batch_size=2)
    torch.testing.assert_close(one.sums, two.sums, atol=1e-2, rtol=1e-4)


def test_what_is_refused(model: Any, tokens: Tensor, at: Site) -> None:
    with pytest.raises(ValueError, match="no hook"):
        site(model, tokens, "blocks.7.hook_mlp_out")
    with pytest.raises(ValueError, match="no token counts"):
        site(model, torch.full_like(tokens, 3), HOOK, skip=[3])
    with pytest.raises(ValueError, match="reads activations of width 8"):
        evaluate(model, SAE("standard", initial("standard", 8, 16, seed=0)), at)
    with pytest.raises(ValueError, match="unknown measure"):
        evaluate(model, exact(), at).value("l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="constant"):
        reconstruction(exact(4), torch.ones(10, 4))
