"""What the peers of circuit discovery share, run by their own interpreter (`make peers`): see `test_peers.py`.

    python auto_circuit_peer.py [--threads N] < ASKED.json > FOUND.json

ASKED is a list, of each model: `model`, a folder of Hugging Face's; `clean` and `corrupt`, rows of token ids;
`answers`, two ids a prompt, whose logits' difference at the last position is the metric; and `tasks`, each with what to
`do`. FOUND has for each model a list, of each task: what was found, `seconds`, and the `peak` of memory in MiB beyond
the model.

Edges are named as this package names them. The peers have keys and values for every query head, so an edge into a
group's keys is several of theirs: all of them are patched, or their gradients added up. Scores have this package's
sign, the metric with the edge patched less the metric without. A task with `"each": true` gives scores of every prompt,
done one after the other; without, their mean from a single batch. With `"repeat": n`, `seconds` are those of the
fastest of n times, after one with two prompts.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"TQDM_DISABLE": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import torch
from path_patching import peak
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict
from transformers import AutoModelForCausalLM, GPT2Config

Task = Callable[[SimpleNamespace, Any], dict[str, Any]]
"""Of the prompts and what is asked: what was found."""


def load(folder: str) -> HookedTransformer:
    """The model of the folder, with a hook wherever an edge ends, folded and centred as TransformerLens does it.

    For zero ablation it matters that biases of norms and values are folded: what they add belongs to no head.
    """
    GPT2Config.n_ctx = property(lambda self: self.n_positions)  # read from the configurations of old checkpoints
    raw = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cfg = get_pretrained_model_config(folder, hf_cfg=raw.config.to_dict(), device="cpu")
    cfg.tokenizer_name = None
    cfg.use_attn_result = cfg.use_split_qkv_input = cfg.use_hook_mlp_in = True
    cfg.ungroup_grouped_query_attention = cfg.n_key_value_heads is not None
    model = HookedTransformer(cfg)
    model.load_and_process_state_dict(get_pretrained_state_dict(folder, cfg, raw))
    return model.eval()


def named(cfg: Any, sender: str, receiver: str) -> str:
    """This package's name of an edge, from senders input, a0.1, m0 and receivers a0.1.q, m0, logits."""
    if receiver[-1] in "kv":
        layer, head, part = receiver.split(".")
        receiver = f"{layer}.{int(head) * (cfg.n_key_value_heads or cfg.n_heads) // cfg.n_heads}.{part}"
    return f"{sender}→{receiver}"


def summed(scores: list[tuple[str, Tensor]]) -> dict[str, Any]:
    """Scores by name, those of the same name added up."""
    found: dict[str, Tensor] = {}
    for name, score in scores:
        found[name] = found.get(name, 0) + score
    return {name: score.tolist() for name, score in found.items()}


def difference(logits: Tensor, answers: Tensor) -> Tensor:
    """The metric of every prompt."""
    return logits.gather(1, answers[:, :1])[:, 0] - logits.gather(1, answers[:, 1:])[:, 0]


def main(make: Callable[[HookedTransformer, dict[str, Any]], dict[str, Task]]) -> None:
    """Do what is asked on stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    found = []
    with contextlib.redirect_stdout(sys.stderr):
        for asked in json.load(sys.stdin):
            do = make(load(asked["model"]), asked)
            prompts = SimpleNamespace(**{name: torch.tensor(asked[name]) for name in ("clean", "corrupt", "answers")})
            tasks = [SimpleNamespace(**{"each": False, "repeat": 0} | task) for task in asked["tasks"]]
            found.append([measured(do[task.do], prompts, task) for task in tasks])
    print(json.dumps(found))


def measured(do: Task, prompts: SimpleNamespace, task: SimpleNamespace) -> dict[str, Any]:
    """What a task finds, how long it takes, and the most memory that it holds."""
    if task.repeat:
        do(some(prompts, slice(2)), SimpleNamespace(**vars(task) | {"edges": getattr(task, "edges", [])[:2]}))
    seconds = []
    with peak("cpu") as highest:
        for _ in range(max(1, task.repeat)):
            begin = time.perf_counter()
            if task.each:
                rows = [do(some(prompts, slice(i, i + 1)), task)["scores"] for i in range(len(prompts.clean))]
                found = {"scores": {name: [row[name] for row in rows] for name in rows[0]}}
            else:
                found = do(prompts, task)
            seconds.append(time.perf_counter() - begin)
        return found | {"seconds": min(seconds), "peak": highest()}


def some(prompts: SimpleNamespace, rows: slice) -> SimpleNamespace:
    """Some of the prompts."""
    return SimpleNamespace(**{name: x[rows] for name, x in vars(prompts).items()})
