"""Where gradients of a metric begin: at the logits."""

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.patching.checks import Metric, measure


def slope(
    metric: Metric, logits: Float[Tensor, "prompt vocab"], *, at_clean: bool = True
) -> Float[Tensor, "prompt vocab"]:
    """The gradient of the metric, summed over prompts, with respect to the logits.

    Args:
        at_clean: these are the clean run's logits, where the gradient must not vanish.

    Errors: `ValueError` for a metric that cannot be differentiated, or whose gradient is not finite or is zero: nothing
        against that beside these logits, as at the minimum of a divergence from the clean run itself.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = measure(metric, x)
            if not values.requires_grad:
                raise ValueError(
                    "the metric's value cannot be differentiated with respect to logits (a count, an argmax, "
                    "no_grad or item() inside it?); use a logit difference, a probability or a loss"
                )
            return torch.autograd.grad(values.sum(), x)[0]

    found = gradient(logits)
    if not torch.isfinite(found).all():
        raise ValueError("the metric's gradient at the clean logits contains NaN or infinity")
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    beside = gradient(logits + 0.1 * noise).nan_to_num(0.0, 0.0, 0.0).abs().max()
    if at_clean and found.abs().max() <= 1e-3 * beside:  # at a minimum, rounding is what is left
        raise ValueError(
            "the metric's gradient is zero at the clean prompts, as that of a divergence from the clean run itself is: "
            "estimates from it would all be zero. Use a metric with a slope there, such as a logit difference; eap_ig, "
            "which takes gradients between the prompts; or measure effects (exact for edges, node_effects)"
        )
    return found
