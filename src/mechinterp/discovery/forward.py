"""A forward pass in which every edge of the graph is on or off.

Along an edge that is on flows what its sender says in this very pass; along one that is off, what the sender said
elsewhere: on a corrupted prompt (resample ablation), on average (mean), or nothing (zero).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy, Input
from mechinterp.discovery.graph import Graph, Receiver
from mechinterp.patching.checks import check_tokens

if TYPE_CHECKING:
    from mechinterp.anatomy import Layer

Elsewhere = Float[Tensor, "*prompt pos sender d_model"] | Int[Tensor, "prompt pos"] | None
"""What flows along edges that are off: messages as `said` gives them; the prompts on which they are said, aligned with
those at hand (resample ablation); or None, nothing (zero ablation)."""


@torch.no_grad()
def said(model: Any, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt pos sender d_model"]:
    """What every sender writes into the stream, in the order of `Graph.senders`; without output biases.

    Errors: as of `Anatomy.of`.
    """
    anatomy = Anatomy.of(model, tokens.shape[-1], bidirectional=True)
    return messages(anatomy, Graph.of(anatomy), tokens)[0]


@torch.no_grad()
def patched_logits(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    on: Bool[Tensor, "*prompt_pos sender receiver"],
    elsewhere: Elsewhere,
    *,
    at: Int[Tensor, " prompt"] | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "prompt *pos d_vocab_out"]:
    """Logits with some edges on and all others off.

    Args:
        on: the edges that are on, as `Graph.masked` makes them: [sender receiver] for all prompts, [prompt sender
            receiver] for each its own, or [prompt pos sender receiver] position by position (an edge leads from a
            sender's message at a position to the receiver at the same one); a first axis of 1 is for all prompts.
        elsewhere: what flows along edges that are off.
        at: the position of each prompt whose logits are wanted; None: all, [prompt pos d_vocab_out].
        batch_size: prompts at a time; changes no result. Memory: two times [batch pos sender d_model].

    Errors: `ValueError` for another shape; as of `Anatomy.of`.
    """
    anatomy = Anatomy.of(model, tokens.shape[-1], bidirectional=True)
    graph = Graph.of(anatomy)
    (n, length), d_model = tokens.shape, anatomy.size.d_model
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if on.shape[-2:] != graph.mask.shape or on.shape[:-2] not in _leading(n, length):
        raise ValueError(f"the edges have the shape {tuple(on.shape)}; expected {[n, *graph.mask.shape]}")
    check_elsewhere(elsewhere, tokens, graph, d_model)
    on = (on & graph.mask.to(on.device)).to(anatomy.device)
    on = on[(None,) * (4 - on.ndim)] if on.ndim < 3 else on[:, None] if on.ndim == 3 else on
    found = []
    for rows in torch.arange(n, device=tokens.device).split(batch_size):
        some = tokens[rows]
        there = at_rows(anatomy, graph, elsewhere, rows)
        edges = on if len(on) == 1 else on[rows]
        _, stream = run(anatomy, graph, some, edges, there)
        found.append(
            anatomy.unembed(stream if at is None else stream[torch.arange(len(some)), at[rows].to(some.device)])
        )
    return torch.cat(found)


def _leading(n: int, length: int) -> list[tuple[int, ...]]:
    """Leading shapes that a mask of edges may have."""
    return [(), *((k,) for k in (1, n)), *((k, m) for k in (1, n) for m in (1, length))]


def check_question(
    model: Any, clean: Tensor, elsewhere: Any, at: Tensor, batch_size: int
) -> tuple[Anatomy, Graph, Int[Tensor, " prompt"]]:
    """Anatomy, graph and positions on the prompts' device, after refusing a question about edges that does not fit."""
    anatomy = check_tokens(model, clean, batch_size, at, bidirectional=True)
    graph = Graph.of(anatomy)
    check_elsewhere(elsewhere, clean, graph, anatomy.size.d_model)
    if isinstance(elsewhere, Tensor) and elsewhere.shape == clean.shape and elsewhere.equal(clean):
        raise ValueError("the corrupted prompts are the clean ones: no edge would change anything")
    return anatomy, graph, at.to(clean.device)


def check_elsewhere(elsewhere: Any, tokens: Tensor, graph: Graph, d_model: int) -> None:
    """`ValueError` unless what is said elsewhere fits the prompts and the graph."""
    if elsewhere is None:
        return
    if not elsewhere.is_floating_point():
        if elsewhere.shape != tokens.shape:
            raise ValueError(
                f"prompts and corrupted prompts differ in shape: {tuple(tokens.shape)} and {tuple(elsewhere.shape)}; "
                "they must be aligned token by token"
            )
        return
    size = (tokens.shape[-1], len(graph.senders), d_model)
    if elsewhere.shape[-3:] != size or elsewhere.shape[:-3] not in ((), (1,), (len(tokens),)):
        raise ValueError(
            f"what is said elsewhere has the shape {tuple(elsewhere.shape)}; expected {[len(tokens), *size]}"
        )


def at_rows(
    anatomy: Anatomy, graph: Graph, elsewhere: Elsewhere, rows: Int[Tensor, " some"]
) -> Float[Tensor, "*some pos sender d_model"] | None:
    """The messages elsewhere for some of the prompts, made if prompts are given."""
    if elsewhere is None:
        return None
    if not elsewhere.is_floating_point():
        return messages(anatomy, graph, elsewhere[rows])[0]
    return elsewhere[rows] if elsewhere.ndim == 4 and len(elsewhere) > 1 else elsewhere


@torch.no_grad()
def messages(
    anatomy: Anatomy, graph: Graph, tokens: Int[Tensor, "prompt pos"]
) -> tuple[Float[Tensor, "prompt pos sender d_model"], Float[Tensor, "prompt pos d_model"]]:
    """What every sender writes in a plain pass, and the final stream."""
    x = anatomy.embed(tokens)
    found = x.new_empty(*tokens.shape, len(graph.senders), x.shape[-1])
    found[:, :, 0], at = x, 1
    for layer in anatomy.layers:
        z, n = layer.heads(x), layer.n_heads
        heads, bias = by_head(layer, z)
        found[:, :, at : at + n] = heads
        mid = x + heads.sum(2) + bias
        found[:, :, at + n] = layer.mlp(x if layer.parallel else mid)
        x, at = mid + found[:, :, at + n], at + n + 1
    return found, x


Keep = Callable[[str, int, Tensor], None]
"""(name, layer, activation): told what is said elsewhere before each half-layer ("attn", "mlp", "logits"), and q, k, v
(before norms and rotation) and z of its heads."""


@torch.no_grad()
def run(
    anatomy: Anatomy,
    graph: Graph,
    tokens: Int[Tensor, "prompt pos"],
    on: Bool[Tensor, "#prompt #pos sender receiver"],
    other: Float[Tensor, "*prompt pos sender d_model"] | None,
    keep: Keep = lambda name, layer, x: None,
) -> tuple[Float[Tensor, "prompt pos sender d_model"], Float[Tensor, "prompt pos d_model"]]:
    """By how much each sender's message differs from what it says elsewhere, and the stream that the logits read."""
    x = anatomy.embed(tokens)
    weight = on.to(x)
    column = graph.column
    positions = torch.arange(tokens.shape[-1], device=x.device)
    change = x.new_empty(*tokens.shape, len(graph.senders), x.shape[-1])
    off, at = torch.zeros_like(x), 0

    def say(message: Float[Tensor, "prompt pos some d_model"]) -> None:
        nonlocal off, at
        n = message.shape[2]
        there = None if other is None else other[..., at : at + n, :].to(x)
        change[:, :, at : at + n] = message if there is None else message - there
        off, at = off if there is None else off + there.sum(-2), at + n

    def heard(receivers: list[Receiver]) -> Float[Tensor, "prompt pos receiver d_model"]:
        """The stream as each of some receivers, that come after the same senders, sees it."""
        before = graph.before(receivers[0])
        edges = weight[:, :, :before, [column[r] for r in receivers]]
        return edges.mT @ change[:, :, :before] + off[:, :, None]

    def mlp(i: int) -> Tensor:
        keep("mlp", i, off)
        return anatomy.layers[i].mlp(heard([Receiver("mlp", i)])[:, :, 0])

    say(x[:, :, None])
    for i, layer in enumerate(anatomy.layers):
        keep("attn", i, off)
        made = _inputs(layer, heard)
        for name, x_of in made.items():
            keep(name, i, x_of)
        q, k, v = (layer.ready(name, x_of, positions) for name, x_of in made.items())
        z = layer.attend(q, k, v, positions)
        keep("z", i, z)
        heads, bias = by_head(layer, z)
        added = mlp(i) if layer.parallel else None
        say(heads)
        off = off + bias
        say((mlp(i) if added is None else added)[:, :, None])
    keep("logits", -1, off)
    return change, heard([Receiver("logits")])[:, :, 0]


def _inputs(layer: "Layer", heard: Any) -> dict[Input, Float[Tensor, "prompt pos head d_head"]]:
    """Queries, keys and values before norms and rotation, each head's from the stream that it sees."""
    numbers: dict[Input, int] = {"q": layer.n_heads, "k": layer.n_kv_heads, "v": layer.n_kv_heads}
    normal = layer.norm1(heard([Receiver(name, layer.index, head) for name, n in numbers.items() for head in range(n)]))
    made: dict[Input, Tensor] = {}
    for (name, n), x in zip(numbers.items(), normal.split([*numbers.values()], 2), strict=True):
        linear = getattr(layer, name)
        new = torch.einsum("npkd,khd->npkh", x, linear.weight.unflatten(0, (n, -1)))
        made[name] = new if linear.bias is None else new + linear.bias.view(n, -1)
    return made


def by_head(layer: "Layer", z: Tensor) -> tuple[Float[Tensor, "prompt pos head d_model"], Tensor]:
    """What each head adds to the stream, and what their common bias adds; a post norm's scale is that of their sum."""
    each = layer.outputs(z, range(layer.n_heads)).movedim(0, 2)
    bias = each.new_zeros(each.shape[-1]) if layer.o.bias is None else layer.o.bias
    if not layer.post1:
        return each, bias
    scale = layer.post1.scale(each.sum(2) + bias)
    own = torch.zeros_like(bias) if layer.post1.bias is None else layer.post1.bias
    bias = layer.post1.frozen(bias.expand(*scale.shape[:-1], -1), scale) + own
    return layer.post1.frozen(each, scale[:, :, None]), bias
