"""Copy suppression in the weights: does a head attend to what is predicted, and lower what it attends to?

Both tests are about the diagonal of a vocabulary x vocabulary matrix (McDougall et al., sections 3.1, 3.2):

    OV:  W_EE W_V W_O W_U         row = attended token, column = logit; the diagonal should be very negative
    QK:  W_Uᵀ W_Q W_Kᵀ W_EEᵀ      row = predicted token, column = attended token; the diagonal should be the largest

Neither matrix is ever formed: both factor through d_head, and rows are taken in blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.attention import effective_embedding
from mechinterp.heads import Head, all_heads, check_heads

Side = Literal["W_U", "W_EE", "W_E", "MLP0"]


@torch.no_grad()
def diagonal_ranks(
    left: Float[Tensor, "token d"],
    right: Float[Tensor, "token d"],
    offset: Float[Tensor, " token"] | None = None,
    *,
    largest: bool = True,
    block: int = 256,
) -> Int[Tensor, " token"]:
    """Rank of the diagonal of `left @ rightᵀ + offset` within its row; 1 is the largest (or smallest) entry.

    Ties do not count against the diagonal.

    Args:
        offset: added to every row (what the bias of the query adds to each key).
        block: rows at a time. Memory: block · tokens floats.

    >>> diagonal_ranks(torch.eye(3), torch.eye(3)), diagonal_ranks(torch.eye(3), -torch.eye(3), largest=False)
    (tensor([1, 1, 1]), tensor([1, 1, 1]))
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    # Buffers for all blocks: fresh memory for each would cost more time than the products. Flags are floats because
    # torch adds up booleans ten times slower; counts below 2²⁴ are exact.
    table = left.new_empty(min(block, len(left)), len(right))
    passed = torch.empty_like(table)
    columns, ranks = right.T.contiguous(), []
    for start in range(0, len(left), block):
        size = min(block, len(left) - start)
        rows = torch.mm(left[start : start + size], columns, out=table[:size])
        if offset is not None:
            rows += offset
        own = rows[:, start:].diagonal()[:, None].clone()
        better = torch.gt(rows, own, out=passed[:size]) if largest else torch.lt(rows, own, out=passed[:size])
        ranks.append(better.sum(1).long() + 1)
    return torch.cat(ranks)


def token_vectors(model: Any, side: Side) -> Float[Tensor, "token d_model"]:
    """One vector a token, of length √d_model (Appendix M.1): unembedding, effective embedding, embedding, MLP0.

    Errors: `ValueError` for another name.
    """
    makers: dict[str, Callable[[], Tensor]] = {
        "W_U": lambda: model.W_U.T,
        "W_EE": lambda: effective_embedding(model),
        "W_E": lambda: model.W_E,
        "MLP0": lambda: effective_embedding(model, embedding=False),
    }
    if side not in makers:
        raise ValueError(f"unknown vectors {side!r}; one of {', '.join(makers)}")
    return torch.nn.functional.normalize(makers[side](), dim=-1) * model.cfg.d_model**0.5


@torch.no_grad()
def ov_ranks(
    model: Any, head: Head, *, keys: Float[Tensor, "token d_model"] | None = None, block: int = 256
) -> Int[Tensor, " token"]:
    """For every token: how many logits does attending to it lower more than its own, plus one (section 3.1).

    1 means that the head lowers what it attends to more than anything else.

    Args:
        keys: what stands at the attended position; by default the effective embedding.
    """
    [(layer, index)] = check_heads(model, [head])
    x = token_vectors(model, "W_EE") if keys is None else keys
    # A positive factor of a row, such as the layer norm's scale, does not change its ranks.
    read, write = x @ _value(model, layer, index), model.W_O[layer, index] @ model.W_U
    return diagonal_ranks(read, write.T.contiguous(), largest=False, block=block)


