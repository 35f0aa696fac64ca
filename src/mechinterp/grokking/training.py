"""Many full-batch training runs at once: every run is one row of a single parameter tensor.

Runs differ in seed, training-set size, weight decay and labels. They share one forward pass, one backward
pass and one optimiser step; smaller training sets are padded with pairs of weight zero. Rows never
mix, so a run gives the same curve alone or in company, and a run that diverges harms no other.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.datasets.modular_addition import split
from mechinterp.files import atomic_write
from mechinterp.grokking.model import Shape, initial, logits, unpack
from mechinterp.grokking.runs import METRICS, Data, Run, data_of, evaluate


@dataclass(frozen=True)
class Config:
    """What all runs of a sweep share; the defaults are Nanda et al.'s recipe (arXiv:2301.05217).

    Attributes:
        epochs: full-batch steps. `every`: epochs between two evaluations on all p² pairs.
        stop_accuracy: a run ends early `stop_after` epochs after its test accuracy has reached this.
    """

    epochs: int
    shape: Shape = field(default_factory=Shape)
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 10
    every: int = 100
    stop_accuracy: float | None = None
    stop_after: int = 0


@dataclass(frozen=True)
class State:
    """Weights and AdamW's moments of a set of runs, one row a run."""

    weights: Float[Tensor, "runs params"]
    exp_avg: Float[Tensor, "runs params"]
    exp_avg_sq: Float[Tensor, "runs params"]
    step: int

    def rows(self, index: Sequence[int] | Tensor) -> "State":
        """The state of some of the runs, in the order of `index` (which may repeat a run)."""
        i = torch.as_tensor(index)
        return State(self.weights[i], self.exp_avg[i], self.exp_avg_sq[i], self.step)


