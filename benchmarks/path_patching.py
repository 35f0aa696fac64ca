"""Path and activation patching: this package against hooks and against TransformerLens.

    python benchmarks/path_patching.py [--shape lab gpt2 smollm2] [--task logits queries ...] [--full]

Tasks, on 100 random prompts of 17 tokens, the metric read at the last one:

- logits: path patching of every head to the logits
- queries: path patching of every head to the queries of three late heads at the last position
- resid: activation patching of the residual stream at every layer and position
- heads: activation patching of every head's output at every position

Peers: `hooks` is path patching done literally, as public implementations do it: one forward pass per sender
to the logits, two per sender to queries. `transformer_lens` is its own `patching` module, one forward pass
per cell (it has no path patching that recomputes MLPs).

Every measurement is a process of its own, so that memory can be compared: the peak of the resident set while
the method runs, less what the loaded model holds. Slow peers are timed on every k-th sender or cell unless
`--full` is given; their time is then extrapolated, marked ~. `effect` is the largest change of the metric by any
patch, `diff` the largest disagreement, over prompts. Exit status 1 if answers differ by more than 1e-4.
"""

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMPTS, LENGTH = 100, 17
TOLERANCE = 1e-4
PEERS = {"logits": "hooks", "queries": "hooks", "resid": "transformer_lens", "heads": "transformer_lens"}
SHAPES = ("lab", "gpt2", "smollm2")
SUBSET = {"lab": 40, "gpt2": 12, "smollm2": 9}
"""Senders or cells that slow peers are timed on by default."""


def load(shape: str, device: str) -> Any:
    """The lab model, SmolLM2, or a model of GPT-2 small's shape with random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from mechinterp.models import load, load_tokenizer, to_bridge

    if shape != "gpt2":
        return load(shape, device=device)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    return to_bridge(model, load_tokenizer("lab"), name=shape, device=device)


class Problem:
    """Prompts, metric and receivers, the same in every process."""

    def __init__(self, model: Any) -> None:
        import torch

        from mechinterp import Head, all_heads

        g = torch.Generator().manual_seed(0)
        device = model.W_E.device
        self.clean, self.corrupt = (torch.randint(8192, (PROMPTS, LENGTH), generator=g).to(device) for _ in range(2))
        self.answer = torch.randint(8192, (PROMPTS, 2), generator=g).to(device)
        self.at = torch.full((PROMPTS,), LENGTH - 1, device=device)
        last = model.cfg.n_layers - 1
        self.movers = [Head(last, 1), Head(last - 1, 0), Head(last - 1, 2)]
        self.senders = all_heads(model)
        self.rows = torch.arange(PROMPTS, device=device)

    def metric(self, logits: Any) -> Any:
        """Difference of two random tokens' logits."""
        return logits.gather(1, self.answer[:, :1])[:, 0] - logits.gather(1, self.answer[:, 1:])[:, 0]


def ours(model: Any, p: Problem, task: str) -> tuple[Any, Any]:
    """This package's answer and its baseline: [layer head prompt], [layer pos prompt] or [layer head pos prompt]."""
    from mechinterp.patching import activation_patch, path_patch

    if task in ("resid", "heads"):
        node = {"resid": "resid_pre", "heads": "z"}[task]
        result: Any = activation_patch(model, p.clean, p.corrupt, node=node, metric=p.metric, at=p.at)
        return result.patched, result.clean
    options: dict[str, Any] = {}
    if task == "queries":
        options = {"receivers": [(h, "q") for h in p.movers], "receiver_positions": p.at}
    result = path_patch(model, p.clean, p.corrupt, metric=p.metric, at=p.at, **options)
    return result.patched, result.clean


