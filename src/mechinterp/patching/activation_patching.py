"""Activation patching: one activation of the clean run at a time, replaced by what it is on corrupted prompts.

How much does the metric change if one node, at one position, takes its value from the corrupted run? The
direct and all indirect effects count (Meng et al., arXiv:2202.05262; Zhang and Nanda, arXiv:2309.16042).
To ask instead what restores the metric, exchange `clean` and `corrupt`.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy, Layer
from mechinterp.patching.checks import Metric, check_pair, check_tokens, measure, refuse_shared_key
from mechinterp.patching.engine import Cache, Keep, Window, final_streams, pick, reach, resume, trace

HeadNode = Literal["z", "q", "k", "v", "pattern"]
Node = Literal["resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
Positions = Literal["all"] | Int[Tensor, " prompt"] | Int[Tensor, "set prompt"] | Bool[Tensor, "set prompt pos"]


@dataclass(frozen=True)
class ActivationPatch:
    """The metric on the clean prompts, and with each activation patched.

    The head axis is there for the nodes of a head: z, q, k, v, pattern.
    """

    clean: Float[Tensor, " prompt"]
    patched: Float[Tensor, "layer *head pos prompt"]

    def effect(self) -> Float[Tensor, "layer *head pos"]:
        """Relative change of the mean metric: −1 means that patching takes all of it."""
        return self.patched.mean(-1) / self.clean.mean() - 1


@torch.no_grad()
def activation_patch(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "prompt pos"],
    *,
    node: Node,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    positions: Literal["all"]
    | Int[Tensor, " prompt"]
    | Int[Tensor, "set prompt"]
    | Bool[Tensor, "set prompt pos"] = "all",
    batch_size: int = 256,
    progress: bool = False,
) -> ActivationPatch:
    """Patch every node of a kind: each layer (and head) × each position.

    Only what comes after the node, from its position to `at`, is recomputed.

    Args:
        clean, corrupt: prompts of equal shape, aligned position by position.
        node: the kind of activation. `pattern` is patched by query position; k and v by key position.
            `resid_mid` is the stream between attention and MLP (a bridge's hook of that name reaches the MLP only);
            `attn_out` and `mlp_out` are what is added to the stream, after post norms. Heads that share a key or value
            get theirs patched each for itself.
        metric: from logits at `at` of all prompts to one value a prompt.
        at: where the logits are read.
        positions: "all", each by itself; or one position a prompt; or several of these, each by itself;
            or sets of positions, marked, each set patched together. The `pos` axis of the result.
        batch_size: (variant, prompt) pairs at a time; does not change results. Memory: about
            3 · layers · prompts · positions · d_model floats, and a block's activations of the batch.
        progress: show a bar.

    Errors: `ValueError` for an unknown node, shapes that differ, positions out of range, an unsupported
        architecture, a node that the architecture lacks (no `resid_mid` in parallel blocks), or logits that are not
        finite.

    >>> from mechinterp.models import organisms
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> swapped = activation_patch(
    ...     organism.model, data.tokens, data.abc(1).tokens, node="resid_pre", metric=data.logit_diff,
    ...     at=data.positions["END"], positions=data.positions["S2"],
    ... ).effect()
    >>> bool(swapped[0] < -0.9), bool(swapped[-1].abs() < 0.1)  # S2 matters early, and not once it has been read
    (True, True)
    """
    anatomy = check_tokens(model, clean, batch_size, at, bidirectional=True)
    check_tokens(model, corrupt, batch_size, bidirectional=True)
    check_pair(clean, corrupt)
    if node not in get_args(Node):
        raise ValueError(f"node must be one of {', '.join(get_args(Node))}, not {node!r}")
    for layer in anatomy.layers:
        refuse_shared_key(layer, node)
        if node == "resid_mid" and layer.parallel:
            raise ValueError(
                "attention and MLP of this model stand side by side: there is no stream between them (resid_mid)"
            )
    at = at.to(clean.device)
    sets = _sets(clean, positions if isinstance(positions, str) else positions.to(clean.device))
    end = reach(anatomy, at, clean.shape[1])
    length = int(end.max()) + 1
    sets = sets[:, :, :length] & (torch.arange(length, device=at.device) <= end[:, None])
    rows = min(len(clean), batch_size)
    blocks = [
        _Prompts.of(anatomy, clean[some, :length], corrupt[some, :length], sets[:, some], at[some], node)
        for some in torch.arange(len(clean), device=clean.device).split(rows)
    ]
    base = torch.cat([anatomy.unembed(block.final) for block in blocks])
    before = measure(metric, base)
    heads = anatomy.size.n_heads if node in get_args(HeadNode) else 1
    cells = [(s, h) for s in _late_first(sets) for h in range(heads)]
    patched = before.repeat(anatomy.size.n_layers, heads, len(sets), 1)
    at_once = max(1, batch_size // rows)
    for i_layer in tqdm(range(anatomy.size.n_layers), desc="activation patching", disable=not progress):
        for i in range(0, len(cells), at_once):
            some = cells[i : i + at_once]
            logits = anatomy.unembed(torch.cat([_patch(anatomy, block, node, i_layer, some) for block in blocks], 1))
            for (s, h), row in zip(some, logits, strict=True):
                patched[i_layer, h, s] = measure(metric, row)
    return ActivationPatch(before, patched if node in get_args(HeadNode) else patched[:, 0])


def _sets(tokens: Tensor, positions: Any) -> Bool[Tensor, "set prompt pos"]:
    """The positions that are patched together, for every entry of the result."""
    n, length = tokens.shape
    every = torch.arange(length, device=tokens.device)
    if isinstance(positions, str):
        if positions != "all":
            raise ValueError(f"positions must be 'all' or a tensor, not {positions!r}")
        return (every[:, None, None] == every).expand(length, n, length)
    if positions.dtype == torch.bool:
        if positions.shape[1:] != (n, length) or positions.ndim != 3:
            raise ValueError(f"marked positions must have shape [set, {n}, {length}], got {tuple(positions.shape)}")
        return positions
    if positions.ndim not in (1, 2) or positions.shape[-1] != n:
        raise ValueError(f"positions must hold one number a prompt ({n}), got shape {tuple(positions.shape)}")
    if not (int(positions.min()) >= 0 and int(positions.max()) < length):
        raise ValueError(f"positions must lie in 0..{length - 1}, got {int(positions.min())}..{int(positions.max())}")
    return positions.reshape(-1, n)[..., None] == every


def _late_first(sets: Tensor) -> list[int]:
    """Sets that start late first: their windows are short, and chunks should hold windows alike."""
    starts = sets.any(1).int().argmax(-1)
    return torch.argsort(starts, descending=True, stable=True).tolist()


@dataclass(frozen=True)
class _Prompts:
    """One block of prompts: clean and corrupted activations that patching `node` needs."""

    clean: Cache
    corrupt: Cache
    final: Float[Tensor, "prompt d_model"]
    sets: Bool[Tensor, "set prompt pos"]
    at: Int[Tensor, " prompt"]

    @classmethod
    def of(cls, anatomy: Anatomy, clean: Tensor, corrupt: Tensor, sets: Tensor, at: Tensor, node: Node) -> "_Prompts":
        """Two forward passes."""
        inputs = {"pattern": {"query", "key"}}.get(node, {node})

        def keep(names: set[str]) -> Keep:
            return lambda name, layer, x: x if name in names else None

        own = {node, "query", "z", "attn"} if node in get_args(HeadNode) else {node}
        kept = trace(anatomy, clean, keep({"key", "value", "resid_pre"} | own))
        return cls(kept, trace(anatomy, corrupt, keep(inputs)), final_streams(anatomy, clean, at), sets, at)


def _patch(
    anatomy: Anatomy, block: _Prompts, node: Node, index: int, cells: list[tuple[int, int]]
) -> Float[Tensor, "cell prompt d_model"]:
    """The final streams at `at` for some (set, head) cells of one layer."""
    clean, corrupt, at, layer = block.clean, block.corrupt, block.at, anatomy.layers[index]
    marked = block.sets[[s for s, _ in cells]]  # cell prompt pos
    anywhere = marked.any(0)
    first = torch.where(anywhere.any(-1), anywhere.int().argmax(-1), at)
    window = Window.of(anatomy, first, at, marked.shape[-1])
    where = window.positions
    hit = marked[:, torch.arange(len(at), device=at.device)[:, None], where][..., None]  # cell prompt column 1
    x = pick(clean["resid_pre", index], where)
    if node in get_args(HeadNode):
        delta = _change_of_heads(layer, block, node, [h for _, h in cells], marked, where)
        stream = layer.finish(x, layer.post1(pick(clean["attn", index], where) + delta))
        return resume(anatomy, clean, stream, window, layer=index + 1)
    old = pick(clean[node, index], where)
    new = torch.where(hit, pick(corrupt[node, index], where), old)
    if node == "resid_pre":
        return resume(anatomy, clean, new, window, layer=index)
    if node == "mlp_out":
        stream = pick(clean["resid_pre", index + 1], where) + (new - old)
    elif node == "attn_out":
        stream = layer.finish(x, new)
    else:
        stream = new + layer.mlp(new)
    return resume(anatomy, clean, stream, window, layer=index + 1)


def _change_of_heads(
    layer: Layer, block: _Prompts, node: Node, heads: list[int], marked: Tensor, where: Tensor
) -> Float[Tensor, "cell prompt column d_model"]:
    """How the sum of the heads' outputs changes in the window when one head's activation is patched where marked.

    Inside, activations are [cell prompt pos head d_head] with one head, the cell's own; or with all heads where a norm
    over all of them carries the change of one to the others.
    """
    every = layer.joint and node in ("q", "k")
    cells, hit = torch.arange(len(heads), device=marked.device), marked[..., None]
    positions = torch.arange(marked.shape[-1], device=marked.device)

    def own(cache: Cache, name: str) -> Tensor:
        x = cache[name, layer.index]
        x = layer.expand(x) if name in ("k", "v", "key", "value") else x
        return x.movedim(2, 0)[heads]  # cell prompt pos d_head

    def clean(name: str) -> Tensor:
        if not every:
            return own(block.clean, name)[..., None, :]
        x = block.clean[name, layer.index]
        return (layer.expand(x) if name in ("key", "value") else x)[None]

    def changed(name: str) -> Tensor:
        new = torch.where(hit, own(block.corrupt, name), own(block.clean, name))
        if not every:
            return new[..., None, :]
        x = clean(name).expand(len(heads), -1, -1, -1, -1).clone()
        x[cells, :, :, heads] = new
        return x

    if node == "z":
        z = changed("z")
    else:
        query = layer.ready("q", changed("q"), positions) if node == "q" else clean("query")
        key = layer.ready("k", changed("k"), positions) if node == "k" else clean("key")
        value = layer.ready("v", changed("v")) if node == "v" else clean("value")
        pattern = _pattern(layer, query, key)
        if node == "pattern":
            other = _pattern(layer, *(own(block.corrupt, name)[..., None, :] for name in ("query", "key")))
            pattern = torch.where(hit[:, :, None], other, pattern)
        z = layer.weigh(pattern, value)
    change = (z - clean("z"))[:, torch.arange(len(where), device=where.device)[:, None], where]
    if every:
        return layer.write(change, range(layer.n_heads))
    return layer.outputs(change[..., 0, :].movedim(0, -2), heads)


def _pattern(layer: Layer, query: Tensor, key: Tensor) -> Float[Tensor, "cell prompt head query key"]:
    positions = torch.arange(query.shape[-3], device=query.device)
    unseen = layer.hidden(positions[:, None] - positions)
    return layer.scores(query, key).masked_fill(unseen, -torch.inf).softmax(-1)
