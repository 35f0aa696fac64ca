"""Interventions against the engine of `patching`, slow loops and known circuits; no hook stays behind."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp import patching
from mechinterp.heads import Head
from mechinterp.models import organisms
from mechinterp.sae import SAE, initial, tensor_shapes
from mechinterp.sae.latents import interventions as module
from mechinterp.sae.latents.interventions import SITES, ablate, ablation_effects, splice, spliced_logits, steer

AT = torch.tensor([5, 2, 7, 0, 8])


def random_sae(kind: str, d_in: int, d_sae: int, hook: str, *, seed: int = 0) -> SAE:
    g = torch.Generator().manual_seed(seed)
    shapes = tensor_shapes(kind, d_in, d_sae)
    params = {name: torch.randn(shape, generator=g) / shape[0] ** (len(shape) - 1) for name, shape in shapes.items()}
    if kind == "jumprelu":
        params["threshold"] = params["threshold"].abs() + 0.1
    return SAE(kind, params, k=6 if kind == "topk" else None, hook=hook)


def exact(d: int, hook: str) -> SAE:
    """No error: two latents for every number of the input, its positive and its negative part."""
    eye = torch.eye(d)
    params = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye])}
    return SAE("standard", params | {"b_enc": torch.zeros(2 * d), "b_dec": torch.zeros(d)}, hook=hook)


def hook_count(model: Any) -> int:
    points = model.hook_dict.values()
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) + len(p._forward_hooks) for p in points)


@pytest.fixture(autouse=True)
def no_hook_left(tiny: Any):  # type: ignore[no-untyped-def]
    before = hook_count(tiny)
    yield
    assert hook_count(tiny) == before


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 8192, (5, 9), generator=torch.Generator().manual_seed(3))


def of_site(site: str, kind: str = "standard", layer: int = 1) -> SAE:
    return random_sae(kind, 64, 80, f"blocks.{layer}.{site}")


@pytest.mark.parametrize("site", SITES)
def test_without_an_edit_nothing_changes(tiny: Any, tokens: Tensor, site: str) -> None:
    clean = tiny(tokens)
    for kind in ("standard", "gated", "jumprelu", "topk"):
        torch.testing.assert_close(spliced_logits(tiny, tokens, of_site(site, kind)), clean, atol=1e-5, rtol=0)
    perfect = spliced_logits(tiny, tokens, exact(64, f"blocks.1.{site}"), error=False)
    torch.testing.assert_close(perfect, clean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("site", ["attn.hook_z", "hook_mlp_out"])
def test_splicing_equals_replacement_by_the_patching_engine(tiny: Any, tokens: Tensor, site: str, error: bool) -> None:
    """`patching.replace` puts the same activations in place, with arithmetic of its own."""
    sae, values = of_site(site, "gated"), patching.record(tiny, tokens)

    def edit(f: Tensor) -> Tensor:
        return (1.5 * f - 0.2).clamp(max=0.7)

    x = values.z[1].flatten(2) if site == "attn.hook_z" else values.mlp[1]
    f = sae.encode(x)
    new = sae.decode(edit(f)) + (x - sae.decode(f) if error else 0)
    heads, mlps = torch.zeros(3, 4, *tokens.shape, dtype=torch.bool), torch.zeros(3, *tokens.shape, dtype=torch.bool)
    if site == "attn.hook_z":
        values.z[1], heads[1] = new.unflatten(-1, (4, 16)), True
    else:
        values.mlp[1], mlps[1] = new, True
    slow = patching.replace(tiny, tokens, values, heads=heads, mlps=mlps, at=AT)
    ours = spliced_logits(tiny, tokens, sae, edit, error=error, at=AT)
    torch.testing.assert_close(ours, slow, atol=1e-4, rtol=0)
    assert (slow - patching.logits_at(tiny, tokens, AT)).abs().max() > 1e-2, "the edit does something"


@pytest.mark.parametrize("at", [None, torch.tensor([0, 1, 2, 0, 3])])
def test_ablating_all_latents_of_a_head_is_a_zero_ablation(tiny: Any, tokens: Tensor, at: Tensor | None) -> None:
    values = patching.record(tiny, tokens).zeros_like()
    marked = patching.mask(tiny, tokens.shape, {Head(1, 2): at})
    slow = patching.replace(tiny, tokens, values, heads=marked, at=AT)
    of_head = [*range(32, 48), *range(64 + 32, 64 + 48)]
    for batch_size in (32, 2):
        sae = exact(64, "blocks.1.attn.hook_z")
        ours = spliced_logits(tiny, tokens, sae, ablate(of_head, at), at=AT, batch_size=batch_size)
        torch.testing.assert_close(ours, slow, atol=1e-4, rtol=0)


@pytest.mark.parametrize("at", [None, torch.tensor([0, 1, 2, 0, 3])])
def test_steering_adds_the_decoder_s_row(tiny: Any, tokens: Tensor, at: Tensor | None) -> None:
    sae, values = of_site("attn.hook_z", "jumprelu"), patching.record(tiny, tokens)
    values.z[1] += (2.5 * sae.W_dec[7]).view(4, 16)
    marked = patching.mask(tiny, tokens.shape, {Head(1, h): at for h in range(4)})
    slow = patching.replace(tiny, tokens, values, heads=marked, at=AT)
    ours = spliced_logits(tiny, tokens, sae, steer(7, 2.5, at), at=AT, batch_size=3)
    torch.testing.assert_close(ours, slow, atol=1e-4, rtol=0)


@pytest.mark.parametrize("site", ["hook_resid_pre", "hook_resid_post", "hook_attn_out"])
def test_steering_the_stream_adds_to_all_that_follows(tiny: Any, tokens: Tensor, site: str) -> None:
    sae = of_site(site, layer=2)

    def add(x: Tensor, hook: Any) -> Tensor:
        return x + 2.5 * sae.W_dec[7]

    slow = tiny.run_with_hooks(tokens, fwd_hooks=[(sae.hook, add)])
    torch.testing.assert_close(spliced_logits(tiny, tokens, sae, steer(7, 2.5)), slow, atol=1e-4, rtol=0)
    if site == "hook_resid_post":  # the last layer: the shift passes the final norm and nothing else
        _, cache = tiny.run_with_cache(tokens)
        final = cache["blocks.2.hook_resid_post"] + 2.5 * sae.W_dec[7]
        torch.testing.assert_close(slow, tiny.ln_final(final) @ tiny.W_U + tiny.b_U, atol=1e-4, rtol=0)


def test_batch_size_does_not_change_results(tiny: Any, tokens: Tensor) -> None:
    sae = of_site("hook_resid_pre")
    for edit in (None, lambda f: 2 * f, ablate([1, 5]), steer(3, 1.0, AT)):
        whole = spliced_logits(tiny, tokens, sae, edit, error=False)
        for batch_size in (1, 2):
            part = spliced_logits(tiny, tokens, sae, edit, error=False, batch_size=batch_size)
            torch.testing.assert_close(part, whole, atol=1e-4, rtol=0)
        one = spliced_logits(tiny, tokens, sae, edit, error=False, at=AT)
        torch.testing.assert_close(one, whole[torch.arange(5), AT], atol=1e-4, rtol=0)


@settings(max_examples=50, deadline=None)
@given(latents=st.sets(st.integers(0, 11), max_size=5), strength=st.floats(-5, 5), seed=st.integers(0, 99))
def test_edits_are_pure_and_touch_their_latents_only(latents: set[int], strength: float, seed: int) -> None:
    f = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(seed))
    before, which, at = f.clone(), sorted(latents), torch.tensor([1, 3, 0])
    other = torch.tensor([i for i in range(12) if i not in latents], dtype=torch.long)
    for edit, expected in ((ablate(which), 0.0 * f), (steer(which, strength), f + strength)):
        new = edit(f)
        assert torch.equal(f, before)
        assert torch.equal(new[..., other], f[..., other])
        torch.testing.assert_close(new[..., which], expected[..., which])
        here = replace(edit, at=at)(f)
        for p in range(3):
            for s in range(4):
                assert torch.equal(here[p, s], new[p, s] if s == at[p] else f[p, s])
    assert torch.equal(ablate(which)(ablate(which)(f)), ablate(which)(f))
    torch.testing.assert_close(steer(which, -strength)(steer(which, strength)(f)), f, atol=1e-5, rtol=1e-5)


def test_an_edit_in_place_is_an_edit(tiny: Any, tokens: Tensor) -> None:
    def zero(f: Tensor) -> Tensor:
        f[..., 3] = 0
        return f

    sae = of_site("hook_mlp_out", "standard")
    ours = spliced_logits(tiny, tokens, sae, zero)
    torch.testing.assert_close(ours, spliced_logits(tiny, tokens, sae, ablate(3)))
    assert (ours - tiny(tokens)).abs().max() > 1e-3


def test_the_user_s_own_hooks_are_refused_and_stay(tiny: Any, tokens: Tensor) -> None:
    """Half of the work would not see them; several SAEs at once go through `splice`."""
    sae, seen = of_site("attn.hook_z"), []
    with tiny.hooks([("blocks.0.hook_resid_pre", lambda x, hook: seen.append(1))]):
        own = hook_count(tiny)
        for run in (
            lambda: spliced_logits(tiny, tokens, sae),
            lambda: ablation_effects(tiny, tokens, sae, None, AT, first_minus_second),
        ):
            with pytest.raises(ValueError, match="has a hook at"):
                run()
        assert hook_count(tiny) == own
    assert not seen


def test_several_saes_at_once(tiny: Any, tokens: Tensor) -> None:
    first, second = of_site("hook_mlp_out", layer=0), of_site("attn.hook_z", layer=2)
    both = tiny.run_with_hooks(tokens, fwd_hooks=[(s.hook, splice(s, error=False)) for s in (first, second)])
    x = tiny.run_with_hooks(tokens, fwd_hooks=[(first.hook, splice(first, error=False))])
    assert (both - x).abs().max() > 1e-3
    alone = tiny.run_with_hooks(tokens, fwd_hooks=[(second.hook, splice(second, error=False))])
    torch.testing.assert_close(spliced_logits(tiny, tokens, second, error=False), alone, atol=1e-4, rtol=0)


def first_minus_second(logits: Tensor) -> Tensor:
    """A metric that differs between prompts: it shows if rows get mixed up."""
    which = torch.arange(len(logits))
    return logits[which, 10 * which] - 0.5 * logits[which, 7 + which]


READ = torch.tensor([8, 6, 8, 3, 8])


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("site", SITES)
def test_ablation_effects_equal_one_splice_a_latent(tiny: Any, tokens: Tensor, site: str, layer: int) -> None:
    sae = of_site(site, "topk", layer)
    found = ablation_effects(tiny, tokens, sae, None, AT, first_minus_second, read=READ)
    before = first_minus_second(tiny(tokens)[torch.arange(5), READ])
    torch.testing.assert_close(found.before, before, atol=1e-4, rtol=0)
    assert found.active.sum(1).max() <= 6
    for i in found.active.any(0).nonzero()[:, 0].tolist():
        slow = first_minus_second(spliced_logits(tiny, tokens, sae, ablate(i, AT), at=READ)) - before
        torch.testing.assert_close(found.values[:, i], slow, atol=1e-4, rtol=0)
    assert (found.values[~found.active] == 0).all()

    def without_error(x: Tensor, hook: Any) -> Tensor:
        flat = x.flatten(2).clone()
        flat[torch.arange(5), AT] = sae(flat[torch.arange(5), AT])
        return flat.view_as(x)

    slow = first_minus_second(tiny.run_with_hooks(tokens, fwd_hooks=[(sae.hook, without_error)])[torch.arange(5), READ])
    torch.testing.assert_close(found.error, slow - before, atol=1e-4, rtol=0)
    for batch_size in (1, 3):
        again = ablation_effects(tiny, tokens, sae, None, AT, first_minus_second, read=READ, batch_size=batch_size)
        torch.testing.assert_close(again.values, found.values, atol=1e-4, rtol=0)
        assert torch.equal(again.active, found.active)


@pytest.mark.parametrize("site", SITES)
def test_a_latent_at_its_mean_equals_an_edit_by_hand(tiny: Any, tokens: Tensor, site: str) -> None:
    sae = of_site(site, "topk")
    sae = replace(sae, params=sae.params | {"W_dec": 40 * sae.W_dec})  # effects that are worth comparing
    f = sae.encode(tiny.run_with_cache(tokens)[1][sae.hook].flatten(2))[torch.arange(5), AT]
    means, some = f.mean(0), f.sum(0).topk(5).indices
    found = ablation_effects(tiny, tokens, sae, some, AT, first_minus_second, read=READ, to="mean", batch_size=3)
    assert torch.equal(found.active, f[:, some] != 0)
    for column, i in enumerate(some.tolist()):

        def edit(f: Tensor, i: int = i) -> Tensor:
            f[torch.arange(5), AT, i] = means[i]
            return f

        logits = spliced_logits(tiny, tokens, sae, edit, at=READ)
        slow = first_minus_second(logits) - found.before
        torch.testing.assert_close(found.values[:, column], slow, atol=1e-4, rtol=0)
    assert found.values.abs().max() > 1e-2


def test_a_latent_that_never_changes_has_no_effect_at_its_mean(tiny: Any, tokens: Tensor) -> None:
    """Zeroing it takes away a constant; nothing that tells prompts apart."""
    sae = of_site("hook_mlp_out")
    params = dict(sae.params)
    params["W_enc"] = params["W_enc"].clone()
    params["W_enc"][:, 3], params["b_enc"] = 0, params["b_enc"].clone().index_fill(0, torch.tensor([3]), 2.0)
    sae, some = replace(sae, params=params), torch.tensor([3])
    zero = ablation_effects(tiny, tokens, sae, some, AT, first_minus_second, read=READ)
    mean = ablation_effects(tiny, tokens, sae, some, AT, first_minus_second, read=READ, to="mean")
    assert zero.active.all()
    assert mean.active.all()
    assert zero.values.abs().min() > 1e-4
    assert (mean.values == 0).all()


def test_latents_that_are_off_cost_no_forward_pass(tiny: Any, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    resume = module.resume
    monkeypatch.setattr(module, "resume", lambda m, c, x, w, **kw: rows.append(x.shape[1]) or resume(m, c, x, w, **kw))
    sae = of_site("attn.hook_z", "topk")
    found = ablation_effects(tiny, tokens, sae, None, AT, first_minus_second)
    assert sum(rows) == int(found.active.sum()) + 5, "one for every active latent, one a prompt for the error"
    rows.clear()
    off = replace(sae, kind="standard", k=None, params=sae.params | {"b_enc": torch.full((80,), -100.0)})
    found = ablation_effects(tiny, tokens, off, None, AT, first_minus_second)
    assert sum(rows) == 5
    assert (found.values == 0).all()


def identity(model: Any, layer: int) -> SAE:
    """Latent h · d_head + i reads number i of head h, if it is above 0.1."""
    d = model.cfg.n_heads * model.cfg.d_head
    params = {"W_enc": torch.eye(d), "W_dec": torch.eye(d), "b_enc": torch.full((d,), -0.1), "b_dec": torch.zeros(d)}
    return SAE("standard", params, hook=f"blocks.{layer}.attn.hook_z")


def test_the_latents_of_the_ioi_circuit_are_found() -> None:
    """At END 2.0 carries S1's position, 2.3 the name S: exactly these latents matter, prompt by prompt."""
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(16)
    end = data.positions["END"]
    found = ablation_effects(
        organism.model, data.tokens, identity(organism.model, 2), None, end, data.logit_diff, read=end
    )
    assert (found.before > 4).all()
    rows = torch.arange(16)
    position, name = data.positions["S1"], 3 * 64 + data.s - 1
    assert found.active[rows, position].all()
    assert found.active[rows, name].all()
    assert (found.values[rows, position] < -0.5).all()
    assert (found.values[rows, name] < -0.2).all()
    rest = found.values.clone()
    rest[rows, position] = rest[rows, name] = 0
    assert rest.abs().max() < 0.05
    best = {i for i, _ in found.top(4)}
    assert best <= {*position.tolist(), *name.tolist()}
    both = [*range(64), *range(3 * 64, 4 * 64)]
    logits = spliced_logits(organism.model, data.tokens, identity(organism.model, 2), ablate(both), at=end)
    assert data.logit_diff(logits).mean() < 0.5 * found.before.mean()


