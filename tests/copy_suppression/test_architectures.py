"""Models of other families: what works gives the model's own numbers, what does not is refused by name."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from mechinterp.copy_suppression import attended_pairs, cspa, head_paths, ov_ranks, qk_projection, qk_ranks
from mechinterp.heads import Head
from mechinterp.models import to_bridge

SHAPE = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def build(family: str, tokenizer: Any) -> Any:
    torch.manual_seed(0)
    if family == "pythia":
        config = GPTNeoXConfig(**SHAPE, num_attention_heads=4, max_position_embeddings=64, use_parallel_residual=True)
        config.architectures = ["GPTNeoXForCausalLM"]
        return to_bridge(GPTNeoXForCausalLM(config), tokenizer, name="pythia", device="cpu")
    config = LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    config.architectures = ["LlamaForCausalLM"]
    return to_bridge(LlamaForCausalLM(config), tokenizer, name="llama", device="cpu")


@pytest.fixture(scope="module", params=["pythia", "llama"])
def model(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    return build(request.param, tokenizer)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))


def test_ablating_nothing_leaves_the_model_s_own_loss(model: Any, tokens: Tensor) -> None:
    """Parallel blocks, rotary positions, no biases, grouped keys and values, RMS norms."""
    head = Head(1, 3)
    result = cspa(model, tokens, [head], keep=1.0, progress=False)[head]
    logp = model(tokens).log_softmax(-1)[:, :-1]
    loss = -logp.gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(result.loss[:, :-1], loss, atol=1e-4, rtol=1e-3)
    assert result.kl["qk"].max() < 1e-5
    assert result.ablated_kl.max() > 1e-8
    torch.testing.assert_close(head_paths(model, tokens, head).clean, loss, atol=1e-4, rtol=1e-3)


def test_the_direct_path_is_the_change_of_the_logits(model: Any, tokens: Tensor) -> None:
    head = Head(0, 2)
    paths = head_paths(model, tokens, head)
    end = "blocks.1.hook_resid_post"
    _, cache = model.run_with_cache(tokens)
    z = cache["blocks.0.attn.hook_z"][:, :, 2]
    change = (z.mean(0) - z) @ model.W_O[head]
    logits = model.run_with_hooks(tokens, fwd_hooks=[(end, lambda x, hook: x + change)])
    loss = -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(paths.direct, loss, atol=1e-4, rtol=1e-3)


def test_weights_tests_run(model: Any, tokens: Tensor) -> None:
    for ranks in (ov_ranks(model, Head(1, 1)), qk_ranks(model, Head(1, 1), biases=True)):
        assert ranks.shape == (model.cfg.d_vocab,)
        assert ranks.min() >= 1
    assert len(attended_pairs(model, tokens, Head(1, 1), threshold=0.01).rank) > 0


def test_scores_without_positions_are_refused_for_rotary_models(model: Any, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="rotary positions are not supported"):
        qk_projection(model, tokens, Head(1, 1), progress=False)
