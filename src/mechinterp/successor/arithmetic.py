"""Editing what a successor head says by adding and subtracting features (Gould et al., section 3.4)."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.heads import Head, check_heads
from mechinterp.stats import Estimate, share
from mechinterp.successor.score import Class, head_logits, representations


@dataclass(frozen=True)
class Grid:
    """Success of moving word i to residue j: rows are words, columns target residues.

    Attributes:
        possible: cells whose goal is a word of the class with a successor. `words`: what the rows are.
    """

    success: Bool[Tensor, "word residue"]
    possible: Bool[Tensor, "word residue"]
    words: tuple[str, ...]

    def share(self) -> Estimate:
        """Share of the possible cells that succeed, over words.

        Errors: `ValueError` if fewer than two words have such a cell.
        """
        return share(self.success[self.possible].float(), unit="words", clusters=self.possible.nonzero()[:, 0])


@torch.no_grad()
def arithmetic_grid(
    model: Any,
    head: Head,
    words: Class,
    features: Float[Tensor, "residue d_model"],
    *,
    start: int = 0,
    stop: int | None = None,
    embedding: bool = True,
) -> Grid:
    """x' = x − a f_i + a f_j for each word of value v, i = v mod 10, and each j; does the head say what follows?

    The goal is the word of the same decade with residue j; its successor must be the highest of the class.
    The scale a keeps the size of the component: it is x's own component along f_i, taken over the words of residue i.

    Args:
        words: a class whose place + 1 is the number that the word means.
        start, stop: values of the words to edit, both included.

    Errors: `ValueError` if no word is in that range.
    """
    values = words.place + 1
    chosen = ((values >= start) & (values <= (stop if stop is not None else int(values.max())))).nonzero()[:, 0]
    if len(chosen) == 0:
        raise ValueError(f"no word of {words.task} has a value from {start} to {stop}")
    x = representations(model, words.ids, embedding=embedding)
    unit = torch.nn.functional.normalize(features.to(x), dim=-1)
    centred = x - x.mean(0)
    of = {int(v): i for i, v in enumerate(values.tolist())}
    follows = dict(zip(words.source.tolist(), words.target.tolist(), strict=True))
    ends = [values % 10 == r for r in range(10)]
    size = torch.stack([(centred[own] @ unit[r]).sum() / max(int(own.sum()), 1) for r, own in enumerate(ends)])
    success = torch.zeros(len(chosen), 10, dtype=torch.bool)
    possible = torch.zeros_like(success)
    parts = size[:, None] * unit
    edited = x[chosen, None] - parts[values[chosen] % 10, None] + parts  # word, residue, d_model
    said = head_logits(model, head, edited.flatten(0, 1), words.ids).argmax(-1).view(len(chosen), 10).tolist()
    for row, value in enumerate(values[chosen].tolist()):
        for j in range(10):
            goal = of.get(value - value % 10 + j)
            if goal is not None and goal in follows:
                possible[row, j] = True
                success[row, j] = said[row][j] == follows[goal]
    return Grid(success, possible, tuple(words.words[i] for i in chosen.tolist()))


@torch.no_grad()
def neuron_ablation(model: Any, head: Head, words: Class, *, mean: bool = True) -> Float[Tensor, "neuron pair"]:
    """Change of the successor's logit (over the class mean) when a single neuron of MLP0 is ablated.

    The neuron's activation is replaced by its mean over the class, or by zero. Exact up to norms, whose scales are
    frozen (the head's layer's, and a post norm's of MLP0). Memory: neurons · pairs floats.
    """
    [head] = check_heads(model, [head])
    anatomy = Anatomy.of(model)
    first, layer = anatomy.layers[0], anatomy.layers[head.layer]
    ids = words.ids.to(anatomy.device)
    x = anatomy.embed(ids, positions=False)
    acts = first.neurons.hidden(first.norm2(x))
    written = first.neurons.down(acts)
    change = (acts.mean(0) if mean else torch.zeros_like(acts[0])) - acts
    # What a unit of each neuron adds to the stream, times the post norm's scale.
    w_out = first.post2.frozen(first.neurons.down.weight.T, x.new_ones(1))
    stream = x + first.post2(written)
    if layer.norm1.centres:
        w_out = w_out - w_out.mean(-1, keepdim=True)
    scale = first.post2.scale(written) * layer.norm1.scale(stream)
    logits = w_out @ layer.W_V(head.head) @ (layer.writes(head.head) @ anatomy.directions(ids).T)
    centred = logits - logits.mean(-1, keepdim=True)
    source, target = words.source.to(x.device), words.target.to(x.device)
    return (change / scale)[source].T * centred[:, target]
