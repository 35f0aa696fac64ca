"""Rank tests and the successor sweep against the obvious way, which forms every matrix.

    python benchmarks/weights_tests.py [--vocabulary 20000] [--shape gpt2 lab]
    python benchmarks/weights_tests.py --whole      # the limits of the book, at the whole of GPT-2's shape
    python benchmarks/weights_tests.py --sweep      # both tests for the nine heads of a layer of SmolLM2

- ov, qk: rank of the diagonal of the OV and QK matrix of one head over the whole vocabulary. Obvious: form the
  d_model x d_model circuit, then the vocabulary x vocabulary matrix, then sort every row.
- successor: score of every head. Obvious: one head after the other through its d_model x d_model circuit.

Each is a process of its own, so that memory can be compared: the peak of the resident set, less what the loaded model
holds. The obvious way needs vocabulary² · 4 bytes, so it is timed on the first `--vocabulary` tokens, ours on the same.
Exit status 1 if the ranks or scores differ. `--whole`: both rank tests of one head over 50 257 tokens, and CSPA of one
head on 20 documents of 512 tokens, with the peak of the whole process; exit status 1 if CSPA takes more than three
minutes or six gigabytes. `--sweep`: `rank_tests` on 4,096 tokens against the whole vocabulary at nine distances,
against ranks of whole rows; exit status 1 if a share differs by more than one token.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

TASKS = ("ov", "qk", "successor")


def load(shape: str, vocabulary: int) -> Any:
    """The lab model, or GPT-2 small's shape with random weights, cut to a vocabulary."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from mechinterp.models import load, load_tokenizer, to_bridge

    if shape == "lab":
        return load("lab", device="cpu")
    torch.manual_seed(0)
    raw = GPT2LMHeadModel(GPT2Config(vocab_size=max(vocabulary, 8192)))
    for weight in raw.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    return to_bridge(raw, load_tokenizer("lab"), name=shape, device="cpu")


def run(task: str, way: str, shape: str, vocabulary: int) -> dict[str, Any]:
    """Time one task done one way; the answer as a list."""
    import torch

    from mechinterp import Head
    from mechinterp import copy_suppression as cs
    from mechinterp import successor as su
    from mechinterp.datasets.ordinals import TASKS as ORDINALS

    model = load(shape, vocabulary)
    head = Head(model.cfg.n_layers - 2, 1)
    x, u = (cs.token_vectors(model, side)[:vocabulary].contiguous() for side in ("W_EE", "W_U"))
    w_u = model.W_U[:, :vocabulary].contiguous()
    classes = [su.class_of(model.tokenizer, task) for task in ORDINALS.values()]
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if task == "successor":
        if way == "ours":
            answer = su.successor_scores(model).score().flatten().tolist()
        else:
            hits = []
            for layer in range(model.cfg.n_layers):
                for h in range(model.cfg.n_heads):
                    circuit, own = model.W_V[layer, h] @ model.W_O[layer, h], []
                    for words in classes:
                        e = su.representations(model, words.ids)
                        logits = model.blocks[1].ln1(e[None])[0] @ circuit @ model.W_U
                        best = logits[:, words.ids][words.source].argmax(-1)
                        own.append((best == words.target).float())
                    hits.append(torch.cat(own).mean().item())
            answer = hits
    elif way == "ours":
        w_v, w_o, w_q, w_k = (w[head] for w in (model.W_V, model.W_O, model.W_Q, model.W_K))
        if task == "ov":
            answer = cs.diagonal_ranks(x @ w_v, (w_o @ w_u).T.contiguous(), largest=False).tolist()
        else:
            answer = cs.diagonal_ranks(u @ w_q, x @ w_k).tolist()
    else:
        circuit = model.W_V[head] @ model.W_O[head] if task == "ov" else model.W_Q[head] @ model.W_K[head].T
        matrix = x @ circuit @ w_u if task == "ov" else u @ circuit @ x.T
        order = matrix.argsort(-1, descending=task == "qk")
        answer = ((order == torch.arange(vocabulary)[:, None]).int().argmax(-1) + 1).tolist()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    return {"seconds": seconds, "peak": peak / 1024, "answer": answer}


