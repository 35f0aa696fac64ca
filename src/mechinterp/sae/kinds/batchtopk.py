"""BatchTopK: f = relu of the batch · k largest pre-activations of a batch (arXiv:2412.06410), the loss that of TopK.

Which latents of a token are on depends on the other tokens, so what leaves the training is a jumprelu: its one
threshold is a moving average of the smallest latent that was on.
"""

import torch
from torch import Tensor

from mechinterp.sae.kinds.base import Params
from mechinterp.sae.kinds.cells import Cells, where
from mechinterp.sae.kinds.topk import TopK, keep_largest


class BatchTopK(TopK):
    """relu of the batch · k largest pre of a batch."""

    name = "batchtopk"
    batchwise = True

    def largest(self, f: Tensor, k: int) -> Tensor:
        """The k · tokens largest entries of all rows together."""
        flat = f.flatten(-2)
        return keep_largest(flat, k * f.shape[-2]).view_as(f)

    def chosen(self, pre: Tensor, k: int) -> tuple[Cells, Tensor]:
        """As of `TopK`."""
        f = self.largest(pre.relu(), k)
        cells = where(f > 0)
        return cells, cells.take(f)

    def level(self, old: Tensor, f: Tensor) -> Tensor:
        """The smallest latent that is on, in a moving average."""
        lowest = torch.where(f > 0, f, torch.inf).amin((1, 2))
        return torch.where(old > 0, 0.9 * old + 0.1 * lowest, lowest)

    def finished(self, p: Params, level: Tensor) -> tuple[str, Params]:
        """A jumprelu with that threshold everywhere."""
        return "jumprelu", p | {"threshold": level.clamp(min=1e-12).expand_as(p["b_enc"]).clone()}
