"""Attribution against explicit loops, on an organism whose heads are known, on random weights; sums are exact."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.models import organisms
from mechinterp.sae import KINDS, SAE, tensor_shapes
from mechinterp.sae.latents.attribution import (
    dfa_by_head,
    dfa_by_source,
    encoder_map,
    head_shares,
    recursive_dfa,
    upstream_residual,
)
from mechinterp.sae.sites import activations


def random_sae(kind: str, d_in: int, d_sae: int, *, seed: int = 0, hook: str = "") -> SAE:
    """Weights of order one everywhere, biases included."""
    g = torch.Generator().manual_seed(seed)
    shapes = tensor_shapes(kind, d_in, d_sae)
    params = {name: torch.randn(shape, generator=g) / shape[0] ** (len(shape) - 1) for name, shape in shapes.items()}
    if kind == "jumprelu":
        params["threshold"] = params["threshold"].abs() + 0.1
    return SAE(kind, params, k=3 if "topk" in kind else None, hook=hook)


def identity(model: Any, layer: int, bias: float = -0.1) -> SAE:
    """Latent h · d_head + i reads number i of head h."""
    d = model.cfg.n_heads * model.cfg.d_head
    params = {"W_enc": torch.eye(d), "W_dec": torch.eye(d), "b_enc": torch.full((d,), bias), "b_dec": torch.zeros(d)}
    return SAE("standard", params, hook=f"blocks.{layer}.attn.hook_z")


@pytest.fixture(scope="module")
def lab_saes(lab: Any) -> dict[int, SAE]:
    kinds: dict[int, str] = {0: "topk", 1: "gated", 2: "standard", 3: "jumprelu", 4: "gated"}
    return {i: random_sae(k, 256, 320, seed=i, hook=f"blocks.{i}.attn.hook_z") for i, k in kinds.items()}


@settings(max_examples=25, deadline=None)
@given(heads=st.integers(1, 4), d_head=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_head_shares_are_norms_of_the_decoder_s_pieces(heads: int, d_head: int, seed: int) -> None:
    sae = random_sae("standard", heads * d_head, 7, seed=seed)
    shares = head_shares(sae, heads)
    for i in range(7):
        norms = [sae.W_dec[i, h * d_head : (h + 1) * d_head].pow(2).sum() ** 0.5 for h in range(heads)]
        for h in range(heads):
            assert shares[i, h].item() == pytest.approx((norms[h] / sum(norms)).item(), rel=1e-4)
    longer = replace(sae, params=sae.params | {"W_dec": 3 * sae.W_dec})
    torch.testing.assert_close(head_shares(longer, heads), shares)


def test_head_shares_of_a_latent_that_one_head_writes_and_of_one_that_is_zero() -> None:
    rows = torch.zeros(2, 6)
    rows[0, 2:4] = torch.tensor([3.0, -4.0])
    params = {"W_enc": torch.ones(6, 2), "W_dec": rows, "b_enc": torch.zeros(2), "b_dec": torch.zeros(6)}
    assert head_shares(SAE("standard", params), 3).tolist() == [[0, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="4 heads cannot share"):
        head_shares(SAE("standard", params), 4)


@pytest.mark.parametrize("kind", KINDS)
def test_dfa_by_head_sums_to_the_pre_activation(kind: str) -> None:
    sae = random_sae(kind, 12, 20)
    z = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    dfa = dfa_by_head(sae, z)
    assert dfa.shape == (5, 2, 20, 3)
    constant = encoder_map(sae)[1]
    torch.testing.assert_close(dfa.sum(-1) + constant, sae.pre(z.flatten(-2)), atol=1e-5, rtol=1e-5)
    # One head at a time: the pre-activation with it minus that with all heads zero.
    nothing = sae.pre(torch.zeros_like(z).flatten(-2))
    for h in range(3):
        alone = torch.zeros_like(z)
        alone[..., h, :] = z[..., h, :]
        torch.testing.assert_close(dfa[..., h], sae.pre(alone.flatten(-2)) - nothing, atol=1e-5, rtol=1e-5)
    some = torch.tensor([7, 0])
    torch.testing.assert_close(dfa_by_head(sae, z, some), dfa[..., some, :])


def test_the_gate_of_a_gated_sae_has_the_same_shares() -> None:
    sae = random_sae("gated", 12, 20)
    p, z = sae.params, torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    gate = (z.flatten(-2) - p["b_dec"]) @ p["W_enc"] + p["b_gate"]
    of_gate = dfa_by_head(sae, z) / p["r_mag"].exp()[:, None]
    torch.testing.assert_close(of_gate.sum(-1), gate - p["b_gate"] + p["b_dec"] @ p["W_enc"], atol=1e-5, rtol=1e-5)


def test_dfa_by_source_against_loops(tiny: Any) -> None:
    g = torch.Generator().manual_seed(0)
    tokens, sae = torch.randint(0, 8192, (4, 7), generator=g), random_sae("gated", 64, 80, hook="blocks.1.attn.hook_z")
    latents, at = torch.tensor([3, 3, 79, 0]), torch.tensor([6, 0, 4, 2])
    dfa = dfa_by_source(tiny, sae, tokens, latents, at)
    _, cache = tiny.run_with_cache(tokens)
    pattern, v = cache["blocks.1.attn.hook_pattern"], cache["blocks.1.attn.hook_v"]
    weight = sae.W_enc * sae.params["r_mag"].exp()
    for p in range(4):
        for h in range(4):
            for s in range(7):
                read = weight[16 * h : 16 * (h + 1), latents[p]]
                assert dfa[p, h, s].item() == pytest.approx(
                    (pattern[p, h, at[p], s] * v[p, s, h] @ read).item(), abs=1e-5
                )
    assert (dfa[torch.arange(7).expand(4, 4, 7) > at[:, None, None]] == 0).all()
    for batch_size in (1, 3):
        again = dfa_by_source(tiny, sae, tokens, latents, at, batch_size=batch_size)
        torch.testing.assert_close(again, dfa, atol=1e-6, rtol=0)


def test_on_the_lab_model_sources_and_heads_sum_to_the_latent(lab: Any, lab_saes: dict[int, SAE]) -> None:
    tokens = torch.randint(1, 8192, (6, 40), generator=torch.Generator().manual_seed(0))
    latents, at = torch.arange(6) * 50, torch.tensor([39, 5, 0, 20, 33, 12])
    for layer, sae in lab_saes.items():
        z = activations(lab, tokens, [sae.hook])[sae.hook][torch.arange(6), at]
        dfa = dfa_by_source(lab, sae, tokens, latents, at)
        weight, constant = encoder_map(sae, latents)
        torch.testing.assert_close(dfa.sum((1, 2)), (z * weight.T).sum(-1), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            dfa.sum((1, 2)) + constant, sae.pre(z)[torch.arange(6), latents], atol=1e-4, rtol=0, msg=f"layer {layer}"
        )
        by_head = dfa_by_head(sae, z.unflatten(-1, (8, 32)))[torch.arange(6), latents]
        torch.testing.assert_close(dfa.sum(2), by_head, atol=1e-4, rtol=0)


def induction_questions(n: int = 8) -> tuple[Any, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(organism, tokens, prompts, destinations, latents, sources): what head 1.0 moves at every repeated word."""
    organism = organisms.induction()
    tokens = organism.tokens(n)
    at = torch.arange(16, 30).repeat(n)
    prompts = torch.arange(n).repeat_interleave(14)
    source = at - 15 + 1
    return organism, tokens, prompts, at, tokens[prompts, source] - 1, source


