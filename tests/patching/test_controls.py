"""Where nothing is to be found, nothing is: random weights, and prompts that differ in nothing that counts."""

from typing import Any

import torch

from mechinterp.models import to_bridge
from mechinterp.patching import activation_patch, path_patch


def test_small_random_weights_have_no_heads_that_matter(tokenizer: Any, make_gpt2: Any) -> None:
    """An untrained model has no circuit: no head's path carries a consistent effect on the metric.

    The metric's change averages to 0 over prompts: no head stands out beyond what its own spread explains.
    """
    g = torch.Generator().manual_seed(5)
    model = to_bridge(make_gpt2(n_layer=2, seed=3), tokenizer, name="null", device="cpu")
    clean, corrupt = (torch.randint(0, 8192, (128, 6), generator=g) for _ in range(2))
    answer = torch.randint(0, 8192, (128, 2), generator=g)
    at = torch.full((128,), 5)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits.gather(1, answer[:, :1])[:, 0] - logits.gather(1, answer[:, 1:])[:, 0]

    result = path_patch(model, clean, corrupt, metric=metric, at=at)
    change = result.patched - result.clean
    z_score = change.mean(-1) / (change.std(-1) / len(at) ** 0.5)
    assert z_score.abs().max() < 4


def test_what_comes_before_the_first_difference_has_no_effect(tiny: Any, prompts: Any) -> None:
    corrupt = prompts.clean.clone()
    corrupt[:, 4:] = prompts.corrupt[:, 4:]
    for node in ("resid_pre", "z", "k"):
        result = activation_patch(tiny, prompts.clean, corrupt, node=node, metric=prompts.metric, at=prompts.at)
        change = (result.patched - result.clean).abs()
        assert change[..., :4, :].max() < 1e-5
        assert change[..., 4:, :].max() > 1e-3
