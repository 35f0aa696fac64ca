"""What a head reads, scores and writes, slowly: from a raw run's activations, raw matrices and transformers' rotations.

Nothing here asks the package. Two conventions of loading are repeated in words: the unembedding has no mean over the
vocabulary (unless logits are capped), and where norms subtract a mean, what they read and what they hear has none.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from families import HEADS, LAYERS, VOCAB, WIDTH, WINDOW, Edit, Raw, Weights
from torch import Tensor

from mechinterp.heads import Head

_SCALES = {"GPT-Neo": 1.0, "Gemma 2": 9**-0.5, "Gemma 3": 9**-0.5}
_WINDOWS = {n: (WINDOW, None, WINDOW) for n in ("GPT-Neo", "Qwen 2", "Gemma 2", "Gemma 3")}
_WINDOWS |= {n: (WINDOW,) * LAYERS for n in ("Mistral", "Phi 3")}
CLIP = 0.7
"""Of OLMo's queries, keys and values."""


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def same_but_for_ties(ours: Tensor, theirs: Callable[[float], Tensor], eps: float = 1e-5) -> None:
    """Counts or booleans that grow with their slack: ours lie between those of a strict and of a lenient comparison."""
    low, high = theirs(-eps), theirs(eps)
    assert ((low <= ours) & (ours <= high)).all(), (ours, low, high)


