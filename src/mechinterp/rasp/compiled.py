"""A RASP program as a transformer: compile it, run it, read its stream by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.heads import Head
from mechinterp.models.handmade import native, save_native
from mechinterp.rasp import weights
from mechinterp.rasp.language import Aggregate, SelectorWidth, SOp, Value
from mechinterp.rasp.layout import BOS, ONE, PAD, Direction, Layout, is_input, lay_out

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Compiled:
    """A program, its transformer, and what each part of it does.

    Attributes:
        model: an ordinary bridge, without norms; its first token is `<bos>`.
        vocabulary: the input values, in order of their ids from 2. `max_len`: of an input, without `<bos>`.
        layout: what every direction of the stream means.
        heads, neurons: which S-op each head computes, and each layer's MLP.
        shape, weights: the model's sizes and its state dict, as it was made.
    """

    program: SOp
    model: "TransformerBridge"
    vocabulary: tuple[Value, ...]
    max_len: int
    causal: bool
    layout: Layout
    heads: dict[Head, SOp]
    neurons: dict[int, tuple[SOp, ...]]
    shape: dict[str, Any]
    weights: dict[str, Tensor]

    def tokens(self, inputs: Sequence[Sequence[Value]]) -> Int[Tensor, "input pos"]:
        """Ids of inputs of one length, each after `<bos>`.

        Errors: `ValueError` for a value that is not in the vocabulary, an input that is too long or of another length.
        """
        ids = {value: i + 2 for i, value in enumerate(self.vocabulary)}
        lengths = sorted({len(row) for row in inputs})
        if len(lengths) != 1:
            raise ValueError(f"inputs have the lengths {lengths}: give those of one length at a time")
        if not 1 <= lengths[0] <= self.max_len:
            raise ValueError(f"an input of {lengths[0]} tokens: this program was compiled for 1 to {self.max_len}")
        unknown = next((v for row in inputs for v in row if v not in ids), None)
        if unknown is not None:
            raise ValueError(
                f"{unknown!r} is not in the vocabulary of this program: {', '.join(map(repr, self.vocabulary))}"
            )
        return torch.tensor([[0, *(ids[v] for v in row)] for row in inputs])

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Value]) -> list[Value]:
        """What the model says about one input, position by position. Errors as of `tokens`."""
        return self.decode(self.model(self.tokens([inputs])))[0]

    def decode(self, logits: Float[Tensor, "input pos d_vocab_out"]) -> list[list[Value]]:
        """Values from logits: at each position after `<bos>` the number, or the largest category if it is above 1/2."""
        found = self.answers(logits)
        if self.program.numerical:
            return found.tolist()
        values = (*self.layout.values[self.program], None)
        return [[values[i] for i in row] for row in found.long().tolist()]

    def answers(self, logits: Float[Tensor, "input pos d_vocab_out"]) -> Float[Tensor, "input pos"]:
        """What `decode` says as numbers: of a category its place among the output's values, -1 for none."""
        logits = logits[:, 1:]
        if self.program.numerical:
            return logits[..., 0]
        top = logits.max(-1)
        return torch.where(top.values > 0.5, top.indices, -1).to(logits)

    def save(self, folder: str | Path) -> None:
        """Write the transformer into a folder that `models.load` reads; its words are those of `tokens`."""
        save_native(Path(folder), self.shape, self.weights, words(self.vocabulary))

    def read(self, stream: Float[Tensor, " d_model"], *, above: float = 0.01) -> dict[str, float]:
        """What a vector of the stream says, by the names of its directions."""
        pairs = zip(self.layout.directions, stream.tolist(), strict=True)
        return {str(d): value for d, value in pairs if abs(value) > above}


def words(vocabulary: Sequence[Value]) -> list[str]:
    """A compiled model's tokens as text, in the order of their ids."""
    return [BOS, PAD, *map(str, vocabulary)]


