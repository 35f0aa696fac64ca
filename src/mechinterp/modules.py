"""The model's own modules, and what is known of them: norms, linear layers, MLPs, rotary positions."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_FAST_GELU = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh")
"""Activations that are `gelu(approximate="tanh")`, written out in several passes over the data."""


@dataclass(frozen=True)
class Norm:
    """A layer norm or RMS norm of the model, or none (`module` None): then the identity.

    Attributes:
        module: the model's own. `centres`: whether it subtracts the mean (layer norm) or not (RMS).
        offset: 1 where the gain is 1 + weight (Gemma), else 0.
    """

    module: Any = None
    centres: bool = False
    offset: float = 0.0
    eps: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised stream; any leading shape."""
        return x if self.module is None else self.module(x)

    def __bool__(self) -> bool:
        return self.module is not None

    @property
    def gain(self) -> Tensor | None:
        """What multiplies the normalised stream; None for 1."""
        weight = getattr(self.module, "weight", None)
        return None if weight is None else weight + self.offset if self.offset else weight

    @property
    def bias(self) -> Tensor | None:
        """What is added behind the gain, if anything is."""
        return getattr(self.module, "bias", None)

    def scale(self, x: Tensor) -> Tensor:
        """What the norm divides by, [... 1]; 1 if there is no norm."""
        if self.module is None:
            return torch.ones_like(x[..., :1])
        x = x - x.mean(-1, keepdim=True) if self.centres else x
        return (x.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def unit(self, x: Tensor) -> Tensor:
        """The stream centred, if this norm does that, and divided by its scale: before gain and bias."""
        return (x - x.mean(-1, keepdim=True) if self.centres else x) / self.scale(x)

    def frozen(self, change: Tensor, scale: Tensor) -> Tensor:
        """A change of the stream as it appears after the norm with its scale held fixed: linear in `change`."""
        if self.module is None:
            return change
        if self.centres:
            change = change - change.mean(-1, keepdim=True)
        return change / scale if self.gain is None else change / scale * self.gain

    def pulled_back(self, direction: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """r with frozen(x, scale) · direction = x · r: a direction after the norm, seen from before it."""
        if self.module is None:
            return direction
        r = direction if self.gain is None else direction * self.gain
        return (r - r.mean(-1, keepdim=True) if self.centres else r) / scale

    @classmethod
    @torch.no_grad()
    def of(cls, module: Any, width: int) -> "Norm":
        """Which of the four kinds a module is, by what it does to two vectors; `ValueError` if it is none of them."""
        if module is None or isinstance(module, torch.nn.Identity):
            return cls()
        weight = next(iter(module.parameters()), torch.zeros(()))
        eps = next((getattr(module, n) for n in ("eps", "variance_epsilon") if hasattr(module, n)), None)
        x = torch.randn(2, width, generator=torch.Generator().manual_seed(0)).to(weight) + 1
        y = module(x)
        found: list[tuple[float, Norm]] = []
        for centres in (True, False):
            for offset in (0.0, 1.0):
                guess = cls(module, centres, offset, float(eps or 0.0))
                ours = guess.frozen(x, guess.scale(x)) + (0.0 if guess.bias is None else guess.bias)
                found.append((float((ours - y).abs().max()), guess))
        error, best = min(found, key=lambda pair: pair[0])
        if not error <= 64 * torch.finfo(y.dtype).eps * (1 + float(y.abs().max())):
            raise ValueError(f"{type(module).__name__} is neither a layer norm nor an RMS norm")
        return best if eps is not None else replace(best, eps=best._hidden_eps(x))

    def _hidden_eps(self, x: Tensor) -> float:
        """What a norm that does not say its eps (OLMo's) adds to the variance: seen on a vector that is almost zero."""
        x = 1e-5 * x
        y = self.module(x) if self.bias is None else self.module(x) - self.bias
        unit = self.frozen(x, torch.ones_like(x[..., :1]))
        return max(float(unit.square().mean() / y.square().mean() - unit.square().mean()), 0.0)


@dataclass(frozen=True)
class Linear:
    """A linear layer of the model, whichever way round it stores its weight."""

    module: Any
    turned: bool

    @property
    def weight(self) -> Tensor:
        """[out in], a view."""
        return self.module.weight.T if self.turned else self.module.weight

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""
        return getattr(self.module, "bias", None)

    def __call__(self, x: Tensor) -> Tensor:
        """Any leading shape."""
        flat = x.reshape(-1, x.shape[-1])
        out = flat @ self.weight.T if self.bias is None else torch.addmm(self.bias, flat, self.weight.T)
        return out.view(*x.shape[:-1], -1)

    @classmethod
    def of(cls, bridge: Any) -> "Linear":
        """From a `LinearBridge`, by whether it is Hugging Face's `Conv1D`."""
        module = bridge.original_component
        if not isinstance(getattr(module, "weight", None), Tensor):
            raise ValueError(f"{type(module).__name__} has no weight of its own")
        return cls(module, type(module).__name__ == "Conv1D")


@dataclass(frozen=True)
class MLP:
    """act(up(x)), or with a gate act(gate(x)) · up(x), then down."""

    up: Linear
    down: Linear
    act: Callable[[Tensor], Tensor]
    gate: Linear | None = None

    def hidden(self, x: Tensor) -> Tensor:
        """Activations of the neurons, [... d_mlp], from the normalised stream (`hook_post`)."""
        return self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)

    def __call__(self, x: Tensor) -> Tensor:
        """What the neurons write, before any post norm."""
        return self.down(self.hidden(x))

    @classmethod
    def of(cls, bridge: Any) -> "MLP":
        """From an `MLPBridge`; `ValueError` for a mixture of experts and the like."""
        parts, module = bridge.submodules, bridge.original_component
        if not {"in", "out"} <= set(parts):
            raise ValueError(f"{type(module).__name__} is not an MLP of one or two input projections")
        act = next((getattr(module, n) for n in ("act", "act_fn", "activation_fn") if hasattr(module, n)), None)
        if act is None:
            raise ValueError(f"{type(module).__name__} does not say what its activation function is")
        if type(act).__name__ in _FAST_GELU:
            act = _gelu_tanh
        gate = Linear.of(parts["gate"]) if "gate" in parts else None
        return cls(Linear.of(parts["in"]), Linear.of(parts["out"]), act, gate)


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of a head's first coordinates turn by an angle that grows with the position.

    Attributes:
        tables: from a length to (cos, sin), each [pos rotated].
        adjacent: coordinates 2i and 2i + 1 are a pair (GPT-J); else i and i + half.
    """

    tables: Callable[[int], tuple[Tensor, Tensor]]
    adjacent: bool = False
    _known: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn x [... head d_head] by its positions [...], which broadcast."""
        length = int(positions.max()) + 1
        if not self._known or len(self._known[0][0]) < length:
            self._known[:] = [self.tables(max(64, 1 << (length - 1).bit_length()))]
        cos, sin = (table[positions][..., None, :] for table in self._known[0])
        n = cos.shape[-1]
        turned, rest = (x, None) if n == x.shape[-1] else (x[..., :n], x[..., n:])
        if self.adjacent:
            other = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
        else:
            other = torch.cat([-turned[..., n // 2 :], turned[..., : n // 2]], -1)
        out = (turned * cos + other * sin).to(x.dtype)
        return out if rest is None else torch.cat([out, rest], -1)
