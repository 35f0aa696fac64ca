"""A forward pass in which every edge of the graph is on or off.

Along an edge that is on flows what its sender says in this very pass; along one that is off, what the sender said
elsewhere: on a corrupted prompt (resample ablation), on average (mean), or nothing (zero).
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy, Input
from mechinterp.discovery.graph import Graph, Receiver

if TYPE_CHECKING:
    from mechinterp.anatomy import Layer


@torch.no_grad()
def said(model: Any, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt pos sender d_model"]:
    """What every sender writes into the stream, in the order of `Graph.senders`; without output biases.

    Errors: as of `Anatomy.of`.
    """
    anatomy = Anatomy.of(model, tokens.shape[-1], bidirectional=True)
    graph = Graph.of(anatomy)
    found, _ = _pass(anatomy, graph, tokens, graph.mask, None)
    return found


@torch.no_grad()
def patched_logits(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    on: Bool[Tensor, "*prompt sender receiver"],
    elsewhere: Float[Tensor, "*prompt pos sender d_model"] | None,
) -> Float[Tensor, "prompt pos d_vocab_out"]:
    """Logits with some edges on and all others off.

    Args:
        on: the edges that are on, the same for all prompts or one mask for each; as `Graph.masked` makes them.
        elsewhere: what senders say along edges that are off, as `said` gives it; None: nothing (zero ablation).

    Errors: `ValueError` for another shape; as of `Anatomy.of`.
    """
    anatomy = Anatomy.of(model, tokens.shape[-1], bidirectional=True)
    graph = Graph.of(anatomy)
    if on.shape[-2:] != graph.mask.shape or on.ndim > 3 or (on.ndim == 3 and len(on) not in (1, len(tokens))):
        raise ValueError(f"the edges have the shape {tuple(on.shape)}; expected {[len(tokens), *graph.mask.shape]}")
    size = (tokens.shape[-1], len(graph.senders), anatomy.size.d_model)
    if elsewhere is not None and (elsewhere.shape[-3:] != size or elsewhere.shape[:-3] not in ((), (len(tokens),))):
        raise ValueError(
            f"what is said elsewhere has the shape {tuple(elsewhere.shape)}; expected {[len(tokens), *size]}"
        )
    _, stream = _pass(anatomy, graph, tokens, on & graph.mask, elsewhere)
    return anatomy.unembed(stream)


def _pass(
    anatomy: Anatomy, graph: Graph, tokens: Tensor, on: Tensor, elsewhere: Tensor | None
) -> tuple[Float[Tensor, "prompt pos sender d_model"], Float[Tensor, "prompt pos d_model"]]:
    """What every sender says, and the stream that the logits read."""
    x = anatomy.embed(tokens)
    n, d_model = len(graph.senders), x.shape[-1]
    here = x.new_zeros(*tokens.shape, n, d_model)
    other = x.new_zeros(1, 1, n, d_model) if elsewhere is None else elsewhere.to(x)
    other = other.expand(len(tokens), tokens.shape[-1], n, d_model)
    weight = on.to(x).expand(len(tokens), *graph.mask.shape)
    column = {receiver: i for i, receiver in enumerate(graph.receivers)}
    biases = x.new_zeros(d_model)
    here[:, :, 0] = x
    positions = torch.arange(tokens.shape[-1], device=x.device)

    def heard(receivers: list[Receiver]) -> Float[Tensor, "prompt pos receiver d_model"]:
        """The stream as each of some receivers, that come after the same senders, sees it."""
        before = graph.before(receivers[0])
        edges = weight[:, :before, [column[r] for r in receivers]]
        change = torch.einsum("npsd,nsr->nprd", here[:, :, :before] - other[:, :, :before], edges)
        return change + (other[:, :, :before].sum(2) + biases)[:, :, None]

    at = 1
    for i, layer in enumerate(anatomy.layers):
        q, k, v = (_inputs(layer, name, heard, positions) for name in ("q", "k", "v"))
        heads, bias = _heads(layer, layer.attend(q, k, v, positions))
        here[:, :, at : at + layer.n_heads] = heads
        if not layer.parallel:
            biases = biases + bias
        here[:, :, at + layer.n_heads] = layer.mlp(heard([Receiver("mlp", i)])[:, :, 0])
        if layer.parallel:
            biases = biases + bias
        at += layer.n_heads + 1
    return here, heard([Receiver("logits")])[:, :, 0]


def _inputs(layer: "Layer", name: Input, heard: Any, positions: Tensor) -> Float[Tensor, "prompt pos head d_head"]:
    """Queries, keys or values, each head's from the stream that it sees."""
    n = layer.n_heads if name == "q" else layer.n_kv_heads
    normal = layer.norm1(heard([Receiver(name, layer.index, head) for head in range(n)]))
    linear = getattr(layer, name)
    made = torch.einsum("npkd,khd->npkh", normal, linear.weight.unflatten(0, (n, -1)))
    if linear.bias is not None:
        made = made + linear.bias.view(n, -1)
    return layer.ready(name, made, positions)


def _heads(layer: "Layer", z: Tensor) -> tuple[Float[Tensor, "prompt pos head d_model"], Tensor]:
    """What each head adds to the stream, and what their common bias adds; a post norm's scale is that of their sum."""
    each = layer.outputs(z, range(layer.n_heads)).movedim(0, 2)
    bias = each.new_zeros(each.shape[-1]) if layer.o.bias is None else layer.o.bias
    if not layer.post1:
        return each, bias
    scale = layer.post1.scale(each.sum(2) + bias)
    own = torch.zeros_like(bias) if layer.post1.bias is None else layer.post1.bias
    bias = layer.post1.frozen(bias.expand(*scale.shape[:-1], -1), scale) + own
    return layer.post1.frozen(each, scale[:, :, None]), bias
