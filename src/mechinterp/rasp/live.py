"""A compiled transformer as data that a page can run by itself, see `viz.machines`."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.anatomy import size
from mechinterp.rasp.compiled import Compiled, words
from mechinterp.rasp.language import SOp, Value


def page(compiled: Compiled, start: Sequence[Value], says: str) -> dict[str, Any]:
    """The transformer as `viz.machines` runs it: weights as lists of nonzero entries, directions by name.

    Args:
        start: the input that is shown at first. `says`: what the program does, in a few words.

    Errors: as of `Compiled.tokens`.
    """
    compiled.tokens([start])
    sizes, weights = size(compiled.model), compiled.weights
    return {
        "says": says,
        "words": words(compiled.vocabulary),
        "start": [str(x) for x in start],
        "max_len": compiled.max_len,
        "causal": compiled.causal,
        "d_head": sizes.d_head,
        "directions": [str(d) for d in compiled.layout.directions],
        "variables": [_variable(compiled, sop) for sop in compiled.layout.program],
        "layers": [_layer(compiled, layer) for layer in range(sizes.n_layers)],
        "embed": _rows(weights["tok_embed.weight"]),
        "places": _rows(weights["pos.weight"]),
    }


def _layer(compiled: Compiled, layer: int) -> dict[str, Any]:
    n, nothing = size(compiled.model).d_head, torch.zeros(0, len(compiled.layout.directions))
    own = {name.removeprefix(f"layers.{layer}."): w for name, w in compiled.weights.items()}
    heads = []
    for at in (at for at in compiled.heads if at.layer == layer):
        rows = slice(at.head * n, (at.head + 1) * n)
        read = {name: _entries(own[f"attn.{name}.weight"][rows].T) for name in "qkv"}
        heads.append(read | {"o": _entries(own["attn.o.weight"][:, rows].T)})
    into, out = own.get("mlp.fc_in.weight", nothing), own.get("mlp.fc_out.weight", nothing.T)
    return {"heads": heads, "neurons": len(into), "read": _entries(into.T), "write": _entries(out.T)}


def _variable(compiled: Compiled, sop: SOp) -> dict[str, Any]:
    """Its name, who writes it, and where it is in the stream."""
    layout = compiled.layout
    place = {d: i for i, d in enumerate(layout.directions)}
    head = next((f"{at.layer}.{at.head}" for at, own in compiled.heads.items() if own is sop), None)
    by = [] if head is None else [f"a{head}"]
    by += [f"m{layer}" for layer, some in compiled.neurons.items() if any(own is sop for own in some)]
    return {
        "name": layout.names[sop],
        "by": ", ".join(by) or "input",
        "head": head,
        "at": [place[d] for d in layout.of(sop)],
        "values": [None if d.value is None else str(d.value) for d in layout.of(sop)],
    }


def _entries(matrix: Float[Tensor, "read written"]) -> list[list[float]]:
    """Row, column and value of the entries that are not zero."""
    return [[*at, matrix[tuple(at)].item()] for at in matrix.nonzero().tolist()]


def _rows(matrix: Float[Tensor, "row d_model"]) -> list[list[list[float]]]:
    """Of each row, place and value of the entries that are not zero."""
    return [[[i, row[i].item()] for i in row.nonzero()[:, 0].tolist()] for row in matrix]
