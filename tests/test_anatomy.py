"""The one description of a transformer: equal to the model, honest about what it cannot say, aware of edits."""

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCAB, bridge, raw_model
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.anatomy import Anatomy, Norm, Rotary, size
from mechinterp.models import load_tokenizer, to_bridge
from mechinterp.patching import logits_at

TOKENS = torch.randint(1, VOCAB, (2, 12), generator=torch.Generator().manual_seed(2))


def own_copy(name: str) -> Any:
    return to_bridge(copy.deepcopy(raw_model(name)), load_tokenizer("lab"), name=name, device="cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_by_layer_it_gives_the_raw_model_s_predictions(name: str) -> None:
    anatomy = Anatomy.of(bridge(name), TOKENS.shape[1])
    x = anatomy.embed(TOKENS)
    for layer in anatomy.layers:
        x = layer(x)
    theirs = raw_model(name)(TOKENS, use_cache=False).logits
    torch.testing.assert_close(anatomy.unembed(x).log_softmax(-1), theirs.log_softmax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_a_head_are_those_of_its_queries_keys_values_and_output(name: str) -> None:
    """From the stream normalised by hand, with the group of the head; and the sum over heads is the layer's output."""
    anatomy = Anatomy.of(bridge(name), TOKENS.shape[1])
    layer = anatomy.layers[1]
    x = anatomy.layers[0](anatomy.embed(TOKENS))
    unit = x - x.mean(-1, keepdim=True) if layer.norm1.centres else x
    unit = unit / layer.norm1.scale(x)
    z = torch.randn(2, 12, layer.n_heads, layer.d_head, generator=torch.Generator().manual_seed(0))
    total = sum(z[:, :, h] @ layer.W_O(h) for h in range(layer.n_heads))
    bias = 0.0 if layer.o.bias is None else layer.o.bias
    torch.testing.assert_close(total + bias, layer.merge(z), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.write(z[:, :, [3, 1]], [3, 1]), layer.outputs(z[:, :, [3, 1]], [3, 1]).sum(0))
    for part, weight in (("q", layer.W_Q), ("k", layer.W_K), ("v", layer.W_V)):
        every = layer.project(part, layer.norm1(x))
        every = every if part == "q" else layer.expand(every)
        for h in range(layer.n_heads):
            ours = unit @ weight(h) + layer.bias(part, h)
            torch.testing.assert_close(ours, every[:, :, h], atol=1e-4, rtol=1e-4)
            some = layer.project(part, layer.norm1(x), [h])[:, :, 0]
            torch.testing.assert_close(some, every[:, :, h], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_norm_with_its_scale_frozen_is_linear_and_agrees_at_the_scale_itself(name: str) -> None:
    anatomy = Anatomy.of(bridge(name), TOKENS.shape[1])
    x = torch.randn(3, anatomy.size.d_model, generator=torch.Generator().manual_seed(0))
    for norm in (anatomy.final, anatomy.layers[0].norm1, anatomy.layers[0].post1):
        whole = norm.frozen(x, norm.scale(x)) + (0.0 if norm.bias is None else norm.bias)
        torch.testing.assert_close(whole, norm(x), atol=1e-5, rtol=1e-5)
        scale = norm.scale(x)
        torch.testing.assert_close(norm.frozen(3 * x, scale), 3 * norm.frozen(x, scale))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20), st.booleans())
def test_rotary_products_depend_on_the_distance_alone(query: int, key: int, shift: int, adjacent: bool) -> None:
    def tables(length: int) -> tuple[torch.Tensor, torch.Tensor]:
        angle = torch.arange(length)[:, None] * torch.tensor([1.0, 0.1, 0.01])
        angle = angle.repeat_interleave(2, -1) if adjacent else torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()

    rotary = Rotary(tables, adjacent)
    a, b = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(query * 50 + key))

    def product(i: int, j: int) -> torch.Tensor:
        return (rotary(a, torch.tensor([i])) * rotary(b, torch.tensor([j]))).sum()

    torch.testing.assert_close(product(query, key), product(query + shift, key + shift), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotary(a, torch.tensor([query])).norm(), a.norm())


