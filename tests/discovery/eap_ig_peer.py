"""What the code of EAP-IG (hannamw/EAP-IG) finds, see `hooked.py`; MECHINTERP_EAP_IG names a checkout of it.

Tasks: `eap`, `ig` (`steps`), `exact` (`edges`, each in a graph of its own: in `get_scores_exact` an edge that went
with a pruned node never comes back), and `patched` (`edges`: a list of circuits, each the edges that are off).

Its devices are fixed to 'cuda' and its prompts are text: it gets the CPU and token ids, and nothing else is changed. It
divides by the number of prompts, so the metric is summed. Parameters have gradients, as in its notebooks: it needs
some.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hooked import Task, difference, main, named, summed

sys.path.append(str(Path(os.environ["MECHINTERP_EAP_IG"], "src")))
from eap import attribute, evaluate
from eap.graph import Graph

zeros = torch.zeros


def zeros_here(*shape: Any, device: Any = None, **options: Any) -> torch.Tensor:
    """`torch.zeros`, on the CPU where the code says 'cuda'."""
    return zeros(*shape, device="cpu" if device == "cuda" else device, **options)


torch.zeros = zeros_here


def as_ids(model: Any, tokens: torch.Tensor) -> tuple[Any, ...]:
    """For `tokenize_plus`: tokens that are ids already, all of equal length."""
    mask = torch.ones_like(tokens)
    return tokens, mask, mask.sum(1), tokens.shape[1]


attribute.tokenize_plus = evaluate.tokenize_plus = as_ids


def total(logits: torch.Tensor, clean_logits: torch.Tensor, lengths: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The metric, summed over prompts."""
    return each(logits, clean_logits, lengths, label).sum()


def each(logits: torch.Tensor, clean_logits: torch.Tensor, lengths: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The metric of every prompt."""
    return difference(logits[:, -1], label)


def last(logits: torch.Tensor, clean_logits: torch.Tensor, lengths: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """All logits, in place of a metric."""
    return logits[:, -1]


def make(model: Any, asked: dict[str, Any]) -> dict[str, Task]:
    """All tasks."""

    def fresh() -> Any:
        graph = Graph.from_model(model)
        graph.reset(empty=False)
        return graph

    def name(edge: Any) -> str:
        part = "" if edge.qkv is None else f".{edge.qkv}"
        return named(model.cfg, edge.parent.name.replace("h", ""), edge.child.name.replace(".h", ".") + part)

    def batch(prompts: SimpleNamespace) -> list[tuple[torch.Tensor, ...]]:
        return [(prompts.clean, prompts.corrupt, prompts.answers)]

    def eap(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        graph = Graph.from_model(model)
        found = attribute.get_scores_eap(model, graph, batch(prompts), total, quiet=True)
        return {"scores": summed([(name(edge), found[edge.matrix_index]) for edge in graph.edges.values()])}

    def ig(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        graph = Graph.from_model(model)
        found = attribute.get_scores_eap_ig(model, graph, batch(prompts), total, steps=task.steps, quiet=True)
        return {"scores": summed([(name(edge), found[edge.matrix_index]) for edge in graph.edges.values()])}

    def run(off: list[str], prompts: SimpleNamespace, what: Any) -> torch.Tensor:
        graph, off = fresh(), set(off)
        for edge in graph.edges.values():
            if name(edge) in off:
                edge.in_graph = False
        return evaluate.evaluate_graph(model, graph, batch(prompts), what, quiet=True)

    def exact(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        before = run([], prompts, each)
        return {"scores": {edge: (run([edge], prompts, each) - before).tolist() for edge in task.edges}}

    def patched(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        return {"logits": [run(off, prompts, last).tolist() for off in task.edges]}

    return {"eap": eap, "ig": ig, "exact": exact, "patched": patched}


if __name__ == "__main__":
    main(make)
