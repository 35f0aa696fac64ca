"""From the conventions of other libraries to ours, exactly.

Ours: the input is centred, pre = (x - b_dec) W_enc + b_enc, latents are in units of x and decoder rows have unit norm.

| stored | becomes |
|---|---|
| input not centred: pre = x W_enc + b | b + b_dec W_enc for b_enc and b_gate, b + exp(r_mag) b_dec W_enc for b_mag |
| trained on s · x | b_enc, b_gate, b_mag, b_dec and threshold divided by s |
| decoder rows of norm n | W_dec / n; columns of W_enc, b_enc, b_gate, b_mag and threshold times n; r_mag stays |
| topk of pre · n (`rescale_acts_by_decoder_norm`) | the same folding: then pre is what is compared |
| relu before the jump, threshold not positive | the smallest positive threshold |

The first line is `apply_b_dec_to_input: false` of SAELens, and what Gemma Scope publishes (arXiv:2408.05147,
appendix B).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechinterp.sae.architectures import SAE, tensor_shapes
from mechinterp.sae.kinds import KINDS, Params

UNIT = 1e-3
"""How far norms of decoder rows may be from one: what rounding to float16 or a last optimiser step does."""


@dataclass(frozen=True)
class Stored:
    """An SAE as a library stored it, its tensors under SAELens' names, and how they are meant.

    Attributes:
        place: what to call it in messages. `kind`, `k`, `hook`, `facts`: as of an `SAE`.
        tensors: as found. `shape`: (d_in, d_sae) that a config promised, None if the biases are to say it.
        centred: whether the encoder reads x - b_dec. `scale`: it was trained on scale · x; None if on a multiple that
            the file does not tell. `by_norm`: whether topk compares pre · ‖W_dec row‖.
    """

    place: str
    kind: str
    tensors: dict[str, Tensor]
    k: int | None = None
    hook: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, int] | None = None
    centred: bool = True
    scale: float | None = 1.0
    by_norm: bool = False


def convert(stored: Stored, *, scale: float | None = None, unit_norm: bool = True) -> SAE:
    """The same function as an `SAE`, in float32.

    Errors: `ValueError` for tensors that are missing, superfluous, transposed, misshapen, not floating point or not
        finite; an unknown scale; a topk without k, or one whose choice would change if decoder rows were made unit.
    """
    scale = stored.scale if scale is None else scale
    if scale is None:
        raise ValueError(
            f"{stored.place} was trained on a multiple of the activations that is not in the file "
            "(normalize_activations 'expected_average_only_in'); pass scale=, the factor they were multiplied by"
        )
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a positive number, not {scale!r}")
    kind = KINDS[stored.kind]
    if kind.takes_k and (not isinstance(stored.k, int) or stored.k < 1):
        raise ValueError(
            f"{stored.place} is a {stored.kind} SAE and must say how many latents are active: k is {stored.k!r}"
        )
    p = _checked(stored)
    if not stored.centred:
        p = kind.centre(p)
    if scale != 1:
        p = {name: v / scale if name in kind.lengths else v for name, v in p.items()}
    norm = p["W_dec"].norm(dim=1)
    if stored.by_norm or (unit_norm and float((norm - 1).abs().max()) > UNIT):
        if kind.takes_k and not stored.by_norm:
            raise ValueError(
                f"{stored.place} is a {stored.kind} SAE with decoder rows of norm {float(norm.min()):.3g} to "
                f"{float(norm.max()):.3g}: to make them unit would change which latents are the largest. Pass "
                "unit_norm=False to load it as it is; its latents are then not in units of the activations"
            )
        p = kind.fold_norms(p, norm)
    return SAE(stored.kind, kind.sound(p), k=stored.k, hook=stored.hook, facts=stored.facts)


def _checked(stored: Stored) -> Params:
    """The tensors in float32, all there and sound."""
    found, place = stored.tensors, stored.place
    bias = KINDS[stored.kind].own[0]
    missing = sorted(set(tensor_shapes(stored.kind, 1, 1)) - set(found))
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)} of a {stored.kind} SAE; it has {', '.join(found) or '-'}")
    d_in, d_sae = stored.shape or (found["b_dec"].numel(), found[bias].numel())
    expected = tensor_shapes(stored.kind, d_in, d_sae)
    superfluous = sorted(set(found) - set(expected))
    if superfluous:
        raise ValueError(f"{place} has tensors that a {stored.kind} SAE has no use for: {', '.join(superfluous)}")
    for name, shape in expected.items():
        value = found[name]
        if tuple(value.shape) != shape:
            turned = "; it is transposed" if tuple(value.shape) == shape[::-1] else ""
            raise ValueError(f"{name} in {place} must have shape {shape}, got {tuple(value.shape)}{turned}")
        if not value.is_floating_point():
            raise ValueError(f"{name} in {place} must be floating point, got {value.dtype}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} in {place} contains NaN or infinity; get the file again")
    return {name: found[name].float().contiguous() for name in expected}
