"""What a transformer is made of: the one place of this package that knows architectures.

Every method needs the same few maps of a block: what its norms do, which queries, keys and values it makes of the
stream, how these become scores, and how heads and MLP write back. `Anatomy.of(model)` reads them off a
`TransformerBridge` once; methods ask it and never the model.

    x ── norm1 ── q, k, v ── ready ── scores ── pattern ── z ── W_O ── post1 ──┐
    │                                                                        attn_out
    ├──────────── serial: x + attn_out ── norm2 ── MLP ── post2 ───────────────┤
    └──────────── parallel:          x ── norm2 ── MLP ── post2 ── mlp_out ────┴── x + attn_out + mlp_out

A norm that a family does not have is the identity. Norms are the model's own modules; a model's logits and those of
its anatomy are compared before anything is computed (`of`), so a part that is not described here is refused, not
left out. Hooks on the model are not seen by this arithmetic and are refused, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mechinterp.heads import Head
from mechinterp.modules import MLP, Linear, Norm, Rotary

Input = Literal["q", "k", "v"]


class Size(NamedTuple):
    """The numbers of a model; `n_kv_heads` is smaller than `n_heads` where several query heads share keys."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_vocab: int
    n_ctx: int

    @property
    def heads(self) -> list[Head]:
        """Every head, layer by layer."""
        return [Head(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]


def size(model: Any) -> Size:
    """The numbers of any bridge, whether its arithmetic is supported or not.

    >>> from mechinterp.models import load
    >>> size(load("lab")).n_heads
    8
    """
    cfg = getattr(model, "cfg", None)
    if cfg is None or not hasattr(cfg, "n_layers"):
        raise ValueError(f"expected a TransformerBridge, such as mechinterp.models.load gives, not {type(model)}")
    kv = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    return Size(cfg.n_layers, cfg.n_heads, kv, cfg.d_head, cfg.d_model, cfg.d_vocab, cfg.n_ctx)


@dataclass(frozen=True)
class Layer:
    """One block. Streams are [... pos d_model]; queries, keys and values [... pos head d_head].

    Attributes:
        norm1, post1: before and after the attention. `norm2`, `post2`: before and after the MLP.
        parallel: the MLP reads the same stream as the attention.
        scale: of the scores. `cap`: their soft cap. `window`: how many positions back, itself included, are seen.
        clip: bound on q, k and v. `q_norm`, `k_norm`: of each head, or (`joint`) of all heads together.
        rotary: None for positions that are in the stream. `causal`: positions do not see later ones.
    """

    index: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    norm1: Norm
    norm2: Norm
    post1: Norm
    post2: Norm
    parallel: bool
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    neurons: MLP
    scale: float
    cap: float | None
    window: int | None
    clip: float | None
    q_norm: Norm
    k_norm: Norm
    joint: bool
    rotary: Rotary | None
    causal: bool = True

    def kv(self, head: int) -> int:
        """Which of the shared keys and values a query head reads."""
        return head * self.n_kv_heads // self.n_heads

    def project(self, name: Input, normal: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """Queries, keys or values as `hook_q`, `hook_k`, `hook_v` have them: before norms, clipping and rotation.

        Args:
            normal: the stream after `norm1`.
            heads: query heads; keys and values come once for each. None: all that the model has.
        """
        linear: Linear = getattr(self, name)
        if heads is None:
            return linear(normal).unflatten(-1, (-1, self.d_head))
        rows = [h if name == "q" else self.kv(h) for h in heads]
        weight = linear.weight.unflatten(0, (-1, self.d_head))[rows].flatten(0, 1)
        bias = None if linear.bias is None else linear.bias.unflatten(0, (-1, self.d_head))[rows].flatten()
        return functional.linear(normal, weight, bias).unflatten(-1, (-1, self.d_head))

    def ready(self, name: Input, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Queries and keys as scores need them (normed, clipped, rotated), values as patterns weigh them (clipped).

        Args:
            positions: [... pos], broadcast over x's leading axes; not needed for values or without rotary positions.
        """
        if name != "v":
            norm = self.q_norm if name == "q" else self.k_norm
            if norm:
                x = norm(x.flatten(-2)).view(x.shape) if self.joint else norm(x)
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        if name != "v" and self.rotary is not None:
            if positions is None:
                raise ValueError("queries and keys with rotary positions need positions")
            x = self.rotary(x, positions)
        return x

    def expand(self, x: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """Shared keys or values [... kv_head d_head], once for each query head (or some)."""
        if heads is not None:
            return x[..., [self.kv(h) for h in heads], :]
        return x if self.n_kv_heads == self.n_heads else x.repeat_interleave(self.n_heads // self.n_kv_heads, -2)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """[... head query key], scaled and capped, before the mask."""
        scores = torch.einsum("...qhd,...khd->...hqk", query * self.scale, key)
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    def hidden(self, distance: Tensor) -> Tensor:
        """Which keys a query cannot see, by how far back they are: later ones, and those before the window."""
        if not self.causal:
            return torch.zeros_like(distance, dtype=torch.bool)
        return distance < 0 if self.window is None else (distance < 0) | (distance >= self.window)

    def weigh(self, pattern: Tensor, v: Tensor) -> Tensor:
        """z: the values weighed by the pattern, [... query head d_head]."""
        return torch.einsum("...hqk,...khd->...qhd", pattern, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """z from queries, keys and values that are `ready`, [... pos head d_head]; positions [pos]."""
        unseen = self.hidden(positions[:, None] - positions)
        pattern = self.scores(q, self.expand(k)).masked_fill(unseen, -torch.inf).softmax(-1)
        return self.weigh(pattern, self.expand(v))

    def heads(self, x: Tensor) -> Tensor:
        """z from the stream before the layer, positions 0, 1, 2, …"""
        positions = torch.arange(x.shape[-2], device=x.device)
        normal = self.norm1(x)
        q, k, v = (self.ready(name, self.project(name, normal), positions) for name in ("q", "k", "v"))
        return self.attend(q, k, v, positions)

    def merge(self, z: Tensor) -> Tensor:
        """The sum of all heads' outputs and the bias, before `post1`."""
        return self.o(z.flatten(-2))

    def write(self, z: Tensor, heads: Sequence[int]) -> Tensor:
        """The sum of some heads' outputs [... head d_head] without bias, before `post1`."""
        weight = self.o.weight.unflatten(1, (-1, self.d_head))[:, list(heads)].flatten(1)
        return functional.linear(z.flatten(-2), weight)

    def outputs(self, z: Tensor, heads: Sequence[int]) -> Tensor:
        """Each of some heads' outputs by itself, [head ... d_model] from z [... head d_head]; as `write`."""
        weight = self.o.weight.unflatten(1, (-1, self.d_head))[:, list(heads)]
        return torch.einsum("...hd,mhd->h...m", z, weight)

    def mlp(self, stream: Tensor) -> Tensor:
        """What the MLP adds to the stream that it reads."""
        return self.post2(self.neurons(self.norm2(stream)))

    def finish(self, x: Tensor, attn_out: Tensor) -> Tensor:
        """The next stream, from the stream before the layer and what the attention adds (after `post1`)."""
        mid = x + attn_out
        return mid + self.mlp(x if self.parallel else mid)

    def after(self, x: Tensor, z: Tensor) -> Tensor:
        """The next stream, from the stream before the layer and its heads' z."""
        return self.finish(x, self.post1(self.merge(z)))

    def __call__(self, x: Tensor) -> Tensor:
        """The plain forward pass: the next stream from x [... pos d_model], positions 0, 1, 2, …"""
        return self.after(x, self.heads(x))

    def weight(self, name: Input, head: int) -> Tensor:
        """[d_model d_head]: from the stream after `norm1` to a head's query, or to the key or value that it reads."""
        linear: Linear = getattr(self, name)
        return linear.weight.unflatten(0, (-1, self.d_head))[head if name == "q" else self.kv(head)].T

    def W_Q(self, head: int) -> Tensor:
        """[d_model d_head], from the stream normalised to unit gain: the norm's gain is folded in."""
        return self._folded("q", head)

    def W_K(self, head: int) -> Tensor:
        """[d_model d_head] of the key that the head reads, as `W_Q`."""
        return self._folded("k", head)

    def W_V(self, head: int) -> Tensor:
        """[d_model d_head] of the value that the head reads, as `W_Q`."""
        return self._folded("v", head)

    def _folded(self, name: Input, head: int) -> Tensor:
        weight = self.weight(name, head)
        return weight if self.norm1.gain is None else self.norm1.gain[:, None] * weight

    def W_O(self, head: int) -> Tensor:
        """[d_head d_model], before `post1`."""
        return self.o.weight.unflatten(1, (-1, self.d_head))[:, head].T

    def bias(self, name: Input, head: int) -> Tensor:
        """[d_head]: bias of a head's query, key or value, the norm's own bias included; zeros where there is none."""
        linear: Linear = getattr(self, name)
        row = head if name == "q" else self.kv(head)
        own = None if linear.bias is None else linear.bias.unflatten(0, (-1, self.d_head))[row]
        own = linear.weight.new_zeros(self.d_head) if own is None else own
        return own if self.norm1.bias is None else own + self.norm1.bias @ self.weight(name, head)

    def writes(self, head: int | None = None) -> Tensor:
        """[d_head d_model] of a head, or [head d_head d_model]: what a unit of z adds to the stream.

        Under a post norm, times that norm's scale (`post1.scale` of the layer's `attn`): with scales frozen, a head's
        contribution to the stream is z @ writes / scale.
        """
        weight = self.o.weight.unflatten(1, (-1, self.d_head)).permute(1, 2, 0)
        weight = weight if head is None else weight[head]
        return self.post1.frozen(weight, torch.ones((), device=weight.device, dtype=weight.dtype))


@dataclass(frozen=True)
class Anatomy:
    """A transformer as maps. Get it with `Anatomy.of(model)`; it holds the model's own modules, so it sees edits."""

    size: Size
    layers: tuple[Layer, ...]
    final: Norm
    unembedding: Linear
    logit_cap: float | None
    token_embedding: Any
    position_table: Callable[[Tensor], Tensor] | None

    @classmethod
    def of(cls, model: Any, length: int | None = None, *, bidirectional: bool = False) -> "Anatomy":
        """The anatomy of a bridge, after its logits have been compared with the model's own.

        Made again, and compared again, whenever weights have changed; compared again for longer prompts (of `length`
        tokens), up to 128 tokens or what an attention window needs.

        Args:
            bidirectional: the caller can do with attention that is not causal; else such a model is refused.

        Errors: `ValueError` for a model with a part that is not described here, naming it; with hooks; in training
            mode; or with NaN in its output.
        """
        from mechinterp.architectures import known

        anatomy = known(model, length)
        if not bidirectional and not anatomy.causal:
            raise ValueError(
                "this model has attention that is not causal, which is not supported here: this method takes what "
                "comes before a change to be as it was"
            )
        return anatomy

    @cached_property
    def causal(self) -> bool:
        """Whether no position sees later ones, in any layer."""
        return all(layer.causal for layer in self.layers)

    @cached_property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unembedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.unembedding.weight.dtype

    @property
    def W_E(self) -> Tensor:
        """Every token's embedding as it enters the stream, without positions, [d_vocab d_model]."""
        return self.token_embedding(torch.arange(self.size.d_vocab, device=self.device))

    @property
    def W_U(self) -> Tensor:
        """From the stream after the final norm to logits, [d_model d_vocab]."""
        return self.unembedding.weight.T

    def directions(self, tokens: Tensor | None = None) -> Tensor:
        """[token d_model]: along which the stream raises a token's logit: the final norm's gain · W_U, as `along`."""
        return self.along(self.unembedding.weight if tokens is None else self.unembedding.weight[tokens])

    def embed(self, tokens: Tensor, *, positions: bool = True) -> Tensor:
        """The stream before layer 0, [... pos d_model]; without what the positions add if asked."""
        x = self.token_embedding(tokens)
        if self.position_table is None or not positions:
            return x
        return x + self.position_table(torch.arange(tokens.shape[-1], device=tokens.device))

    def read(self, normal: Tensor) -> Tensor:
        """Logits of a stream after the final norm, before the soft cap: linear in `normal`."""
        return self.unembedding(normal)

    def cap(self, logits: Tensor) -> Tensor:
        """The soft cap on logits, if the model has one."""
        return logits if self.logit_cap is None else self.logit_cap * torch.tanh(logits / self.logit_cap)

    def along(self, direction: Tensor) -> Tensor:
        """d with final.frozen(x, scale) · direction = x · d / scale: a direction of logits seen from the stream."""
        return self.final.pulled_back(direction)

    def unembed(self, stream: Tensor) -> Tensor:
        """Logits of a final stream [... d_model]; `ValueError` if any is NaN or infinite."""
        logits = self.cap(self.read(self.final(stream)))
        if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
            raise ValueError("the model's output contains NaN or infinity; check its weights and the values patched in")
        return logits