def test_dfa_finds_the_induction_head_and_where_it_looks() -> None:
    organism, tokens, prompts, at, latents, source = induction_questions()
    dfa = dfa_by_source(organism.model, identity(organism.model, 1), tokens[prompts], latents, at)
    total = dfa.sum((1, 2))
    assert (total > 0.9).all(), "every latent is on: its head copies the word"
    assert (dfa[:, 0].sum(1) / total - 1).abs().max() < 1e-3, "head 1.0, nothing from 1.1"
    assert (dfa[torch.arange(len(at)), 0, source] / total - 1).abs().max() < 0.02
    assert (dfa.sum(1).argmax(1) == source).all()


def test_random_directions_belong_to_no_head_and_random_weights_have_no_source() -> None:
    organism, tokens, prompts, at, latents, source = induction_questions()
    noise = random_sae("standard", 192, 256, hook="blocks.1.attn.hook_z")
    dfa = dfa_by_source(organism.model, noise, tokens[prompts], latents, at).sum(2)
    assert (dfa[:, 0].abs() / dfa.abs().sum(1)).mean() < 0.9
    control = organisms.control(organism).model
    dfa = dfa_by_source(control, identity(control, 1), tokens[prompts], latents, at)
    assert (dfa.sum(1).argmax(1) == source).float().mean() < 0.2
    share = dfa[:, 0].sum(1).abs() / dfa.sum(2).abs().sum(1)
    assert ((share - 1).abs() < 1e-3).all(), "an identity SAE still names its head"


