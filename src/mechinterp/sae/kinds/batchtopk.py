"""BatchTopK: f = relu of the batch · k largest pre-activations of a batch (arXiv:2412.06410), the loss that of TopK.

Which latents of a token are on depends on the other tokens, so what leaves the training is a jumprelu: its one
threshold is a moving average of the smallest latent that was on.
"""

import torch
from torch import Tensor

from mechinterp.sae.kinds.base import Gradients, Options, Params, error_of, inner, into_weights, where_on
from mechinterp.sae.kinds.cells import where
from mechinterp.sae.kinds.topk import TopK, keep_largest, variance


class BatchTopK(TopK):
    """relu of the batch · k largest pre of a batch."""

    name = "batchtopk"
    batchwise = True

    def largest(self, f: Tensor, k: int) -> Tensor:
        """The k · tokens largest entries of all rows together."""
        flat = f.flatten(-2)
        return keep_largest(flat, k * f.shape[-2]).view_as(f)

    def gradients(self, p: Params, x: Tensor, sparsity: Tensor, o: Options, value: bool) -> Gradients:
        """Of `loss` without AuxK."""
        spread = variance(x)
        f = self.largest(inner(p, x).relu_(), o.k)
        cells = where(f > 0)
        f = cells.take(f)
        e, error = error_of(p, f, x, cells)
        d = where_on(cells.back(e, p["W_dec"]), f).div_(spread)
        penalty = error / spread - error if value else None
        return Gradients(into_weights(p, x, f, e.div_(spread), d, cells), error, f, penalty, cells)

    def level(self, old: Tensor, f: Tensor) -> Tensor:
        """The smallest latent that is on, in a moving average."""
        lowest = torch.where(f > 0, f, torch.inf).amin((1, 2))
        return torch.where(old > 0, 0.9 * old + 0.1 * lowest, lowest)

    def finished(self, p: Params, level: Tensor) -> tuple[str, Params]:
        """A jumprelu with that threshold everywhere."""
        return "jumprelu", p | {"threshold": level.clamp(min=1e-12).expand_as(p["b_enc"]).clone()}
