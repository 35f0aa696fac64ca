"""SAE training against SAELens and dictionary_learning, each in an environment of its own: quality, then speed.

    python benchmarks/sae_training.py --sae-lens PYTHON --dictionary-learning PYTHON --out FOLDER

All train on the same activations, the lab model's at the output of an MLP, in the same order of batches. What they keep
for themselves is their recipe: initialisation, schedule, dead latents, units of the coefficient. Each gets the same
small budget of tuning, three learning rates at two sparsities, and then four sparsities with three seeds. Every SAE is
read from the files that its library wrote and measured by one code, on held-out activations and in the model: the
unexplained variance (FVU) and the increase in the model's loss, by linear interpolation in log L0 at five L0s. Our
reading is held against the library's own FVU.

Speed is in the same table: tokens a second of a whole training of 300 larger batches, at the sparsity and the learning
rate of the middle of each library's frontier. Then end to end, where each library's own store runs the model, and what
a sweep of eight sparsities costs beside one.

FOLDER keeps a line a run; a benchmark that was killed goes on, `--only` says with which parts. `--export` writes the
frontiers into the package (`sweeps.by_library`). Exit status 1 where ours leaves more variance unexplained than a
peer, by more than the interval of the paired differences.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
if sys.platform == "linux" and any(name not in os.environ for name in MALLOC):  # the same allocator for all
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | MALLOC)

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from mechinterp import stats  # noqa: E402
from mechinterp.datasets.text import generated_rows  # noqa: E402
from mechinterp.files import read_parts, write_parts  # noqa: E402
from mechinterp.models import load  # noqa: E402
from mechinterp.models.load import LAB  # noqa: E402
from mechinterp.sae import SAE, Config, Given, Spec, Store, activations, evaluate, reconstruction, site, train  # noqa: E402
from mechinterp.sae import load as load_sae  # noqa: E402
from mechinterp.sae.study import curve  # noqa: E402
from mechinterp.sae.study.sweeps import LIBRARIES_FILE  # noqa: E402

LAYER = 2
HOOK = f"blocks.{LAYER}.hook_mlp_out"
PEERS = Path(__file__).with_name("_peers")
LIBRARIES = ("ours", "sae_lens", "dictionary_learning")
WIDTH, BATCH, LONG = 1024, 256, 2048
RATES = (1e-3, 3e-3, 1e-2)
SEEDS = (0, 1, 2)
POINTS = (5, 10, 20, 40, 80)
# Each library's own coefficient, from dense to sparse, for L0s from about 100 to 5.
SPARSITY: dict[str, dict[str, tuple[float, ...]]] = {
    "topk": dict.fromkeys(LIBRARIES, (100, 40, 15, 5)),
    "standard": {
        "ours": (0.02, 0.05, 0.12, 0.3),
        "sae_lens": (0.3, 0.9, 2.5, 7.0),
        "dictionary_learning": (0.02, 0.05, 0.12, 0.3),
    },
    "gated": {
        "ours": (0.04, 0.1, 0.25, 0.6),
        "sae_lens": (0.6, 1.8, 5.0, 14.0),
        "dictionary_learning": (0.04, 0.1, 0.25, 0.6),
    },
    "jumprelu": {
        "ours": (0.0003, 0.001, 0.004, 0.015),
        "sae_lens": (0.08, 0.3, 1.0, 4.0),
        "dictionary_learning": (100, 40, 15, 5),
    },
}
Run = dict[str, Any]


def schedule(steps: int) -> Config:
    """What the peers do unless told otherwise: Adam's usual moments, a constant rate behind a short warm-up."""
    warm = steps // 20
    return Config(
        steps, betas=(0.9, 0.999), lr_warmup=warm, sparsity_warmup=warm, bandwidth=0.03, threshold=0.01,
        threshold_rate=20.0, log_every=steps,
    )  # fmt: skip


