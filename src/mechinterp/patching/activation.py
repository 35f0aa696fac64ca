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

from mechinterp.patching.checks import Metric, check_model, check_pair, check_tokens, measure
from mechinterp.patching.engine import (
    Cache,
    Keep,
    Window,
    attention_scores,
    final_streams,
    finish,
    pick,
    resume,
    trace,
    unembed,
    weigh,
)

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
            `resid_mid` is the stream between attention and MLP (a bridge's hook of that name reaches the MLP only).
        metric: from logits at `at` of all prompts to one value a prompt.
        at: where the logits are read.
        positions: "all", each by itself; or one position a prompt; or several of these, each by itself;
            or sets of positions, marked, each set patched together. The `pos` axis of the result.
        batch_size: (variant, prompt) pairs at a time; does not change results. Memory: about
            3 · layers · prompts · positions · d_model floats, and a block's activations of the batch.
        progress: show a bar.

    Errors: `ValueError` for an unknown node, shapes that differ, positions out of range, an unsupported
        architecture, or logits that are not finite.

    >>> from mechinterp.models import organisms
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> swapped = activation_patch(
    ...     organism.model, data.tokens, data.abc(1).tokens, node="resid_pre", metric=data.logit_diff,
    ...     at=data.positions["END"], positions=data.positions["S2"],
    ... ).effect()
    >>> bool(swapped[0] < -0.9), bool(swapped[-1].abs() < 0.1)  # S2 matters early, and not once it has been read
    (True, True)
    """
    check_model(model)
    check_tokens(model, clean, batch_size, at)
    check_pair(clean, corrupt)
    if node not in get_args(Node):
        raise ValueError(f"node must be one of {', '.join(get_args(Node))}, not {node!r}")
    sets = _sets(clean, positions)
    length = int(at.max()) + 1
    sets = sets[:, :, :length] & (torch.arange(length, device=at.device) <= at[:, None])
    rows = min(len(clean), batch_size)
    blocks = [
        _Prompts.of(model, clean[some, :length], corrupt[some, :length], sets[:, some], at[some], node)
        for some in torch.arange(len(clean), device=clean.device).split(rows)
    ]
    base = torch.cat([unembed(model, block.final) for block in blocks])
    before = measure(metric, base)
    heads = model.cfg.n_heads if node in get_args(HeadNode) else 1
    cells = [(s, h) for s in _late_first(sets) for h in range(heads)]
    patched = before.repeat(model.cfg.n_layers, heads, len(sets), 1)
    at_once = max(1, batch_size // rows)
    for layer in tqdm(range(model.cfg.n_layers), desc="activation patching", disable=not progress):
        for i in range(0, len(cells), at_once):
            some = cells[i : i + at_once]
            logits = unembed(model, torch.cat([_patch(model, block, node, layer, some) for block in blocks], 1))
            for (s, h), row in zip(some, logits, strict=True):
                patched[layer, h, s] = measure(metric, row)
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
    def of(cls, model: Any, clean: Tensor, corrupt: Tensor, sets: Tensor, at: Tensor, node: Node) -> "_Prompts":
        """Two forward passes."""
        inputs = {"pattern": {"q", "k"}}.get(node, {node})

        def keep(names: set[str]) -> Keep:
            return lambda name, layer, x: x if name in names else None

        after = "resid_pre" if node in ("resid_pre", "mlp_out") else "resid_mid"
        own = {"q", "z"} if node in get_args(HeadNode) else {node}
        kept = trace(model, clean, keep({"k", "v", after} | own))
        return cls(kept, trace(model, corrupt, keep(inputs)), final_streams(model, clean, at), sets, at)


def _patch(
    model: Any, block: _Prompts, node: Node, layer: int, cells: list[tuple[int, int]]
) -> Float[Tensor, "cell prompt d_model"]:
    """The final streams at `at` for some (set, head) cells of one layer."""
    clean, corrupt, at = block.clean, block.corrupt, block.at
    marked = block.sets[[s for s, _ in cells]]  # cell prompt pos
    anywhere = marked.any(0)
    window = Window(torch.where(anywhere.any(-1), anywhere.int().argmax(-1), at), at)
    where = window.positions
    hit = marked[:, torch.arange(len(at), device=at.device)[:, None], where][..., None]  # cell prompt column 1
    if node in get_args(HeadNode):
        heads = [h for _, h in cells]
        change = _change_of_z(model, block, node, layer, heads, marked, where)
        delta = torch.einsum("npcd,ndm->npcm", change, model.blocks[layer].attn.W_O[heads])
        stream = finish(model.blocks[layer], pick(clean["resid_mid", layer], where) + delta)
        return resume(model, clean, stream, window, layer=layer + 1)
    delta = torch.where(hit, pick(corrupt[node, layer] - clean[node, layer], where), 0.0)
    if node == "resid_pre":
        return resume(model, clean, pick(clean[node, layer], where) + delta, window, layer=layer)
    if node == "mlp_out":
        return resume(model, clean, pick(clean["resid_pre", layer + 1], where) + delta, window, layer=layer + 1)
    stream = finish(model.blocks[layer], pick(clean["resid_mid", layer], where) + delta)
    return resume(model, clean, stream, window, layer=layer + 1)


def _change_of_z(
    model: Any, block: _Prompts, node: Node, layer: int, heads: list[int], marked: Tensor, where: Tensor
) -> Float[Tensor, "cell prompt column d_head"]:
    """How z of each cell's head changes in the window when its input is patched at the marked positions."""

    def of(cache: Cache, name: str) -> Tensor:  # cell prompt pos d_head
        return cache[name, layer].movedim(2, 0)[heads]

    rows = torch.arange(len(where), device=where.device)[:, None]
    hit = marked[..., None]
    old = of(block.clean, "z")
    if node == "z":
        new = torch.where(hit, of(block.corrupt, "z"), old)
        return (new - old)[:, rows, where]
    parts = {name: of(block.clean, name) for name in ("q", "k", "v")}
    if node != "pattern":
        parts[node] = torch.where(hit, of(block.corrupt, node), parts[node])
    pattern = _pattern(model, parts["q"], parts["k"])
    if node == "pattern":
        pattern = torch.where(hit, _pattern(model, of(block.corrupt, "q"), of(block.corrupt, "k")), pattern)
    new = weigh(pattern[:, :, None], parts["v"][:, :, :, None])[..., 0, :]
    return (new - old)[:, rows, where]


def _pattern(model: Any, q: Tensor, k: Tensor) -> Float[Tensor, "cell prompt query key"]:
    scores = attention_scores(model, q[:, :, :, None], k[:, :, :, None])[:, :, 0]
    length = scores.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)
