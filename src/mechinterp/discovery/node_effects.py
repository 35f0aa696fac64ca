"""What patching nodes, alone or many together, does to the metric: the truth that scores of nodes are estimates of."""

from collections.abc import Collection, Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy
from mechinterp.discovery.nodes import Node, NodeKind, check_nodes_of
from mechinterp.patching.checks import Metric, measure
from mechinterp.patching.engine import Cache, Window, attend, pick, pick_columns, reach, trace

KINDS = get_args(NodeKind)
"""A table of nodes has a row (set, number of the kind, layer, position, unit) for every node of every set."""


def node_effects(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "prompt pos"],
    nodes: Sequence[Node | Collection[Node]],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    batch_size: int = 256,
    progress: bool = False,
) -> Float[Tensor, "prompt set"]:
    """By how much the metric changes if a node, or a set of nodes together, is what it is on the corrupted prompt.

    Only what comes after a node, from its layer and position to `at`, is computed. `patching.activation_patch` measures
    all nodes of a kind, too, but a key or value that several heads share for each head by itself.

    Args:
        clean, corrupt: prompts of equal shape, aligned position by position.
        nodes: each by itself, or sets. In a set, what lies behind a patched node of the same head is overridden: with
            a head's z patched, its query does nothing.
        metric: from logits at `at` of all prompts to one value a prompt.
        batch_size: (set, prompt) pairs at a time; changes no result. Memory: the clean stream, keys and values
            and the corrupted nodes of all layers and prompts, and a batch's activations of one layer.

    Errors: `ValueError` for a node that the model or the prompts do not have; else as of `atp`.

    >>> from mechinterp.models import organisms
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> found = node_effects(
    ...     organism.model, data.tokens, data.abc(1).tokens, [Node("q", layer=3, pos=11, unit=1)],
    ...     metric=data.logit_diff, at=data.positions["END"],
    ... )
    >>> bool(((found[:, 0] < -4) == (data.positions["END"] == 11)).all())  # a name mover works where the prompt ends
    True
    """
    sets = [[node] if isinstance(node, Node) else [Node(*x) for x in node] for node in nodes]
    given = [(s, node) for s, some in enumerate(sets) for node in some]
    kinds = list(dict.fromkeys(node.kind for _, node in given)) or ["z"]
    anatomy = check_nodes_of(model, clean, corrupt, at, batch_size, kinds)
    rows = [[s, KINDS.index(node.kind), node.layer, node.pos, node.unit] for s, node in given]
    table = torch.tensor(rows, dtype=torch.long).view(-1, 5)
    check_table(anatomy, table, clean.shape[1])
    return effects_of_table(anatomy, clean, corrupt, table, len(sets), metric, at, batch_size, progress)


def check_table(anatomy: Anatomy, table: Int[Tensor, "row 5"], length: int) -> None:
    """`ValueError` for the first node that model or prompts do not have."""
    sizes = anatomy.size
    heads = {"q": sizes.n_heads, "z": sizes.n_heads, "k": sizes.n_kv_heads, "v": sizes.n_kv_heads}
    for code, kind in enumerate(KINDS):
        rows = table[table[:, 1] == code]
        if not len(rows):
            continue
        neurons = [len(x.neurons.up.weight) for x in anatomy.layers]
        layer = rows[:, 2].clamp(0, sizes.n_layers - 1)
        units = torch.tensor(neurons)[layer] if kind == "neurons" else torch.tensor(heads.get(kind, 1))
        ends = torch.stack([torch.tensor(sizes.n_layers), torch.tensor(length)]).expand(len(rows), 2)
        ends = torch.cat([ends, units.expand(len(rows))[:, None]], 1)
        wrong = ((rows[:, 2:] < 0) | (rows[:, 2:] >= ends)).any(1)
        if wrong.any():
            i = int(wrong.int().argmax())
            there = f"{ends[i, 0]} layers, {ends[i, 1]} positions and {ends[i, 2]} of {kind} in a layer"
            raise ValueError(f"{Node(kind, *rows[i, 2:].tolist())} is no node: there are {there}")


