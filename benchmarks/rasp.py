"""Compiling RASP programs: ours against Tracr's compiler, which runs in an environment of its own.

    python benchmarks/rasp.py --tracr PYTHON

For each program of the library that both have: seconds to compile, and whether both models say the same on some inputs.
Tracr's seconds are those of the first call in its process, as a user waits for them; ours too. Exit status 1 where the
two disagree.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

from mechinterp.rasp import compile_program, programs

PEER = Path(__file__).parent.parent / "tests" / "rasp" / "tracr_peer.py"
INPUTS = {
    "length": ["abc", "ddddd"],
    "hist": ["abac", "ddbdd"],
    "count": ["abac", "cacaa"],
    "frac_prevs": ["abac", "bbdca"],
    "pair_balance": ["(a)b", "a()))"],
    "sort_unique": [[2, 4, 1], [4, 3, 1, 2]],
    "sort": [[2, 4, 1, 2], [3, 3, 3]],
    "reverse": ["abc", "dbcaa"],
    "sort_freq": [[2, 4, 2, 1], [3, 4, 4]],
    "shuffle_dyck2": ["({)}", "{}(", "}()"],
}


def same(ours: list, theirs: list) -> bool:
    """Equal values; numbers, which Tracr gives as floats, within a hundredth."""
    if any(isinstance(x, str) for x in ours):
        return ours == theirs
    return all(math.isclose(float(x), float(y), abs_tol=0.01) for x, y in zip(ours, theirs, strict=True))


def main() -> int:
    """One line a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracr", required=True, help="Python of an environment with tracr-pypi")
    args = parser.parse_args()
    done = subprocess.run([args.tracr, PEER], input=json.dumps(INPUTS), capture_output=True, text=True, check=True)
    theirs, failed = json.loads(done.stdout), False
    compile_program(**programs()["shift_by"])  # imports
    print("| program | ours | Tracr | ratio | same output |\n|---|---|---|---|---|")
    for name, rows in INPUTS.items():
        started = time.perf_counter()
        model = compile_program(**programs()[name])
        seconds = time.perf_counter() - started
        alike = all(same(model(x), y["decoded"]) for x, y in zip(rows, theirs[name]["answers"], strict=True))
        failed |= not alike
        ratio = theirs[name]["seconds"] / seconds
        told = "yes" if alike else "no"
        print(f"| {name} | {seconds:.2f} s | {theirs[name]['seconds']:.1f} s | {ratio:.0f}x | {told} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
