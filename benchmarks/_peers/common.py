"""What both peer runners share, so that they differ in the library alone: arguments, batches, clock, measure.

With --activations all batches are in memory; with --model and --rows they come from the library's own store, which
reads the rows with a GPT-2 of the folder, at the output of an MLP.

Needs nothing but PyTorch and safetensors, which every peer's environment has.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"TQDM_DISABLE": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}

import torch
from safetensors.torch import load_file
from torch import Tensor

WARM = 10
"""Steps before the clock starts, where no model is run."""


def arguments(description: str) -> argparse.Namespace:
    """The command line; also sets threads and the global seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", help='safetensors with the tensor "x" [token d_in]')
    parser.add_argument("--model", help="folder of a GPT-2, in place of --activations")
    parser.add_argument("--rows", help='safetensors with the tensor "rows" [row pos], tokens for the model')
    parser.add_argument("--layer", type=int, default=2, help="whose MLP's output is read")
    parser.add_argument("--held-out", required=True, help="activations for fvu and l0")
    parser.add_argument("--kind", required=True, choices=["standard", "topk", "jumprelu", "gated"])
    parser.add_argument("--d-sae", type=int, required=True)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--sparsity", type=float, required=True, help="the library's coefficient, or k, or target L0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--matmul", default="highest", help="of torch.set_float32_matmul_precision")
    args = parser.parse_args()
    if args.steps <= WARM:
        parser.error(f"--steps must be more than the {WARM} of the warm-up")
    if (args.activations is None) == (args.model is None):
        parser.error("give either --activations or --model and --rows")
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.matmul)
    torch.manual_seed(args.seed)
    return args


def clock(device: str) -> float:
    """Seconds, when the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_memory(args: argparse.Namespace) -> Iterator[Tensor]:
    """Shuffled batches of the given activations, without end."""
    x = load_file(args.activations, device=args.device)["x"]
    generator = torch.Generator().manual_seed(args.seed)
    while True:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for part in order[: len(order) // args.batch * args.batch].split(args.batch):
            yield x[part]


def gpt2(args: argparse.Namespace) -> tuple[torch.nn.Module, object, Tensor]:
    """The model of the folder, its tokenizer, and the rows."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(args.model, dtype=torch.float32).to(args.device).eval()
    return model, AutoTokenizer.from_pretrained(args.model), load_file(Path(args.rows))["rows"]


class Timed:
    """Passes batches on and remembers when each was asked for."""

    def __init__(self, batches: Iterator[Tensor], device: str) -> None:
        self.batches, self.device = batches, device
        self.asked: list[float] = []

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        self.asked.append(clock(self.device))
        return next(self.batches)


def quiet() -> contextlib.redirect_stdout:
    """What a library prints goes to stderr; stdout is for the result."""
    return contextlib.redirect_stdout(sys.stderr)


@torch.no_grad()
def report(
    seconds: float,
    steps: int,
    args: argparse.Namespace,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
) -> None:
    """One JSON line: speed in those steps; E‖x - x̂‖² / E‖x - E x‖² and active latents a token, held out."""
    x = load_file(args.held_out, device=args.device)["x"]
    error, active = 0.0, 0.0
    for some in x.split(args.batch):
        f = encode(some)
        error += (some - decode(f)).double().square().sum().item()
        active += (f > 0).double().sum().item()
    spread = (x - x.mean(0)).double().square().sum().item()
    speed = steps * args.batch / seconds
    print(json.dumps({"seconds": seconds, "tokens_per_second": speed, "fvu": error / spread, "l0": active / len(x)}))
