"""A compiled model with a narrower residual stream (arXiv:2301.05062, section 5).

One matrix W [d d_model] stands between the stream and everybody who uses it: what is written, y, is added as W y to a
stream z of d numbers, and what is read is Wᵀ z. The program's own weights stay as they are; W alone is trained, so that
the outputs are right (output loss) and every head and MLP says what it says in the original (layer loss). With d below
the number of variables some share a direction: superposition that nobody put there.

The output loss is a squared error for categories, too. Their logits are 0 and 1, so that cross-entropy never stops
asking for larger ones; a larger W moves every number past the steps of the neurons that read it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy
from mechinterp.rasp.compiled import Compiled


@dataclass(frozen=True)
class Compression:
    """Several trained matrices of one program, in the order of `dims` and `seeds`.

    Attributes:
        dims, seeds: of each run. `W`: [run d_max d_model]; rows from a run's own d on are zero.
        step: how many steps have been made. `history`: total loss at each entry of the log, [entry run].
        state: Adam's two moments, with which training goes on.
    """

    dims: tuple[int, ...]
    seeds: tuple[int, ...]
    W: Float[Tensor, "run d d_model"]
    step: int = 0
    history: Float[Tensor, "entry run"] | None = None
    state: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Quality:
    """How a compressed model does on all given inputs, run by run.

    Attributes:
        output, layers: mean squared differences from the original, of logits and of what heads and MLPs write.
        right: share of positions at which the decoded output is the original's.
        cosine: of each half-layer's output with the original's, both taken as one vector over all inputs and positions,
            [run half_layer]; where the original writes nothing, 1 if nothing is written. (Position by position it would
            say nothing of a half-layer that writes a single number.)
    """

    output: Float[Tensor, " run"]
    layers: Float[Tensor, " run"]
    right: Float[Tensor, " run"]
    cosine: Float[Tensor, "run half_layer"]


def all_inputs(compiled: Compiled, length: int) -> Int[Tensor, "input pos"]:
    """The tokens of every input of a length."""
    return compiled.tokens(list(itertools.product(compiled.vocabulary, repeat=length)))


def begin(compiled: Compiled, dims: Sequence[int], seeds: Sequence[int]) -> Compression:
    """Random matrices, one for every size and seed: Gaussian entries of variance 1 / d_model.

    Errors: `ValueError` for a size below 1 or above the compiled model's.
    """
    d_model = len(compiled.layout.directions)
    wrong = [d for d in dims if not 1 <= d <= d_model]
    if wrong or not dims or not seeds:
        raise ValueError(f"sizes must lie in 1..{d_model}, the width of this model's stream, not {list(dims)}")
    runs = list(itertools.product(dims, seeds))
    W = torch.zeros(len(runs), max(dims), d_model)
    for row, (d, seed) in zip(W, runs, strict=True):
        row[:d] = torch.randn(d, d_model, generator=torch.Generator().manual_seed(seed)) / d_model**0.5
    return Compression(tuple(d for d, _ in runs), tuple(s for _, s in runs), W)


def train(
    compiled: Compiled,
    compression: Compression,
    steps: int,
    *,
    lr: float = 1e-3,
    batch: int = 256,
    total: int | None = None,
    layer_weight: float = 1.0,
    log_every: int = 100,
) -> Compression:
    """Train all runs `steps` further, together; a run's course does not depend on what else is trained.

    Args:
        batch: random inputs of the longest length in a step. `layer_weight`: of the layer loss.
        total: steps of the whole run, over which the learning rate falls to zero on a straight line; None: it stays.

    Errors: `ValueError` for a number that is not positive.
    """
    for name, value in {"steps": steps, "lr": lr, "batch": batch, "log_every": log_every}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")
    model = _Model.of(compiled)
    W = compression.W.clone().requires_grad_(True)
    keep = torch.arange(W.shape[1]) < torch.tensor(compression.dims)[:, None]
    adam = torch.optim.Adam([W], lr=lr)
    if compression.state is not None:
        first, second = (x.clone() for x in compression.state)
        adam.state[W] = {"step": torch.tensor(float(compression.step)), "exp_avg": first, "exp_avg_sq": second}
    history = [] if compression.history is None else list(compression.history)
    for step in range(compression.step, compression.step + steps):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(len(compiled.vocabulary), (batch, compiled.max_len), generator=generator) + 2
        tokens = torch.cat([torch.zeros(batch, 1, dtype=torch.long), ids], 1)
        with torch.no_grad():
            logits, told = model(tokens, None)
        ours, said = model(tokens, W)
        loss = _output_loss(ours, logits) + layer_weight * _layer_loss(said, told)
        loss.sum().backward()
        assert W.grad is not None
        W.grad *= keep[..., None]
        adam.param_groups[0]["lr"] = lr if total is None else lr * max(0.0, 1 - step / total)
        adam.step()
        adam.zero_grad()
        if (step + 1) % log_every == 0:
            history.append(loss.detach())
    moments = adam.state[W]
    return replace(
        compression,
        W=W.detach(),
        step=compression.step + steps,
        history=torch.stack(history) if history else None,
        state=(moments["exp_avg"], moments["exp_avg_sq"]),
    )


@torch.no_grad()
def quality(compiled: Compiled, W: Float[Tensor, "run d d_model"], tokens: Int[Tensor, "input pos"]) -> Quality:
    """How compressed models do on some inputs; `<bos>`, whose output means nothing, is left out."""
    model = _Model.of(compiled)
    logits, told = model(tokens, None)
    ours, said = model(tokens, W)
    expected = compiled.decode(logits)
    right = [[_agree(compiled, a, b) for a, b in zip(compiled.decode(run), expected, strict=True)] for run in ours]
    cosine = torch.stack([_cosine(a[:, :, 1:], b[:, 1:]) for a, b in zip(said, told, strict=True)], -1)
    return Quality(_output_loss(ours, logits), _layer_loss(said, told), torch.tensor(right).mean(-1), cosine)


def _agree(compiled: Compiled, ours: list[object], expected: list[object]) -> float:
    if compiled.program.numerical:
        return float(((torch.tensor(ours) - torch.tensor(expected)).abs() < 0.02).float().mean())
    return sum(a == b for a, b in zip(ours, expected, strict=True)) / len(expected)


def _cosine(ours: Tensor, original: Tensor) -> Float[Tensor, " run"]:
    """Over inputs and positions; 1 for nothing where nothing is due."""
    if original.norm() < 1e-3:
        return (ours.flatten(1).norm(dim=1) < 1e-3).float()
    return torch.nn.functional.cosine_similarity(ours.flatten(1), original.flatten()[None], dim=1)


def _output_loss(ours: Tensor, original: Tensor) -> Float[Tensor, " run"]:
    """Mean squared error of the logits; `<bos>`, whose output means nothing, left out."""
    return (ours - original)[:, :, 1:].square().mean((1, 2, 3))


def _layer_loss(ours: list[Tensor], original: list[Tensor]) -> Float[Tensor, " run"]:
    """Mean over inputs and positions of the squared distance, summed over half-layers."""
    each = [(a - b).square().sum(-1).mean((1, 2)) for a, b in zip(ours, original, strict=True)]
    return torch.stack(each).sum(0)


@dataclass(frozen=True)
class _Model:
    """The frozen blocks of a compiled model around a stream of any width."""

    anatomy: Anatomy

    @classmethod
    def of(cls, compiled: Compiled) -> "_Model":
        return cls(Anatomy.of(compiled.model, bidirectional=True))

    def __call__(self, tokens: Tensor, W: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Logits, and what every half-layer writes in the original's directions; [run ...] if there is a W."""
        write = (lambda y: y) if W is None else (lambda y: torch.einsum("rdm,r...m->r...d", W, y))
        read = (lambda z: z) if W is None else (lambda z: torch.einsum("rdm,r...d->r...m", W, z))
        x = self.anatomy.embed(tokens)
        z = write(x if W is None else x.expand(len(W), *x.shape))
        said = []
        for layer in self.anatomy.layers:
            said.append(layer.merge(layer.heads(read(z))))
            z = z + write(said[-1])
            said.append(layer.mlp(read(z)))
            z = z + write(said[-1])
        return self.anatomy.read(read(z)), said
