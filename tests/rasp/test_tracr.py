"""Tracr's own compiler makes the same streams, direction by direction, from the same programs.

Tracr needs JAX, so it lives in an environment of its own (`make peers`).
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from mechinterp.rasp import compile_program, programs

ROOT = Path(__file__).parents[2]
PEER = Path(__file__).parent / "tracr_peer.py"
INPUTS = {
    "length": ["a", "abc", "ddddd"],
    "reverse": ["a", "abc", "dbcaa"],
    "hist": ["a", "abac", "ddbdd"],
    "count": ["b", "abac", "cacaa"],
    "frac_prevs": ["a", "abac", "bbdca"],
    "pair_balance": [")", "(a)b", "a()))"],
    "shuffle_dyck2": ["(", "({)}", "{}(", "}()"],
    "sort_unique": [[2], [2, 4, 1], [4, 3, 1, 2]],
    "sort": [[2], [2, 4, 1, 2], [3, 3, 3]],
    "sort_freq": [[1], [2, 4, 2, 1], [3, 4, 4]],
}
LAID_OUT_OTHERWISE = {"shuffle_dyck2"}
"""Fewer layers, thresholds only where a result changes; the same directions at the end. At `<bos>` Tracr leaves what
its maps of numbers write there; we take it back, since heads rely on `<bos>` having no value."""
NAMES = {"opposite+1": "opp_idx", "opposite": "opp_idx-1", "place": "target_pos", "key": "sequence_map", "-hist": "map"}
NAMES |= {"is_(": "bools_open", "is_)": "bools_close", "share_is_(": "opens", "share_is_)": "closes"}


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    python = Path(os.environ.get("MECHINTERP_TRACR_PYTHON", ROOT / ".venv-tracr" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(f"no Tracr environment at {python}; `make peers` makes it, or set MECHINTERP_TRACR_PYTHON")
    done = subprocess.run([python, PEER], input=json.dumps(INPUTS), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def plain(label: str) -> str:
    """One of Tracr's names of a direction, without the number of its expression."""
    label = re.sub(r"_\d+_selector_width_attn_output$", "_head", label)
    return re.sub(r"_\d+(?=$|:)", "", label)


@pytest.mark.parametrize("name", INPUTS)
def test_streams_and_scores_are_tracrs(name: str, theirs: dict[str, Any]) -> None:
    ours, peer = compile_program(**programs()[name]), theirs[name]
    cfg = ours.model.cfg
    sizes = [cfg.d_model, cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_mlp]
    if name in LAID_OUT_OTHERWISE:
        assert (sizes[0], sizes[2:4]) == (peer["sizes"][0], peer["sizes"][2:4])
        assert sizes[1] < peer["sizes"][1]
        assert sizes[4] < peer["sizes"][4]
    else:
        assert sizes == peer["sizes"]
    labels = [plain(label) for label in peer["labels"]]
    for row, answer in zip(INPUTS[name], peer["answers"], strict=True):
        logits, cache = ours.model.run_with_cache(ours.tokens([row]))
        stream = torch.tensor(answer["stream"])
        last = cache[f"blocks.{cfg.n_layers - 1}.hook_resid_post"][0]
        first = int(name in LAID_OUT_OTHERWISE)
        matched(ours, labels, last[first:], stream[-1, first:])
        assert ours.decode(logits)[0] == pytest.approx(answer["decoded"], abs=1e-3)
        if name in LAID_OUT_OTHERWISE:
            continue
        for layer in range(cfg.n_layers):
            for half, at in enumerate(("hook_resid_mid", "hook_resid_post")):
                matched(ours, labels, cache[f"blocks.{layer}.{at}"][0], stream[2 * layer + half])
        for head in ours.heads:
            q, k = (cache[f"blocks.{head.layer}.attn.hook_{x}"][0, :, head.head] for x in "qk")
            scores = torch.tensor(answer["scores"][head.layer])
            scores = scores.squeeze(0) if scores.ndim == 4 else scores
            torch.testing.assert_close(q @ k.T / cfg.d_head**0.5, scores[head.head], atol=2e-3, rtol=0)


def matched(ours: Any, labels: list[str], here: torch.Tensor, there: torch.Tensor) -> None:
    """The same coordinates under the same names, in any order: as sorted columns where names are Tracr's own."""
    columns = {}
    for i, direction in enumerate(ours.layout.directions):
        columns.setdefault(str(direction), []).append(here[:, i])
    unnamed = []
    for i, label in enumerate(labels):
        name = next((mine for mine, its in NAMES.items() if re.sub(r"(:|$).*", "", label) == its), None)
        mine = label if name is None else label.replace(NAMES[name], name, 1)
        if mine in columns and len(columns[mine]) == 1:
            torch.testing.assert_close(columns.pop(mine)[0], there[:, i], atol=2e-3, rtol=0)
        else:
            unnamed.append(there[:, i])
    rest = [c for found in columns.values() for c in found]
    assert len(rest) == len(unnamed)
    if rest:
        key = lambda c: [round(x, 2) + 0.0 for x in c.tolist()]  # noqa: E731
        torch.testing.assert_close(
            torch.stack(sorted(rest, key=key)), torch.stack(sorted(unnamed, key=key)), atol=2e-3, rtol=0
        )
