"""Width and output projection from logits of SmolLM2's shape: all tokens or a thousand, full or randomised SVD.

    python benchmarks/stealing.py [--prompts 1152] [--dimensions 576] [--vocabulary 49152]

Logits of normally distributed streams and weights, in float64, with the rounding of single precision added. The
randomised SVD is `torch.svd_lowrank` with 64 vectors more than the width, so that it needs to know the width roughly;
the full one does not. Answers are compared before anything is printed: exit status 1 if the widths differ, or if the
subspaces of the projections do by more than a thousandth.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from mechinterp.stealing import projection, width


def timed(ask: Callable[[], Any]) -> tuple[Any, float]:
    """The answer, and the faster of two times."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        answer = ask()
        seconds.append(time.perf_counter() - start)
    return answer, min(seconds)


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """Sine of the largest angle between two subspaces."""
    a, b = (torch.linalg.qr(x)[0] for x in (one, two))
    return float(torch.linalg.matrix_norm(a - b @ (b.T @ a), 2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1152)
    parser.add_argument("--dimensions", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    asked = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    streams = torch.randn(asked.prompts, asked.dimensions, generator=draw, dtype=torch.float64)
    weights = torch.randn(asked.vocabulary, asked.dimensions, generator=draw, dtype=torch.float64)
    logits = (streams @ weights.T).float().double()
    some = logits[:, :1000]
    q = asked.dimensions + 64

    def randomised() -> torch.Tensor:
        _, values, directions = torch.svd_lowrank(logits, q=q, niter=2)
        return directions[:, : asked.dimensions] * values[: asked.dimensions]

    found, width_some = timed(lambda: width(some))
    every, width_all = timed(lambda: width(logits))
    full, projection_full = timed(lambda: projection(logits, asked.dimensions))
    quick, projection_quick = timed(randomised)
    angle = apart(full, quick)
    if not (found.size == every.size == asked.dimensions and angle < 1e-3):
        print(f"the answers differ: {found.size} and {every.size} dimensions, subspaces {angle:.1e} apart")
        return 1
    print(f"width, 1,000 tokens {width_some:.2f} s; all {asked.vocabulary:,} {width_all:.2f} s")
    print(f"projection, full SVD {projection_full:.2f} s; randomised {projection_quick:.2f} s, {angle:.1e} apart")
    print(f"ratios {width_all / width_some:.1f}x and {projection_full / projection_quick:.1f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
