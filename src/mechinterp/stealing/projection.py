"""The output projection from logits, up to a map that no logit shows (Carlini et al. 2024).

W h = (W G⁻¹)(G h): any invertible G gives the same logits. What can be had is W G for some G, and, where all streams
come out of a norm, W O with an orthogonal O.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Aligned:
    """A stolen projection beside the true one.

    Attributes:
        map: the G with found · G closest to the true one, [d_model d_model].
        rms: root mean square of the error of an entry; `scale`: of an entry of the true one.
    """

    map: Float[Tensor, "d_found d_model"]
    rms: float
    scale: float


def projection(logits: Float[Tensor, "prompt token"], size: int) -> Float[Tensor, "token size"]:
    """V S of the largest singular values of logits: the output projection W times an invertible matrix.

    Errors: `ValueError` for a size that is not within the logits'.
    """
    if not 1 <= size <= min(logits.shape):
        raise ValueError(f"size must lie within 1..{min(logits.shape)}, not {size}")
    _, values, directions = torch.linalg.svd(logits.double(), full_matrices=False)
    return directions[:size].T * values[:size]


def align(found: Float[Tensor, "token size"], true: Float[Tensor, "token d_model"]) -> Aligned:
    """The best linear map from one to the other, by least squares in float64, without means over the tokens.

    The mean over tokens is what a softmax hides, and `collect` takes it off.

    Errors: `ValueError` for different tokens, or fewer tokens than dimensions, through which any two can be mapped.
    """
    if len(found) != len(true):
        raise ValueError(f"the two have {len(found)} and {len(true)} tokens")
    if len(found) <= found.shape[1]:
        raise ValueError(f"{len(found)} tokens in {found.shape[1]} dimensions fit anything: more tokens are needed")
    a, b = (x.double() - x.double().mean(0) for x in (found, true))
    g = torch.linalg.lstsq(a, b, driver="gelsd").solution
    return Aligned(g, float((a @ g - b).square().mean().sqrt()), float(b.square().mean().sqrt()))


def up_to_rotation(
    logits: Float[Tensor, "prompt token"], size: int, *, tolerance: float = 1e-3
) -> Float[Tensor, "token size"]:
    """W times an orthogonal matrix and a number, from streams that an RMS norm has put on an ellipsoid.

    Streams after an RMS norm with weight w lie on a sphere that w stretches. In the coordinates of `projection` that is
    the ellipsoid q A q = 1 of a symmetric A with size (size + 1) / 2 unknowns, as many prompts as that are needed, and
    W comes out with the norm's weight folded in.

    Args:
        tolerance: how far |q A q − 1| may be from 0.

    Errors: `ValueError` for too few prompts, or streams that lie on no ellipsoid: there is no norm, or it has a bias.
    """
    unknown = size * (size + 1) // 2
    if len(logits) < unknown:
        raise ValueError(f"a map in {size} dimensions needs {unknown} prompts, got {len(logits)}")
    u, values, directions = torch.linalg.svd(logits.double(), full_matrices=False)
    q = u[:, :size] * len(logits) ** 0.5
    rows, columns = torch.triu_indices(size, size)
    products = q[:, rows] * q[:, columns] * torch.where(rows == columns, 1.0, 2.0)
    ones = torch.ones(len(q), 1, dtype=torch.float64)
    entries = torch.linalg.lstsq(products, ones, driver="gelsd").solution[:, 0]
    a = torch.zeros(size, size, dtype=torch.float64)
    a[rows, columns] = a[columns, rows] = entries
    off = float((torch.einsum("pi,ij,pj->p", q, a, q) - 1).abs().max())
    spread, turn = torch.linalg.eigh(a)
    if off > tolerance or not spread.min() > 0:
        raise ValueError(f"the streams lie on no ellipsoid (off by {off:.2g}): there is no RMS norm, or noise")
    # The stream is proportional to A^(1/2) q, and the logits are V S q / √n.
    root = turn * spread.rsqrt() @ turn.T
    return (directions[:size].T * values[:size] / len(logits) ** 0.5) @ root
