"""The stacked grokking trainer against the loop of the public demos, one run after another.

    python benchmarks/grokking.py [--runs 32] [--device cpu] [--shape paper lab]

The demos train one network at a time with plain PyTorch: three positions through attention, MLP and unembedding, the
loss at the last one in float64, AdamW. Ours trains all runs as one tensor. Both start from the same weights. Prints
runs × epochs per second and their ratio, and the largest difference of the losses over the first 200 steps, in float64
and in float32. In float32 the demo itself is as far from its own float64 run: Adam divides small gradients by their
size, and rounding grows with them. Exit status 1 if the curves differ by more than 1e-5 in float64.
"""

import argparse
import os
import sys
import time

MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
if sys.platform == "linux" and any(name not in os.environ for name in MALLOC):  # the same allocator for both
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | MALLOC)

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mechinterp.datasets.modular_addition import pairs, split  # noqa: E402
from mechinterp.grokking import Config, Run, State, initial, train, unpack  # noqa: E402
from mechinterp.grokking.sweeps import PLANS  # noqa: E402


class Network(nn.Module):
    """The one-layer transformer written out, every position computed."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.w = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in weights.items()})
        self.register_buffer("mask", torch.ones(3, 3, dtype=torch.bool).triu(1))

    def forward(self, tokens: Tensor) -> Tensor:
        w = self.w
        x = w["W_E"][tokens] + w["W_pos"]
        q, k, v = (torch.einsum("bpd,hde->bhpe", x, w[f"W_{name}"]) for name in "QKV")
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(self.mask, -torch.inf)
        x = x + torch.einsum("bhpe,hed->bpd", scores.softmax(-1) @ v, w["W_O"])
        x = x + (x @ w["W_in"] + w["b_in"]).relu() @ w["W_out"] + w["b_out"]
        return x @ w["W_U"]


def demo(
    run: Run, config: Config, device: str, epochs: int, warm: int, dtype: torch.dtype = torch.float32
) -> tuple[list[float], float]:
    """Losses before each step, and seconds an epoch behind the warm-up."""
    flat = initial(config.shape, [run.seed]).to(dtype)
    net = Network({name: value[0] for name, value in unpack(flat, config.shape).items()}).to(device)
    s = split(config.shape.p, run.size, seed=run.seed)
    table = torch.cat([pairs(config.shape.p), torch.full((config.shape.p**2, 1), config.shape.p)], 1)
    tokens, labels = table[s.train].to(device), s.labels[s.train].to(device)
    opt = torch.optim.AdamW(net.parameters(), lr=config.lr, betas=config.betas, weight_decay=run.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1.0, (step + 1) / config.warmup))
    losses = []
    for step in range(epochs):
        if step == warm:
            started = clock(device)
        loss = nn.functional.cross_entropy(net(tokens)[:, -1].double(), labels)
        losses.append(loss.detach())
        loss.backward()
        opt.step()
        schedule.step()
        opt.zero_grad()
    return torch.stack(losses).tolist(), (clock(device) - started) / (epochs - warm)


def clock(device: str) -> float:
    """Seconds, when the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> int:
    """Both ways at every shape, and the agreement of their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", nargs="+", choices=list(PLANS), default=["paper", "lab"])
    parser.add_argument("--epochs", type=int, default=0, help="timed epochs; by default 20 on a CPU, 200 elsewhere")
    parser.add_argument("--matmul", choices=["highest", "medium"], default="highest")
    args = parser.parse_args()
    torch.set_float32_matmul_precision(args.matmul)
    epochs = args.epochs or (20 if args.device == "cpu" else 200)
    worst = 0.0
    print(f"{args.runs} runs on {args.device}, {torch.get_num_threads()} CPU threads, matmul {args.matmul}")
    print("| shape | p | examples | demo, run-epochs/s | ours, run-epochs/s | ratio | float64 | float32 |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.shape:
        plan = PLANS[name]
        runs = [Run(plan.size, seed, plan.decay) for seed in range(args.runs)]
        config = Config(200, plan.shape, every=1)
        differences = []
        for dtype in (torch.float64, torch.float32):
            flat = initial(plan.shape, [0]).to(dtype)
            start = State(flat, torch.zeros_like(flat), torch.zeros_like(flat), 0)
            ours = train(runs[:1], config, start=start, device=args.device).history["train_loss"][:-1, 0]
            theirs, _ = demo(runs[0], config, args.device, 200, 0, dtype)
            differences.append((ours - torch.tensor(theirs, dtype=torch.float64)).abs().max().item())
        worst = max(worst, differences[0])
        _, slow = demo(runs[0], config, args.device, epochs + 5, 5)

        def timed(n: int, runs: list[Run] = runs, shape: object = plan.shape) -> float:
            started = clock(args.device)
            train(runs, Config(n, shape, every=10**6), device=args.device)  # type: ignore[arg-type]
            return clock(args.device) - started

        timed(1)
        once = timed(1)  # set-up and the two evaluations
        fast = (timed(1 + epochs) - once) / epochs / len(runs)
        print(
            f"| {name} | {plan.shape.p} | {plan.size} | {1 / slow:.1f} | {1 / fast:.1f} | {slow / fast:.1f}x "
            f"| {differences[0]:.1e} | {differences[1]:.1e} |",
            flush=True,
        )
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
