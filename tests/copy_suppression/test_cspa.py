"""CSPA against its definition, source by source; on heads whose copy suppression is known; on nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp.copy_suppression import CSPA, cspa, head_means
from mechinterp.heads import Head
from mechinterp.models import organisms, to_bridge


@pytest.fixture(scope="module")
def small(make_gpt2: Any, tokenizer: Any) -> Any:
    return to_bridge(make_gpt2(n_layer=2, vocab_size=200, seed=4), tokenizer, name="small", device="cpu")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 40, (3, 24), generator=torch.Generator().manual_seed(1))


def slow_cspa(model: Any, tokens: Tensor, head: Head, part: str, keep: float) -> tuple[Tensor, Tensor]:
    """The definition, one destination and one source at a time: KL of the part and of mean ablation [doc pos]."""
    layer, h = head
    logits, cache = model.run_with_cache(tokens)
    mu = cache[f"blocks.{layer}.attn.hook_z"][:, :, h].mean(0) @ model.W_O[head]
    kl_part, kl_mean = torch.zeros(tokens.shape), torch.zeros(tokens.shape)
    for doc, row in enumerate(tokens):
        end = cache["blocks.1.hook_resid_post"][doc]
        scale = ((end - end.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
        v = cache[f"blocks.{layer}.attn.hook_v"][doc, :, h]
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][doc, h]
        lens = model.ln_final(cache[f"blocks.{layer}.hook_resid_pre"][doc][None])[0] @ model.W_U + model.b_U
        for d in range(len(row)):
            count = -(-round(keep * 100 * (d + 1)) // 100)
            best = sorted(range(d + 1), key=lambda s, d=d: (-lens[d, row[s]].item(), s))[:count]
            out = torch.zeros(model.cfg.d_model)
            for s in range(d + 1):
                r, m = pattern[d, s] * v[s] @ model.W_O[head], pattern[d, s] * mu[d]
                if part != "ov" and s not in best:
                    out += m
                elif part == "qk":
                    out += r
                else:
                    u = model.W_U[:, row[s]] / model.W_U[:, row[s]].norm()
                    out += m + min((r - m) @ u, torch.tensor(0.0)) * u
            clean_out = cache[f"blocks.{layer}.attn.hook_z"][doc, d, h] @ model.W_O[head]
            clean = logits[doc, d].log_softmax(-1)
            for target, new in ((kl_part, out), (kl_mean, mu[d])):
                changed = end[d] - clean_out + new
                normal = (changed - changed.mean()) / scale[d]
                after = (normal @ model.W_U + model.b_U).log_softmax(-1)
                target[doc, d] = (clean.exp() * (clean - after)).sum()
    return kl_part, kl_mean


@pytest.mark.parametrize("part", ["both", "ov", "qk"])
@pytest.mark.parametrize("head", [Head(0, 2), Head(1, 1)])
def test_equals_the_definition(small: Any, tokens: Tensor, head: Head, part: Any) -> None:
    ours = cspa(small, tokens, [head], parts=[part], keep=0.2, progress=False)[head]
    kl_part, kl_mean = slow_cspa(small, tokens, head, part, 0.2)
    assert kl_mean.max() > 1e-3
    torch.testing.assert_close(ours.kl[part], kl_part, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.ablated_kl, kl_mean, atol=1e-4, rtol=1e-3)
    assert ours.explained(part).value == pytest.approx(1 - (kl_part.mean() / kl_mean.mean()).item(), abs=1e-3)


def test_loss_is_the_model_s(small: Any, tokens: Tensor) -> None:
    result = cspa(small, tokens, [Head(1, 0)], progress=False)[Head(1, 0)]
    logp = small(tokens).log_softmax(-1)[:, :-1]
    expected = -logp.gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(result.loss[:, :-1], expected, atol=1e-5, rtol=1e-4)
    assert (result.loss[:, -1] == 0).all()


def test_many_heads_at_once_are_the_same_as_one_by_one(small: Any, tokens: Tensor) -> None:
    together = cspa(small, tokens, [Head(0, 1), Head(1, 2)], progress=False)
    for head, result in together.items():
        [alone] = cspa(small, tokens, [head], progress=False).values()
        torch.testing.assert_close(result.kl["both"], alone.kl["both"])


def explained(kind: str, part: Any = "both") -> float:
    organism = organisms.copy_suppression(kind)
    return cspa(organism.model, organism.tokens(64), [Head(1, 0)], progress=False)[Head(1, 0)].explained(part).value


def test_the_exact_suppressor_is_explained_by_more_than_99_percent() -> None:
    assert explained("suppressor") > 0.99
    assert explained("suppressor", "ov") > 0.99
    assert explained("suppressor", "qk") > 0.99


def test_the_qk_half_exposes_an_anti_copier_that_ignores_what_is_predicted() -> None:
    assert explained("anti-copier", "ov") > 0.85
    assert explained("anti-copier", "qk") < 0.3
    assert explained("anti-copier") < 0.3


def test_an_ordinary_head_is_not_explained_at_all() -> None:
    assert abs(explained("copier")) < 0.02
    assert abs(explained("copier", "ov")) < 0.02


def test_random_heads_are_not_copy_suppression(tiny: Any) -> None:
    tokens = torch.randint(0, 8192, (3, 32), generator=torch.Generator().manual_seed(0))
    for head, result in cspa(tiny, tokens, [Head(1, 0), Head(2, 3)], progress=False).items():
        assert abs(result.explained().value) < 0.15, head


def test_words_that_mean_the_same_can_only_explain_more_of_the_head(small: Any, tokens: Tensor) -> None:
    head = Head(1, 1)
    alone = torch.arange(200)[:, None]
    with_next = torch.stack([torch.arange(200), (torch.arange(200) + 1) % 200, torch.full((200,), -1)], 1)
    plain = cspa(small, tokens, [head], parts=["ov"], progress=False)[head]
    same = cspa(small, tokens, [head], parts=["ov"], similar=alone, progress=False)[head]
    torch.testing.assert_close(plain.kl["ov"], same.kl["ov"], atol=1e-5, rtol=1e-4)
    wider = cspa(small, tokens, [head], parts=["ov"], similar=with_next, progress=False)[head]
    assert not torch.allclose(plain.kl["ov"], wider.kl["ov"], atol=1e-5)


def test_percentiles_and_intervals(small: Any, tokens: Tensor) -> None:
    result = cspa(small, tokens, [Head(1, 1)], progress=False)[Head(1, 1)]
    table = result.percentiles(bins=10)
    assert table.shape == (10, 2)
    assert (table[1:, 1] >= table[:-1, 1]).all()
    explained = result.explained()
    assert (explained.n, explained.unit) == (len(tokens), "documents")
    assert result.explained(by="absolute loss").value <= 1
    most = result.most_affected(0.1)
    assert int(most.sum()) == round(0.1 * most.numel())
    assert result.ablated_kl[most].min() >= result.ablated_kl[~most].max()
    left = 1 - result.kl["both"][most].sum() / result.ablated_kl[most].sum()
    assert result.explained(where=most).value == pytest.approx(left.item(), abs=1e-6)


def test_keeping_every_source_is_the_ov_half(small: Any, tokens: Tensor) -> None:
    result = cspa(small, tokens, [Head(1, 1)], keep=1.0, progress=False)[Head(1, 1)]
    torch.testing.assert_close(result.kl["both"], result.kl["ov"])
    assert result.kl["qk"].max() < 1e-5, "with every source kept nothing is ablated"


def test_means(small: Any, tokens: Tensor) -> None:
    head = Head(1, 3)
    _, cache = small.run_with_cache(tokens)
    z = cache["blocks.1.attn.hook_z"][:, :, 3]
    torch.testing.assert_close(head_means(small, tokens, [head])[head], z.mean(0), atol=1e-5, rtol=1e-4)
    pooled = head_means(small, tokens, [head], pooled=True)[head]
    torch.testing.assert_close(pooled[5], z[:, 1:].mean((0, 1)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled[0], z[:, 0].mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "words"), [((2, 1), "at least two tokens"), ((0, 5), "not be empty"), ((1, 65), "context of 64")]
)
def test_texts_that_do_not_fit(small: Any, shape: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cspa(small, torch.zeros(shape, dtype=torch.long), [Head(0, 0)], progress=False)


def test_bad_input(small: Any, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"no head 12\.3"):
        cspa(small, tokens, [Head(12, 3)], progress=False)
    with pytest.raises(ValueError, match="keep is a share"):
        cspa(small, tokens, [Head(0, 0)], keep=0, progress=False)


def test_a_result_is_a_plain_value() -> None:
    zero = torch.zeros(2, 4)
    one = torch.ones(2, 4)
    half = CSPA(zero, one, one, {"both": one / 2}, {"both": one / 4})
    assert half.explained().value == 0.5
    assert half.explained(by="loss").value == 0.75
