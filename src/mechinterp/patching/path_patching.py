"""Path patching (Wang et al., arXiv:2211.00593, section 3.1 and Appendix B).

How much does head h matter *directly* to some receivers R: the logits, or the queries, keys or values of
other heads?

1. Record every head on the clean and on the corrupted prompts.
2. Run the clean prompts with every head frozen at its clean output, except h at its corrupted one; MLPs
   and layer norms recompute. Record what the receivers would get.
3. Run the clean prompts again with only those receiver inputs overridden; everything after recomputes.

With all heads frozen positions do not mix, so pass 2 needs layer norms and MLPs at the receivers'
positions only, and all senders are one batch. Pass 3 starts at the first receiver's layer and
position, from the clean pass.

The frozen output of a head is its z. Post norms (Gemma 2 and 3, OLMo 2) recompute like all layer norms, so in the
sender's own layer the other heads' outputs are rescaled. Where several heads share keys and values, an input is
overridden for the receiving head alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.anatomy import Anatomy
from mechinterp.heads import Head, check_heads
from mechinterp.patching.checks import Metric, Receiver, check_pair, check_receivers, check_tokens, measure
from mechinterp.patching.engine import (
    Cache,
    Keep,
    Window,
    attend,
    pick,
    pick_columns,
    reach,
    resume,
    trace,
)


@dataclass(frozen=True)
class PathPatch:
    """The metric on the clean prompts, and with each sender's path patched.

    `patched` equals `clean` for heads that were not senders or have no path to the receivers.
    """

    clean: Float[Tensor, " prompt"]
    patched: Float[Tensor, "layer head prompt"]

    def effect(self) -> Float[Tensor, "layer head"]:
        """Relative change of the mean metric: −0.1 means that patching costs a tenth of it."""
        return self.patched.mean(-1) / self.clean.mean() - 1

    def relative(self) -> Float[Tensor, "layer head prompt"]:
        """Change of each prompt's metric over the mean clean metric: its mean over prompts is `effect()`."""
        return (self.patched - self.clean) / self.clean.mean()