@dataclass(frozen=True)
class Trained:
    """What `train` returns.

    Attributes:
        runs: the runs, in the order in which they were given.
        epochs: the epochs of the evaluations.
        history: one tensor [evaluations, runs] for each of `METRICS`; NaN after a run ended early.
            Losses in nats, `norm` is sqrt(Σ θ²), `train_logit` the mean logit of the right class over
            the training pairs (logits centred over classes).
        state: the final weights and moments.
        diverged: the epoch at which a run's loss was found not to be finite, or None.
    """

    runs: tuple[Run, ...]
    epochs: Int[Tensor, " evaluations"]
    history: dict[str, Float[Tensor, "evaluations runs"]]
    state: State
    diverged: tuple[int | None, ...]

    def final(self, metric: str) -> Float[Tensor, " runs"]:
        """The last value of a metric for every run, before it ended; NaN for a run that diverged at once."""
        values = self.history[metric]
        last = (~values.isnan()).cumsum(0).argmax(0)
        return values.gather(0, last[None])[0]


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of every run, weighted over its pairs; softmax and sum in float64, gradient at once.

    In float32 the loss of a network that is almost sure rounds to zero and its gradient is noise.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        log_p = values.double().log_softmax(-1)
        loss = -(log_p.gather(-1, labels[..., None])[..., 0] * share).sum(-1)
        grad = log_p.exp_()
        grad.scatter_add_(-1, labels[..., None], -torch.ones_like(labels, dtype=grad.dtype)[..., None])
        ctx.save_for_backward(grad.mul_(share[..., None]).to(values.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad.mul_(upstream[:, None, None]), None, None


def _stacks(runs: Sequence[Run], rows: int) -> list[list[int]]:
    """Runs of similar size together, each stack at most `rows` padded pairs (or one run)."""
    order = sorted(range(len(runs)), key=lambda i: -runs[i].size)
    stacks: list[list[int]] = []
    for i in order:
        widest = runs[stacks[-1][0]].size if stacks else 0
        fits = stacks and (len(stacks[-1]) + 1) * widest <= rows and runs[i].size >= 0.8 * widest
        if fits:
            stacks[-1].append(i)
        else:
            stacks.append([i])
    return stacks


def train(
    runs: Sequence[Run],
    config: Config,
    *,
    start: State | None = None,
    folder: Path | None = None,
    rows: int | None = None,
    device: str | torch.device = "cpu",
    watch: Callable[[int, State], None] | None = None,
    live: bool = False,
    stop_at: int | None = None,
) -> Trained:
    """Train many networks on modular addition, full batch, as Nanda et al. and Varma et al. do.

    Args:
        start: weights and moments to go on from, one row a run (ungrokking); fresh networks otherwise.
        folder: checkpoints, one file a stack. A sweep that was killed goes on from there and gives the
            same numbers; a finished one is read.
        rows: padded training pairs that share one step, at most; memory grows with it (about 5 KB a
            pair). By default 8192 on a CPU, where more brings nothing, and 2¹⁸ on a GPU.
        watch: called with (epoch, state of the running stack) at every evaluation.
        live: redraw train and test accuracy in the notebook while it runs.
        stop_at: stop before this epoch as if killed (for tests).

    Errors: `ValueError` for p not prime, a size outside 1 … p², no runs, `start` of another shape, or a
    folder that holds other runs.
    """
    if not runs:
        raise ValueError("no runs to train")
    device = torch.device(device)
    shape = config.shape
    for run in runs:  # every error at the door, before the first step
        split(shape.p, run.size, seed=run.seed, random_labels=run.random_labels)
    if start is not None and start.weights.shape != (len(runs), shape.n_params):
        raise ValueError(
            f"start holds {tuple(start.weights.shape)} weights, these runs need ({len(runs)}, {shape.n_params})"
        )
    rows = rows or (8192 if device.type == "cpu" else 1 << 18)
    stacks = _stacks(runs, rows)
    steps = sum(config.epochs * sum(runs[i].size for i in stack) for stack in stacks)
    bar = tqdm(total=steps, unit="pair", unit_scale=True, mininterval=1.0, desc=f"{len(runs)} runs")
    parts = []
    for number, stack in enumerate(stacks):
        path = None if folder is None else folder / f"stack-{number:03d}.safetensors"
        parts.append(
            _train_stack(
                [runs[i] for i in stack],
                config,
                start=start.rows(stack) if start is not None else None,
                path=path,
                device=device,
                watch=watch,
                bar=bar,
                live=live,
                stop_at=stop_at,
            )
        )
    bar.close()
    return join(runs, stacks, parts)


def join(runs: Sequence[Run], groups: Sequence[Sequence[int]], parts: Sequence[Trained]) -> Trained:
    """Runs that were trained in groups, in the order of `runs`; `groups` says which of them each part holds."""
    where = torch.tensor([i for group in groups for i in group]).argsort()
    diverged = [d for part in parts for d in part.diverged]
    epochs = max((part.epochs for part in parts), key=len)

    def longest(values: Tensor) -> Tensor:
        pad = torch.full((len(epochs) - len(values), values.shape[1]), torch.nan, dtype=values.dtype)
        return torch.cat([values, pad])

    return Trained(
        tuple(runs),
        epochs,
        {m: torch.cat([longest(part.history[m]) for part in parts], 1)[:, where] for m in METRICS},
        State(
            torch.cat([part.state.weights for part in parts])[where],
            torch.cat([part.state.exp_avg for part in parts])[where],
            torch.cat([part.state.exp_avg_sq for part in parts])[where],
            max(part.state.step for part in parts),
        ),
        tuple(diverged[i] for i in where.tolist()),
    )


def _train_stack(
    runs: list[Run],
    config: Config,
    *,
    start: State | None,
    path: Path | None,
    device: torch.device,
    watch: Callable[[int, State], None] | None,
    bar: Any,
    live: bool,
    stop_at: int | None,
) -> Trained:
    shape = config.shape
    if start is None:
        fresh = initial(shape, [run.seed for run in runs])
        start = State(fresh, torch.zeros_like(fresh), torch.zeros_like(fresh), 0)
    identity = json.dumps({"runs": [asdict(run) for run in runs], "config": asdict(config), "start": start.step})
    # Everything by run, on the CPU or device as `full`; the stack in training is the rows still alive.
    full = State(
        start.weights.to(device).clone(),
        start.exp_avg.to(device).clone(),
        start.exp_avg_sq.to(device).clone(),
        start.step,
    )
    history: list[Tensor] = []
    epochs: list[int] = []
    ended = [-1] * len(runs)
    diverged: list[int | None] = [None] * len(runs)
    reached: list[int | None] = [None] * len(runs)
    if path is not None and path.exists():
        full, history, epochs, ended, diverged, reached = _load(path, identity, device)
    epoch = epochs[-1] if epochs else 0
    bar.update(epoch * sum(run.size for run in runs))
    everything = data_of(runs, shape.p, device)

    alive = [i for i in range(len(runs)) if ended[i] < 0]
    stack = _Stack(full, alive, everything, runs, config)
    last_save = time.monotonic()
    began_at = epoch
    while alive and epoch <= config.epochs:
        if epoch % config.every == 0 and (not epochs or epoch > epochs[-1]):
            values = torch.full((len(METRICS), len(runs)), torch.nan, dtype=torch.float64)
            values[:, alive] = evaluate(stack.flat.detach(), stack.data, shape).cpu()
            history.append(values)
            epochs.append(epoch)
            stack.store(full, alive)
            full = replace(full, step=start.step + epoch)
            if watch is not None:
                watch(epoch, full.rows(alive))
            for i in alive:
                finite = bool(torch.isfinite(values[[0, 4], i]).all())
                if not finite:
                    diverged[i], ended[i] = epoch, epoch
                    history[-1][:, i] = torch.nan
                if config.stop_accuracy is not None and values[3, i] >= config.stop_accuracy and reached[i] is None:
                    reached[i] = epoch
                after = reached[i]
                if finite and after is not None and epoch >= after + config.stop_after:
                    ended[i] = epoch
            still = [i for i in alive if ended[i] < 0]
            done = not still or epoch == config.epochs
            if path is not None and (done or time.monotonic() - last_save > 30):
                _save(path, identity, full, history, epochs, ended, diverged, reached)
                last_save = time.monotonic()
            bar.set_postfix(epoch=epoch, test=f"{values[3].nanmean():.2f}", refresh=False)
            if live:
                _draw(epochs, history)
            if still != alive:
                alive = still
                stack = _Stack(full, alive, everything, runs, config)
        if not alive or epoch == config.epochs or (stop_at is not None and epoch >= stop_at):
            break
        stack.step((start.step + epoch + 1) / config.warmup)
        bar.update(sum(runs[i].size for i in alive))
        epoch += 1
    if not alive:
        bar.update((config.epochs - max(epoch, began_at)) * sum(run.size for run in runs))
    columns = torch.stack(history)
    return Trained(
        tuple(runs),
        torch.tensor(epochs),
        {m: columns[:, j] for j, m in enumerate(METRICS)},
        State(full.weights.cpu(), full.exp_avg.cpu(), full.exp_avg_sq.cpu(), full.step),
        tuple(diverged),
    )


class _Stack:
    """The runs still alive: parameters, optimiser and data, sliced out of the whole sweep."""

    def __init__(self, full: State, alive: list[int], data: Data, runs: list[Run], config: Config) -> None:
        keep = torch.tensor(alive, dtype=torch.long, device=full.weights.device)
        state = full.rows(keep)
        self.config, self.data = config, data.rows(keep)
        # The decay of a run is its own, so it is applied here and not by the optimiser.
        decay = torch.tensor([runs[i].weight_decay for i in alive], device=keep.device, dtype=torch.float64)
        self.decay = (config.lr * decay)[:, None]
        self.flat = state.weights.clone().requires_grad_(True)
        self.adam = torch.optim.AdamW([self.flat], lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True)
        self.adam.state[self.flat] = {
            "step": torch.tensor(float(full.step), device=keep.device),
            "exp_avg": state.exp_avg.clone(),
            "exp_avg_sq": state.exp_avg_sq.clone(),
        }

    def step(self, warm: float) -> None:
        d, rate = self.data, min(1.0, warm)
        with torch.enable_grad():
            values = logits(unpack(self.flat, self.config.shape), d.a, d.b)
            loss = _CrossEntropy.apply(values, d.labels, d.share)
            loss.sum().backward()
        with torch.no_grad():
            self.flat.mul_((1 - rate * self.decay).to(self.flat.dtype))
        self.adam.param_groups[0]["lr"] = self.config.lr * rate
        self.adam.step()
        self.adam.zero_grad()

    def store(self, full: State, alive: list[int]) -> None:
        keep = torch.tensor(alive, dtype=torch.long, device=full.weights.device)
        state = self.adam.state[self.flat]
        full.weights[keep] = self.flat.detach()
        full.exp_avg[keep] = state["exp_avg"]
        full.exp_avg_sq[keep] = state["exp_avg_sq"]


def _draw(epochs: list[int], history: list[Tensor]) -> None:
    from IPython.display import clear_output, display

    from mechinterp.viz import curves

    clear_output(wait=True)
    values = torch.stack(history)
    shown = {name: (epochs, values[:, j].nanmean(1)) for j, name in ((2, "train"), (3, "test"))}
    display(curves(shown, x="epoch", y="accuracy", title="Accuracy so far", caption="Mean over the runs of the stack."))


def _save(
    path: Path,
    identity: str,
    full: State,
    history: list[Tensor],
    epochs: list[int],
    ended: list[int],
    diverged: list[int | None],
    reached: list[int | None],
) -> None:
    from safetensors.torch import save

    tensors = {
        "weights": full.weights,
        "exp_avg": full.exp_avg,
        "exp_avg_sq": full.exp_avg_sq,
        "history": torch.stack(history),
        "epochs": torch.tensor(epochs),
    }
    progress = {"step": full.step, "ended": ended, "diverged": diverged, "reached": reached}
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"identity": identity, "progress": json.dumps(progress)}
    atomic_write(path, save({name: t.contiguous().cpu() for name, t in tensors.items()}, meta))


def _load(path: Path, identity: str, device: torch.device) -> tuple[State, list[Tensor], list[int], Any, Any, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        meta = file.metadata() or {}
        if meta.get("identity") != identity:
            raise ValueError(f"{path} belongs to other runs or another configuration; choose another folder")
        progress = json.loads(meta["progress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    weights, first, second = (tensors[name].to(device) for name in ("weights", "exp_avg", "exp_avg_sq"))
    state = State(weights, first, second, progress["step"])
    history, epochs = list(tensors["history"]), tensors["epochs"].tolist()
    return state, history, epochs, progress["ended"], progress["diverged"], progress["reached"]