REFUSED = {
    "BLOOM": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "alibi positions"),
    "MPT": ("MptConfig", "MptForCausalLM", {"d_model": 32, "n_layers": 2, "n_heads": 4}, "alibi positions"),
    "Falcon with ALiBi": (
        "FalconConfig", "FalconForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True, "multi_query": False},
        "alibi positions",
    ),
    "Mixtral": (
        "MixtralConfig", "MixtralForCausalLM",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_local_experts": 2,
        },
        "mixture of experts",
    ),
    "Qwen 3 with dynamic rotary positions": (
        "Qwen3Config", "Qwen3ForCausalLM",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
        "depend on the prompt's length",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_say_is_refused_by_name(name: str) -> None:
    import transformers as hf

    config, cls, options, message = REFUSED[name]
    torch.manual_seed(0)
    config = getattr(hf, config)(**options, vocab_size=VOCAB, architectures=[cls])
    config._attn_implementation = "eager"
    model = to_bridge(getattr(hf, cls)(config).eval(), load_tokenizer("lab"), name=name, device="cpu")
    with pytest.raises(ValueError, match=message):
        logits_at(model, TOKENS, torch.tensor([3, 4]))


def test_what_is_no_bridge_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a TransformerBridge"):
        size(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected a TransformerBridge"):
        Anatomy.of(raw_model("Llama"))


@pytest.mark.parametrize("when", ["before the first call", "after it"])
@pytest.mark.parametrize("place", ["hook point", "module", "raw module"])
def test_hooks_are_refused_whenever_they_come(when: str, place: str) -> None:
    model = own_copy("Llama")
    at = torch.tensor([3, 4])
    if when == "after it":
        logits_at(model, TOKENS, at)
    if place == "hook point":
        model.blocks[1].hook_mlp_out.add_hook(lambda x, hook: 2 * x)
    elif place == "module":
        handle = model.blocks[1].mlp.register_forward_hook(lambda module, args, out: 2 * out)
    else:
        handle = model.original_model.model.layers[1].register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ValueError, match="has a hook at"):
        logits_at(model, TOKENS, at)
    model.reset_hooks() if place == "hook point" else handle.remove()
    logits_at(model, TOKENS, at)


def test_training_mode_is_refused() -> None:
    model = own_copy("GPT-2")
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        logits_at(model, TOKENS, torch.tensor([3, 4]))


def test_edited_weights_are_seen_and_compared_again() -> None:
    model = own_copy("Gemma 2")
    first, known = logits_at(model, TOKENS, torch.tensor([3, 4])), Anatomy.of(model)
    with torch.no_grad():
        model.original_model.model.layers[1].mlp.gate_proj.weight.mul_(2.0)
    assert Anatomy.of(model) is not known
    after = logits_at(model, TOKENS, torch.tensor([3, 4]))
    torch.testing.assert_close(after, model(TOKENS)[torch.arange(2), [3, 4]], atol=1e-4, rtol=1e-4)
    assert (after - first).abs().max() > 0.01
    with torch.no_grad():
        model.original_model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        logits_at(model, TOKENS, torch.tensor([3, 4]))


def test_a_window_that_is_read_wrongly_is_caught_before_prompts_of_its_length(monkeypatch: Any) -> None:
    """Not with short prompts, where it makes no difference."""
    import mechinterp.architectures as architectures

    raw = copy.deepcopy(raw_model("Mistral"))
    raw.config.sliding_window = 20
    model = to_bridge(raw, load_tokenizer("lab"), name="Mistral", device="cpu")
    monkeypatch.setattr(architectures, "_window", lambda hf, config, index: 30)
    logits_at(model, TOKENS, torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="other logits"):
        logits_at(model, TOKENS.repeat(1, 3), torch.tensor([30, 31]))


def test_a_norm_of_no_known_kind_is_refused() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.abs()

    with pytest.raises(ValueError, match="neither a layer norm nor an RMS norm"):
        Norm.of(Odd(), 8)
    for module, centres in ((torch.nn.LayerNorm(8), True), (torch.nn.RMSNorm(8, eps=1e-6), False)):
        assert Norm.of(module, 8).centres is centres