def whole(task: str) -> dict[str, float]:
    """Seconds, and the peak of the process in MiB, at GPT-2 small's shape with the whole vocabulary."""
    import torch

    from mechinterp import Head
    from mechinterp import copy_suppression as cs

    model, head = load("gpt2", 50_257), Head(10, 7)
    tokens = torch.randint(0, 50_257, (20, 512), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    if task == "ranks":
        cs.ov_ranks(model, head)
        cs.qk_ranks(model, head)
    else:
        cs.cspa(model, tokens, [head], progress=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def sweep(layer: int = 24) -> int:
    """Shares of the tokens that pass, row by row given up early and by whole ranks."""
    import torch

    from mechinterp import Head
    from mechinterp import copy_suppression as cs
    from mechinterp.models import load

    model = load("smollm2", device="cpu")
    sample = torch.randperm(model.cfg.d_vocab, generator=torch.Generator().manual_seed(0))[:4096]
    heads = [Head(layer, h) for h in range(model.cfg.n_heads)]
    x, u = (cs.token_vectors(model, side) for side in ("W_EE", "W_U"))
    started = time.perf_counter()
    ours = cs.rank_tests(model, heads, tokens=sample, progress=False)
    middle = time.perf_counter()
    whole = [
        [
            (cs.ov_ranks(model, h, keys=x, tokens=sample) <= 10).float().mean().item(),
            (cs.qk_ranks_at(model, h, queries=u, keys=x, tokens=sample) == 1).float().mean().item(),
        ]
        for h in heads
    ]
    ended = time.perf_counter()
    early = [[ours.ov[h].item(), ours.qk[h].item()] for h in heads]
    apart = (torch.tensor(early) - torch.tensor(whole)).abs().max().item() * len(sample)
    print(f"{middle - started:.1f} s and {ended - middle:.1f} s, {(ended - middle) / (middle - started):.1f}x")
    print(f"largest difference: {apart:.2f} of {len(sample)} tokens")
    return int(apart > 1)


def main() -> int:
    """All tasks, both ways, and a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--shape", nargs="+", choices=["gpt2", "lab"], default=["lab", "gpt2"])
    parser.add_argument("--one", nargs=3, metavar=("TASK", "WAY", "SHAPE"), help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--part", choices=["ranks", "cspa"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sweep:
        return sweep()
    if args.part:
        print("RESULT" + json.dumps(whole(args.part)))
        return 0
    if args.whole:
        print("| one head at GPT-2's shape, 50 257 tokens | seconds | peak of the process, MiB |\n|---|---|---|")
        for task, name in (("ranks", "OV and QK rank tests"), ("cspa", "CSPA on 20 × 512 tokens")):
            command = [sys.executable, __file__, "--part", task]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(printed.rsplit("RESULT", 1)[1])
            print(f"| {name} | {found['seconds']:.1f} | {found['peak']:.0f} |", flush=True)
        return int(found["seconds"] > 180 or found["peak"] > 6 * 1024)
    if args.one:
        task, way, shape = args.one
        print("RESULT" + json.dumps(run(task, way, shape, args.vocabulary)))
        return 0
    failed = False
    print("| shape | task | tokens | ours | obvious | ratio | peak MiB, ours | peak MiB, obvious | differing |")
    print("|---|---|---|---|---|---|---|---|---|")
    for shape in args.shape:
        vocabulary = min(args.vocabulary, 8192) if shape == "lab" else args.vocabulary
        for task in TASKS:
            found = {}
            for way in ("ours", "obvious"):
                command = [sys.executable, __file__, "--vocabulary", str(vocabulary), "--one", task, way, shape]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[way] = json.loads(printed.rsplit("RESULT", 1)[1])
            a, b = found["ours"], found["obvious"]
            # Sums in another order may swap entries that are equal but for rounding.
            differing = sum(abs(x - y) > 1e-6 for x, y in zip(a["answer"], b["answer"], strict=True)) / len(a["answer"])
            failed |= differing > 0.02
            print(
                f"| {shape} | {task} | {vocabulary} | {a['seconds']:.2f} s | {b['seconds']:.2f} s | "
                f"{b['seconds'] / a['seconds']:.1f}x | {a['peak']:.0f} | {b['peak']:.0f} | {differing:.2%} |",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
