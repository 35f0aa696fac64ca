"""Networks whose Fourier circuit is written by hand: ground truth for the tools that look for one."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.grokking.model import Shape, pack

Kind = Literal["exact", "circle"]


def fourier_network(
    shape: Shape, frequencies: Sequence[int], kind: Kind = "exact", *, strength: float = 10.0
) -> Float[Tensor, " params"]:
    """A network that adds modulo p with known frequencies; the logits are in proportion to Σ_k cos(w_k (a + b − c)).

    All heads attend to the three positions alike, and so add up what stands there.

    - `exact`: a number is embedded as itself; the MLP is a table of cos(w_k s), sin(w_k s) over the sums s = a + b,
      made of 2p − 1 hinges. Nothing but functions of a + b − c: trig share 1.
    - `circle`: a number is a point on a circle for every frequency, as in trained networks; neurons of one
      frequency with phases all around double the angle. The amplitude of each frequency then depends on a − b as
      |cos(w_k (a − b) / 2)|: trig share (2/π)² / (1/2) = 0.81.

    Args:
        strength: logit of the right answer per frequency, about.

    Errors: `ValueError` for a frequency outside 1 … (p − 1)/2, or a shape with too few neurons or dimensions.
    """
    p, k = shape.p, torch.tensor(list(frequencies), dtype=torch.float64)
    n = len(k)
    if n == 0 or (k < 1).any() or (k > (p - 1) / 2).any() or len(set(k.tolist())) != n:
        raise ValueError(f"frequencies must be different numbers of 1 … {(p - 1) // 2}, not {list(frequencies)}")
    if 4 * n > shape.d_model or 1 + 2 * n > shape.d_model:
        raise ValueError(f"{n} frequencies need {4 * n} dimensions, the shape has d_model = {shape.d_model}")
    w = {name: torch.zeros(1, *size, dtype=torch.float64) for name, size in shape.weights().items()}
    angle = 2 * torch.pi * torch.outer(torch.arange(p, dtype=torch.float64), k) / p  # [number, frequency]
    wave = torch.cat([angle.cos(), angle.sin()], 1)
    if kind == "exact":
        if shape.d_mlp < 2 * p - 1:
            raise ValueError(f"a table of 2p − 1 = {2 * p - 1} sums needs as many neurons, not {shape.d_mlp}")
        w["W_E"][0, :p, 0] = torch.arange(p)
        inputs, outputs = 1, slice(1, 1 + 2 * n)
        sums = torch.arange(2 * p - 1, dtype=torch.float64)
        w["W_in"][0, 0, : 2 * p - 1] = 1
        w["b_in"][0, : 2 * p - 1] = 1 - sums  # hinge j is 1 at the sum j, and zero below
        turn = 2 * torch.pi * torch.outer(sums, k) / p
        values = torch.cat([turn.cos(), turn.sin()], 1)
        slopes = torch.diff(values, dim=0, prepend=torch.zeros_like(values[:1]))
        w["W_out"][0, : 2 * p - 1, outputs] = torch.diff(slopes, dim=0, prepend=torch.zeros_like(values[:1]))
    elif kind == "circle":
        inputs, outputs = 2 * n, slice(2 * n, 4 * n)
        w["W_E"][0, :p, :inputs] = wave
        phases = shape.d_mlp // n
        if phases < 8:
            raise ValueError(f"{n} frequencies need {8 * n} neurons, the shape has {shape.d_mlp}")
        phi = 2 * torch.pi * torch.arange(phases, dtype=torch.float64) / phases
        for i in range(n):
            own = slice(i * phases, (i + 1) * phases)
            w["W_in"][0, i, own], w["W_in"][0, n + i, own] = phi.cos(), phi.sin()
            # relu(cos) has the second harmonic 2 / (3π); the amplitude is 2 |cos| with mean 4 / π.
            gain = 3 * torch.pi**2 / (4 * phases)
            w["W_out"][0, own, 2 * n + i] = gain * (2 * phi).cos()
            w["W_out"][0, own, 3 * n + i] = gain * (2 * phi).sin()
    else:
        raise ValueError(f"unknown kind {kind!r}; exact or circle")
    for i in range(inputs):
        head, row = divmod(i, shape.d_head)
        w["W_V"][0, head, i, row] = 3  # three positions share the attention
        w["W_O"][0, head, row, i] = 1
    w["W_U"][0, outputs] = strength * wave.T
    return pack(w)[0].float()
