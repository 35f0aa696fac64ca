"""One latent in one dimension: what a jump buys, and how a threshold is learnt through it.

The pre-activation π of a latent is drawn from one normal distribution where its feature is on and from another, the
interference of other features, where it is off. A unit decoder reconstructs what the latent says. Losses and
gradients of this toy have closed forms, so that estimators can be held against the truth
(arXiv:2404.16014, appendix F; arXiv:2407.14435, section 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Family = Literal["relu", "rescaled relu", "jumprelu", "jump"]
Kernel = Literal["rectangle", "triangle", "gaussian"]
Target = Literal["feature", "input"]


@dataclass(frozen=True)
class Mixture:
    """How π is distributed; the default is that of the two papers.

    Attributes:
        p: how often the feature is on. `on`, `off`: mean and standard deviation of π then and else.
        target: what the latent is to reconstruct, `feature`: π where the feature is on and 0 where it is off, for
            other latents explain the interference; or `input`: π throughout, for this latent is alone.

    Errors: `ValueError` for a share outside (0, 1), a standard deviation that is not positive, an unknown target.
    """

    p: float = 0.5
    on: tuple[float, float] = (2.0, 0.5)
    off: tuple[float, float] = (0.0, 1.0)
    target: Target = "feature"

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"p is a share between 0 and 1, got {self.p}")
        if min(self.on[1], self.off[1]) <= 0:
            raise ValueError(f"standard deviations must be positive, got {self.on[1]} and {self.off[1]}")
        if self.target not in get_args(Target):
            raise ValueError(f"unknown target {self.target!r}; choose one of {', '.join(get_args(Target))}")

    def parts(self) -> tuple[tuple[float, float, float, float], ...]:
        """Weight, mean, standard deviation and target / π of both parts, on first."""
        return (self.p, *self.on, 1.0), (1 - self.p, *self.off, float(self.target == "input"))

    def sample(self, n: int, *, seed: int) -> tuple[Float[Tensor, " example"], Bool[Tensor, " example"]]:
        """π of n examples, and whether the feature is on."""
        generator = torch.Generator().manual_seed(seed)
        on = torch.rand(n, generator=generator, dtype=torch.float64) < self.p
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        return torch.where(on, self.on[0] + self.on[1] * z, self.off[0] + self.off[1] * z), on

    def wanted(self, pi: Tensor, on: Tensor) -> Tensor:
        """The target of every example."""
        return pi if self.target == "input" else pi * on


@dataclass(frozen=True)
class Encoder:
    """f(π) = magnitude · (π − shift) where π > threshold, else 0. A ReLU has shift = threshold.

    >>> Encoder(threshold=1.0, shift=0.0, magnitude=1.0)(torch.tensor([0.5, 1.5]))
    tensor([0.0000, 1.5000])
    """

    threshold: float
    shift: float
    magnitude: float

    def __call__(self, pi: Tensor) -> Tensor:
        return torch.where(pi > self.threshold, self.magnitude * (pi - self.shift), 0.0)


def _tensor(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _above(mean: float, std: float, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[πᵏ; π > t] of a normal π, for k = 0, 1, 2."""
    a = (t - mean) / std
    q = torch.special.erfc(a / math.sqrt(2)) / 2
    phi = torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)
    edge = torch.where(phi > 0, (mean + t) * std * phi, 0.0)
    return q, mean * q + std * phi, (mean**2 + std**2) * q + edge


def _density(mean: float, std: float, x: Tensor) -> Tensor:
    return torch.exp(-((x - mean) / std).square() / 2) / (std * math.sqrt(2 * math.pi))


def mse(
    mixture: Mixture, threshold: float | Tensor, shift: float | Tensor, magnitude: float | Tensor
) -> Float[Tensor, "..."]:
    """E[(target − f(π))²] of an encoder with threshold t, shift d and magnitude m (arXiv:2404.16014, appendix F).

    The three broadcast against each other; the result is in float64, in units of π².

    >>> mse(Mixture(), 1.0, 0.0, 1.0) < mse(Mixture(), 1.0, 1.0, 2.0)  # JumpReLU, and ReLU with its shrinkage undone
    tensor(True)
    """
    t, d, m = _tensor(threshold), _tensor(shift), _tensor(magnitude)
    total = torch.zeros((), dtype=torch.float64)
    for weight, mean, std, share in mixture.parts():
        q, first, second = _above(mean, std, t)
        c, b = m - share, m * d  # f − target = c π − b above the threshold
        above = c.square() * second - 2 * c * b * first + b.square() * q
        total = total + weight * (above + share * (mean**2 + std**2 - second))
    return total


def firing(mixture: Mixture, threshold: float | Tensor) -> Float[Tensor, "..."]:
    """P(π > threshold): how often the latent is active, its L0."""
    return sum((w * _above(mean, std, _tensor(threshold))[0] for w, mean, std, _ in mixture.parts()), _tensor(0.0))