@torch.no_grad()
def path_patch(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "prompt pos"],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    receivers: Literal["logits"] | Sequence[Receiver] = "logits",
    receiver_positions: Int[Tensor, " prompt"] | None = None,
    senders: Sequence[Head] | None = None,
    batch_size: int = 512,
    progress: bool = False,
) -> PathPatch:
    """Patch the direct path from each sender to the receivers.

    Args:
        clean, corrupt: prompts of equal shape, aligned position by position.
        metric: from logits at `at` of *all* prompts to one value a prompt.
        at: where the logits are read.
        receivers: `"logits"`, or (head, `"q"`, `"k"` or `"v"`) pairs.
        receiver_positions: where the receivers' inputs are overridden; None is everywhere.
        senders: heads to patch, one after another; None is all.
        batch_size: (sender, prompt) pairs at a time; does not change results. Memory: logits and one block's
            activations of a batch, and for inputs as receivers the keys and values from the first receiver on.
        progress: show a bar.

    Errors: `ValueError` for an unknown head, no receivers, shapes that differ, positions out of range,
        an unsupported architecture, or logits that are not finite.

    >>> from mechinterp.models import organisms
    >>> organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    >>> paths = path_patch(
    ...     organism.model, data.tokens, data.abc(1).tokens, metric=data.logit_diff, at=data.positions["END"]
    ... )
    >>> strongest = Head(*divmod(int(paths.effect().argmin()), organism.model.cfg.n_heads))
    >>> organism.roles[strongest]
    'name mover'
    """
    anatomy = check_tokens(model, clean, batch_size, at, bidirectional=True)
    check_tokens(model, corrupt, batch_size, bidirectional=True)
    check_pair(clean, corrupt)
    at = at.to(clean.device)
    heads = anatomy.size.heads if senders is None else sorted(set(check_heads(model, senders)))
    if not isinstance(receivers, str):
        receivers = check_receivers(model, anatomy, receivers)
        if receiver_positions is not None:
            check_tokens(model, clean, batch_size, receiver_positions, "receiver_positions", bidirectional=True)
            receiver_positions = receiver_positions.to(clean.device)
        heads = [h for h in heads if h.layer < max(r.layer for r, _ in receivers)]
    elif receivers != "logits":
        raise ValueError(f"receivers must be 'logits' or a list of (head, 'q' | 'k' | 'v'), not {receivers!r}")
    length = int(reach(anatomy, at, clean.shape[1]).max()) + 1
    rows = min(len(clean), batch_size)
    blocks = []
    for some in torch.arange(len(clean), device=clean.device).split(rows):
        pair = clean[some, :length], corrupt[some, :length]
        if isinstance(receivers, str):
            blocks.append(_to_logits(anatomy, *pair, heads, at[some]))
        else:
            where = None if receiver_positions is None else receiver_positions[some]
            blocks.append(_to_inputs(anatomy, *pair, heads, receivers, where, at[some]))
    before = measure(metric, torch.cat([anatomy.unembed(block(None)[0]) for block in blocks]))
    patched = before.repeat(anatomy.size.n_layers, anatomy.size.n_heads, 1)
    at_once = max(1, batch_size // rows)
    for i in tqdm(range(0, len(heads), at_once), desc="path patching", disable=not progress):
        chunk = heads[i : i + at_once]
        logits = anatomy.unembed(torch.cat([block(chunk) for block in blocks], 1))
        for head, row in zip(chunk, logits, strict=True):
            patched[head] = measure(metric, row)
    return PathPatch(before, patched)


Block = Callable[[list[Head] | None], Float[Tensor, "sender prompt d_model"]]
"""One block of prompts: the final streams at the position that is read, for some senders (None: unpatched)."""


def _to_logits(anatomy: Anatomy, clean: Tensor, corrupt: Tensor, senders: list[Head], at: Tensor) -> Block:
    """Pass 2 to the final stream at `at`."""
    where, layers = at[:, None], anatomy.size.n_layers
    frozen = trace(anatomy, clean, _keep_frozen(where, senders, layers))
    other = _corrupt_z(anatomy, corrupt, where, senders)

    def block(some: list[Head] | None) -> Tensor:
        if some is None:
            return frozen["resid_pre", layers][None, :, 0]
        return _freeze(anatomy, frozen, other, some, where, layers)[:, :, 0]

    return block


def _keep_frozen(where: Tensor, senders: list[Head], stop: int) -> Keep:
    """What pass 2 needs of the clean pass from the first sender's layer on, at some positions."""
    first = senders[0].layer if senders else stop
    own = {h.layer for h in senders}

    def keep(name: str, layer: int, x: Tensor) -> Tensor | None:
        wanted = name in ("resid_pre", "z", "attn") if layer in own else False
        if (first <= layer < stop and (wanted or name == "attn_out")) or (name, layer) == ("resid_pre", stop):
            return pick(x, where)
        return None

    return keep


def _corrupt_z(anatomy: Anatomy, corrupt: Tensor, where: Tensor, senders: list[Head]) -> Cache:
    """z of the senders' layers on the corrupted prompts, at some positions."""
    layers = {h.layer for h in senders}
    if not layers:
        return {}

    def keep(name: str, layer: int, x: Tensor) -> Tensor | None:
        return pick(x, where) if name == "z" and layer in layers else None

    return trace(anatomy, corrupt, keep, stop=max(layers) + 1)


def _freeze(
    anatomy: Anatomy,
    frozen: Cache,
    other: Cache,
    senders: list[Head],
    where: Int[Tensor, "prompt position"],
    stop: int,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "sender prompt position d_model"]:
    """Pass 2: the residual stream before layer `stop` with all heads frozen but one, for every sender.

    Senders are sorted by layer and join at their own: before it, their stream is the clean one. `visit`
    sees the streams of the senders that have joined, before every layer.
    """
    stream = torch.empty(0, *where.shape, anatomy.size.d_model, dtype=anatomy.dtype, device=where.device)
    for i in range(senders[0].layer, stop):
        layer = anatomy.layers[i]
        if visit is not None and len(stream):
            visit(i, stream)
        heads = [h.head for h in senders if h.layer == i]
        parts = [stream + frozen["attn_out", i]] if len(stream) else []
        if heads:
            deltas = layer.outputs((other["z", i] - frozen["z", i])[:, :, heads], heads)
            parts.append(frozen["resid_pre", i] + layer.post1(frozen["attn", i] + deltas))
        mid = torch.cat(parts)
        if layer.parallel:
            clean = layer.mlp(frozen["resid_pre", i])[None].expand(len(heads), -1, -1, -1) if heads else None
            parts = [layer.mlp(stream)] if len(stream) else []
            stream = mid + torch.cat(parts if clean is None else [*parts, clean])
        else:
            stream = mid + layer.mlp(mid)
    if visit is not None:
        visit(stop, stream)
    return stream


def _to_inputs(
    anatomy: Anatomy,
    clean: Tensor,
    corrupt: Tensor,
    senders: list[Head],
    receivers: list[Receiver],
    position: Tensor | None,
    at: Tensor,
) -> Block:
    """Passes 2 and 3 for receivers that are inputs of heads."""
    layers = anatomy.size.n_layers
    end = reach(anatomy, at, clean.shape[1])
    first = torch.zeros_like(at) if position is None else torch.minimum(position, end)
    late = torch.zeros_like(at, dtype=torch.bool) if position is None else position > end
    window = Window.of(anatomy, first, at, clean.shape[1])
    span = window.positions
    where = span if position is None else first[:, None]
    places = {h.layer for h, _ in receivers}
    before = bool((first > 0).any())
    base: Cache = {}
    keep_frozen = _keep_frozen(where, senders, max(places))

    def keep(name: str, layer: int, x: Tensor) -> Tensor | None:
        if name in ("resid_pre", "attn", "z") and layer in places:
            base[name, layer] = pick(x, span)
        elif before and layer >= min(places) and name in ("key", "value"):
            base[name, layer] = x
        elif (name, layer) == ("resid_pre", layers):
            base[name, layer] = pick(x, at[:, None])[:, 0]
        return keep_frozen(name, layer, x)

    frozen = trace(anatomy, clean, keep)
    other = _corrupt_z(anatomy, corrupt, where, senders)

    def block(some: list[Head] | None) -> Tensor:
        unpatched = base["resid_pre", layers]
        if some is None:
            return unpatched[None]
        received = _received(anatomy, frozen, other, some, receivers, where)
        final = _deliver(anatomy, base, received, len(some), window, where[:, 0] - window.first)
        final[:, late] = unpatched[late]
        return final

    return block


def _received(
    anatomy: Anatomy, frozen: Cache, other: Cache, senders: list[Head], receivers: list[Receiver], where: Tensor
) -> dict[tuple[int, int, str], Float[Tensor, "reaching prompt position d_head"]]:
    """What each receiver gets from the senders that reach it, which are the first ones."""
    received: dict[tuple[int, int, str], Tensor] = {}

    def visit(i: int, stream: Tensor) -> None:
        layer, here = anatomy.layers[i], [(h, part) for h, part in receivers if h.layer == i]
        if here:
            normal = layer.norm1(stream)
            for head, part in here:
                received[i, head.head, part] = layer.project(part, normal, [head.head])[..., 0, :]

    _freeze(anatomy, frozen, other, senders, where, max(h.layer for h, _ in receivers), visit)
    return received


def _deliver(
    anatomy: Anatomy,
    base: Cache,
    received: dict[tuple[int, int, str], Tensor],
    senders: int,
    window: Window,
    column: Int[Tensor, " prompt"],
) -> Float[Tensor, "sender prompt d_model"]:
    """Pass 3: the final stream with the received inputs in place, from `column` and the first receiver's layer on."""
    start = min(layer for layer, _, _ in received)
    layer = anatomy.layers[start]
    every = list(range(layer.n_heads))
    heads = every if layer.joint else sorted({head for i, head, _ in received if i == start})

    def edit(i: int, name: str, x: Tensor, columns: Tensor) -> Tensor:
        changed = [(head, new) for (j, head, part), new in received.items() if j == i and part == name]
        if not changed:
            return x
        x = x.expand(senders, -1, -1, -1, -1).clone()
        for head, new in changed:
            index = heads.index(head) if i == start else head
            width = new.shape[2]  # 1 with given positions, the window's otherwise
            old = x[: len(new), :, :, index]
            place = columns - column[:, None]
            hit = ((place >= 0) & (place < width))[None, :, :, None]
            x[: len(new), :, :, index] = torch.where(hit, pick_columns(new, place.clamp(0, width - 1)), old)
        return x

    last = start == anatomy.size.n_layers - 1
    x, attn, z = (base[name, start][None] for name in ("resid_pre", "attn", "z"))
    now = attend(anatomy, start, x, window, base, heads=heads, end_only=last, edit=edit)
    if last:
        x, attn, z = (pick_columns(t, window.end) for t in (x, attn, z))
    stream = layer.finish(x, layer.post1(attn + layer.write(now - z[..., heads, :], heads)))
    if last:
        return stream[:, :, 0]
    return resume(anatomy, base, stream, window, layer=start + 1, edit=edit)
