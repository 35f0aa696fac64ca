"""What both peer runners share, so that they differ in the library alone: arguments, batches, clock, measure.

Needs nothing but PyTorch and safetensors, which every peer's environment has.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

os.environ |= {"TQDM_DISABLE": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}

import torch
from safetensors.torch import load_file
from torch import Tensor

WARM = 10
"""Steps before the clock starts."""


def arguments(description: str) -> argparse.Namespace:
    """The command line; also sets threads and the global seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", required=True, help='safetensors with the tensor "x" [token d_in]')
    parser.add_argument("--held-out", required=True, help="the same, for fvu and l0")
    parser.add_argument("--kind", required=True, choices=["standard", "topk", "jumprelu", "gated"])
    parser.add_argument("--d-sae", type=int, required=True)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--sparsity", type=float, required=True, help="the library's coefficient, or k, or target L0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.steps <= WARM:
        parser.error(f"--steps must be more than the {WARM} of the warm-up")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


class Batches:
    """Shuffled batches of rows without end; remembers when each was asked for."""

    def __init__(self, path: str, batch: int, seed: int) -> None:
        self.x = load_file(path)["x"]
        self.batch, self.generator = batch, torch.Generator().manual_seed(seed)
        self.left: list[Tensor] = []
        self.asked: list[float] = []

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        self.asked.append(time.perf_counter())
        if not self.left:
            order = torch.randperm(len(self.x), generator=self.generator)
            self.left = list(order[: len(order) // self.batch * self.batch].split(self.batch))
        return self.x[self.left.pop()]


def quiet() -> contextlib.redirect_stdout:
    """What a library prints goes to stderr; stdout is for the result."""
    return contextlib.redirect_stdout(sys.stderr)


@torch.no_grad()
def report(
    seconds: float,
    args: argparse.Namespace,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
) -> None:
    """One JSON line: speed behind the warm-up; E‖x - x̂‖² / E‖x - E x‖² and active latents a token, held out."""
    x = load_file(args.held_out)["x"]
    error, active = 0.0, 0.0
    for some in x.split(args.batch):
        f = encode(some)
        error += (some - decode(f)).double().square().sum().item()
        active += (f > 0).double().sum().item()
    spread = (x - x.mean(0)).double().square().sum().item()
    speed = (args.steps - WARM) * args.batch / seconds
    print(json.dumps({"seconds": seconds, "tokens_per_second": speed, "fvu": error / spread, "l0": active / len(x)}))