class Slow(Weights):
    """The raw matrices of a family, and one raw run of some tokens [doc pos]."""

    def __init__(self, name: str, tokens: Tensor) -> None:
        super().__init__(Raw(name))
        self.name, self.tokens, model = name, tokens, self.raw.model
        self.logits, self.got = self.raw.run(tokens)
        self.end = self.got["resid_pre", LAYERS]
        self.cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.window = _WINDOWS.get(name, (None,) * LAYERS)
        self.score_cap: float | None = getattr(model.config, "attn_logit_softcapping", None)
        self.rotaries = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
        self.rotary = bool(self.rotaries) or name == "GPT-J"
        self.joint = name == "OLMo 2"

    def scale(self, x: Tensor, module: Any) -> Tensor:
        if type(module).__name__ == "OlmoLayerNorm":  # its eps is a number in its code
            return (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return super().scale(x, module)

    def centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centres else x

    @cached_property
    def U(self) -> Tensor:
        """[token d_model]: what raises a token's logit against the mean logit, seen from the stream."""
        rows = self.W_U.T * self.gain(self.raw.final)
        return self.centred(rows if self.cap else rows - rows.mean(0))

    @cached_property
    def matrix(self) -> list[dict[str, Tensor]]:
        return [self.folded(layer) for layer in range(LAYERS)]

    def normal(self, layer: int, x: Tensor | None = None) -> Tensor:
        """The stream before a layer at unit gain."""
        return self.unit(self.got["resid_pre", layer] if x is None else x, self.norm_of(layer))

    def read(self, stream: Tensor) -> Tensor:
        """Logits before a soft cap, by the model's own modules."""
        return self.raw.model.get_output_embeddings()(self.raw.final(stream))

    def logp(self, change: Tensor | None = None) -> Tensor:
        """Log-probabilities with a change of the final stream, its norm's scale frozen."""
        logits = self.read(self.end)
        logits = logits if change is None else logits + self.to_logits(change, self.end)
        return self.capped(logits).log_softmax(-1)

    def loss(self, logp: Tensor) -> Tensor:
        """At every position but the last."""
        return -logp[:, :-1].gather(-1, self.tokens[:, 1:, None])[..., 0]

    def bare_z(self, layer: int, head: int) -> Tensor:
        """[doc pos d_head] without the values' biases."""
        return self.z(self.got, layer)[:, :, head]

    def bare_v(self, layer: int, head: int) -> Tensor:
        v = self.got["v", layer][:, :, head] - self.matrix[layer]["bV"][head]
        return v.clamp(-CLIP, CLIP) if self.name == "OLMo" else v

    def post(self, layer: int, got: Mapping[tuple[str, int], Tensor] | None = None) -> Tensor:
        """[doc pos 1], what the attention's post norm divides by."""
        return self.post_scale(layer, (self.got if got is None else got)["z", layer])

    def written(self, head: Head, z: Tensor) -> Tensor:
        """What some z of a head [doc pos d_head] adds to the stream, the post norm's scale frozen."""
        return z @ self.matrix[head.layer]["O"][head.head] / self.post(head.layer)

    def rotate(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        """Turn x [row d_head], by transformers' function for this family."""
        if not self.rotary:
            return x
        attn = self.raw.attn(layer)
        apply = sys.modules[type(attn).__module__].apply_rotary_pos_emb
        if self.name == "GPT-J":
            sin, cos = attn.embed_positions[positions].chunk(2, -1)
            n = 2 * sin.shape[-1]
            turned = apply(x[None, :, None, :n], sin[None], cos[None])[0, :, 0]
        else:
            kinds = getattr(self.raw.model.config, "layer_types", None)
            by_kind = self.name == "Gemma 3"
            cos, sin = self.rotaries[0](x, positions[None], *([kinds[layer]] if by_kind else []))
            n = cos.shape[-1]
            turned = apply(x[None, None, :, :n], x[None, None, :, :n], cos, sin)[0][0, 0]
        return torch.cat([turned, x[:, n:]], -1)

    def ready(
        self, part: str, layer: int, head: int, x: Tensor, positions: Tensor, like: Tensor | None = None
    ) -> Tensor:
        """Queries or keys [row d_head] as scores need them; a norm's scale is that of `like` if given.

        For OLMo 2, x are those of all heads, [row head d_head].
        """
        norm = getattr(self.raw.attn(layer), f"{part}_norm", None)
        if self.joint:
            x = norm(x.flatten(-2)).unflatten(-1, (HEADS, -1))[:, head]
        elif norm is not None and like is not None:
            x = x / self.scale(like, norm) * self.gain(norm)
        elif norm is not None:
            x = norm(x)
        x = x.clamp(-CLIP, CLIP) if self.name == "OLMo" else x
        return self.rotate(layer, x, positions)

    def score(self, query: Tensor, key: Tensor) -> Tensor:
        """Of queries and keys that are ready, [..., d_head] each."""
        scores = (query * key).sum(-1) * _SCALES.get(self.name, query.shape[-1] ** -0.5)
        return scores if self.score_cap is None else self.score_cap * torch.tanh(scores / self.score_cap)

    def unseen(self, layer: int, query: int, key: int) -> bool:
        window = self.window[layer]
        return key > query or (window is not None and query - key >= window)

    def pattern(self, layer: int, scores: Tensor) -> Tensor:
        """From scores [query key] of whole documents."""
        n = len(scores)
        gone = torch.tensor([[self.unseen(layer, d, s) for s in range(n)] for d in range(n)])
        return scores.masked_fill(gone, -torch.inf).softmax(-1)

    def ready_of(self, part: str, head: Head, doc: int) -> Tensor:
        """A head's queries or keys of a document, ready."""
        x = self.got[part, head.layer][doc]
        return self.ready(part, *head, x if self.joint else x[:, head.head], torch.arange(len(x)))

    def scores(self, head: Head, doc: int) -> Tensor:
        """[query key] before the mask."""
        return self.score(self.ready_of("q", head, doc)[:, None], self.ready_of("k", head, doc)[None])

    @cached_property
    def W_E(self) -> Tensor:
        return self.raw.model.get_input_embeddings()(torch.arange(VOCAB))

    @cached_property
    def W_EE(self) -> Tensor:
        """[token d_model]: the stream after block 0 when attention and positions are left out."""
        edits: dict[tuple[str, int], Edit] = {
            ("resid_pre", 0): lambda x: self.W_E.view(x.shape),
            ("attn_out", 0): torch.zeros_like,
        }
        rows = torch.arange(VOCAB).view(5, -1)
        return self.centred(self.raw.run(rows, edits)[1]["resid_pre", 1].reshape(VOCAB, WIDTH))

    def vectors(self, side: str) -> Tensor:
        """Of length √d_model."""
        e = self.centred(self.W_E)
        made = {"W_U": lambda: self.U, "W_EE": lambda: self.W_EE, "W_E": lambda: e, "MLP0": lambda: self.W_EE - e}
        x = made[side]()
        return x / x.norm(dim=-1, keepdim=True) * WIDTH**0.5