def clock(device: str) -> float:
    """Seconds, when the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


class Bench:
    """Activations, held-out text, and the runs that are done."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.out
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(args.threads)
        self.model = load("lab", device=args.device)
        rows = generated_rows(self.model.tokenizer, args.rows + 100, 256, seed=3)
        self.rows = rows[100:].contiguous()
        flat = activations(self.model, rows, [HOOK])[HOOK][rows.to(args.device) != 0]
        self.held_out, self.x = flat[:20_000].contiguous(), flat[20_000:].contiguous()
        self.site = site(self.model, generated_rows(self.model.tokenizer, 24, 256, seed=5), HOOK)
        for name, key, value in (("x", "x", self.x), ("held_out", "x", self.held_out), ("rows", "rows", self.rows)):
            save_file({key: value.cpu()}, self.folder / f"{name}.safetensors")
        self.pythons = {"sae_lens": args.sae_lens, "dictionary_learning": args.dictionary_learning}
        self.log = self.folder / "runs.jsonl"
        self.done = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def libraries(self) -> list[str]:
        """Ours, and the peers whose interpreter was given."""
        return [name for name in LIBRARIES if name == "ours" or self.pythons[name]]

    def runs(self, part: str, jobs: Sequence[Run], *, end_to_end: bool = False) -> list[Run]:
        """The results of jobs, each with its library: those that are not there yet are done, library by library."""
        for library in self.libraries:
            todo = [job for job in jobs if job["library"] == library and self.found(part, job) is None]
            if todo:
                done = self.ours(todo, end_to_end) if library == "ours" else self.peer(library, todo, end_to_end)
                for result in done:
                    self.done.append({"part": part, "library": library} | result)
                    with self.log.open("a") as file:
                        file.write(json.dumps(self.done[-1]) + "\n")
        results = [self.found(part, job) for job in jobs if job["library"] in self.libraries]
        return [result for result in results if result is not None]

    def found(self, part: str, job: Run) -> Run | None:
        """The result of a job that was done before."""
        key = {"part": part, **job}
        return next((one for one in self.done if all(one.get(name) == value for name, value in key.items())), None)

    def ours(self, jobs: Sequence[Run], end_to_end: bool) -> Iterator[Run]:
        """Jobs of our own library."""
        for job in jobs:
            spec = Spec(job["kind"], HOOK, job["d_sae"], job["sparsity"], job["seed"], job["lr"])
            source = self.store(job["batch"]) if end_to_end else Given({HOOK: self.x}, job["batch"], job["seed"])
            started = clock(self.args.device)
            [sae] = train([spec], source, schedule(job["steps"]), precision=job["matmul"]).saes
            yield job | {"seconds": clock(self.args.device) - started} | self.measured(sae)

    def peer(self, library: str, jobs: Sequence[Run], end_to_end: bool) -> Iterator[Run]:
        """Jobs of another library, in its own interpreter."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            listed = [job | {"folder": str(folder / str(i))} for i, job in enumerate(jobs)]
            (folder / "jobs.json").write_text(json.dumps(listed))
            flags = {"jobs": folder / "jobs.json", "held-out": self.folder / "held_out.safetensors"}
            flags |= {"threads": self.args.threads, "device": self.args.device}
            if end_to_end:
                flags |= {"model": LAB, "rows": self.folder / "rows.safetensors", "layer": LAYER}
            else:
                flags |= {"activations": self.folder / "x.safetensors"}
            words = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
            command = [self.pythons[library], str(PEERS / f"{library}_train.py"), *words]
            with (folder / "stderr").open("w+") as errors:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=PEERS)
                assert process.stdout is not None
                for job, line in zip(listed, process.stdout, strict=False):
                    result = json.loads(line)
                    mine = self.measured(load_sae(Path(job["folder"])))
                    if abs(mine["fvu"] - result["fvu"]) > 1e-3 + 0.01 * result["fvu"]:
                        raise RuntimeError(f"{job}: read by us FVU {mine['fvu']}, by {library} {result['fvu']}")
                    yield {key: value for key, value in result.items() if key != "folder"} | mine
                if process.wait():
                    errors.seek(0)
                    raise RuntimeError(f"{library} failed:\n{errors.read()[-2000:]}")

    def measured(self, sae: SAE) -> dict[str, float]:
        """Quality on held-out activations, and in the model."""
        sae = sae.to(self.args.device)
        found = reconstruction(sae, self.held_out)
        return {
            "l0": found.l0,
            "fvu": found.fvu,
            "added_loss": evaluate(self.model, sae, self.site).value("delta_loss"),
        }

    def store(self, batch: int) -> Store:
        """A store that has computed nothing yet."""
        return Store(self.model, self.rows, (HOOK,), batch=batch, block=200)


def frontier(bench: Bench, kind: str, steps: int) -> dict[str, list[Run]]:
    """By library the runs of its best learning rate: four sparsities, three seeds."""

    def jobs(library: str, lr: float, levels: Sequence[int], seeds: Sequence[int]) -> list[Run]:
        shared = {"library": library, "kind": kind, "d_sae": WIDTH, "batch": BATCH, "steps": steps, "lr": lr}
        shared |= {"matmul": "highest"}
        return [shared | {"sparsity": SPARSITY[kind][library][i], "seed": seed} for i in levels for seed in seeds]

    wanted = [job for name in bench.libraries for lr in RATES for job in jobs(name, lr, (1, 2), (0,))]
    tuning = bench.runs("frontier", wanted)
    best = {name: best_rate([run for run in tuning if run["library"] == name]) for name in bench.libraries}
    wanted = [job for name in bench.libraries for job in jobs(name, best[name], range(4), SEEDS)]
    runs = bench.runs("frontier", wanted)
    return {name: [run for run in runs if run["library"] == name] for name in bench.libraries}


def best_rate(runs: Sequence[Run]) -> float:
    """The learning rate with the least FVU at an L0 of 20, on the line through two runs in the logarithms."""

    def at_20(lr: float) -> float:
        (x0, y0), (x1, y1) = ((math.log(run["l0"] / 20), math.log(run["fvu"])) for run in runs if run["lr"] == lr)
        return y0 - x0 * (y1 - y0) / (x1 - x0)

    return min(RATES, key=at_20)


def export(kind: str, steps: int, runs: dict[str, list[Run]]) -> None:
    """Write a frontier into the package's file; others in it stay."""
    keys = ("sparsity", "seed", "lr", "l0", "fvu", "added_loss")
    short = {name: [{key: run[key] for key in keys} for run in own] for name, own in runs.items()}
    found = read_parts(LIBRARIES_FILE) | {f"{kind} {steps}": short}
    write_parts(LIBRARIES_FILE, dict(sorted(found.items())), first="sparsity")


