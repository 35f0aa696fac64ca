"""Train many sparse autoencoders on one pass over the activations.

SAEs of one kind, size and learning rate are stacked: one leading axis, one step for all of them. Nothing in a
step waits for the device; numbers are read where the log is written. Matrix products may round their inputs to
bfloat16 where the hardware gains by it (`torch.set_float32_matmul_precision("medium")`); weights, thresholds and
moments stay in fp32.
"""

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.arithmetic import arithmetic
from mechinterp.files import atomic_write
from mechinterp.sae.architectures import SAE, initial, scale_input
from mechinterp.sae.kinds import KINDS
from mechinterp.sae.losses import gradients, loss
from mechinterp.sae.settings import Config, Spec
from mechinterp.sae.store import Given, Store

METRICS = ("loss", "l0", "fvu", "dead")


@dataclass(frozen=True)
class Trained:
    """What `train` returns.

    Attributes:
        specs: in the order in which they were given. `saes`: in the units of the activations.
        steps: the steps of the log.
        history: for each of `METRICS` a tensor [entry, sae]: loss; active latents a token; share of variance
            unexplained, both of the batch; share of latents dead.
    """

    specs: tuple[Spec, ...]
    saes: tuple[SAE, ...]
    steps: list[int]
    history: dict[str, Float[Tensor, "entry sae"]]


class _Stack:
    """SAEs of one kind that take their steps together."""

    def __init__(
        self, specs: Sequence[Spec], store: Store | Given, d_in: int, device: torch.device, config: Config
    ) -> None:
        first = specs[0]
        self.specs, self.name, self.hook, self.variant = specs, first.kind, first.hook, first.variant
        self.kind = KINDS[first.kind]
        self.scale = store.scale(self.hook)
        self.variance = store.variance(self.hook) / self.scale**2
        sizes = (first.kind, d_in, first.d_sae)
        fresh = [initial(*sizes, seed=s.seed, threshold=config.threshold, k=s.k) for s in specs]
        self.params = self.kind.trained({n: torch.stack([p[n] for p in fresh]).to(device) for n in fresh[0]})
        if self.kind.at_median:
            self.params["b_dec"] += store.median(self.hook).to(device) / self.scale
        for value in self.params.values():
            value.requires_grad_(True)
        self.sparsity = torch.tensor([spec.sparsity for spec in specs], device=device)
        self.age = torch.zeros(len(specs), first.d_sae, device=device)
        self.level = torch.zeros(len(specs), device=device)
        self.any_dead = False

    def optimiser(self, config: Config) -> torch.optim.Adam:
        lr = self.specs[0].lr
        groups = [
            {"params": [value], "rate": lr * (config.threshold_rate if name in self.kind.thresholds else 1.0)}
            for name, value in self.params.items()
        ]
        return torch.optim.Adam(groups, lr=lr, betas=config.betas, fused=True)

    def step(self, raw: dict[str, Tensor], number: int, config: Config, adam: torch.optim.Adam, log: bool) -> Tensor:
        """One update; returns [metric, sae], filled where `log`."""
        x = raw[self.hook] / self.scale
        warm = min(1.0, (number + 1) / config.sparsity_warmup) if config.sparsity_warmup else 1.0
        f, active, error, total = self.backward(x, self.sparsity * warm, config, log)
        rows = self.params["W_dec"]
        assert rows.grad is not None
        rows.grad -= (rows.grad * rows.detach()).sum(-1, keepdim=True) * rows.detach()
        for group in adam.param_groups:
            group["lr"] = group["rate"] * config.rate(number)
        adam.step()
        adam.zero_grad()
        rows.data /= rows.data.norm(dim=-1, keepdim=True)
        self.age = torch.where(active > 0, 0.0, self.age + len(x))
        if config.resamples_at(number + 1) and self.kind.resampled:
            self.resample(x, config.resample_every * len(x), adam, number)
        if not log:
            return torch.empty(0)
        self.level = self.kind.level(self.level, f)
        l0 = active.sum(-1) / len(x)
        silent = (self.age >= config.dead_after).float().mean(-1)
        return torch.stack([total, l0, error / self.variance, silent])

    def backward(self, x: Tensor, sparsity: Tensor, config: Config, log: bool) -> tuple[Tensor, ...]:
        """Set the gradients; returns latents, tokens on which each is on, squared error and, where `log`, the loss."""
        dead = self.age >= config.dead_after if self.any_dead and self.kind.revived else None
        found = gradients(
            self.name, self.params, x, sparsity,
            k=self.specs[0].k or 0, dead=dead, bandwidth=config.bandwidth, variant=self.variant, value=log,
        )  # fmt: skip
        for name, grad in found.grads.items():
            self.params[name].grad = grad
        total = found.error if found.penalty is None else found.error + found.penalty
        return found.f, found.cells.active(found.f), found.error, total

    def resample(self, x: Tensor, window: int, adam: torch.optim.Adam, seed: int) -> None:
        """Dead latents start again from inputs that are badly reconstructed (Bricken et al. 2023).

        Inputs are drawn with probability proportional to the square of their squared error; encoder columns get a
        fifth of the mean norm of the others, biases and Adam's moments become zero.
        """
        generator = torch.Generator(device=x.device).manual_seed(seed)
        with torch.no_grad():
            p = {name: value.data for name, value in self.params.items()}
            f = loss(self.name, p, x, self.sparsity).f
            e = x - torch.baddbmm(p["b_dec"][:, None], f, p["W_dec"])
            weight = e.square().sum(-1).square()
            enough = weight.shape[-1] >= p["W_dec"].shape[1]
            chosen = weight.multinomial(p["W_dec"].shape[1], replacement=not enough, generator=generator)
            dead = self.age >= window
            fresh = x[chosen] - p["b_dec"][:, None]
            fresh = fresh / fresh.norm(dim=-1, keepdim=True).clamp(min=1e-8)
            norms = p["W_enc"].norm(dim=1)
            alive = (norms * ~dead).sum(-1) / (~dead).sum(-1).clamp(min=1)
            columns = (fresh * (0.2 * alive)[:, None, None]).mT
            for name, value in p.items():
                if name == "b_dec":
                    continue
                mask = dead[:, None, :] if name == "W_enc" else dead[..., None] if name == "W_dec" else dead
                new = {"W_enc": columns, "W_dec": fresh}.get(name, torch.zeros_like(value))
                value.copy_(torch.where(mask, new, value))
                state = adam.state[self.params[name]]
                for moment in {"exp_avg", "exp_avg_sq"} & set(state):
                    state[moment] *= ~mask
            self.age = torch.where(dead, 0.0, self.age)

    def saes(self, facts: dict[str, Any]) -> Iterator[SAE]:
        """The SAEs in the units of the activations, of the kind as which theirs leaves the training."""
        for i, spec in enumerate(self.specs):
            p = {name: value.detach()[i].clone() for name, value in self.params.items()}
            kind, p = self.kind.finished(p, self.level[i])
            k = spec.k if KINDS[kind].takes_k else None
            yield scale_input(SAE(kind, p, k, spec.hook, {"spec": asdict(spec)} | facts), self.scale)