def fit(mixture: Mixture, family: Family, threshold: float) -> Encoder:
    """The encoder of a family with the least MSE at a threshold.

    | family | shift | magnitude |
    |---|---|---|
    | relu | threshold | 1 |
    | rescaled relu | threshold | fitted |
    | jumprelu | 0 | 1 |
    | jump | fitted | fitted |

    Errors: `ValueError` for another family, or a threshold above which nothing lies.
    """
    if family not in get_args(Family):
        raise ValueError(f"unknown family {family!r}; choose one of {', '.join(get_args(Family))}")
    t = _tensor(threshold)
    q = first = second = wanted = wanted_first = _tensor(0.0)  # E[1], E[π], E[π²], E[target], E[target · π] above t
    for weight, mean, std, share in mixture.parts():
        k0, k1, k2 = _above(mean, std, t)
        q, first, second = q + weight * k0, first + weight * k1, second + weight * k2
        wanted, wanted_first = wanted + weight * share * k1, wanted_first + weight * share * k2
    if q < 1e-12:
        raise ValueError(f"nothing lies above the threshold {threshold}; lower it")
    fixed = {"relu": threshold, "jumprelu": 0.0}
    if family in fixed:
        return Encoder(threshold, fixed[family], 1.0)
    if family == "rescaled relu":
        m = (wanted_first - t * wanted) / (second - 2 * t * first + t.square() * q)
        return Encoder(threshold, threshold, m.item())
    m = (wanted_first - wanted * first / q) / (second - first.square() / q)
    return Encoder(threshold, (first / q - wanted / (q * m)).item(), m.item())


def best(mixture: Mixture, family: Family) -> Encoder:
    """The encoder of a family with the least MSE, threshold included."""
    low = min(mean - 4 * std for _, mean, std, _ in mixture.parts())
    high = max(mean + 4 * std for _, mean, std, _ in mixture.parts())
    return fit(mixture, family, _minimum(lambda t: _loss_of(mixture, fit(mixture, family, t)), low, high))


def _loss_of(mixture: Mixture, e: Encoder) -> float:
    return mse(mixture, e.threshold, e.shift, e.magnitude).item()


def bayes_mse(mixture: Mixture) -> float:
    """E[Var(target | π)], which no function of π can beat (by quadrature)."""
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    on, off = (w * _density(mean, std, x) for w, mean, std, _ in mixture.parts())
    share_on, share_off = (share for *_, share in mixture.parts())
    variance = x.square() * (share_on - share_off) ** 2 * on * off / (on + off).clamp(min=1e-300)
    return torch.trapezoid(variance, x).item()


def _minimum(fn: Callable[[float], float], low: float, high: float, points: int = 200) -> float:
    """Where a function of one number is least: a grid, then golden sections."""
    grid = torch.linspace(low, high, points, dtype=torch.float64).tolist()
    i = min(range(points), key=lambda j: fn(grid[j]))
    a, b = grid[max(i - 1, 0)], grid[min(i + 1, points - 1)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        c, d = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, d) if fn(c) < fn(d) else (c, b)
    return (a + b) / 2


def expected_loss(mixture: Mixture, theta: float | Tensor, sparsity: float) -> Float[Tensor, "..."]:
    """E[(target − f)² + λ ‖f‖₀] of a JumpReLU with threshold θ."""
    return mse(mixture, theta, 0.0, 1.0) + sparsity * firing(mixture, theta)


def loss_gradient(mixture: Mixture, theta: float | Tensor, sparsity: float) -> Float[Tensor, "..."]:
    """dE[L]/dθ = (E[I | π = θ] − λ) p(θ), I = (2 target/π − 1) θ² being what firing saves.

    (arXiv:2407.14435, section 4.)
    """
    t = _tensor(theta)
    parts = [
        w * _density(mean, std, t) * ((2 * share - 1) * t**2 - sparsity) for w, mean, std, share in mixture.parts()
    ]
    return parts[0] + parts[1]


def optimal_threshold(mixture: Mixture, sparsity: float) -> float:
    """The threshold above 0 with the least expected loss; √λ if the target is the input.

    Errors: `ValueError` if not to fire at all is best.

    >>> round(optimal_threshold(Mixture(target="input"), 0.25), 3)
    0.5
    """
    high = max(mean + 8 * std for _, mean, std, _ in mixture.parts())
    theta = _minimum(lambda t: expected_loss(mixture, t, sparsity).item(), 0.0, high)
    if expected_loss(mixture, theta, sparsity) >= expected_loss(mixture, math.inf, sparsity):
        raise ValueError(f"with λ = {sparsity} the latent had better never fire; lower it")
    return theta


def kernel_weight(u: Tensor, kernel: Kernel) -> Tensor:
    """K(u), of integral one: 1 for |u| < ½; 1 − |u| for |u| < 1; the standard normal density.

    Errors: `ValueError` for another kernel.
    """
    match kernel:
        case "rectangle":
            return (u.abs() < 0.5).to(u)
        case "triangle":
            return (1 - u.abs()).clamp(min=0)
        case "gaussian":
            return torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)
    raise ValueError(f"unknown kernel {kernel!r}; choose one of {', '.join(get_args(Kernel))}")


