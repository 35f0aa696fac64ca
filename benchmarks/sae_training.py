"""SAE training against SAELens and dictionary_learning, each in an environment of its own.

    python benchmarks/sae_training.py --sae-lens PYTHON --dictionary-learning PYTHON [--threads 2] [--d-sae 1024 4096]

First all train on the same activations, the lab model's at the output of an MLP, computed beforehand, with the same
width, batch, number of steps, learning rate, and precision of matrix products; what they keep for themselves is their
recipe (initialisation, schedule, dead latents). TopK is the fair comparison: all have the same number of active
latents, so the unexplained variance (FVU) on held-out activations says who has learnt more. The other kinds print
their L0 beside it. Speed is tokens a second behind a warm-up of ten steps. Then the same end to end: each library's own
store runs the model on the same rows of text. Last, what a sweep of eight sparsities costs beside one. Exit status 1 if
our TopK leaves more variance unexplained than a peer's by over two percent of the variance.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
if sys.platform == "linux" and any(name not in os.environ for name in MALLOC):  # the same allocator for all
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | MALLOC)

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from mechinterp.datasets.text import generated_rows  # noqa: E402
from mechinterp.models import load  # noqa: E402
from mechinterp.models.load import LAB  # noqa: E402
from mechinterp.sae import Config, Given, Spec, Store, activations, reconstruction, train  # noqa: E402

LAYER = 2
HOOK = f"blocks.{LAYER}.hook_mlp_out"
PEERS = Path(__file__).with_name("_peers")
WARM = 10
# Each library's own coefficient, for an L0 of some dozens where that is free.
SPARSITY = {
    "topk": {"ours": 16, "sae_lens": 16, "dictionary_learning": 16},
    "standard": {"ours": 0.15, "sae_lens": 5.0, "dictionary_learning": 0.1},
    "jumprelu": {"ours": 0.02, "sae_lens": 10.0, "dictionary_learning": 32},
    "gated": {"ours": 0.2, "sae_lens": 5.0, "dictionary_learning": 0.15},
}


def schedule(steps: int) -> Config:
    """What the peers do unless told otherwise: Adam's usual moments, a constant rate behind a short warm-up."""
    warm = steps // 20
    return Config(
        steps, betas=(0.9, 0.999), lr_warmup=warm, sparsity_warmup=warm, bandwidth=0.03, threshold_rate=5.0,
        log_every=steps,
    )  # fmt: skip


def clock(device: str) -> float:
    """Seconds, when the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


class Timed:
    """Passes everything on and remembers when each batch was asked for."""

    def __init__(self, source: Given | Store, device: str) -> None:
        self.source, self.device, self.asked = source, device, list[float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The same batches."""
        batches = self.source.batches(start)
        while True:
            self.asked.append(clock(self.device))
            yield next(batches)


def ours(
    source: Given | Store, held_out: Tensor, specs: list[Spec], steps: int, warm: int, precision: str
) -> dict[str, float]:
    """Speed in the steps behind a warm-up, and the quality of the first SAE."""
    timed = Timed(source, held_out.device.type)
    result = train(specs, timed, schedule(steps), precision=precision)  # type: ignore[arg-type]
    seconds = clock(held_out.device.type) - timed.asked[warm]
    found = reconstruction(result.saes[0], held_out)
    return {"tokens_per_second": (steps - warm) * source.batch / seconds, "fvu": found.fvu, "l0": found.l0}


