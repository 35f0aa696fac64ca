"""A real pretrained model: what comes through the door is the model that was published, and it knows IOI."""

from typing import Any

import pytest
import torch

from mechinterp.datasets import ioi, text
from mechinterp.datasets.ordinals import TASKS, Task, single_tokens
from mechinterp.models import describe, pretrained
from mechinterp.successor import class_of, classes


@pytest.fixture(scope="module")
def prompts(smollm2: Any) -> ioi.IOIDataset:
    return ioi.make(smollm2.tokenizer, 30, seed=0)


def test_its_shape_and_hash(smollm2: Any) -> None:
    cfg = smollm2.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head, cfg.d_vocab, cfg.n_ctx) == (30, 9, 576, 64, 49152, 8192)
    assert {p.dtype for p in smollm2.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in smollm2.parameters())
    assert describe("smollm2")["sha256"] == pretrained.MODELS["smollm2"].sha256


def test_log_probabilities_are_those_of_the_raw_model(smollm2: Any, prompts: ioi.IOIDataset) -> None:
    """Without this package's reader, without folding: what a user of transformers has from the same file."""
    from transformers import AutoModelForCausalLM

    path = pretrained.path("smollm2")
    raw = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    tokens = prompts.tokens[:6]
    with torch.no_grad():
        expected = raw(tokens).logits.log_softmax(-1)
    assert (smollm2(tokens).log_softmax(-1) - expected).abs().max() < 1e-3
    assert expected.std() > 1, "a flat distribution would agree with anything"


def test_it_prefers_the_indirect_object(smollm2: Any, prompts: ioi.IOIDataset) -> None:
    logits = smollm2(prompts.tokens)
    assert torch.isfinite(logits).all()
    difference = prompts.logit_diff(logits)
    assert (difference > 0).float().mean() > 0.8
    assert difference.mean() > 2
    corrupted = prompts.abc(seed=1)
    assert corrupted.logit_diff(smollm2(corrupted.tokens)).mean().abs() < 1.5, "without the names, no preference"


def test_names_that_it_splits_are_left_out_and_counted(smollm2: Any, prompts: ioi.IOIDataset) -> None:
    kept = ioi.single_token_words(smollm2.tokenizer, ioi.NAMES)
    assert "Brandon" not in kept
    assert prompts.kept == {"names": (len(kept), 99), "places": (8, 8), "objects": (8, 8)}
    assert f"{len(kept)} of 99 names" in str(prompts)
    assert 50 < len(kept) < 99
    drawn = {smollm2.tokenizer.decode([i]).strip() for i in prompts.names.tolist()}
    assert drawn == set(kept)
    with pytest.raises(ValueError, match="' Brandon' is 2 tokens"):
        ioi.make(smollm2.tokenizer, 2, names=["Mary", "Brandon"])


def test_the_prompts_have_no_bos_unless_asked_for(smollm2: Any, prompts: ioi.IOIDataset) -> None:
    bos = smollm2.tokenizer.bos_token_id
    assert not (prompts.tokens[:, 0] == bos).any()
    assert smollm2.tokenizer.encode("Hello")[0] != bos
    assert smollm2.to_tokens("Hello")[0, 0] != bos
    asked = ioi.make(smollm2.tokenizer, 30, seed=0, prepend_bos=True)
    assert (asked.tokens[:, 0] == bos).all()
    assert torch.equal(asked.positions["IO"], prompts.positions["IO"] + 1)
    rows = text.packed_rows(smollm2.tokenizer, text.sample(), 4, 32)
    assert not (rows == bos).any()
    with pytest.raises(ValueError, match="this tokenizer has none; use packed_rows"):
        text.generated_rows(smollm2.tokenizer, 2, 32)


def test_numbers_that_it_splits_are_digits_and_words_that_it_splits_are_counted(smollm2: Any) -> None:
    found, missing = classes(smollm2.tokenizer)
    assert missing == []
    words = {c.task: len(c.words) for c in found}
    assert (words["numbers"], words["number words"], words["day prefixes"]) == (9, 20, 5)
    digits = class_of(smollm2.tokenizer, TASKS["numbers"])
    assert digits.words == tuple("123456789")
    assert digits.ids.tolist() == [smollm2.tokenizer.encode(d, add_special_tokens=False)[0] for d in "123456789"]
    assert "9 of 200 words" in str(digits)
    assert list(single_tokens(smollm2.tokenizer, TASKS["numbers"], space=False)) == list("123456789")
    names = Task("names", ("Zygmunt", "Xanthippe", "Quetzalcoatl"))
    with pytest.raises(ValueError, match="task 'names' has 0 of 3 words"):
        class_of(smollm2.tokenizer, names)