def hooks(model: Any, p: Problem, task: str, every: int | None) -> tuple[Any, list[tuple[int, ...]], float, float]:
    """Appendix B of Wang et al. with hooks; values, their cells, seconds before the loop, seconds a cell."""
    import torch

    def is_z(name: str) -> bool:
        return name.endswith("attn.hook_z")

    begin = time.perf_counter()
    _, clean = model.run_with_cache(p.clean, names_filter=is_z)
    _, corrupt = model.run_with_cache(p.corrupt, names_filter=is_z)
    senders = p.senders if task == "logits" else [h for h in p.senders if h.layer < max(r.layer for r in p.movers)]
    senders = senders if every is None else senders[:: max(1, len(senders) // every)]
    names = {f"blocks.{r.layer}.attn.hook_q" for r in p.movers}
    start = time.perf_counter()
    values = []
    for sender in senders:

        def freeze(z: Any, hook: Any, sender: Any = sender) -> Any:
            z = clean[hook.name].clone()
            if hook.name == f"blocks.{sender.layer}.attn.hook_z":
                z[:, :, sender.head] = corrupt[hook.name][:, :, sender.head]
            return z

        frozen = [(is_z, freeze)]
        if task == "logits":
            logits = model.run_with_hooks(p.clean, fwd_hooks=frozen)[p.rows, p.at]
        else:
            got: dict[str, Any] = {}

            def listen(q: Any, hook: Any, got: dict[str, Any] = got) -> None:
                got[hook.name] = q[:, -1].clone()

            model.run_with_hooks(p.clean, fwd_hooks=[*frozen, (lambda name: name in names, listen)])

            def override(q: Any, hook: Any, got: dict[str, Any] = got) -> Any:
                for r in p.movers:
                    if hook.name == f"blocks.{r.layer}.attn.hook_q":
                        q[:, -1, r.head] = got[hook.name][:, r.head]
                return q

            logits = model.run_with_hooks(p.clean, fwd_hooks=[(lambda name: name in names, override)])[p.rows, p.at]
        values.append(p.metric(logits))
    return torch.stack(values), senders, start - begin, (time.perf_counter() - start) / len(senders)


def transformer_lens(
    model: Any, p: Problem, task: str, every: int | None
) -> tuple[Any, list[tuple[int, ...]], float, float]:
    """TransformerLens' generic activation patching; values, their cells, seconds before the loop, seconds a cell."""
    from itertools import product

    import pandas as pd
    import torch
    from transformer_lens import patching

    begin = time.perf_counter()
    node = {"resid": "resid_pre", "heads": "hook_z"}[task]
    _, cache = model.run_with_cache(p.corrupt, names_filter=lambda name: name.endswith(node))
    setter = {"resid": patching.layer_pos_patch_setter, "heads": patching.layer_pos_head_vector_patch_setter}[task]
    axes = [range(model.cfg.n_layers), range(LENGTH), *([range(model.cfg.n_heads)] if task == "heads" else [])]
    cells = list(product(*axes))
    # A step that has no factor in common with the number of positions or heads, so that all of them occur.
    cells = cells if every is None else cells[:: max(1, len(cells) // every) | 1]
    start = time.perf_counter()
    values = []

    def metric(logits: Any) -> Any:
        values.append(p.metric(logits[p.rows, p.at]))
        return values[-1].mean()

    patching.generic_activation_patch(
        model,
        p.clean,
        cache,
        metric,
        setter,
        {"resid": "resid_pre", "heads": "z"}[task],
        index_df=pd.DataFrame(cells, columns=["layer", "pos", "head"][: len(axes)]),
    )
    index = [(c[0], c[2], c[1]) if task == "heads" else c for c in cells]
    return torch.stack(values), index, start - begin, (time.perf_counter() - start) / len(cells)


def resident() -> int:
    """Resident set in bytes; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


@contextmanager
def peak(device: str) -> Iterator[Callable[[], float]]:
    """Measure the peak memory of a block beyond what is held before it, in MiB."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of the resident set
    except OSError:
        warnings.warn("peak memory cannot be reset here: the peak includes loading the model", stacklevel=3)
    before = resident()

    def highest() -> float:
        high = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return (int(high[1]) * 1024 - before) / 2**20 if high else 0.0

    yield highest


def work(shape: str, task: str, method: str, *, full: bool, device: str, out: Path) -> None:
    """One measurement, in a process of its own."""
    import torch

    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    model = load(shape, device)
    p = Problem(model)
    model(p.clean[:2])
    ours(model, p, task) if method == "ours" and shape == "lab" else None  # warm up
    result: dict[str, Any] = {}
    with peak(device) as highest:
        start = time.perf_counter()
        if method == "ours":
            values, clean = ours(model, p, task)
            seconds, part = time.perf_counter() - start, 1.0
            index = [tuple(i) for i in torch.ones(values.shape[:-1]).nonzero().tolist()]
            effect = (values - clean).abs().max().item()
            values = values.flatten(0, -2)
        else:
            run = {"hooks": hooks, "transformer_lens": transformer_lens}[method]
            values, index, before, each = run(model, p, task, None if full else SUBSET[shape])
            layers = max(r.layer for r in p.movers) if task == "queries" else model.cfg.n_layers
            heads = 1 if task == "resid" else model.cfg.n_heads
            total = layers * heads * (LENGTH if task in ("resid", "heads") else 1)
            seconds, part, effect = before + each * total, len(index) / total, 0.0
        if device != "cpu":
            torch.cuda.synchronize()
        result = {"seconds": seconds, "part": part, "effect": effect, "peak": highest()}
    cells = {",".join(map(str, i)): v for i, v in zip(index, values.tolist(), strict=True)}
    out.write_text(json.dumps(result | {"cells": cells}))


def measure(shape: str, task: str, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        command = [sys.executable, __file__, "--shape", shape, "--task", task, "--worker", method, "--out", str(out)]
        command += ["--device", args.device, *(["--full"] if args.full else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shape}, {task}, {method} failed:\n{done.stderr[-4000:]}")
        return json.loads(out.read_text())


def line(*cells: str) -> str:
    """One line of the table."""
    widths = (-6, -8, -17, 9, 7, 9, 7, 11)
    return " ".join(f"{c:{'<' if w < 0 else '>'}{abs(w)}}" for c, w in zip(cells, widths, strict=True)).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--task", nargs="+", choices=tuple(PEERS), help="default: all, but heads on the lab shape only")
    parser.add_argument("--full", action="store_true", help="run slow peers on every sender and cell")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--worker", choices=("ours", *PEERS.values()), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.shape[0], args.task[0], args.worker, full=args.full, device=args.device, out=args.out)
        return
    print(f"{PROMPTS} prompts of {LENGTH} tokens on {args.device}")
    print(line("shape", "task", "method", "seconds", "ratio", "peak MiB", "effect", "max |diff|"), flush=True)
    wrong = False
    for shape in args.shape:
        for task in args.task or [t for t in PEERS if shape == "lab" or t != "heads"]:
            mine, peer = (measure(shape, task, method, args) for method in ("ours", PEERS[task]))
            worst = max(
                abs(a - b) for cell, row in peer["cells"].items() for a, b in zip(mine["cells"][cell], row, strict=True)
            )
            wrong |= not worst <= TOLERANCE
            mark = "" if peer["part"] > 0.999 else "~"
            ratio = f"{mark}{peer['seconds'] / mine['seconds']:.1f}x"
            took, theirs = f"{mine['seconds']:.2f}", f"{mark}{peer['seconds']:.2f}"
            print(line(shape, task, "ours", took, "", f"{mine['peak']:.0f}", f"{mine['effect']:.2f}", ""))
            print(line(shape, task, PEERS[task], theirs, ratio, f"{peer['peak']:.0f}", "", f"{worst:.1e}"), flush=True)
    if not args.full:
        print("~ extrapolated from every k-th sender or cell; --full runs them all")
    if wrong:
        raise SystemExit(f"answers differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
