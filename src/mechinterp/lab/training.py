"""Train a small GPT-2 on the CPU: the recipe of the lab model.

The model is GPT-2's architecture as plain functions of a dict of fp32 weights; matrix products run in
bf16. Three things make it about twice as fast as the obvious loop on two cores: the unembedding's loss
and gradient are computed block by block in one pass, attention is plain matrix products, and memory
is kept by the allocator (`MALLOC_MMAP_THRESHOLD_`, set by the command line before Python starts).

A step's batch is a function of (seed, step) alone, so a run resumes exactly from its last checkpoint.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.files import atomic_write
from mechinterp.lab.mixture import Mixture

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Config:
    """Shape and schedule of a run. `d_mlp` is 4 · d_model and `d_head` is d_model / n_heads."""

    n_layers: int = 5
    n_heads: int = 8
    d_model: int = 256
    n_ctx: int = 256
    vocab_size: int = 8192
    batch: int = 24
    steps: int = 3000
    warmup: int = 200
    cooldown: float = 0.3
    lr: float = 2e-3
    muon_lr: float = 1e-2
    weight_decay: float = 0.05
    seed: int = 0


def initial_weights(config: Config) -> Weights:
    """GPT-2's initialisation; W_Q, W_K and W_V are separate until the model is saved."""
    generator = torch.Generator().manual_seed(config.seed)
    d, scale = config.d_model, 0.02

    def normal(*shape: int, std: float = scale) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    weights = {"wte": normal(config.vocab_size, d), "wpe": normal(config.n_ctx, d, std=0.01)}
    for i in range(config.n_layers):
        residual = scale / math.sqrt(2 * config.n_layers)
        weights |= {f"h.{i}.{name}": normal(d, d) for name in ("W_Q", "W_K", "W_V")}
        weights |= {f"h.{i}.{name}": torch.zeros(d) for name in ("b_Q", "b_K", "b_V", "b_O", "b_out")}
        weights |= {
            f"h.{i}.W_O": normal(d, d, std=residual),
            f"h.{i}.W_in": normal(d, 4 * d),
            f"h.{i}.b_in": torch.zeros(4 * d),
            f"h.{i}.W_out": normal(4 * d, d, std=residual),
        }
        for ln in ("ln_1", "ln_2"):
            weights |= {f"h.{i}.{ln}.w": torch.ones(d), f"h.{i}.{ln}.b": torch.zeros(d)}
    return weights | {"ln_f.w": torch.ones(d), "ln_f.b": torch.zeros(d)}


def final_residual(weights: Weights, tokens: Int[Tensor, "batch pos"], config: Config) -> Float[Tensor, "batch pos d"]:
    """The residual stream after the last layer norm, matrix products in bf16."""
    batch, length = tokens.shape
    heads, d_head = config.n_heads, config.d_model // config.n_heads
    mask = torch.full((length, length), -torch.inf, dtype=torch.bfloat16).triu(1)
    x = weights["wte"][tokens] + weights["wpe"][:length]

    def linear(x: Tensor, w: str, b: str) -> Tensor:
        return torch.addmm(weights[b].bfloat16(), x, weights[w].bfloat16())

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (config.d_model,), weights[name + ".w"], weights[name + ".b"], 1e-5)

    def split(x: Tensor) -> Tensor:
        return x.view(batch, length, heads, d_head).transpose(1, 2)

    for i in range(config.n_layers):
        p = f"h.{i}."
        y = norm(x, p + "ln_1").bfloat16().view(-1, config.d_model)
        q, k, v = (split(linear(y, p + f"W_{s}", p + f"b_{s}")) for s in "QKV")
        scores = (q * d_head**-0.5) @ k.transpose(-1, -2) + mask
        z = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, config.d_model)
        x = x + linear(z, p + "W_O", p + "b_O").view_as(x)
        y = norm(x, p + "ln_2").bfloat16().view(-1, config.d_model)
        hidden = F.gelu(linear(y, p + "W_in", p + "b_in"), approximate="tanh")
        x = x + linear(hidden, p + "W_out", p + "b_out").view_as(x)
    return norm(x, "ln_f")