def compile_program(
    program: SOp,
    vocabulary: Sequence[Value],
    max_len: int,
    *,
    causal: bool = False,
    coldness: float | None = None,
    exactness: float = 100.0,
) -> Compiled:
    """A transformer that computes a program on all inputs of 1 to `max_len` tokens of a vocabulary.

    Args:
        causal: positions attend to themselves and those before.
        coldness: of the softmax: the score of a selected key, before the division by √d_head. By default Tracr's 100,
            more for heads wider than 25, whose division would blur it.
        exactness: slope of the steps by which neurons tell numbers apart; more where values lie closer.

    Errors: `ValueError` for an empty or repeated vocabulary, one that contains `<bos>` or `<pad>`, a length below 1,
        or a program that cannot be compiled (`lay_out`).
    """
    vocabulary = tuple(vocabulary)
    if not vocabulary or len(set(vocabulary)) < len(vocabulary):
        raise ValueError(f"the vocabulary {vocabulary!r} is empty or has a value twice")
    if {BOS, PAD} & set(vocabulary):
        raise ValueError(f"{BOS} and {PAD} are the compiler's own tokens and cannot be in the vocabulary")
    if max_len < 1:
        raise ValueError(f"max_len must be at least 1, not {max_len}")
    layout = lay_out(program, vocabulary, max_len)
    heads: dict[Head, SOp] = {}
    neurons: dict[int, tuple[SOp, ...]] = {}
    for sop in layout.program:
        if is_input(sop):
            continue
        if isinstance(sop, Aggregate | SelectorWidth):
            layer = layout.half[sop] // 2
            heads[Head(layer, sum(h.layer == layer for h in heads))] = sop
        if not isinstance(sop, Aggregate):
            layer = layout.half[sop] // 2
            neurons[layer] = (*neurons.get(layer, ()), sop)
    shape, made = _weights(layout, heads, neurons, vocabulary, max_len, causal, coldness, exactness)
    model = native(shape, made, words(vocabulary), name="rasp")
    return Compiled(program, model, vocabulary, max_len, causal, layout, heads, neurons, shape, made)


def _weights(
    layout: Layout,
    heads: dict[Head, SOp],
    neurons: dict[int, tuple[SOp, ...]],
    vocabulary: tuple[Value, ...],
    max_len: int,
    causal: bool,
    coldness: float | None,
    exactness: float,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The shape of the model, and its state dict."""
    made = {at: weights.head(layout, sop) for at, sop in heads.items()}
    cells = {
        layer: [n for sop in sops for n in weights.neurons(layout, sop, exactness)] for layer, sops in neurons.items()
    }
    out = layout.of(layout.program[-1])
    d_head = max([1, *(terms.width for terms in made.values())])
    cold = max(100.0, 20.0 * d_head**0.5) if coldness is None else coldness
    d_mlp = max([1, *map(len, cells.values())])
    n_heads, D = max([1, *(h.head + 1 for h in heads)]), len(layout.directions)
    shape = {
        "n_layers": layout.n_layers,
        "d_model": D,
        "n_heads": n_heads,
        "d_head": d_head,
        "d_mlp": d_mlp,
        "d_vocab": len(vocabulary) + 2,
        "d_vocab_out": len(out),
        "n_ctx": max_len + 1,
        "attention_dir": "causal" if causal else "bidirectional",
    }
    one = Direction(ONE)
    words = [{Direction("tokens", v): 1.0, one: 1.0} for v in (BOS, PAD, *vocabulary)]
    places = [{}, *({Direction("indices", i): 1.0} for i in range(max_len))]
    found = {
        "tok_embed.weight": weights.vectors(words, layout, len(words)),
        "pos.weight": weights.vectors(places, layout, len(places)),
        "head.weight": weights.vectors([{d: 1.0} for d in out], layout, len(out)),
    }
    for layer in {h.layer for h in heads}:
        parts = {name: torch.zeros(n_heads, d_head, D, dtype=torch.float64) for name in "qkvo"}
        for at, terms in made.items():
            if at.layer == layer:
                query = [{d: cold * c for d, c in row.items()} for row in terms.query]
                for name, rows in zip("qkvo", (query, terms.key, terms.value, terms.output), strict=True):
                    parts[name][at.head] = weights.vectors(rows, layout, d_head)
        for name, part in parts.items():
            flat = part.flatten(0, 1)
            found[f"layers.{layer}.attn.{name}.weight"] = flat.T if name == "o" else flat
    for layer, some in cells.items():
        found[f"layers.{layer}.mlp.fc_in.weight"] = weights.vectors([n.read for n in some], layout, d_mlp)
        found[f"layers.{layer}.mlp.fc_out.weight"] = weights.vectors([n.write for n in some], layout, d_mlp).T
    return shape, {k: w.float() for k, w in found.items()}