def compare(kind: str, steps: int, runs: dict[str, list[Run]], speed: dict[str, float]) -> list[str]:
    """Print a kind's rows of the table; returns where ours is worse."""
    worse, at = [], torch.tensor(POINTS, dtype=torch.float64)
    found = {m: {name: curve(own, m).at(at) for name, own in runs.items()} for m in ("fvu", "added_loss")}
    rates = ", ".join(f"{own[0]['lr']:g}" for own in runs.values())
    for i, point in enumerate(POINTS):
        cells = [kind, str(steps), rates, str(point)]
        for measure, by_library in found.items():
            ours = by_library["ours"][:, i]
            cells.append(f"{ours.mean():.4f}")
            for name in list(by_library)[1:]:
                difference = ours - by_library[name][:, i]
                if difference.isnan().any():
                    cells.append("")
                    continue
                estimate = stats.mean(difference, unit="seeds")
                assert estimate.interval is not None
                lo, hi = estimate.interval
                cells.append(f"{by_library[name][:, i].mean():.4f} ({estimate.value:+.4f} [{lo:+.4f}, {hi:+.4f}])")
                if measure == "fvu" and lo > 0:
                    worse.append(f"{kind}, {steps} steps, L0 {point}: {estimate.value:+.4f} against {name}")
        cells += [f"{speed['ours'] / 1000:.0f}", *(f"{speed['ours'] / speed[name]:.1f}x" for name in list(speed)[1:])]
        print("| " + " | ".join(cells) + " |", flush=True)
    return worse


