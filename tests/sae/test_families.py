"""SAE sites, interventions and attribution on every family, against the raw model and plain hooks."""

from typing import Any

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, PARALLEL, VOCAB, WIDTH, Raw, Weights, bridge
from torch import Tensor

from mechinterp.sae import SAE, activations, evaluate, initial, site
from mechinterp.sae.latents import attribution, features, interventions

G = torch.Generator().manual_seed(8)
TOKENS = torch.randint(1, VOCAB, (3, 9), generator=G)
AT, READ = torch.tensor([3, 5, 4]), torch.tensor([8, 7, 4])
ROWS = torch.arange(3)
STREAMS = {"hook_resid_pre": "resid_pre", "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Raw]:
    return bridge(request.param), Raw(request.param)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def an_sae(model: Any, hook: str) -> SAE:
    """Random, with decoder rows of zero mean where streams have none, so that centring changes nothing."""
    width = activations(model, TOKENS[:1], [hook])[hook].shape[-1]
    generator = torch.Generator().manual_seed(1)
    p = initial("standard", width, 2 * width, seed=0)
    p = {name: x + 0.3 * torch.randn(x.shape, generator=generator) for name, x in p.items()}
    if not hook.endswith("hook_z"):
        p |= {"W_dec": centred(p["W_dec"]), "W_enc": p["W_enc"] - p["W_enc"].mean(0), "b_dec": centred(p["b_dec"])}
    return SAE("standard", p, hook=hook)


@pytest.mark.parametrize("site_name", STREAMS)
def test_streams_are_the_raw_model_s_and_those_of_the_bridge_s_hooks(family: tuple[Any, Raw], site_name: str) -> None:
    model, raw = family
    _, got = raw.run(TOKENS)
    hook = f"blocks.1.{site_name}"
    ours = activations(model, TOKENS, [hook], batch_size=2)[hook]
    theirs = got[STREAMS[site_name], 1]
    # Processing centres what is written where norms remove the mean, and moves value biases into the attention's.
    if site_name == "hook_attn_out" or Weights(raw).centres:
        close(centred(ours), centred(theirs))
    else:
        close(ours, theirs)
    _, cache = model.run_with_cache(TOKENS)
    close(ours, cache[hook].reshape(ours.shape))


def test_heads_and_two_names_of_one_stream(family: tuple[Any, Raw]) -> None:
    model, raw = family
    weights, (_, got) = Weights(raw), raw.run(TOKENS)
    names = ["blocks.2.attn.hook_z", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"]
    found = activations(model, TOKENS, names)
    close(found[names[0]], weights.z(got, 2).flatten(2))
    assert torch.equal(found[names[1]], found[names[2]])
    last = f"blocks.{LAYERS - 1}.hook_resid_post"
    close(centred(activations(model, TOKENS, [last])[last]), centred(got["resid_pre", LAYERS]))
    if raw.name in PARALLEL:
        with pytest.raises(ValueError, match="no stream at"):
            activations(model, TOKENS, ["blocks.1.hook_resid_mid"])


@pytest.mark.parametrize("site_name", ["attn.hook_z", *STREAMS, "hook_resid_post"])
def test_splicing_and_ablating_latents(family: tuple[Any, Raw], site_name: str) -> None:
    """The raw model gets the same change of its own activations."""
    model, raw = family
    layer = LAYERS - 1 if site_name == "hook_resid_post" else 1
    hook = f"blocks.{layer}.{site_name}"
    sae = an_sae(model, hook)
    x = activations(model, TOKENS, [hook])[hook]
    f = sae.encode(x)
    latents = f.flatten(0, 1).mean(0).topk(3).indices
    at_place = ("resid_pre", layer + 1) if site_name == "hook_resid_post" else (STREAMS.get(site_name, "z"), layer)

    def run(change: Tensor) -> Tensor:
        return raw.run(TOKENS, {at_place: lambda a: a + change.view_as(a)})[0]

    gone = -f[..., latents] @ sae.W_dec[latents]
    ours = interventions.spliced_logits(model, TOKENS, sae, interventions.ablate(latents.tolist()), batch_size=2)
    close(ours.log_softmax(-1), run(gone).log_softmax(-1))
    whole = interventions.spliced_logits(model, TOKENS, sae, error=False, at=READ)
    close(whole.log_softmax(-1), run(sae.decode(f) - x)[ROWS, READ].log_softmax(-1))

    def metric(l: Tensor) -> Tensor:  # noqa: E741
        return l[:, 3] - l[:, 17]

    effects = interventions.ablation_effects(model, TOKENS, sae, latents, AT, metric, read=READ)
    clean = metric(raw.run(TOKENS)[0][ROWS, READ])
    close(effects.before, clean)
    for column, latent in enumerate(latents.tolist()):
        change = torch.zeros_like(x)
        change[ROWS, AT] = -f[ROWS, AT, latent, None] * sae.W_dec[latent]
        close(effects.values[:, column], metric(run(change)[ROWS, READ]) - clean)


@pytest.mark.parametrize("site_name", ["attn.hook_z", *STREAMS, "hook_resid_post"])
def test_added_loss(family: tuple[Any, Raw], site_name: str) -> None:
    model, raw = family
    layer = LAYERS - 1 if site_name == "hook_resid_post" else 1
    hook = f"blocks.{layer}.{site_name}"
    at_place = ("resid_pre", layer + 1) if site_name == "hook_resid_post" else (STREAMS.get(site_name, "z"), layer)
    sae = an_sae(model, hook)
    here = site(model, TOKENS, hook, skip=())
    x = activations(model, TOKENS, [hook])[hook]
    change = sae.decode(sae.encode(x)) - x
    change[:, 0] = 0  # the first token is left as it is
    spliced, _ = raw.run(TOKENS, {at_place: lambda a: a + change.view_as(a)})

    def loss(values: Tensor) -> Tensor:
        return -values[:, :-1].log_softmax(-1).gather(-1, TOKENS[:, 1:, None]).mean()

    expected = loss(spliced) - loss(raw.run(TOKENS)[0])
    assert evaluate(model, sae, here).value("delta_loss") == pytest.approx(expected.item(), abs=1e-4, rel=1e-4)


def test_sources_of_a_latent(family: tuple[Any, Raw]) -> None:
    """A_h(d, s) v_h(s) · W_enc[h, i] from raw patterns and raw values without their bias."""
    model, raw = family
    weights, (_, got) = Weights(raw), raw.run(TOKENS)
    sae = an_sae(model, "blocks.2.attn.hook_z")
    latents = torch.tensor([2, 11, 5])
    ours = attribution.dfa_by_source(model, sae, TOKENS, latents, AT)
    v = got["v", 2].clamp(-0.7, 0.7) if raw.name == "OLMo" else got["v", 2]
    v = v - weights.folded(2)["bV"]
    read = sae.W_enc[:, latents].T.unflatten(1, (HEADS, -1))  # prompt head d_head
    close(ours, got["pattern", 2][ROWS, :, AT] * torch.einsum("pshd,phd->phs", v, read))


def test_a_latent_is_the_sum_of_what_was_written(family: tuple[Any, Raw]) -> None:
    model, raw = family
    saes = {layer: an_sae(model, f"blocks.{layer}.attn.hook_z") for layer in (0, 2)}
    if raw.name == "OLMo":
        with pytest.raises(ValueError, match="clipped"):
            attribution.recursive_dfa(model, saes, TOKENS[0], 2, 5, 3)
        return
    found = attribution.recursive_dfa(model, saes, TOKENS[0], 2, 5, 3, depth=1, top=2)
    for node in found.nodes():
        assert node.total() == pytest.approx(node.pre, abs=1e-4, rel=1e-4)
        z = Weights(raw).z(raw.run(TOKENS[:1])[1], node.layer)[0, node.position].flatten()
        assert node.pre == pytest.approx(saes[node.layer].pre(z)[node.latent].item(), abs=1e-4, rel=1e-4)
    # What MLP 1 adds: taking it away changes the pre-activation by its terms, patterns and norm scales held.
    assert any(t.part == "mlp" and t.layer == 1 for t in found.terms)
    assert found.by_part()["embedding"] != 0


@pytest.mark.parametrize("site_name", ["attn.hook_z", "hook_resid_post"])
def test_logit_weights(family: tuple[Any, Raw], site_name: str) -> None:
    model, raw = family
    weights, sae = Weights(raw), an_sae(model, f"blocks.1.{site_name}")
    ids = torch.tensor([0, 7, 13])
    direction = sae.W_dec[ids]
    if site_name == "attn.hook_z":
        direction = torch.einsum("ihd,hdm->im", direction.unflatten(1, (HEADS, -1)), weights.folded(1)["O"])
    direction = centred(direction) if weights.centres else direction
    assert direction.shape == (3, WIDTH)
    expected = direction * weights.gain(raw.final) @ weights.W_U
    close(features.direct_logits(model, sae, ids), centred(expected))