def peer(python: str, name: str, options: dict[str, object]) -> dict[str, float]:
    """The same of a library, in its own interpreter."""
    flags = [str(part) for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)]
    command = [python, str(PEERS / f"{name}_train.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PEERS)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """All kinds, widths and precisions against both peers, end to end, and the cost of a sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae-lens", help="Python of an environment with sae-lens")
    parser.add_argument("--dictionary-learning", help="Python of an environment with dictionary-learning")
    parser.add_argument("--kinds", nargs="+", choices=list(SPARSITY), default=list(SPARSITY))
    parser.add_argument("--d-sae", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--matmul", nargs="+", choices=["highest", "high", "medium"], default=["highest", "medium"])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load("lab", device=args.device)
    rows = generated_rows(model.tokenizer, args.rows + 100, 256, seed=3)
    flat = activations(model, rows, [HOOK])[HOOK][rows.to(args.device) != 0]
    held_out, x = flat[:20_000].contiguous(), flat[20_000:].contiguous()
    pythons = {"sae_lens": args.sae_lens, "dictionary_learning": args.dictionary_learning}
    pythons = {name: python for name, python in pythons.items() if python}
    fixed = {"batch": args.batch, "steps": args.steps, "lr": args.lr, "threads": args.threads, "device": args.device}
    worst = 0.0
    print(f"{len(x)} activations, batch {args.batch}, {args.steps} steps, {args.threads} threads, {args.device}")
    print("| kind | d_sae | products | library | tokens / s | ratio | L0 | FVU |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file({"x": x.cpu()}, folder / "x.safetensors")
        save_file({"x": held_out.cpu()}, folder / "held_out.safetensors")
        save_file({"rows": rows[100:].contiguous()}, folder / "rows.safetensors")
        files = {"held_out": folder / "held_out.safetensors"}
        ready = files | {"activations": folder / "x.safetensors"}
        whole = files | {"model": LAB, "rows": folder / "rows.safetensors", "layer": LAYER}
        given, store = Given({HOOK: x}, batch=args.batch), stored(model, rows, args.batch)
        cases = [(kind, width, False) for width in args.d_sae for kind in args.kinds]
        for kind, width, end_to_end in [*cases, ("topk", args.d_sae[0], True)]:
            spec = Spec(kind, HOOK, width, SPARSITY[kind]["ours"], lr=args.lr)
            label = f"{kind}, end to end" if end_to_end else kind
            for matmul in args.matmul:
                warm = 0 if end_to_end else WARM
                source = stored(model, rows, args.batch) if end_to_end else given
                mine = ours(source, held_out, [spec], args.steps, warm, matmul)
                show(label, width, matmul, "ours", mine, 1.0)
                for library, python in pythons.items():
                    options = {"kind": kind, "d_sae": width, "sparsity": SPARSITY[kind][library], "matmul": matmul}
                    found = peer(python, library, (whole if end_to_end else ready) | fixed | options)
                    show(label, width, matmul, library, found, mine["tokens_per_second"] / found["tokens_per_second"])
                    if kind == "topk":
                        worst = max(worst, mine["fvu"] - found["fvu"])
        sweep({"activations at hand": given, "end to end": store}, args)
    return int(worst > 0.02)


def stored(model: object, rows: Tensor, batch: int) -> Store:
    """A store that has computed nothing yet."""
    return Store(model, rows[100:], (HOOK,), batch=batch, block=200)


def show(kind: str, width: int, matmul: str, library: str, found: dict[str, float], ratio: float) -> None:
    """One row of the table."""
    speed, l0, fvu = found["tokens_per_second"], found["l0"], found["fvu"]
    print(
        f"| {kind} | {width} | {matmul} | {library} | {speed:,.0f} | {ratio:.1f}x | {l0:.1f} | {fvu:.3f} |", flush=True
    )


def sweep(sources: dict[str, Given | Store], args: argparse.Namespace) -> None:
    """Eight sparsities against one, with activations at hand and end to end."""
    levels = [0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3]
    width, config = args.d_sae[0], schedule(args.steps)
    for name, source in sources.items():
        for matmul in args.matmul:
            seconds = []
            for chosen in (levels[3:4], levels):
                specs = [Spec("standard", HOOK, width, level, lr=args.lr) for level in chosen]
                train(specs, source, schedule(WARM), precision=matmul)
                started = clock(args.device)
                train(specs, source, config, precision=matmul)
                seconds.append(clock(args.device) - started)
            one, eight = seconds
            print(f"sweep of 8, {name}, {matmul}: {eight:.1f} s, one {one:.1f} s, {eight / one:.1f}x", flush=True)


if __name__ == "__main__":
    sys.exit(main())