def train(
    specs: Sequence[Spec],
    store: Store | Given,
    config: Config,
    *,
    folder: Path | None = None,
    device: str | torch.device | None = None,
    stack: int | None = None,
    precision: str = "medium",
    save_every: float = 60.0,
    live: bool = False,
    stop_at: int | None = None,
) -> Trained:
    """Train SAEs on the batches of a store, all of them on the same ones.

    Args:
        specs: any mixture of kinds, sizes and hooks of the store.
        folder: checkpoint; a run that was killed goes on from there and gives the same numbers, a finished one is
            read.
        device: by default that of the activations.
        stack: SAEs in one step at most; by default 1 on a CPU, where more brings nothing, and 32 elsewhere.
        precision: of fp32 matrix products, those of the model's passes too, as in
            `torch.set_float32_matmul_precision`.
        save_every: seconds between checkpoints. `live`: redraw the log in the notebook while it runs.
        stop_at: stop before this step as if killed (for tests).

    Errors: `ValueError` for no specs, a hook that the store does not have, activations that are constant or not
        finite, a dictionary smaller than the input, or a folder that holds another run; `OSError` if the disk is
        full (the last checkpoint stays). An SAE that diverges is reported by a warning and harms no other.

    >>> given = Given({"here": torch.randn(1000, 8)}, batch=100)
    >>> result = train([Spec("topk", "here", 16, 2)], given, Config(20, lr_warmup=5, log_every=10))
    >>> result.saes[0], result.history["l0"].shape
    (SAE(topk, 8 -> 16, k=2, here), torch.Size([2, 1]))
    """
    if not specs:
        raise ValueError("no SAEs to train: specs is empty")
    for spec in specs:
        if spec.hook not in store.hooks:
            raise ValueError(f"{spec.hook} is not in the store, which has {', '.join(store.hooks)}")
    first = store.compute(0)
    device = torch.device(device) if device is not None else first[store.hooks[0]].device
    stack = stack or (1 if device.type == "cpu" else 32)
    groups = _groups(specs, stack)
    stacks = []
    for group in groups:
        d_in = first[specs[group[0]].hook].shape[-1]
        stacks.append(_Stack([specs[i] for i in group], store, d_in, device, config))
    del first
    adams = [s.optimiser(config) for s in stacks]
    data = store.digest
    identity = {
        "specs": [asdict(spec) for spec in specs],
        "config": asdict(config),
        "store": [data, store.batch, store.seed],
    }
    path = None if folder is None else folder / "checkpoint.safetensors"
    step = 0
    steps: list[int] = []
    history: list[Tensor] = []
    if path is not None and path.exists():
        step, steps, history = _load(path, json.dumps(identity), stacks, adams, config)
    bar = tqdm(total=config.steps, initial=step, desc=f"{len(specs)} SAEs", unit="step", mininterval=1.0)
    order = torch.tensor([i for group in groups for i in group]).argsort()
    last_save = time.monotonic()
    end = config.steps if stop_at is None else min(stop_at, config.steps)
    batches = store.batches(step) if step < end else iter(())
    with arithmetic(matmul=precision):
        while step < end:
            batch = {hook: x.to(device) for hook, x in next(batches).items()}
            log = (step + 1) % config.log_every == 0 or step + 1 == config.steps
            rows = [s.step(batch, step, config, adam, log) for s, adam in zip(stacks, adams, strict=True)]
            step += 1
            bar.update()
            if log:
                values = torch.cat(rows, 1).cpu()[:, order]
                steps.append(step)
                history.append(values)
                for s in stacks:
                    s.any_dead = bool((s.age >= config.dead_after).any())
                bar.set_postfix({name: _span(values[i]) for i, name in enumerate(METRICS) if i}, refresh=False)
                if live:
                    _draw(specs, steps, history)
            if path is not None and (step == config.steps or (log and time.monotonic() - last_save > save_every)):
                _save(path, json.dumps(identity), step, steps, history, stacks, adams)
                last_save = time.monotonic()
    bar.close()
    table = torch.stack(history) if history else torch.zeros(0, len(METRICS), len(specs))
    lost = [str(specs[i]) for i in range(len(specs)) if len(table) and not table[-1, :3, i].isfinite().all()]
    if lost:
        warnings.warn(f"{len(lost)} SAE(s) diverged, try a smaller learning rate: {'; '.join(lost)}", stacklevel=2)
    facts = {"tokens": step * store.batch, "config": asdict(config), "data": data}
    saes = [sae for s in stacks for sae in s.saes(facts)]
    ordered = tuple(saes[i] for i in order.tolist())
    return Trained(tuple(specs), ordered, steps, {m: table[:, i] for i, m in enumerate(METRICS)})


