"""Path patching (Wang et al., arXiv:2211.00593, section 3.1 and Appendix B).

How much does head h matter *directly* to some receivers R: the logits, or the queries, keys or values of
other heads?

1. Record every head on the clean and on the corrupted prompts.
2. Run the clean prompts with every head frozen at its clean output, except h at its corrupted one; MLPs
   and layer norms recompute. Record what the receivers would get.
3. Run the clean prompts again with only those receiver inputs overridden; everything after recomputes.

With all heads frozen positions do not mix, so pass 2 needs layer norms and MLPs at the receivers'
positions only, and all senders are one batch. Pass 3 starts at the first receiver's layer and
position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.heads import Head, all_heads, check_heads
from mechinterp.patching.engine import (
    Edits,
    Trace,
    check_model,
    check_tokens,
    merge,
    mlp_step,
    normalise,
    pick,
    project,
    resume,
    trace,
    unembed,
    window,
)

Input = Literal["q", "k", "v"]
Metric = Callable[[Float[Tensor, "prompt vocab"]], Float[Tensor, " prompt"]]


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


@torch.no_grad()
def path_patch(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "prompt pos"],
    *,
    metric: Metric,
    at: Int[Tensor, " prompt"],
    receivers: Literal["logits"] | Sequence[tuple[Head, Input]] = "logits",
    receiver_positions: Int[Tensor, " prompt"] | None = None,
    senders: Sequence[Head] | None = None,
    batch_size: int = 512,
) -> PathPatch:
    """Patch the direct path from each sender to the receivers.

    Args:
        clean, corrupt: prompts of equal shape, aligned position by position.
        metric: from logits at `at` of *all* prompts to one value a prompt.
        at: where the logits are read.
        receivers: `"logits"`, or (head, `"q"`, `"k"` or `"v"`) pairs.
        receiver_positions: where the receivers' inputs are overridden; None is everywhere.
        senders: heads to patch, one after another; None is all.
        batch_size: (sender, prompt) pairs at a time; bounds the memory, does not change results.

    Errors: `ValueError` for an unknown head, no receivers, shapes that differ, positions out of range,
        an unsupported architecture, or logits that are not finite.
    """
    check_model(model)
    check_tokens(model, clean, batch_size, at)
    if corrupt.shape != clean.shape:
        raise ValueError(f"clean and corrupt differ in shape: {tuple(clean.shape)} and {tuple(corrupt.shape)}")
    heads = all_heads(model) if senders is None else check_heads(model, senders)
    heads = sorted(set(heads))
    rows = min(len(clean), batch_size)
    split = torch.arange(len(clean), device=clean.device).split(rows)
    at_once = max(1, batch_size // rows)
    if receivers != "logits":
        receivers = _check_receivers(model, receivers)
        if receiver_positions is not None:
            check_tokens(model, clean, batch_size, receiver_positions, "receiver_positions")
        last = max(h.layer for h, _ in receivers)
        heads = [h for h in heads if h.layer < last]
    traces = [(trace(model, clean[some]), trace(model, corrupt[some]).z) for some in split]
    base = torch.cat([_logits(model, t.resid_final, at[some]) for (t, _), some in zip(traces, split, strict=True)])
    before = metric(base)
    if before.shape != clean.shape[:1]:
        raise ValueError(f"metric must return one value a prompt, shape {(len(clean),)}, got {tuple(before.shape)}")
    patched = before.repeat(model.cfg.n_layers, model.cfg.n_heads, 1)
    for i in range(0, len(heads), at_once):
        chunk = heads[i : i + at_once]
        parts = []
        for (t, other), some in zip(traces, split, strict=True):
            if receivers == "logits":
                where = at[some][:, None]
                final = _frozen(model, t, other, chunk, where, model.cfg.n_layers)
                parts.append(unembed(model, final[:, :, 0]))
            else:
                position = None if receiver_positions is None else receiver_positions[some]
                parts.append(_through_inputs(model, t, other, chunk, receivers, position, at[some]))
        logits = torch.cat(parts, 1)
        for head, row in zip(chunk, logits, strict=True):
            patched[head] = metric(row)
    return PathPatch(before, patched)


def _logits(model: Any, resid: Tensor, at: Tensor) -> Tensor:
    return unembed(model, pick(resid, at[:, None])[:, 0])


def _check_receivers(model: Any, receivers: Any) -> list[tuple[Head, Input]]:
    receivers = list(receivers)
    if not receivers:
        raise ValueError("no receivers: give 'logits' or a list of (head, 'q' | 'k' | 'v')")
    checked = check_heads(model, [head for head, _ in receivers])
    for _, part in receivers:
        if part not in ("q", "k", "v"):
            raise ValueError(f"a receiver's input is 'q', 'k' or 'v', not {part!r}")
    return [(head, part) for head, (_, part) in zip(checked, receivers, strict=True)]


def _frozen(
    model: Any,
    clean: Trace,
    other: Float[Tensor, "layer prompt pos head d_head"],
    senders: list[Head],
    where: Int[Tensor, "prompt window"],
    layers: int,
    visit: Callable[[int, list[Head], Tensor], None] | None = None,
) -> Float[Tensor, "sender prompt window d_model"]:
    """Pass 2: the residual stream before layer `layers` with all heads frozen but one.

    `visit` sees the stream before every layer up to there. Senders are sorted by layer; the stream of a
    sender is the clean one up to its layer.
    """
    stream = clean.resid_final.new_zeros(0, *where.shape, model.cfg.d_model)
    started: list[Head] = []
    for layer in range(layers):
        block = model.blocks[layer]
        if visit is not None:
            visit(layer, started, stream)
        here = [h for h in senders if h.layer == layer]
        if not here and not started:
            continue
        frozen_out = pick(clean.attn_out[layer], where)
        parts = [stream + frozen_out] if started else []
        if here:
            index = [h.head for h in here]
            change = pick(other[layer] - clean.z[layer], where)[:, :, index]  # prompt window sender d_head
            deltas = torch.einsum("bwsd,sdm->sbwm", change, model.W_O[layer][index])
            parts.append(pick(clean.resid_mid[layer], where) + deltas)
        started += here
        stream = mlp_step(block, torch.cat(parts))
    if visit is not None:
        visit(layers, started, stream)
    return stream


def _through_inputs(
    model: Any,
    clean: Trace,
    other: Tensor,
    senders: list[Head],
    receivers: list[tuple[Head, Input]],
    position: Int[Tensor, " prompt"] | None,
    at: Int[Tensor, " prompt"],
) -> Float[Tensor, "sender prompt vocab"]:
    """Passes 2 and 3 for receivers that are inputs of heads."""
    prompts, length = clean.z.shape[1:3]
    everywhere = torch.arange(length, device=at.device).expand(prompts, length)
    where = everywhere if position is None else position[:, None]
    received: dict[tuple[int, int, str], Tensor] = {}

    def visit(layer: int, started: list[Head], stream: Tensor) -> None:
        for head, part in receivers:
            if head.layer == layer and started:
                normal = normalise(model.blocks[layer].ln1, stream)
                w, b = getattr(model, f"W_{part.upper()}")[layer], getattr(model, f"b_{part.upper()}")[layer]
                new = project(normal, w[[head.head]], b[[head.head]])[..., 0, :]
                received[layer, head.head, part] = new  # sender prompt position d_head

    _frozen(model, clean, other, senders, where, max(h.layer for h, _ in receivers), visit)
    if not received:
        return _logits(model, clean.resid_final, at).expand(len(senders), -1, -1)
    start = min(layer for layer, _, _ in received)
    first = torch.zeros_like(at) if position is None else position
    span = window(first, at)
    rows = torch.arange(prompts, device=at.device)[:, None]

    def override(part: Input) -> Callable[[int, Tensor], Tensor]:
        def edit(layer: int, x: Tensor) -> Tensor:
            changed = [(h, v) for (i, h, p), v in received.items() if i == layer and p == part]
            if not changed:
                return x
            x = x.clone()
            kept = heads_at(layer)
            for head, value in changed:
                column = head if kept is None else kept.index(head)
                n = len(value)  # senders are sorted by layer, so those that reach this receiver come first
                if part == "q":  # x is the window: [sender prompt window head d_head]
                    if position is None:
                        x[:n, :, :, column] = value[:, rows, span]
                    else:
                        x[:n, :, 0, column] = value[:, :, 0]
                else:  # x is every position
                    x[:n, rows, where, column] = value
            return x

        return edit

    first_heads = sorted({h for layer, h, _ in received if layer == start})

    def heads_at(layer: int) -> list[int] | None:
        return first_heads if layer == start else None

    edits = Edits(q=override("q"), k=override("k"), v=override("v"), heads=heads_at)
    x = pick(clean.resid_pre[start], span).expand(len(senders), -1, -1, -1)
    final = resume(model, clean, x, span, layer=start, edits=edits)
    here = (at - first).clamp(min=0)
    logits = unembed(model, final[:, torch.arange(prompts, device=at.device), here])
    late = at < first  # the receivers lie after the position that is read: no effect
    if late.any():
        logits[:, late] = _logits(model, clean.resid_final, at)[late]
    return logits