def test_recursive_dfa_walks_the_ioi_circuit() -> None:
    """END reads S1's position at S2 from 0.1 and 1.2 alike; 1.2 has it from 0.3 at S1+1, which reads position S1."""
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(6)
    model = organism.model
    saes = {layer: identity(model, layer) for layer in range(3)}
    for i, tokens in enumerate(data.tokens):
        where = {name: int(position[i]) for name, position in data.positions.items()}
        tokens, s1, s2 = tokens[: where["END"] + 1], where["S1"], where["S2"]
        found = recursive_dfa(model, saes, tokens, 2, where["END"], s1, depth=2, top=2)
        duplicate, induction = 0 * 256 + 1 * 64 + s1 - 1, 2 * 64 + s1 - 1
        assert {(t.layer, t.latent, t.source) for t in found.top(2, "latent")} == {
            (0, duplicate, s2),
            (1, induction, s2),
        }
        for term in found.top(2, "latent"):
            assert term.value == pytest.approx(0.5 * 0.9, rel=0.02)
        above = {node.layer: node for node in found.upstream}
        [best] = above[0].top(1)
        assert (best.part, best.source) == ("position", s1)
        assert best.value == pytest.approx(1, rel=0.02)
        [best] = above[1].top(1)
        previous = 3 * 64 + 32 + s1
        assert (best.part, best.layer, best.latent, best.source) == ("latent", 0, previous, s1 + 1)
        [chain] = [node for node in above[1].upstream if node.latent == previous]
        assert (chain.top(1)[0].part, chain.top(1)[0].source) == ("position", s1)


def test_recursive_dfa_of_random_weights_finds_no_circuit() -> None:
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(6)
    model = organisms.control(organism).model
    saes = {layer: identity(model, layer, bias=0.0) for layer in range(3)}
    hits = []
    for i, tokens in enumerate(data.tokens):
        end, s1, s2 = (int(data.positions[name][i]) for name in ("END", "S1", "S2"))
        found = recursive_dfa(model, saes, tokens[: end + 1], 2, end, s1, depth=0)
        best = found.top(2, "latent")
        hits.append({(t.layer, t.source) for t in best} == {(0, s2), (1, s2)})
        assert abs(best[0].value) < 0.3 * sum(abs(t.value) for t in found.terms)
    assert sum(hits) <= 1


@pytest.mark.parametrize("layers", [(0, 1, 2, 3, 4), (1, 4), (4,)])
def test_all_terms_sum_to_the_target_at_every_node(lab: Any, lab_saes: dict[int, SAE], layers: tuple[int, ...]) -> None:
    tokens = torch.randint(1, 8192, (20,), generator=torch.Generator().manual_seed(0))
    tokens[0] = 0
    saes = {layer: lab_saes[layer] for layer in layers}
    found = recursive_dfa(lab, saes, tokens, 4, 17, 11, depth=2, top=2)
    assert len(found.nodes()) == {5: 7, 2: 3, 1: 1}[len(layers)]
    for node in found.nodes():
        assert abs(node.total() - node.pre) < 1e-4
        assert sum(node.by_part().values()) == pytest.approx(node.total(), abs=1e-9)
        hook = f"blocks.{node.layer}.attn.hook_z"
        z = activations(lab, tokens[None], [hook])[hook][0, node.position]
        assert node.pre == pytest.approx(saes[node.layer].pre(z)[node.latent].item(), abs=1e-4)
    assert {t.layer for t in found.terms if t.part == "attention"} == set(range(4)) - set(layers)
    assert {t.layer for t in found.terms if t.part == "error"} == set(layers) - {4}


