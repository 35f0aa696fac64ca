"""Circuit discovery: scores of edges and ACDC, this package against auto-circuit and the code of EAP-IG.

    make peers
    python benchmarks/discovery.py [--only eap ig exact acdc] [--eap-ig FOLDER] [--threads 2]

Prompts of 15 tokens whose corrupted ones differ in three, as the names do in IOI; the metric is the difference of two
tokens' logits at the last one. Models have random weights: GPT-2 small's shape, and for ACDC one of 4 layers with 4
heads.

- eap: edge attribution patching, all 32,491 edges
- ig: EAP-IG, five steps
- exact: the effect of every edge into every 40th receiver; the peer runs one forward pass an edge, on every k-th edge
- acdc: edges tried in the same order, at two thresholds; the peer runs a forward pass, from the edge on, for every one

Peers: auto-circuit 1.0.1, in the environment of `make peers`; and the authors' code of EAP-IG, if a checkout of
https://github.com/hannamw/EAP-IG is named.

Every measurement is a process of its own with the same number of threads: the fastest of `--repeat` times for eap and
ig, one for the others; the peak of memory is that of the resident set beyond the loaded model. Answers are compared
before anything is printed: exit status 1 if a score differs by more than 1e-4 of the largest one, or ACDC's circuits in
more than one edge of a hundred, which rounding can turn at the threshold.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from path_patching import peak

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "tests" / "discovery"
LENGTH, NAMES, STEPS, THRESHOLDS = 15, (2, 4, 10), 5, (0.01, 0.03)
PROMPTS = {"eap": 32, "ig": 32, "exact": 8, "acdc": 32}
RECEIVERS, EDGES = 40, 60
"""exact: every 40th receiver; and about how many of the edges into these the peer runs."""
TOLERANCE, TURNED = 1e-4, 0.01
TASKS = {"eap": ("auto-circuit", "EAP-IG"), "ig": ("EAP-IG",), "exact": ("auto-circuit",), "acdc": ("auto-circuit",)}


def build(task: str, folder: Path) -> None:
    """A model with random weights, in a folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 256} if task == "acdc" else {}
    model = GPT2LMHeadModel(GPT2Config(**shape))
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
        if task == "acdc" and weight.ndim > 1:
            weight.data *= 5  # else no edge matters, and none is kept
    model.save_pretrained(folder)


def prompts(task: str) -> dict[str, Any]:
    """Rows of token ids: clean, corrupt, and the two answers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    n, vocabulary = PROMPTS[task], 50257
    clean = torch.randint(vocabulary, (n, LENGTH), generator=generator)
    corrupt = clean.clone()
    corrupt[:, NAMES] = torch.randint(vocabulary, (n, len(NAMES)), generator=generator)
    answers = torch.randint(vocabulary, (n, 2), generator=generator)
    return {"clean": clean, "corrupt": corrupt, "answers": answers}


def asked_edges(task: str, folder: Path) -> dict[str, Any]:
    """What of the graph a task is about: edges that we score, and those that the peer does."""
    from mechinterp.discovery import Edge, Graph

    config = json.loads((folder / "config.json").read_text())
    layers, heads = config["n_layer"], config["n_head"]
    graph = Graph(layers, heads, heads, (False,) * layers)
    if task == "acdc":
        order = [(s, r) for r in reversed(graph.receivers) for s in reversed(graph.senders[: graph.before(r)])]
        return {"graph": graph, "peer": [str(Edge(s, r)) for s, r in order]}
    edges = graph.mask.clone()
    edges[:, [i for i in range(len(graph.receivers)) if (len(graph.receivers) - 1 - i) % RECEIVERS]] = False
    names = [str(edge) for edge in graph.edges(edges)]
    return {"graph": graph, "ours": edges, "peer": names[:: max(1, len(names) // EDGES)]}


def ours(task: str, folder: Path, repeat: int, threshold: float) -> dict[str, Any]:
    """One of our measurements."""
    from transformers import GPT2LMHeadModel

    from mechinterp.discovery import acdc, eap, eap_ig, exact
    from mechinterp.models import load_tokenizer, to_bridge

    given, about = prompts(task), asked_edges(task, folder)
    answers, graph = given["answers"], about["graph"]
    model = to_bridge(GPT2LMHeadModel.from_pretrained(folder), load_tokenizer("lab"), name=task, device="cpu")

    def run(n: int, edges: Any) -> Any:
        clean, corrupt = given["clean"][:n], given["corrupt"][:n]

        def metric(logits: Any) -> Any:
            return logits.gather(1, answers[:n, :1])[:, 0] - logits.gather(1, answers[:n, 1:])[:, 0]

        at = (clean != -1).sum(1) - 1
        if task == "acdc":
            return acdc(model, clean, corrupt, at=at, threshold=threshold if n > 2 else float("inf"))
        if task == "exact":
            return exact(model, clean, corrupt, metric=metric, at=at, edges=edges)
        method, options = {"eap": (eap, {}), "ig": (eap_ig, {"steps": STEPS})}[task]
        return method(model, clean, corrupt, metric=metric, at=at, **options)

    run(2, graph.masked(["input→logits"]))
    seconds = []
    with peak("cpu") as highest:
        for _ in range(repeat):
            begin = time.perf_counter()
            found = run(PROMPTS[task], about.get("ours"))
            seconds.append(time.perf_counter() - begin)
        result = {"seconds": min(seconds), "peak": highest()}
    if task == "acdc":
        return result | {"kept": [str(edge) for edge in found.edges], "tried": found.passes}
    scored = graph.mask if task != "exact" else about["ours"]
    values = found.mean.T[scored.T].tolist()
    return result | {"scores": dict(zip(map(str, graph.edges(scored)), values, strict=True))}


def theirs(
    task: str, peer: str, folder: Path, repeat: int, threshold: float, args: argparse.Namespace
) -> dict[str, Any]:
    """One of a peer's measurements."""
    do: dict[str, Any] = {"do": task, "repeat": repeat, "steps": STEPS, "threshold": threshold}
    if task in ("exact", "acdc"):
        do["edges"] = asked_edges(task, folder)["peer"]
    given = {name: x.tolist() for name, x in prompts(task).items()}
    script = PEERS / {"auto-circuit": "auto_circuit_peer.py", "EAP-IG": "eap_ig_peer.py"}[peer]
    env = os.environ | {"MECHINTERP_EAP_IG": str(args.eap_ig), "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": ""}
    command = [str(args.auto_circuit), str(script), "--threads", str(args.threads)]
    asked = json.dumps([given | {"model": str(folder), "tasks": [do]}])
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{task}, {peer} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout)[0][0]