class _BlockLoss(torch.autograd.Function):
    """Mean cross-entropy of `x @ wte.T`, its gradient computed in the forward pass, block by block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wte: Tensor, targets: Tensor, block: int) -> Tensor:
        w = wte.detach().bfloat16()
        x16 = x.detach().bfloat16()
        grad_x, grad_w = torch.empty_like(x), torch.zeros_like(wte)
        total = torch.zeros(())
        for i in range(0, len(x), block):
            h, t = x16[i : i + block], targets[i : i + block, None]
            logits = (h @ w.T).float()
            log_z = logits.logsumexp(-1, keepdim=True)
            total += (log_z - logits.gather(1, t)).sum()
            grad = logits.sub_(log_z).exp_()
            grad.scatter_add_(1, t, -torch.ones_like(t, dtype=grad.dtype))
            g16 = grad.bfloat16()
            grad_x[i : i + block] = g16 @ w
            grad_w += (g16.T @ h).float()
        ctx.save_for_backward(grad_x / len(x), grad_w / len(x))
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_w = ctx.saved_tensors
        return grad * grad_x, grad * grad_w, None, None


def loss(weights: Weights, tokens: Int[Tensor, "batch pos"], config: Config, block: int = 512) -> Tensor:
    """Mean next-token cross-entropy in nats."""
    x = final_residual(weights, tokens[:, :-1], config)
    return _BlockLoss.apply(x.reshape(-1, config.d_model), weights["wte"], tokens[:, 1:].reshape(-1), block)


def schedule(step: int, config: Config) -> float:
    """Warm-up, flat, then linear cool-down to zero over the last `cooldown` of the run."""
    up = (step + 1) / config.warmup
    down = (config.steps - step) / (config.cooldown * config.steps)
    return max(0.0, min(1.0, up, down))


def optimisers(weights: Weights, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and vectors."""
    matrices = [w for name, w in weights.items() if name.startswith("h.") and w.ndim == 2]
    embeddings = [weights["wte"], weights["wpe"]]
    vectors = [w for w in weights.values() if w.ndim == 1]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, ns_steps=4),
        torch.optim.AdamW(
            [{"params": embeddings, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.lr,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


def train(config: Config, mixture: Mixture, out: Path, *, every: int = 250, stop_after: int | None = None) -> Weights:
    """Train or resume in the folder `out`; returns the final weights.

    Writes `checkpoint.safetensors` (weights and optimiser state, atomically) every `every` steps and
    `log.jsonl` with one line of loss a step; the weights of every checkpoint stay in `snapshots/`, in fp16,
    for looking at how things emerge. A run killed at any moment goes on from its last
    checkpoint and repeats the same losses, because the batch depends on (seed, step) only.

    Args:
        stop_after: stop before this step as if killed (for tests).

    Errors: `ValueError` if `out` holds a run of another configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = initial_weights(config)
    for w in weights.values():
        w.requires_grad_(True)
    opts = optimisers(weights, config)
    start = _resume(out, config, weights, opts)
    log_path = out / "log.jsonl"
    kept = log_path.read_text().splitlines()[:start] if log_path.exists() else []
    atomic_write(log_path, "".join(line + "\n" for line in kept).encode())
    end = config.steps if stop_after is None else min(stop_after, config.steps)
    bar = tqdm(range(start, end), initial=start, total=config.steps, unit="step", mininterval=2.0)
    with log_path.open("a", buffering=1) as log:
        for step in bar:
            began = time.perf_counter()
            rate = schedule(step, config)
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = group.setdefault("peak", group["lr"]) * rate
            value = loss(weights, mixture.batch(step, config.batch, config.n_ctx + 1, config.seed), config)
            if not torch.isfinite(value):
                raise FloatingPointError(f"loss is {value.item()} at step {step}; lower lr or muon_lr and resume")
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad()
            log.write(
                json.dumps(
                    {"step": step, "loss": round(value.item(), 6), "seconds": round(time.perf_counter() - began, 3)}
                )
                + "\n"
            )
            bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
            if (step + 1) % every == 0 or step + 1 == config.steps:
                _checkpoint(out, config, step + 1, weights, opts)
    return {name: w.detach() for name, w in weights.items()}


def _state(opts: list[torch.optim.Optimizer]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for o, opt in enumerate(opts):
        params = [p for group in opt.param_groups for p in group["params"]]
        for i, p in enumerate(params):
            yield f"{o}.{i}", opt.state[p]


def _checkpoint(out: Path, config: Config, step: int, weights: Weights, opts: list[torch.optim.Optimizer]) -> None:
    from safetensors.torch import save

    tensors = {f"weights.{k}": w.detach() for k, w in weights.items()}
    tensors |= {f"state.{key}.{k}": v for key, state in _state(opts) for k, v in state.items()}
    meta = {"step": str(step), "config": json.dumps(asdict(config))}
    (out / "snapshots").mkdir(exist_ok=True)
    half = {name: w.detach().half().contiguous() for name, w in weights.items()}
    atomic_write(out / "snapshots" / f"{step:06d}.safetensors", save(half, meta))
    atomic_write(out / "checkpoint.safetensors", save({k: v.contiguous() for k, v in tensors.items()}, meta))


def _resume(out: Path, config: Config, weights: Weights, opts: list[torch.optim.Optimizer]) -> int:
    from safetensors import safe_open

    path = out / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        if json.loads(meta["config"]) != asdict(config):
            raise ValueError(f"{path} is a run of another configuration; choose another folder or delete it")
        for name, w in weights.items():
            w.data.copy_(file.get_tensor(f"weights.{name}"))
        saved = {key: file.get_tensor(key) for key in file.keys() if key.startswith("state.")}
    for key, state in _state(opts):
        prefix = f"state.{key}."
        state.update({k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)})
    return int(meta["step"])