def speeds(bench: Bench, kind: str, runs: dict[str, list[Run]], *, end_to_end: bool = False) -> dict[str, float]:
    """Tokens a second by library, where its frontier is nearest an L0 of 30."""
    jobs = []
    for name, own in runs.items():
        near = min(own, key=lambda run: abs(math.log(run["l0"] / 30)))
        shared = {key: near[key] for key in ("kind", "d_sae", "lr", "sparsity")}
        jobs.append(shared | {"library": name, "batch": LONG, "steps": 300, "matmul": "highest", "seed": 0})
    part = "end to end" if end_to_end else "speed"
    done = bench.runs(part, jobs, end_to_end=end_to_end)
    return {run["library"]: run["steps"] * run["batch"] / run["seconds"] for run in done}


def sweep(bench: Bench) -> None:
    """Eight sparsities against one: end to end, on ready activations, and one SAE after the other."""
    levels, config = [0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3], schedule(150)
    for name in ("end to end", "activations at hand"):
        seconds = []
        for chosen in (levels[4:5], levels):
            source = bench.store(LONG) if name == "end to end" else Given({HOOK: bench.x}, LONG)
            specs = [Spec("standard", HOOK, WIDTH, level, lr=3e-3) for level in chosen]
            started = clock(bench.args.device)
            train(specs, source, config, precision="highest")
            seconds.append(clock(bench.args.device) - started)
        print(f"sweep of 8, {name}: {seconds[1]:.1f} s, one {seconds[0]:.1f} s, {seconds[1] / seconds[0]:.1f}x")
    started = clock(bench.args.device)
    for level in levels:
        train(
            [Spec("standard", HOOK, WIDTH, level, lr=3e-3)], Given({HOOK: bench.x}, LONG), config, precision="highest"
        )
    print(f"all batches of one SAE before those of the next: {clock(bench.args.device) - started:.1f} s")


def main() -> int:
    """Frontiers and speeds of all kinds against both peers, end to end, and the cost of a sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae-lens", help="Python of an environment with sae-lens")
    parser.add_argument("--dictionary-learning", help="Python of an environment with dictionary-learning")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--kinds", nargs="+", choices=list(SPARSITY), default=list(SPARSITY))
    parser.add_argument("--steps", nargs="+", type=int, default=[300, 3000])
    parser.add_argument("--only", nargs="+", choices=["table", "end", "sweep"], default=["table", "end", "sweep"])
    parser.add_argument("--export", action="store_true", help="write the frontiers into the package")
    parser.add_argument("--no-speed", action="store_true", help="frontiers alone, beside other work")
    parser.add_argument("--rows", type=int, default=3200, help="rows of text to train on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    bench, worse = Bench(args), list[str]()
    for steps in args.steps if "table" in args.only else ():
        print(f"{len(bench.x)} activations, {WIDTH} latents, batch {BATCH}, {steps} steps; speed: batch {LONG}")
        names = bench.libraries[1:]
        head = ["kind", "steps", "learning rates", "L0"]
        for measure in ("FVU", "added loss"):
            head += [f"{measure}, ours", *(f"{name} (ours - it)" for name in names)]
        head += ["ours, 1000 tokens / s", *(f"{name}" for name in names)]
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
        for kind in args.kinds:
            runs = frontier(bench, kind, steps)
            if args.export:
                export(kind, steps, runs)
            speed = {"ours": math.nan} if args.no_speed else speeds(bench, kind, runs)
            worse += compare(kind, steps, runs, speed)
    if "end" in args.only:
        runs = frontier(bench, "topk", args.steps[0])
        found = speeds(bench, "topk", runs, end_to_end=True)
        print("topk end to end, tokens a second:", {name: round(value) for name, value in found.items()})
    if "sweep" in args.only:
        sweep(bench)
    for line in worse:
        print("ours is worse:", line)
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