def compared(task: str, mine: dict[str, Any], other: dict[str, Any]) -> tuple[bool, str, str]:
    """Whether both say the same; the difference and its measure in words."""
    if task == "acdc":
        turned = len(set(mine["kept"]) ^ set(other["kept"]))
        n = other["tried"]
        return turned <= TURNED * n, f"{turned} edges", f"{len(other['kept'])} of {n} edges kept"
    pairs = []
    for name, values in other["scores"].items():
        value = sum(values) / len(values) if isinstance(values, list) else values
        pairs.append((mine["scores"][name], value))
    worst, largest = max(abs(a - b) for a, b in pairs), max(abs(b) for _, b in pairs)
    return worst <= TOLERANCE * largest, f"{worst:.1e}", f"{largest:.2g}"


def work(task: str, folder: Path, threshold: float, args: argparse.Namespace) -> bool:
    """The lines of a task; whether the answers agree."""
    repeat = args.repeat if task in ("eap", "ig") else 1
    command = [sys.executable, __file__, "--worker", task, "--folder", str(folder), "--repeat", str(repeat)]
    command += ["--threads", str(args.threads), "--threshold", str(threshold)]
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-4000:]}")
    mine, agree = json.loads(done.stdout.splitlines()[-1]), True
    for peer in TASKS[task]:
        if peer == "EAP-IG" and args.eap_ig is None:
            continue
        other = theirs(task, peer, folder, repeat, threshold, args)
        same, difference, largest = compared(task, mine, other)
        agree &= same
        share = len(other["scores"]) / len(mine["scores"]) if task == "exact" else 1.0
        seconds, mark = other["seconds"] / share, "~" if share < 1 else ""
        number = f"{len(mine['scores'])} edges" if task != "acdc" else f"{mine['tried']} / {other['tried']} passes"
        cells = [
            task if task != "acdc" else f"acdc, τ = {threshold}",
            f"{mine['seconds']:.1f} s",
            f"{peer}, {mark}{seconds:.0f} s",
            f"{mark}{seconds / mine['seconds']:.1f}x",
            f"{mine['peak']:.0f}",
            f"{other['peak']:.0f}",
            number if share == 1 else f"{number}, {share:.0%} by the peer",
            difference,
            largest,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    return agree


def main() -> int:
    """One line a task and peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--auto-circuit", default=ROOT / ".venv-auto-circuit" / "bin" / "python", help="its Python")
    parser.add_argument("--eap-ig", type=Path, help="checkout of hannamw/EAP-IG; else it is left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--worker", choices=tuple(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threshold", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        import torch

        torch.set_num_threads(args.threads)
        print(json.dumps(ours(args.worker, args.folder, args.repeat, args.threshold)))
        return 0
    if not Path(args.auto_circuit).is_file():
        parser.error(f"no auto-circuit environment at {args.auto_circuit}; `make peers` makes it")
    print("| task | ours | peer | ratio | peak MiB, ours | peak MiB, peer | of | diff | largest |")
    print("|---|---|---|---|---|---|---|---|---|")
    agree = []
    for task in args.only:
        with tempfile.TemporaryDirectory() as temporary:
            build(task, Path(temporary))
            thresholds = THRESHOLDS if task == "acdc" else THRESHOLDS[:1]
            agree += [work(task, Path(temporary), threshold, args) for threshold in thresholds]
    return int(not all(agree))


if __name__ == "__main__":
    sys.exit(main())