def ste_gradient(
    pi: Float[Tensor, " example"],
    theta: float,
    residual: Float[Tensor, " example"],
    sparsity: float,
    *,
    bandwidth: float,
    kernel: Kernel = "rectangle",
    step_on: Literal["pre", "post"] = "pre",
) -> Float[Tensor, " example"]:
    """Pseudo-gradient of the loss by θ: K((π − θ)/ε)/ε · (2 θ r − λ), r = d · (x − x̂) (arXiv:2407.14435, section 4).

    Its mean over examples estimates dE[L]/dθ: r differs on both sides of the threshold, and the mean of both is what
    firing saves.

    Args:
        residual: r of every example at this θ, the error along the unit decoder direction d.
        sparsity: λ. `bandwidth`: ε, in units of π.
        step_on: `post` counts ‖f‖₀ by a step on f instead of π, a mistake of public code: the latent is then never
            just below its threshold, half of the kernel is empty, and λ acts at half its strength.

    Errors: `ValueError` for a bandwidth that is not positive, shapes that differ, an unknown kernel or `step_on`.

    >>> pi, r = torch.tensor([0.99, 1.01]), torch.tensor([0.99, 0.0])
    >>> ste_gradient(pi, 1.0, r, 0.5, bandwidth=0.1).mean() / 10  # (θ² − λ) K/ε
    tensor(0.4900)
    """
    if bandwidth <= 0:
        raise ValueError(f"the bandwidth must be positive, got {bandwidth}")
    if pi.shape != residual.shape:
        raise ValueError(f"pi and residual must have one shape, got {tuple(pi.shape)} and {tuple(residual.shape)}")
    if step_on not in ("pre", "post"):
        raise ValueError(f"the step is on 'pre' or 'post', not {step_on!r}")
    near = kernel_weight((pi - theta) / bandwidth, kernel) / bandwidth
    stepped = pi if step_on == "pre" else torch.where(pi > theta, pi, 0.0)
    counted = kernel_weight((stepped - theta) / bandwidth, kernel) / bandwidth
    return 2 * theta * residual * near - sparsity * counted


def ste_moments(
    mixture: Mixture, theta: float, sparsity: float, *, bandwidth: float, kernel: Kernel = "rectangle"
) -> tuple[float, float]:
    """Mean and standard deviation of `ste_gradient` over examples, by quadrature.

    The mean less `loss_gradient` is the bias; it falls with ε itself, not with its square, as r jumps at the threshold.
    The standard deviation over √n is the error of a batch of n; it rises as 1/√ε.

    >>> exact = loss_gradient(Mixture(), 1.0, 0.1).item()
    >>> [round(ste_moments(Mixture(), 1.0, 0.1, bandwidth=e)[0] - exact, 4) for e in (0.4, 0.2, 0.1)]
    [-0.0196, -0.0115, -0.0062]
    """
    reach, n = {"rectangle": 0.5, "triangle": 1.0, "gaussian": 10.0}[kernel], 20_000
    half = (torch.arange(n, dtype=torch.float64) + 0.5) / n * reach
    u = torch.cat([-half.flip(0), half])
    pi = theta + bandwidth * u
    mean = square = 0.0
    for weight, centre, std, share in mixture.parts():
        value = ste_gradient(pi, theta, share * pi - pi * (pi > theta), sparsity, bandwidth=bandwidth, kernel=kernel)
        mass = weight * _density(centre, std, pi) * bandwidth * reach / n
        mean, square = mean + (value * mass).sum().item(), square + (value.square() * mass).sum().item()
    return mean, math.sqrt(square - mean**2)


def train_threshold(
    mixture: Mixture,
    sparsity: float,
    *,
    seed: int,
    start: float = 0.5,
    steps: int = 2000,
    batch: int = 1024,
    lr: float = 1e-2,
    bandwidth: float = 0.1,
    kernel: Kernel = "rectangle",
    step_on: Literal["pre", "post"] = "pre",
) -> Float[Tensor, " step"]:
    """θ after every step of Adam (β 0 and 0.999) on log θ with `ste_gradient`; the rate falls linearly to zero.

    Errors: `ValueError` for a start that is not positive, and as for `ste_gradient`.
    """
    if start <= 0:
        raise ValueError(f"log θ is trained, so that θ starts above 0, got {start}")
    pis, ons = mixture.sample(steps * batch, seed=seed)
    log_theta, second, course = math.log(start), 0.0, []
    for step, (pi, on) in enumerate(zip(pis.split(batch), ons.split(batch), strict=True), 1):
        theta = math.exp(log_theta)
        residual = mixture.wanted(pi, on) - pi * (pi > theta)
        g = ste_gradient(pi, theta, residual, sparsity, bandwidth=bandwidth, kernel=kernel, step_on=step_on)
        gradient = theta * g.mean().item()
        second = 0.999 * second + 0.001 * gradient**2
        log_theta -= lr * (1 - step / steps) * gradient / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
        course.append(math.exp(log_theta))
    return torch.tensor(course, dtype=torch.float64)