def _groups(specs: Sequence[Spec], stack: int) -> list[list[int]]:
    """Indices of specs that can take their steps together, at most `stack` of them."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, s in enumerate(specs):
        groups.setdefault((s.hook, s.kind, s.d_sae, s.lr, s.variant, s.k), []).append(i)
    return [group[i : i + stack] for group in groups.values() for i in range(0, len(group), stack)]


def _span(values: Tensor) -> str:
    lo, hi = values.min().item(), values.max().item()
    return f"{lo:.3g}" if lo == hi else f"{lo:.3g}…{hi:.3g}"


def _draw(specs: Sequence[Spec], steps: list[int], history: list[Tensor]) -> None:
    from IPython.display import clear_output, display

    from mechinterp.viz import curves

    clear_output(wait=True)
    table = torch.stack(history)
    shown = {f"{s.kind} {s.sparsity:g}": (steps, table[:, 2, i]) for i, s in enumerate(specs)}
    display(curves(shown, x="step", y="FVU", log_y=True, title="So far", caption="Variance not explained, by batch."))


def _save(
    path: Path, identity: str, step: int, steps: list[int], history: list[Tensor],
    stacks: Sequence[_Stack], adams: Sequence[torch.optim.Adam],
) -> None:  # fmt: skip
    tensors = {"history": torch.stack(history) if history else torch.zeros(0)}
    for i, (stack, adam) in enumerate(zip(stacks, adams, strict=True)):
        tensors |= {f"{i}.age": stack.age, f"{i}.level": stack.level}
        for name, value in stack.params.items():
            tensors[f"{i}.{name}"] = value.detach()
            state = adam.state[value]  # empty for what a variant leaves untrained
            tensors |= {
                f"{i}.{name}.{key}": state.get(key, torch.zeros_like(value)) for key in ("exp_avg", "exp_avg_sq")
            }
    meta = {"identity": identity, "step": str(step), "steps": json.dumps(steps)}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, safetensors.torch.save({n: t.contiguous().cpu() for n, t in tensors.items()}, meta))


def _load(
    path: Path, identity: str, stacks: Sequence[_Stack], adams: Sequence[torch.optim.Adam], config: Config
) -> tuple[int, list[int], list[Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole checkpoint ({error}); remove it to start again") from error
    if meta["identity"] != identity:
        raise ValueError(f"{path.parent} holds another run (other SAEs, settings or text); choose another folder")
    step = int(meta["step"])
    for i, (stack, adam) in enumerate(zip(stacks, adams, strict=True)):
        stack.age, stack.level = (tensors[f"{i}.{n}"].to(stack.age.device) for n in ("age", "level"))
        stack.any_dead = bool((stack.age >= config.dead_after).any())
        for name, value in stack.params.items():
            value.data.copy_(tensors[f"{i}.{name}"])
            moments = {key: tensors[f"{i}.{name}.{key}"].to(value.device) for key in ("exp_avg", "exp_avg_sq")}
            adam.state[value] = {"step": torch.tensor(float(step), device=value.device)} | moments
    return step, json.loads(meta["steps"]), list(tensors["history"])
