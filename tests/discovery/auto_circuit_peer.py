"""What auto-circuit and gim-explain find, see `hooked.py`.

Tasks: `logits` (of the model as it stands, at the last position), `eap` (gradients of masks), `gim` (the same within
GIM's changed backward pass), `exact` (`edges`, one forward pass each, all prompts), `patched` (`edges`: a list of
circuits, each the edges that are off), `acdc` (`edges` in the order in which they are tried, `threshold`). All but the
first and last take an `ablation`, by auto-circuit's name for it. A model asked about with `"positions": true` has edges
at every position, input→m0@4.
"""

import contextlib
from types import SimpleNamespace
from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import batch_src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
from gim import GIM
from hooked import Task, difference, main, named, summed


def make(model: Any, asked: dict[str, Any]) -> dict[str, Task]:
    """All tasks, on a model made patchable."""
    model.requires_grad_(False)
    length = len(asked["clean"][0]) if asked.get("positions") else None
    patchable = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True, seq_len=length)
    edges: dict[str, list[Any]] = {}
    for edge in patchable.edges:
        sender = edge.src.name.replace("Resid Start", "input").replace("MLP ", "m").replace("A", "a")
        receiver = edge.dest.name.replace("Resid End", "logits").replace("MLP ", "m").replace("A", "a")
        name = named(model.cfg, sender, receiver.lower()) + ("" if edge.seq_idx is None else f"@{edge.seq_idx}")
        edges.setdefault(name, []).append(edge)

    def loader(prompts: SimpleNamespace) -> PromptDataLoader:
        right, wrong = (list(x[:, None]) for x in prompts.answers.T)
        data = PromptDataset(prompts.clean, prompts.corrupt, right, wrong)
        return PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=len(prompts.clean), shuffle=False)

    def elsewhere(task: Any) -> dict[str, Any]:
        kind = AblationType[getattr(task, "ablation", "RESAMPLE")]
        return {"ablation_type": kind, "clean_corrupt": "corrupt" if kind == AblationType.RESAMPLE else None}

    def said(prompts: SimpleNamespace, task: Any) -> torch.Tensor:
        (found,) = batch_src_ablations(patchable, loader(prompts), **elsewhere(task)).values()
        return found

    def logits(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        return {"logits": patchable(prompts.clean)[patchable.out_slice].tolist()}

    def eap(prompts: SimpleNamespace, task: Any, way: Any = contextlib.nullcontext) -> dict[str, Any]:
        with way(model):
            found = mask_gradient_prune_scores(
                patchable, loader(prompts), None, "logit", "avg_diff", mask_val=0.0, **elsewhere(task)
            )
        return {"scores": summed([(name, -edge.prune_score(found)) for name in edges for edge in edges[name]])}

    def gim(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        return eap(prompts, task, GIM)

    def switch(names: list[str], value: float) -> None:
        for name in names:
            for edge in edges[name]:
                edge.patch_mask(patchable).data[edge.patch_idx] = value

    @torch.inference_mode()
    def exact(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        before = difference(patchable(prompts.clean)[patchable.out_slice], prompts.answers)
        found = {}
        set_all_masks(patchable, 0.0)
        with patch_mode(patchable, said(prompts, task)):
            for name in task.edges:
                switch([name], 1.0)
                after = difference(patchable(prompts.clean)[patchable.out_slice], prompts.answers)
                found[name] = (after - before).tolist()
                switch([name], 0.0)
        return {"scores": found}

    @torch.inference_mode()
    def patched(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        found = []
        with patch_mode(patchable, said(prompts, task)):
            for off in task.edges:
                set_all_masks(patchable, 0.0)
                switch(off, 1.0)
                found.append(patchable(prompts.clean)[patchable.out_slice].tolist())
        set_all_masks(patchable, 0.0)
        return {"logits": found}

    def acdc(prompts: SimpleNamespace, task: Any) -> dict[str, Any]:
        # What it tries is sorted by layer; within a layer this order stays. A set has none.
        patchable.edges = [edge for name in task.edges for edge in edges[name]]
        found = acdc_prune_scores(patchable, loader(prompts), None, tao_exps=[0], tao_bases=[task.threshold])
        set_all_masks(patchable, 0.0)
        kept = [name for name in task.edges if any(edge.prune_score(found) == torch.inf for edge in edges[name])]
        return {"kept": kept, "tried": len(patchable.edges)}

    return {"logits": logits, "eap": eap, "gim": gim, "exact": exact, "patched": patched, "acdc": acdc}


if __name__ == "__main__":
    main(make)