def test_random_weights_have_no_such_latent() -> None:
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(16)
    model, end = organisms.control(organism).model, data.positions["END"]
    sae = replace(identity(model, 2), params=identity(model, 2).params | {"b_enc": torch.zeros(256)})
    found = ablation_effects(model, data.tokens, sae, None, end, data.logit_diff, read=end)
    assert found.active.float().mean() > 0.3
    assert found.before.std() > 1, "the metric moves, but no latent carries it from prompt to prompt"
    assert abs(found.top(1)[0][1]) < 0.05
    assert found.values[torch.arange(16), data.positions["S1"]].mean().abs() < 0.05


@pytest.mark.usefixtures("unchecked")
def test_questions_that_cannot_be_answered(tiny: Any, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="zero or mean"):
        ablation_effects(tiny, tokens, of_site("hook_mlp_out"), None, AT, first_minus_second, to="median")  # type: ignore[arg-type]
    sae = of_site("attn.hook_z")
    bad = {
        "does not say where it belongs": replace(sae, hook=""),
        "no hook 'blocks.9.attn.hook_z'": replace(sae, hook="blocks.9.attn.hook_z"),
        "hook_resid_mid is not supported here": replace(sae, hook="blocks.1.hook_resid_mid"),
        "width 32; at its hook this model has 64": random_sae("standard", 32, 80, "blocks.1.hook_mlp_out"),
        "depend on the whole batch": SAE("batchtopk", initial("batchtopk", 64, 80, seed=0), k=4, hook=sae.hook),
        "contain NaN": replace(sae, params=sae.params | {"b_enc": torch.full((80,), torch.nan)}),
        "the model on cpu": sae.to("meta"),
    }
    for words, wrong in bad.items():
        with pytest.raises(ValueError, match=words):
            spliced_logits(tiny, tokens, wrong)
    with pytest.raises(ValueError, match=r"must return latents of shape \(5, 9, 80\)"):
        spliced_logits(tiny, tokens, sae, lambda f: f[..., :3])
    with pytest.raises(ValueError, match="output contains NaN"):
        spliced_logits(tiny, tokens, sae, lambda f: f * torch.inf)
    with pytest.raises(ValueError, match=r"latents must lie in 0\.\.79"):
        spliced_logits(tiny, tokens, sae, ablate([80]))
    with pytest.raises(ValueError, match=r"at must lie in 0\.\.8"):
        spliced_logits(tiny, tokens, sae, ablate([8], AT + 5))
    with pytest.raises(ValueError, match="positions of 5 prompts, latents of 2"):
        spliced_logits(tiny, tokens, sae, lambda f: ablate([8], AT)(f), batch_size=2)
    with pytest.raises(ValueError, match=r"latents must lie in 0\.\.79"):
        ablation_effects(tiny, tokens, sae, torch.tensor([-1]), AT, first_minus_second)
    with pytest.raises(ValueError, match="read must be at least at"):
        ablation_effects(tiny, tokens, sae, None, AT, first_minus_second, read=AT - torch.tensor([0, 1, 0, 0, 0]))
    with pytest.raises(ValueError, match="one value a prompt"):
        ablation_effects(tiny, tokens, sae, None, AT, lambda logits: logits.mean())