@torch.no_grad()
def qk_ranks(
    model: Any,
    head: Head,
    *,
    queries: Float[Tensor, "token d_model"] | None = None,
    keys: Float[Tensor, "token d_model"] | None = None,
    biases: bool = False,
    block: int = 256,
) -> Int[Tensor, " token"]:
    """For every token, predicted: how many other tokens would the head rather attend to, plus one (section 3.2).

    1 means that a residual stream which predicts a token attends to that token.

    Args:
        queries, keys: vectors of `token_vectors`, by default W_U and W_EE.
        biases: with b_Q and b_K, as in Appendix M.1; only b_Q matters for a rank.
    """
    [(layer, index)] = check_heads(model, [head])
    q = token_vectors(model, "W_U") if queries is None else queries
    k = token_vectors(model, "W_EE") if keys is None else keys
    key = k @ _key(model, layer, index)
    bias = getattr(model, "b_Q", None) if biases else None  # models without biases have none
    offset = None if bias is None else key @ bias[layer, index]
    return diagonal_ranks(q @ model.W_Q[layer, index], key, offset, largest=True, block=block)


@dataclass(frozen=True)
class RankTests:
    """Shares of the vocabulary that pass, for every head.

    Attributes:
        ov: the diagonal is among the `k` most negative of its row of the OV matrix.
        qk: the diagonal is the largest of its row of the QK matrix.
        k: how many count as most negative.
        tokens: size of the vocabulary; k / tokens and 1 / tokens are what chance gives.
    """

    ov: Float[Tensor, "layer head"]
    qk: Float[Tensor, "layer head"]
    k: int
    tokens: int

    def best(self) -> Head:
        """The head with the largest product of both shares: the best copy suppressor by weights."""
        return Head(*divmod(int((self.ov * self.qk).argmax()), self.ov.shape[1]))


@torch.no_grad()
def rank_tests(
    model: Any, heads: Sequence[Head] | None = None, *, k: int = 10, block: int = 256, progress: bool = True
) -> RankTests:
    """Both tests for every head (or some; the others stay 0). Embeddings are made once.

    Memory: block · vocabulary floats. At GPT-2's vocabulary a head takes some seconds on two cores.
    """
    from tqdm.auto import tqdm

    chosen = all_heads(model) if heads is None else check_heads(model, heads)
    keys, queries = token_vectors(model, "W_EE"), token_vectors(model, "W_U")
    ov = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    qk = torch.zeros_like(ov)
    for head in tqdm(chosen, desc="rank tests", unit="head", disable=not progress):
        ov[head] = (ov_ranks(model, head, keys=keys, block=block) <= k).float().mean()
        qk[head] = (qk_ranks(model, head, queries=queries, keys=keys, block=block) == 1).float().mean()
    return RankTests(ov, qk, k, len(keys))


@torch.no_grad()
def composition_ranks(model: Any, writer: Head, reader: Head, tokens: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """Does `reader` attend to what `writer` has copied? Rank of the diagonal of W_EEᵀ-tokens through both (Figure 24).

    Row: the token that the writer attended to and wrote into the reader's query. Column: the attended token. 1 means
    that the reader attends to what was copied, `len(tokens)` that it avoids it.

    Errors: `ValueError` if the writer does not come before the reader.
    """
    check_heads(model, [writer, reader])
    if writer.layer >= reader.layer:
        raise ValueError(f"{writer} does not come before {reader}: nothing that it writes reaches its query")
    x = effective_embedding(model, tokens)
    x = torch.nn.functional.normalize(x, dim=-1) * model.cfg.d_model**0.5
    written = x @ _value(model, *writer) @ model.W_O[writer]
    return diagonal_ranks(written @ model.W_Q[reader], x @ _key(model, *reader))


def _value(model: Any, layer: int, head: int) -> Float[Tensor, "d_model d_head"]:
    return model.W_V[layer, _shared(model.W_V, model, head)]


def _key(model: Any, layer: int, head: int) -> Float[Tensor, "d_model d_head"]:
    return model.W_K[layer, _shared(model.W_K, model, head)]


def _shared(w: Tensor, model: Any, head: int) -> int:
    """Grouped keys and values: several query heads read one."""
    return head * w.shape[1] // int(model.cfg.n_heads)