@torch.no_grad()
def effects_of_table(
    anatomy: Anatomy,
    clean: Tensor,
    corrupt: Tensor,
    table: Int[Tensor, "row 5"],
    sets: int,
    metric: Metric,
    at: Tensor,
    batch_size: int,
    progress: bool,
) -> Float[Tensor, "prompt set"]:
    """As `node_effects`; a row of the table is set, kind, layer, position, unit."""
    at, layers = at.to(clean.device), anatomy.size.n_layers
    length = int(reach(anatomy, at, clean.shape[1]).max()) + 1
    kinds = {KINDS[code] for code in table[:, 1].unique().tolist()}
    kept = ("resid_pre", "key", "value")
    blocks = [
        (
            trace(anatomy, clean[some, :length], lambda name, _, x: x if name in kept else None),
            trace(anatomy, corrupt[some, :length], lambda name, _, x: x if name in kinds else None),
            at[some],
        )
        for some in torch.arange(len(clean), device=clean.device).split(batch_size)
    ]
    ends = [block["resid_pre", layers][torch.arange(len(end)), end] for block, _, end in blocks]
    before = measure(metric, torch.cat([anatomy.unembed(end) for end in ends]))
    found = before.new_zeros(len(clean), sets)
    layer, pos = (
        torch.full((sets,), most).scatter_reduce(0, table[:, 0], table[:, column], "amin")
        for column, most in ((2, layers), (3, length))
    )
    order = torch.argsort(layer * length + pos, descending=True, stable=True)
    order = order[layer[order] < layers]
    table = table[torch.argsort(table[:, 0], stable=True)]
    starts = torch.searchsorted(table[:, 0].contiguous(), torch.arange(sets + 1)).tolist()
    chunks = order.split(max(1, batch_size // min(len(clean), batch_size)))
    for some in tqdm(chunks if len(order) else [], desc="patching nodes", disable=not progress):
        parts = [table[starts[s] : starts[s + 1], 1:] for s in some.tolist()]
        places = torch.repeat_interleave(torch.arange(len(some)), torch.tensor([len(part) for part in parts]))
        mine = torch.cat([places[:, None], torch.cat(parts)], 1).to(clean.device)
        start = int(layer[some].min()), int(pos[some].min())
        logits = [_patched(anatomy, *block, mine, len(some), *start) for block in blocks]
        for s, row in zip(some.tolist(), torch.cat(logits, 1), strict=True):
            found[:, s] = measure(metric, row) - before
    return found


def _patched(
    anatomy: Anatomy,
    clean: Cache,
    corrupt: Cache,
    at: Tensor,
    table: Int[Tensor, "row 5"],
    sets: int,
    first: int,
    pos: int,
) -> Float[Tensor, "set prompt vocab"]:
    """Logits of one block of prompts with each set of nodes patched, from the first layer and position that has one.

    What all sets share is computed once: they part where the first of them is patched.
    """
    window = Window.of(anatomy, at.clamp(max=pos), at, clean["resid_pre", first].shape[1])

    def put(name: str, index: int, x: Tensor, end_only: bool) -> Float[Tensor, "set prompt column ..."]:
        mine = table[(table[:, 1] == KINDS.index(name)) & (table[:, 2] == index)]
        where = mine[:, 3, None]
        row, prompt = (where == at if end_only else where <= window.last).nonzero().T
        if not len(row):
            return x
        s, _, _, place, unit = mine[row].T
        column = torch.zeros_like(place) if end_only else place - window.first[prompt]
        x, new = x.expand(sets, *x.shape[1:]).clone(), corrupt[name, index]
        if name.endswith("_out"):
            x[s, prompt, column] = new[prompt, place]
            return x
        share = x.shape[3] // new.shape[2]  # query heads that have a copy each of what they share
        for copy in range(share):
            x[s, prompt, column, unit * share + copy] = new[prompt, place, unit]
        return x

    x = pick(clean["resid_pre", first], window.positions)[None]
    for i in range(first, anatomy.size.n_layers):
        layer, last = anatomy.layers[i], i == anatomy.size.n_layers - 1

        def edit(i: int, name: str, x: Tensor, columns: Tensor, last: bool = last) -> Tensor:
            return put(name, i, x, last and name == "q")

        z = put("z", i, attend(anatomy, i, x, window, clean, end_only=last, edit=edit), last)
        x = pick_columns(x, window.end) if last else x
        attn_out = put("attn_out", i, layer.post1(layer.merge(z)), last)
        mid = x if layer.parallel else x + attn_out
        neurons = put("neurons", i, layer.neurons.hidden(layer.norm2(mid)), last)
        x = x + attn_out + put("mlp_out", i, layer.post2(layer.neurons.down(neurons)), last)
    return anatomy.unembed(x[:, :, 0]).expand(sets, -1, -1)
