"""What a user gets wrong is named at the door; hooks of others are left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechinterp.heads import Head
from mechinterp.models import to_bridge
from mechinterp.patching import activation_patch, logits_at, mask, path_patch, record, replace

pytestmark = pytest.mark.usefixtures("unchecked")


def call(tiny: Any, prompts: Any, **changes: Any) -> Any:
    options = {"clean": prompts.clean, "corrupt": prompts.corrupt, "metric": prompts.metric, "at": prompts.at}
    options |= changes
    return path_patch(tiny, options.pop("clean"), options.pop("corrupt"), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"senders": [Head(3, 0)]}, r"no head 3\.0"),
        ({"receivers": [(Head(1, 4), "q")]}, r"no head 1\.4"),
        ({"receivers": []}, "no receivers"),
        ({"receivers": [(Head(1, 1), "z")]}, "'q', 'k' or 'v'"),
        ({"receivers": "residual"}, "residual"),
        ({"batch_size": 0}, "batch_size"),
        ({"at": torch.tensor([5, 8, 7, 6, 9, 5])}, r"0\.\.8"),
        ({"at": torch.tensor([5, 8, 7, 6, -1, 5])}, r"0\.\.8"),
        ({"at": torch.tensor([5, 8])}, "one position a prompt"),
        ({"receivers": [(Head(1, 1), "q")], "receiver_positions": torch.tensor([9] * 6)}, "receiver_positions"),
        ({"metric": lambda logits: logits.mean()}, "one value a prompt"),
        ({"corrupt": torch.ones(6, 8, dtype=torch.long)}, "differ in shape"),
        ({"clean": torch.zeros(0, 8, dtype=torch.long)}, "empty"),
        ({"clean": torch.ones(6, 65, dtype=torch.long)}, "context of 64"),
    ],
)
def test_path_patch_refuses(tiny: Any, prompts: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(tiny, prompts, **changes)


def test_replace_refuses_masks_and_values_of_other_shapes(tiny: Any, prompts: Any) -> None:
    values, marked = record(tiny, prompts.clean), mask(tiny, prompts.clean.shape, {Head(0, 0): None})
    go: Callable[..., Any] = lambda *a, **k: replace(tiny, prompts.clean, *a, at=prompts.at, **k)  # noqa: E731
    with pytest.raises(ValueError, match="nothing to replace"):
        go(values)
    with pytest.raises(ValueError, match="heads must end in"):
        go(values, heads=marked[..., :-1])
    with pytest.raises(ValueError, match="mlps must end in"):
        go(values, mlps=marked)
    with pytest.raises(ValueError, match=r"values\.z"):
        go(values[:4], heads=marked)
    with pytest.raises(ValueError, match="different variants"):
        go(values, heads=marked, mlps=marked[:, 0].repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="batch_size"):
        go(values, heads=marked, batch_size=0)
    values.z.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        go(values, heads=marked)


def test_mask_refuses_unknown_heads_and_positions(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"no head 12\.3"):
        mask(tiny, (6, 9), {Head(12, 3): None})
    with pytest.raises(ValueError, match=r"positions of 1\.1"):
        mask(tiny, (6, 9), {Head(1, 1): torch.full((6,), 9)})


def test_activation_patch_refuses(tiny: Any, prompts: Any) -> None:
    def go(**changes: Any) -> Any:
        options = {"node": "z", "metric": prompts.metric, "at": prompts.at} | changes
        return activation_patch(tiny, prompts.clean, prompts.corrupt, **options)

    with pytest.raises(ValueError, match="node must be one of resid_pre"):
        go(node="resid_post")
    with pytest.raises(ValueError, match=r"0\.\.8"):
        go(positions=torch.full((6,), 9))
    with pytest.raises(ValueError, match="one number a prompt"):
        go(positions=torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="marked positions"):
        go(positions=torch.ones(6, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="'all' or a tensor"):
        go(positions="END")


def test_a_model_that_gives_nan_is_refused(make_gpt2: Any, tokenizer: Any, prompts: Any) -> None:
    model = to_bridge(make_gpt2(n_layer=1), tokenizer, name="broken", device="cpu")
    logits_at(model, prompts.clean, prompts.at)
    with torch.no_grad():
        model.blocks[0].mlp.b_out[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        logits_at(model, prompts.clean, prompts.at)
    with pytest.raises(ValueError, match="NaN or infinity"):
        call(model, prompts)


def test_ids_that_are_none(tiny: Any, prompts: Any) -> None:
    for wrong, message in [
        ("When Mary and John", "tensor of token ids .*not str"),
        (["When Mary"], "not list"),
        (prompts.clean.float(), "whole numbers"),
        (prompts.clean + 8192, "vocabulary of 8192"),
        (prompts.clean - 8192, "vocabulary of 8192"),
    ]:
        with pytest.raises(ValueError, match=message):
            logits_at(tiny, wrong, prompts.at)
        with pytest.raises(ValueError, match=message):
            record(tiny, wrong)
        with pytest.raises(ValueError, match=message):
            call(tiny, prompts, corrupt=wrong)


def test_padding_on_the_left_is_refused_and_on_the_right_changes_nothing(tiny: Any, prompts: Any) -> None:
    pad = tiny.tokenizer.pad_token_id
    assert pad is not None
    filler = torch.full((len(prompts.clean), 3), pad)
    with pytest.raises(ValueError, match="begin with padding"):
        logits_at(tiny, torch.cat([filler, prompts.clean], 1), prompts.at + 3)
    with pytest.raises(ValueError, match="begin with padding"):
        call(
            tiny, prompts, clean=torch.cat([filler, prompts.clean], 1), corrupt=torch.cat([filler, prompts.corrupt], 1)
        )
    longer = torch.cat([prompts.clean, filler], 1)
    torch.testing.assert_close(logits_at(tiny, longer, prompts.at), logits_at(tiny, prompts.clean, prompts.at))


def test_another_mlp_and_other_norms_work_through_the_model_s_own_modules(
    tokenizer: Any, prompts: Any, slow_path: Any
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=64, n_positions=32, vocab_size=8192, activation_function="relu",
        bos_token_id=0, eos_token_id=0, architectures=["GPT2LMHeadModel"],
    )  # fmt: skip
    inner = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in inner.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model = to_bridge(inner, tokenizer, name="relu", device="cpu")
    ours = call(model, prompts, receivers=[(Head(1, 2), "v")], receiver_positions=prompts.receiver)
    for head in range(4):
        slow = slow_path(model, prompts, Head(0, head), [(Head(1, 2), "v")], prompts.receiver)
        torch.testing.assert_close(ours.patched[0, head], slow, atol=1e-4, rtol=0)


def test_no_gradients_and_no_change_of_the_model(tiny: Any, prompts: Any) -> None:
    before = {name: weight.clone() for name, weight in tiny.named_parameters()}
    result = call(tiny, prompts)
    assert not result.patched.requires_grad
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.named_parameters())
