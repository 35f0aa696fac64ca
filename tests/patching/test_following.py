"""Heads followed back from the logits: an organism whose heads are known, and steps made one by one."""

import pytest
import torch
from families import bridge

from mechinterp.heads import Head
from mechinterp.models import organisms
from mechinterp.patching import follow_back, path_patch


def test_an_organisms_heads_are_all_found_writers_first():
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(16)
    found = follow_back(
        organism.model, data.tokens, data.abc(1).tokens, metric=data.logit_diff, at=data.positions["END"]
    )
    silent = {head for head, role in organism.roles.items() if role.startswith("backup")}
    assert found.keys() == organism.roles.keys() - silent, "a backup says nothing until it is needed"
    roles = [organism.roles[head] for head in found]
    assert set(roles[:3]) == {"name mover", "negative name mover"}, "who writes comes before who steers"
    signs = {organism.roles[head]: effect > 0 for head, effect in found.items()}
    assert not signs["name mover"]
    assert signs["negative name mover"]


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Gemma 2"])
def test_a_step_patches_the_paths_to_all_heads_of_the_step_before(family):
    model = bridge(family)
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(model.cfg.d_vocab, (6, 7), generator=generator) for _ in range(2))
    at = torch.full((6,), 6)
    how = {"metric": lambda logits: logits[:, 3] + 5, "at": at}
    first = path_patch(model, clean, corrupt, **how).effect()
    least = float(first.abs().flatten().sort().values[-9:-7].mean())  # between the eighth writer and the ninth
    found = follow_back(model, clean, corrupt, least=least, **how)
    writers = {Head(*h) for h in (first.abs() >= least).nonzero().tolist()}
    assert len(writers) == 8
    assert {*list(found)[:8]} == writers
    receivers = [(h, kind) for h in writers if h.layer > 0 for kind in "qkv"]
    second = path_patch(model, clean, corrupt, receivers=receivers, **how).effect() if receivers else 0 * first
    steerers = {Head(*h) for h in (second.abs() >= least).nonzero().tolist()} - writers
    assert steerers, "nobody to find in the second step"
    assert steerers <= found.keys()
    for head in steerers:
        assert found[head] == pytest.approx(float(second[head]), abs=1e-5)
    everything = follow_back(model, clean, corrupt, least=1e-12, **how)
    assert found.keys() <= everything.keys()


def test_a_share_of_nothing_is_refused():
    organism, data = organisms.ioi_circuit(), organisms.ioi_prompts(8)
    with pytest.raises(ValueError, match="least must be above 0"):
        follow_back(
            organism.model, data.tokens, data.abc(1).tokens, metric=data.logit_diff, at=data.positions["END"], least=0.0
        )
