"""What GPT-2 does not show: ties of silent features, grouped values, RMS norm; total effects against plain hooks."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from mechinterp.datasets.ordinals import TASKS
from mechinterp.heads import Head, all_heads
from mechinterp.models import organisms, to_bridge
from mechinterp.successor import (
    Dictionaries,
    class_logits,
    class_of,
    direct_effects,
    head_logits,
    neuron_ablation,
    residue_features,
    total_effects,
)


@pytest.fixture(scope="module", params=["pythia", "llama", "llama, grouped"])
def other(request: Any, tokenizer: Any) -> Any:
    shape = {"vocab_size": 8192, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    if request.param == "pythia":
        config: Any = GPTNeoXConfig(**shape, num_attention_heads=4, max_position_embeddings=64)
        config.architectures = ["GPTNeoXForCausalLM"]
        raw: Any = GPTNeoXForCausalLM(config)
    else:
        groups = 2 if "grouped" in request.param else 4
        config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=groups, max_position_embeddings=64)
        config.architectures = ["LlamaForCausalLM"]
        raw = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in raw.parameters():
            weight.copy_((weight.mean() > 0.5).float() + 0.3 * torch.randn(weight.shape, generator=generator))
    return to_bridge(raw, tokenizer, name=request.param, device="cpu")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 8192, (3, 12), generator=torch.Generator().manual_seed(0))


def auc(codes: Tensor, own: Tensor) -> float:
    a, b = codes[own][:, None], codes[~own]
    return ((a > b).double() + (a == b) / 2).mean().item()


def test_silent_inputs_are_ties() -> None:
    codes = torch.rand(2, 60, 5, generator=torch.Generator().manual_seed(0))
    codes[codes < 0.9] = 0
    residue = torch.arange(60) // 6
    _, scores = residue_features(Dictionaries(torch.ones(2, 5, 3), codes, torch.zeros(2, 2)), residue)
    for s in range(2):
        for r in range(10):
            assert scores[s, r] == pytest.approx(max(auc(codes[s, :, f], residue == r) for f in range(5)))
    once = torch.zeros(1, 100, 1)
    once[0, 0, 0] = 1  # a feature that fires on one input says nothing about all other residues
    _, scores = residue_features(Dictionaries(torch.ones(1, 1, 3), once, torch.zeros(1, 2)), torch.arange(100) // 10)
    assert scores[0, 0] > 0.5
    assert (scores[0, 1:] < 0.5).all()


def test_one_head_s_logits_are_those_of_all(other: Any, tokenizer: Any) -> None:
    ids = class_of(tokenizer, TASKS["days"]).ids
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    every = class_logits(other, x, ids)
    for head in all_heads(other):
        torch.testing.assert_close(head_logits(other, head, x, ids), every[head], atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match=r"no head 12\.3"):
        head_logits(other, Head(12, 3), x, ids)


@pytest.mark.parametrize("mean", [True, False])
def test_neuron_ablation_equals_a_hook(other: Any, tokenizer: Any, mean: bool) -> None:
    words = class_of(tokenizer, TASKS["days"])
    first, rms = other.blocks[0], "RMS" in str(other.cfg.normalization_type)
    e = other.W_E[words.ids][None]

    def stream() -> Tensor:
        return (e + first.mlp(first.ln2(e)))[0]

    def centred(v: Tensor) -> Tensor:
        return v if rms else v - v.mean(-1, keepdim=True)

    def edit(a: Tensor, hook: Any) -> Tensor:
        a = a.clone()
        a[:, :, 5] = a[0, :, 5].mean() if mean else 0
        return a

    clean = stream()
    with other.hooks([("blocks.0.mlp.hook_post", edit)]):
        change = stream() - clean
    scale = (centred(clean).pow(2).mean(-1, keepdim=True) + other.cfg.eps).sqrt()
    every = class_logits(other, centred(change) / scale, words.ids, norm=False)
    for head in all_heads(other):
        expected = (every[head] - every[head].mean(-1, keepdim=True))[words.source, words.target]
        torch.testing.assert_close(neuron_ablation(other, head, words, mean=mean)[5], expected, atol=1e-4, rtol=1e-3)


def test_direct_effects_go_through_the_model_s_own_final_norm(other: Any, tokens: Tensor) -> None:
    effect = direct_effects(other, tokens).effect
    _, cache = other.run_with_cache(tokens)
    end, rms = cache["blocks.1.hook_resid_post"], "RMS" in str(other.cfg.normalization_type)

    def centred(v: Tensor) -> Tensor:
        return v if rms else v - v.mean(-1, keepdim=True)

    scale = (centred(end).pow(2).mean(-1, keepdim=True) + other.cfg.eps).sqrt()
    torch.testing.assert_close(centred(end) / scale @ other.W_U + other.b_U, other(tokens), atol=1e-3, rtol=1e-3)
    for i, (layer, h) in enumerate(all_heads(other)):
        z = cache[f"blocks.{layer}.attn.hook_z"][:, :, h]
        change = centred((z - z[:, :-1].mean((0, 1))) @ other.W_O[layer, h]) / scale
        right = (change @ other.W_U)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        torch.testing.assert_close(effect[..., i], right, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_total_effects_equal_one_run_a_case(tiny: Any, tokens: Tensor, everywhere: bool, batch_size: int) -> None:
    head, name = Head(1, 2), "blocks.1.attn.hook_z"
    cases = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) < 0.3
    ours = total_effects(tiny, tokens, head, cases, everywhere=everywhere, batch_size=batch_size)
    _, cache = tiny.run_with_cache(tokens)
    mean = cache[name][:, :-1, 2].mean((0, 1))
    clean = tiny(tokens)
    expected = []
    for d, p in cases.nonzero().tolist():

        def edit(z: Tensor, hook: Any, p: int = p) -> Tensor:
            z = z.clone()
            for q in range(0 if everywhere else p, p + 1):
                z[0, q, 2] = mean
            return z

        broken = tiny.run_with_hooks(tokens[d : d + 1, : p + 1], fwd_hooks=[(name, edit)])
        expected.append(clean[d, p, tokens[d, p + 1]] - broken[0, p, tokens[d, p + 1]])
    torch.testing.assert_close(ours, torch.stack(expected), atol=1e-4, rtol=1e-3)


def test_the_organism_s_head_has_the_same_direct_and_total_effect() -> None:
    organism = organisms.successor()
    [head] = organism.heads("successor")
    counting = torch.tensor([[0, *range(5, 25)], [0, *range(20, 40)]])
    winning = direct_effects(organism.model, counting)
    cases = winning.cases(head)
    direct = winning.effect[cases][:, head.layer * winning.heads + head.head]
    torch.testing.assert_close(total_effects(organism.model, counting, head, cases), direct, rtol=0.05, atol=0.05)


def test_bad_cases(tiny: Any, tokens: Tensor, unchecked: None) -> None:
    with pytest.raises(ValueError, match="one less position"):
        total_effects(tiny, tokens, Head(1, 2), torch.ones(3, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match="no case is chosen"):
        total_effects(tiny, tokens, Head(1, 2), torch.zeros(3, 11, dtype=torch.bool))
