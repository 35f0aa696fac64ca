"""One edge patched by plain hooks on Hugging Face's own modules."""

from families import HEADS, LAYERS, Raw
from torch import Tensor

from mechinterp.discovery import Edge, Graph


def native(graph: Graph, edge: Edge) -> Edge:
    """An edge whose key or value is named by a query head, as one into its group."""
    if edge.receiver.kind not in ("k", "v"):
        return edge
    return edge._replace(receiver=edge.receiver._replace(head=edge.receiver.head * graph.n_kv_heads // HEADS))


def by_hooks(raw: Raw, clean: Tensor, corrupt: Tensor, edge: Edge, share: float = 1.0) -> Tensor:
    """Logits: a share of the message's change is added to the stream, what the receiver makes of it put into a run.

    Keys and values are named by query head; those of its whole group are changed.
    """
    here, there = raw.run(clean)[1], raw.run(corrupt)[1]
    at, s, part = edge.receiver.layer, edge.sender, edge.receiver.kind
    if s.kind == "input":
        change = there["resid_pre", 0] - here["resid_pre", 0]
    elif s.kind == "mlp":
        change = there["mlp_out", s.layer] - here["mlp_out", s.layer]
    else:
        z = here["z", s.layer].clone()
        z[:, :, s.head] = there["z", s.layer][:, :, s.head]
        change = raw.run(clean, {("z", s.layer): lambda x: z})[1]["attn_out", s.layer] - here["attn_out", s.layer]
    change = share * change
    if part == "logits":
        return raw.run(clean, {("resid_pre", LAYERS): lambda x: x + change})[0]
    if part == "mlp":
        place = ("resid_pre", at) if raw.parallel else ("attn_out", at)
        got = raw.run(clean, {place: lambda x: x + change})[1]["mlp_out", at]
        return raw.run(clean, {("mlp_out", at): lambda x: got})[0]
    got = raw.run(clean, {("resid_pre", at): lambda x: x + change})[1][part, at]
    groups = raw.family.options.get("num_key_value_heads", HEADS)
    n = 1 if raw.name == "Falcon" else groups
    group = edge.receiver.head * n // HEADS
    heads = [edge.receiver.head] if part == "q" else [h for h in range(HEADS) if h * n // HEADS == group]

    def put(x: Tensor) -> Tensor:
        x[:, :, heads] = got[:, :, heads]
        return x

    return raw.run(clean, {(part, at): put})[0]
