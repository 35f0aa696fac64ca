"""Copy suppression in the weights: does a head attend to what is predicted, and lower what it attends to?

Both tests are about the diagonal of a vocabulary x vocabulary matrix (McDougall et al., sections 3.1, 3.2):

    OV:  W_EE W_V W_O W_U         row = attended token, column = logit; the diagonal should be very negative
    QK:  W_Uᵀ W_Q W_Kᵀ W_EEᵀ      row = predicted token, column = attended token; the diagonal should be the largest

Neither matrix is ever formed: both factor through d_head, and rows are taken in blocks. With rotary positions the
second is another matrix at every distance, so its diagonal is ranked at each (`qk_ranks_at`); a rank of scores that
were averaged over distances would be the rank of a head that does not exist. Norms of queries and keys are applied.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy, Input, Layer
from mechinterp.attention import effective_embedding
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import check_ids

Side = Literal["W_U", "W_EE", "W_E", "MLP0"]
DISTANCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""How far back a source may be, in tokens."""


@torch.no_grad()
def diagonal_ranks(
    left: Float[Tensor, "row d"],
    right: Float[Tensor, "token d"],
    offset: Float[Tensor, " token"] | None = None,
    *,
    largest: bool = True,
    tokens: Int[Tensor, " row"] | None = None,
    block: int = 256,
) -> Int[Tensor, " row"]:
    """Rank of the diagonal of `left @ rightᵀ + offset` within its row; 1 is the largest (or smallest) entry.

    Ties do not count against the diagonal.

    Args:
        tokens: the column that is each row's own; by default the row's number.
        offset: added to every row (what the bias of the query adds to each key).
        block: rows at a time. Memory: block · tokens floats.

    >>> diagonal_ranks(torch.eye(3), torch.eye(3)), diagonal_ranks(torch.eye(3), -torch.eye(3), largest=False)
    (tensor([1, 1, 1]), tensor([1, 1, 1]))
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    # Buffers for all blocks: fresh memory for each would cost more time than the products. Flags are floats because
    # torch adds up booleans ten times slower; counts below 2²⁴ are exact.
    own_columns = torch.arange(len(left), device=left.device) if tokens is None else tokens.to(left.device)
    table = left.new_empty(min(block, len(left)), len(right))
    passed = torch.empty_like(table)
    columns, ranks = right.T.contiguous(), []
    for start in range(0, len(left), block):
        size = min(block, len(left) - start)
        rows = torch.mm(left[start : start + size], columns, out=table[:size])
        if offset is not None:
            rows += offset
        own = rows.gather(1, own_columns[start : start + size, None])
        better = torch.gt(rows, own, out=passed[:size]) if largest else torch.lt(rows, own, out=passed[:size])
        ranks.append(better.sum(1).long() + 1)
    return torch.cat(ranks)


@torch.no_grad()
def diagonal_within(
    left: Float[Tensor, "row d"],
    right: Float[Tensor, "token d"],
    k: int,
    *,
    largest: bool = True,
    tokens: Int[Tensor, " row"] | None = None,
    block: int = 4096,
) -> Bool[Tensor, " row"]:
    """Whether the diagonal is among the k first of its row: what `diagonal_ranks(...) <= k` says, sooner.

    Columns are taken in blocks, small ones first, and a row is given up as soon as k columns are better: a head that
    fails costs a few per cent of its ranks.

    Args:
        block: columns at a time, in the end. Memory: rows · block floats.

    >>> diagonal_within(torch.eye(3), torch.tensor([[1.0, 0, 0], [2, 1, 0], [0, 0, 1]]), 1)
    tensor([False,  True,  True])
    """
    alive = torch.arange(len(left), device=left.device)
    columns = alive if tokens is None else tokens.to(left.device)
    own, better = (left * right[columns]).sum(-1, keepdim=True), torch.zeros_like(columns)
    start, width = 0, min(256, block)
    while start < len(right) and len(alive):
        scores = left[alive] @ right[start : start + width].T
        beaten = scores > own[alive] if largest else scores < own[alive]
        here = columns[alive] - start
        inside = ((here >= 0) & (here < scores.shape[1])).nonzero()[:, 0]
        beaten[inside, here[inside]] = False  # no token is better than itself, whatever rounding says
        better[alive] += beaten.sum(1)
        alive = alive[better[alive] < k]
        start, width = start + scores.shape[1], min(2 * width, block)
    return better < k


def token_vectors(model: Any, side: Side) -> Float[Tensor, "token d_model"]:
    """One vector a token, of length √d_model (Appendix M.1): unembedding, effective embedding, embedding, MLP0.

    Errors: `ValueError` for another name.
    """
    anatomy = Anatomy.of(model)
    makers: dict[str, Callable[[], Tensor]] = {
        "W_U": anatomy.directions,
        "W_EE": lambda: effective_embedding(model),
        "W_E": lambda: anatomy.W_E,
        "MLP0": lambda: effective_embedding(model, embedding=False),
    }
    if side not in makers:
        raise ValueError(f"unknown vectors {side!r}; one of {', '.join(makers)}")
    return torch.nn.functional.normalize(makers[side](), dim=-1) * anatomy.size.d_model**0.5


@torch.no_grad()
def ov_ranks(
    model: Any,
    head: Head,
    *,
    keys: Float[Tensor, "token d_model"] | None = None,
    tokens: Int[Tensor, " row"] | None = None,
    block: int = 256,
) -> Int[Tensor, " row"]:
    """For every token: how many logits does attending to it lower more than its own, plus one (section 3.1).

    1 means that the head lowers what it attends to more than anything else.

    Args:
        keys: what stands at the attended position; by default the effective embedding.
        tokens: rows to rank against the whole vocabulary (a sample); None for all.
    """
    rows = _rows(Anatomy.of(model), tokens)
    return diagonal_ranks(*_ov(model, head, keys, rows), largest=False, tokens=rows, block=block)


@torch.no_grad()
def qk_ranks(
    model: Any,
    head: Head,
    *,
    queries: Float[Tensor, "token d_model"] | None = None,
    keys: Float[Tensor, "token d_model"] | None = None,
    biases: bool = False,
    tokens: Int[Tensor, " row"] | None = None,
    block: int = 256,
) -> Int[Tensor, " row"]:
    """For every token, predicted: how many other tokens would the head rather attend to, plus one (section 3.2).

    1 means that a residual stream which predicts a token attends to that token.

    Args:
        queries, keys: vectors of `token_vectors`, by default W_U and W_EE.
        biases: with b_Q and b_K, as in Appendix M.1; only b_Q matters for a rank.
        tokens: rows to rank against the whole vocabulary (a sample); None for all.

    Errors: `ValueError` for rotary positions, where the answer depends on the distance: `qk_ranks_at`.
    """
    [(index, _)] = check_heads(model, [head])
    if Anatomy.of(model).layers[index].rotary is not None:
        raise ValueError("scores of this model depend on the distance (rotary positions): use qk_ranks_at")
    options: dict[str, Any] = dict(queries=queries, keys=keys, biases=biases, tokens=tokens, block=block)
    return qk_ranks_at(model, head, (0,), **options)[0]


@torch.no_grad()
def qk_ranks_at(
    model: Any,
    head: Head,
    distances: Sequence[int] = DISTANCES,
    *,
    queries: Float[Tensor, "token d_model"] | None = None,
    keys: Float[Tensor, "token d_model"] | None = None,
    biases: bool = False,
    tokens: Int[Tensor, " row"] | None = None,
    block: int = 256,
) -> Int[Tensor, "distance row"]:
    """`qk_ranks` with the query so many positions after the key, for models with rotary positions.

    Without rotary positions all rows are equal. Distances beyond the head's window have no answer and are refused.

    Errors: `ValueError` for a distance that the head cannot see.
    """
    rows = _rows(Anatomy.of(model), tokens)
    found: list[Tensor] = []
    for query, key in _qk(model, head, distances, queries, keys, rows, biases):
        found.append(diagonal_ranks(query, key, tokens=rows, block=block) if query is not None else found[0])
    return torch.stack(found)


def _ov(
    model: Any, head: Head, keys: Tensor | None, rows: Tensor | None
) -> tuple[Float[Tensor, "row d"], Float[Tensor, "token d"]]:
    """Factors of the OV matrix: what a token at the attended position gives to the head, what the head writes."""
    [(index, h)] = check_heads(model, [head])
    anatomy = Anatomy.of(model)
    layer = anatomy.layers[index]
    x = token_vectors(model, "W_EE") if keys is None else keys
    # A positive factor of a row, such as a norm's scale, does not change its ranks.
    return (x if rows is None else x[rows]) @ layer.W_V(h), anatomy.directions() @ layer.writes(h).T


def _qk(
    model: Any,
    head: Head,
    distances: Sequence[int],
    queries: Tensor | None,
    keys: Tensor | None,
    rows: Tensor | None,
    biases: bool = False,
) -> Iterator[tuple[Float[Tensor, "row d"] | None, Float[Tensor, "token d"]]]:
    """Factors of the QK matrix at each distance: queries and keys; no queries where they are those of the first."""
    [(index, h)] = check_heads(model, [head])
    anatomy = Anatomy.of(model)
    layer = anatomy.layers[index]
    far = [d for d in distances if not 0 <= d < min(anatomy.size.n_ctx, layer.window or anatomy.size.n_ctx)]
    if far or not len(distances):
        raise ValueError(f"{Head(index, h)} cannot see {far or 'no'} positions back; give distances within its window")
    q = token_vectors(model, "W_U") if queries is None else queries
    q = q if rows is None else q[rows]
    key = _ready(layer, "k", token_vectors(model, "W_EE") if keys is None else keys, h, 0, biases)
    for i, distance in enumerate(distances):
        same = i > 0 and layer.rotary is None
        yield None if same else _ready(layer, "q", q, h, distance, biases), key


def _ready(
    layer: Layer, part: Input, x: Float[Tensor, "token d_model"], head: int, position: int, biases: bool
) -> Float[Tensor, "token d_head"]:
    """Queries or keys of vectors that stand for the normalised stream, as scores need them."""
    if layer.joint:  # all heads share one norm; there are no biases
        raw = layer.project(part, x)
        column = head if part == "q" else layer.kv(head)
    else:
        raw = x @ (layer.W_Q(head) if part == "q" else layer.W_K(head))
        raw, column = (raw + layer.bias(part, head) if biases else raw)[:, None], 0
    return layer.ready(part, raw, torch.tensor([position], device=x.device))[:, column]


def _rows(anatomy: Anatomy, tokens: Tensor | None) -> Tensor | None:
    if tokens is None:
        return None
    check_ids(anatomy.size, tokens)
    return tokens.to(anatomy.W_U.device)


def distance_weights(text: Int[Tensor, "doc pos"], distances: Sequence[int] = DISTANCES) -> Float[Tensor, " distance"]:
    """How often a token's last occurrence is about so far back in a text, as shares that sum to 1.

    Each repetition counts for the distance that is nearest on a logarithmic scale.

    Errors: `ValueError` for a text without repetitions.

    >>> distance_weights(torch.tensor([[5, 6, 5, 7, 7]]), (1, 2, 4)).tolist()
    [0.5, 0.5, 0.0]
    """
    counts = torch.zeros(len(distances), dtype=torch.float64)
    scale = torch.tensor(distances, dtype=torch.float64).log()
    for row in text.tolist():
        last: dict[int, int] = {}
        for i, token in enumerate(row):
            if token in last:
                counts[(scale - torch.tensor(float(i - last[token])).log()).abs().argmin()] += 1
            last[token] = i
    if not counts.sum():
        raise ValueError("no token of this text is repeated: distances have no weights")
    return (counts / counts.sum()).float()


@dataclass(frozen=True)
class RankTests:
    """Shares of the tokens that pass, for every head.

    Attributes:
        ov: the diagonal is among the `k` most negative of its row of the OV matrix.
        qk: the diagonal is the largest of its row of the QK matrix; with rotary positions, the weighted mean over
            distances of that share.
        k: how many count as most negative.
        tokens: size of the vocabulary; k / tokens and 1 / tokens are what chance gives.
        sample: how many tokens were ranked.
        qk_at: the share at each distance (one row without rotary positions).
    """

    ov: Float[Tensor, "layer head"]
    qk: Float[Tensor, "layer head"]
    k: int
    tokens: int
    sample: int
    qk_at: Float[Tensor, "distance layer head"]

    def best(self) -> Head:
        """The head with the largest product of both shares: the best copy suppressor by weights."""
        return Head(*divmod(int((self.ov * self.qk).argmax()), self.ov.shape[1]))


@torch.no_grad()
def rank_tests(
    model: Any,
    heads: Sequence[Head] | None = None,
    *,
    k: int = 10,
    tokens: Int[Tensor, " row"] | None = None,
    distances: Sequence[int] = DISTANCES,
    weights: Float[Tensor, " distance"] | None = None,
    progress: bool = True,
) -> RankTests:
    """Both tests for every head (or some; the others stay 0). Embeddings are made once.

    Args:
        tokens: rows to rank against the whole vocabulary (a sample); None for all.
        distances, weights: for rotary positions, at which distances, and how much each counts (`distance_weights`);
            equally by default. Distances that a head's window or the context does not reach are left out; without
            rotary positions all of them say the same.

    Memory: 4096 floats a row. Rows are given up early (`diagonal_within`), so a head that is none costs little.

    Errors: `ValueError` for weights of another shape, or none within a head's window.
    """
    from tqdm.auto import tqdm

    anatomy = Anatomy.of(model)
    sizes = anatomy.size
    chosen = sizes.heads if heads is None else check_heads(model, heads)
    keys, queries = token_vectors(model, "W_EE"), token_vectors(model, "W_U")
    rotary = any(layer.rotary is not None for layer in anatomy.layers)
    distances = tuple(distances)
    shares = torch.ones(len(distances)) if weights is None else weights
    if shares.shape != (len(distances),) or not bool((shares >= 0).all()) or not float(shares.sum()) > 0:
        raise ValueError(f"weights must be {len(distances)} numbers of at least 0, one a distance, got {shares}")
    if not rotary:
        distances, shares = (0,), torch.ones(1)
    ov, qk = torch.zeros(sizes.n_layers, sizes.n_heads), torch.zeros(sizes.n_layers, sizes.n_heads)
    qk_at = torch.zeros(len(distances), sizes.n_layers, sizes.n_heads)
    rows = _rows(anatomy, tokens)
    for head in tqdm(chosen, desc="rank tests", unit="head", disable=not progress):
        ov[head] = diagonal_within(*_ov(model, head, keys, rows), k, largest=False, tokens=rows).float().mean()
        reach = min(sizes.n_ctx, anatomy.layers[head.layer].window or sizes.n_ctx)
        seen = [i for i, d in enumerate(distances) if d < reach]
        if not float(shares[seen].sum()) > 0:
            raise ValueError(f"{head} sees none of the distances that have weight; give some below {reach}")
        first: list[Tensor] = []
        for query, key in _qk(model, head, [distances[i] for i in seen], queries, keys, rows):
            passed = first[0] if query is None else diagonal_within(query, key, 1, tokens=rows).float().mean()
            first.append(passed)
        qk_at[seen, head.layer, head.head] = torch.stack(first).cpu()
        own = shares[seen] / shares[seen].sum()
        qk[head] = (qk_at[seen, head.layer, head.head] * own).sum()
    return RankTests(ov, qk, k, len(keys), len(keys) if tokens is None else len(tokens), qk_at)


@torch.no_grad()
def composition_ranks(
    model: Any, writer: Head, reader: Head, tokens: Int[Tensor, " token"], *, distance: int = 1
) -> Int[Tensor, " token"]:
    """Does `reader` attend to what `writer` has copied? Rank of the diagonal of W_EEᵀ-tokens through both (Figure 24).

    Row: the token that the writer attended to and wrote into the reader's query. Column: the attended token. 1 means
    that the reader attends to what was copied, `len(tokens)` that it avoids it.

    Args:
        distance: from the query back to the key; only matters with rotary positions.

    Errors: `ValueError` if the writer does not come before the reader.
    """
    check_heads(model, [writer, reader])
    if writer.layer >= reader.layer:
        raise ValueError(f"{writer} does not come before {reader}: nothing that it writes reaches its query")
    anatomy = Anatomy.of(model)
    source, target = anatomy.layers[writer.layer], anatomy.layers[reader.layer]
    x = effective_embedding(model, tokens)
    x = torch.nn.functional.normalize(x, dim=-1) * anatomy.size.d_model**0.5
    written = x @ source.W_V(writer.head) @ source.writes(writer.head)
    query = _ready(target, "q", written, reader.head, distance, False)
    return diagonal_ranks(query, _ready(target, "k", x, reader.head, 0, False))
