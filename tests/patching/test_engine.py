"""A pass that begins in the middle, or with something else in an activation's place, against the model's own hooks."""

import pytest
import torch

from mechinterp.anatomy import Anatomy
from mechinterp.models import load
from mechinterp.patching.engine import trace

TOKENS = torch.randint(1, 8192, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return load("lab", device="cpu")


def final(model, **options):
    anatomy = Anatomy.of(model)
    end = ("resid_pre", anatomy.size.n_layers)
    cache = trace(anatomy, TOKENS, lambda name, layer, x: x if (name, layer) == end else None, **options)
    return anatomy.unembed(cache[end])


def test_a_pass_from_the_middle_is_the_rest_of_the_whole_one(model):
    cache = trace(
        Anatomy.of(model), TOKENS, lambda name, layer, x: x if (name, layer) == ("resid_pre", 2) else None, stop=3
    )
    torch.testing.assert_close(final(model, start=(2, cache["resid_pre", 2])), final(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("q", "attn.hook_q"),
        ("k", "attn.hook_k"),
        ("v", "attn.hook_v"),
        ("z", "attn.hook_z"),
        ("attn_out", "hook_attn_out"),
        ("mlp_out", "hook_mlp_out"),
        ("resid_pre", "hook_resid_pre"),
    ],
)
def test_a_changed_activation_is_that_of_a_hook(model, name, hook):
    ours = final(model, change=lambda n, layer, x: 0.3 * x if (n, layer) == (name, 2) else x)
    theirs = model.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.2.{hook}", lambda x, hook: 0.3 * x)])
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
    assert (ours - final(model)).abs().max() > 0.05