def test_a_term_is_what_its_removal_changes_with_patterns_and_scales_frozen(tiny: Any) -> None:
    """Take one summand out of the stream before layer 2 and do the attention again by hand."""
    tokens = torch.randint(0, 8192, (9,), generator=torch.Generator().manual_seed(0))
    saes = {i: random_sae("standard", 64, 96, seed=i, hook=f"blocks.{i}.attn.hook_z") for i in (0, 1, 2)}
    at, latent = 7, 5
    found = recursive_dfa(tiny, saes, tokens, 2, at, latent, depth=0)
    _, cache = tiny.run_with_cache(tokens[None])
    x, pattern = cache["blocks.2.hook_resid_pre"][0], cache["blocks.2.attn.hook_pattern"][0, :, at]
    scale = ((x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + tiny.cfg.eps).sqrt()

    def pre(stream: Tensor) -> float:
        normal = (stream - stream.mean(-1, keepdim=True)) / scale
        v = torch.einsum("sm,hmd->shd", normal, tiny.W_V[2]) + tiny.b_V[2]
        return saes[2].pre(torch.einsum("hs,shd->hd", pattern, v).flatten())[latent].item()

    assert pre(x) == pytest.approx(found.pre, abs=1e-4)
    z = cache["blocks.1.attn.hook_z"][0].flatten(1)
    W_O, f = tiny.W_O[1].flatten(0, 1), saes[1].encode(z)
    parts = {
        "embedding": (tiny.W_E[tokens], None),
        "position": (tiny.W_pos[:9], None),
        "mlp": (cache["blocks.0.hook_mlp_out"][0], 0),
        "error": ((z - saes[1].decode(f)) @ W_O, 1),
    }
    checked = 0
    for term in found.terms:
        if term.part in parts and parts[term.part][1] == term.layer:
            part = parts[term.part][0][term.source]
        elif term.part == "latent" and term.layer == 1:
            part = f[term.source, term.latent] * saes[1].W_dec[term.latent] @ W_O
        else:
            continue
        without = x.clone()
        without[term.source] -= part
        assert pre(x) - pre(without) == pytest.approx(term.value, abs=1e-4)
        checked += 1
    assert checked > 4 * 8 + 100


def test_sums_are_exact_without_weight_processing(make_gpt2: Any, tokenizer: Any) -> None:
    """Layer norms with gains and biases, value biases: nothing folded."""
    from transformer_lens.model_bridge import TransformerBridge

    raw = TransformerBridge.boot_transformers("raw", hf_model=make_gpt2(), tokenizer=tokenizer, device="cpu").eval()
    assert raw.blocks[2].attn.b_V.abs().max() > 0.1
    assert (raw.blocks[2].ln1.weight - 1).abs().max() > 0.1
    saes = {i: random_sae("gated", 64, 96, seed=i, hook=f"blocks.{i}.attn.hook_z") for i in range(3)}
    found = recursive_dfa(raw, saes, torch.arange(9), 2, 7, 5, depth=2, top=2)
    for node in found.nodes():
        assert abs(node.total() - node.pre) < 1e-4


def test_upstream_residual_and_what_it_leaves_out_sum_to_the_target(lab: Any, lab_saes: dict[int, SAE]) -> None:
    tokens = torch.randint(1, 8192, (12,), generator=torch.Generator().manual_seed(0))
    residual = random_sae("standard", 256, 300, seed=9, hook="blocks.3.hook_resid_pre")
    # With the decoder's rows and one more latent for each sign of the error, nothing is left out but constants.
    x = activations(lab, tokens[None], [residual.hook])[residual.hook][0]
    found = upstream_residual(lab, lab_saes[3], residual, tokens, 10, 4)
    assert found.shape == (11, 300)
    assert ((found != 0) <= (residual.encode(x)[:11] > 0)).all()
    params = {
        "W_enc": torch.cat([torch.eye(256), -torch.eye(256)], 1),
        "W_dec": torch.cat([torch.eye(256), -torch.eye(256)]),
        "b_enc": torch.zeros(512),
        "b_dec": torch.zeros(256),
    }
    exact = SAE("standard", params, hook="blocks.3.hook_resid_pre")
    z = activations(lab, tokens[None], [lab_saes[3].hook])[lab_saes[3].hook][0, 10]
    constant = encoder_map(lab_saes[3], torch.tensor([4]))[1].item()
    total = upstream_residual(lab, lab_saes[3], exact, tokens, 10, 4).sum().item()
    value_bias = (lab.b_V[3].flatten() @ encoder_map(lab_saes[3], torch.tensor([4]))[0][:, 0]).item()
    assert total + value_bias + constant == pytest.approx(lab_saes[3].pre(z)[4].item(), abs=1e-4)
    # By linearity the features of any residual SAE add up as its reconstruction without b_dec does.
    rebuilt = residual.encode(x[:11]) @ residual.W_dec
    signed = upstream_residual(lab, lab_saes[3], exact, tokens, 10, 4)
    reads = (signed[:, :256] + signed[:, 256:]) / x[:11]
    torch.testing.assert_close(found.sum(1), (rebuilt * reads).sum(1), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"must stand before layer 3, not at blocks\.2"):
        upstream_residual(lab, lab_saes[3], replace(exact, hook="blocks.2.hook_resid_pre"), tokens, 10, 4)


def test_edges_carry_what_the_terms_say(lab: Any, lab_saes: dict[int, SAE]) -> None:
    tokens = torch.randint(1, 8192, (12,), generator=torch.Generator().manual_seed(1))
    found = recursive_dfa(lab, lab_saes, tokens, 3, 9, 5, depth=2, top=2)
    assert len(found.edges()) == len(found.nodes()) - 1, "a tree"
    for above, below, value in found.edges():
        assert above in below.upstream
        [term] = [
            t for t in below.terms if (t.layer, t.source, t.latent) == (above.layer, above.position, above.latent)
        ]
        assert term.value == value
    assert [above for above, below, _ in found.edges() if below is found] == list(found.upstream)
    assert recursive_dfa(lab, lab_saes, tokens, 0, 9, 5).edges() == []


def test_an_attribution_prints_as_a_tree(lab: Any, lab_saes: dict[int, SAE]) -> None:
    found = recursive_dfa(lab, lab_saes, torch.tensor([0, 5, 9, 11]), 2, 3, 7, depth=1, top=2)
    lines = str(found).splitlines()
    assert lines[0].startswith("latent 2.7 at 3: ")
    assert len(lines) == 3 * 6
    assert sum(line.startswith("    latent") for line in lines) == 2


@pytest.mark.usefixtures("unchecked")
def test_questions_that_cannot_be_answered(lab: Any, lab_saes: dict[int, SAE]) -> None:
    tokens = torch.tensor([0, 5, 9, 11])
    with pytest.raises(ValueError, match="no SAE for layer 3; there are some for 0"):
        recursive_dfa(lab, {0: lab_saes[0]}, tokens, 3, 1, 0)
    with pytest.raises(ValueError, match=r"layer 1 belongs to blocks\.0"):
        recursive_dfa(lab, {1: lab_saes[0]}, tokens, 1, 1, 0)
    with pytest.raises(ValueError, match=r"position must lie in 0\.\.3"):
        recursive_dfa(lab, lab_saes, tokens, 1, 4, 0)
    with pytest.raises(ValueError, match=r"latents must lie in 0\.\.319"):
        recursive_dfa(lab, lab_saes, tokens, 1, 1, 320)
    with pytest.raises(ValueError, match="not be negative"):
        recursive_dfa(lab, lab_saes, tokens, 1, 1, 0, depth=-1)
    with pytest.raises(ValueError, match="one prompt"):
        recursive_dfa(lab, lab_saes, tokens[None], 1, 1, 0)
    mlp = replace(lab_saes[1], hook="blocks.1.hook_mlp_out")
    with pytest.raises(ValueError, match=r"hook_mlp_out is not supported here; in a layer: attn\.hook_z"):
        dfa_by_source(lab, mlp, tokens[None], torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ValueError, match="one number a prompt"):
        dfa_by_source(lab, lab_saes[1], tokens[None], torch.tensor([0, 1]), torch.tensor([1]))
    with pytest.raises(ValueError, match="with 256 numbers together"):
        dfa_by_head(lab_saes[1], torch.zeros(3, 4, 32))
