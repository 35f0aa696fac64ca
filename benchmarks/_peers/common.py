"""What both peer runners share, so that they differ in the library alone: jobs, batches, clock, measure.

    python NAME_train.py --jobs FILE --activations FILE --held-out FILE [--threads 2] [--device cpu]

FILE holds a list of jobs, each of them one SAE to train: kind, d_sae, sparsity (the library's own coefficient, its k or
its target), lr, batch, steps, seed, matmul (of `torch.set_float32_matmul_precision`), and the folder to save it in. A
line of JSON comes out for each: the job, seconds, and L0 and FVU on held-out activations by the library's own code.
With --model and --rows batches come from the library's own store, which reads the rows with a GPT-2 of the folder, at
the output of an MLP.

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
from types import SimpleNamespace
from typing import Any

os.environ |= {"TQDM_DISABLE": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}

import torch
from safetensors.torch import load_file
from torch import Tensor


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


Train = Callable[[SimpleNamespace, Timed, int], tuple[float, Any]]
"""Of a job, its batches and their width: seconds of all steps, and an SAE with encode and decode, saved in the job's
folder."""
Source = Callable[[SimpleNamespace], Iterator[Tensor]]


def clock(device: str) -> float:
    """Seconds, when the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_memory(job: SimpleNamespace) -> Iterator[Tensor]:
    """Shuffled batches of the given activations, without end: the order in which `mechinterp.sae.Given` has them."""
    turn = 0
    while True:
        generator = torch.Generator().manual_seed(job.seed * 1_000_003 + turn * 10_007)
        order = torch.randperm(len(job.x), generator=generator).to(job.x.device)
        for part in order[: len(order) // job.batch * job.batch].split(job.batch):
            yield job.x[part]
        turn += 1


def gpt2(job: SimpleNamespace) -> tuple[torch.nn.Module, Any, Tensor]:
    """The model of the folder, its tokenizer, and the rows."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(job.model, dtype=torch.float32).to(job.device).eval()
    return model, AutoTokenizer.from_pretrained(job.model), load_file(Path(job.rows))["rows"]


def quiet() -> contextlib.redirect_stdout:
    """What a library prints goes to stderr; stdout is for the result."""
    return contextlib.redirect_stdout(sys.stderr)


@torch.no_grad()
def measured(sae: Any, x: Tensor) -> dict[str, float]:
    """E‖x - x̂‖² / E‖x - E x‖² and active latents a token."""
    error, active = 0.0, 0.0
    for some in x.split(4096):
        f = sae.encode(some)
        error += (some - sae.decode(f)).double().square().sum().item()
        active += (f > 0).double().sum().item()
    return {"fvu": error / (x - x.mean(0)).double().square().sum().item(), "l0": active / len(x)}


def main(description: str | None, train: Train, own_store: Source) -> None:
    """Do all jobs of the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", required=True, type=Path, help="JSON list of jobs")
    parser.add_argument("--activations", help='safetensors with the tensor "x" [token d_in]')
    parser.add_argument("--model", help="folder of a GPT-2, in place of --activations")
    parser.add_argument("--rows", help='safetensors with the tensor "rows" [row pos], tokens for the model')
    parser.add_argument("--layer", type=int, default=2, help="whose MLP's output is read")
    parser.add_argument("--held-out", required=True, help="activations for fvu and l0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if (args.activations is None) == (args.model is None):
        parser.error("give either --activations or --model and --rows")
    torch.set_num_threads(args.threads)
    held_out = load_file(args.held_out, device=args.device)["x"]
    x = load_file(args.activations, device=args.device)["x"] if args.activations else None
    for facts in json.loads(args.jobs.read_text()):
        torch.set_float32_matmul_precision(facts["matmul"])
        torch.manual_seed(facts["seed"])
        job = SimpleNamespace(**vars(args) | facts, x=x)
        source = own_store(job) if x is None else in_memory(job)
        with quiet():
            seconds, sae = train(job, Timed(source, args.device), held_out.shape[1])
            found = measured(sae, held_out)
        print(json.dumps(facts | {"seconds": seconds} | found), flush=True)
