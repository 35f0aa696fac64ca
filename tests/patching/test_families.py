"""Path patching, activation patching, ablation and recording on every family, against plain Hugging Face hooks."""

from typing import Any, get_args

import pytest
import torch
from families import CONTEXT, FAMILIES, HEADS, LAYERS, PARALLEL, VOCAB, Raw, activation_patch, bridge, path_patch
from torch import Tensor

from mechinterp import patching
from mechinterp.heads import Head
from mechinterp.patching.activation_patching import HeadNode, Node

N, LENGTH = 3, 11
G = torch.Generator().manual_seed(3)
CLEAN, CORRUPT = (torch.randint(1, VOCAB, (N, LENGTH), generator=G) for _ in range(2))
AT = torch.tensor([10, 7, 9])
PLACE = torch.tensor([2, 7, 5])
ANSWER = torch.randint(0, VOCAB, (N, 2), generator=G)
ROWS = torch.arange(N)
MEAN = torch.randint(1, VOCAB, (N, LENGTH), generator=G)


def metric(logits: Tensor) -> Tensor:
    return logits.gather(1, ANSWER[:, :1])[:, 0] - logits.gather(1, ANSWER[:, 1:])[:, 0]


def slow_metric(logits: Tensor) -> Tensor:
    return metric(logits[ROWS, AT])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Raw]:
    return bridge(request.param), Raw(request.param)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_twin_with_keys_of_its_own_for_every_head_is_the_same_model(family: tuple[Any, Raw]) -> None:
    from families import raw_model

    torch.testing.assert_close(
        family[1].run(CLEAN)[0], raw_model(family[1].name)(CLEAN, use_cache=False).logits, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("batch_size", [2, 512])
def test_paths_to_the_logits(family: tuple[Any, Raw], batch_size: int) -> None:
    model, raw = family
    ours = patching.path_patch(model, CLEAN, CORRUPT, metric=metric, at=AT, batch_size=batch_size)
    close(ours.clean, slow_metric(raw.run(CLEAN)[0]))
    for sender in [Head(0, 1), Head(1, 3), Head(2, 0)]:
        close(ours.patched[sender], slow_metric(path_patch(raw, CLEAN, CORRUPT, sender)))
    assert (ours.patched - ours.clean).abs().max() > 0.1


@pytest.mark.parametrize("positions", [PLACE, None], ids=["at a position", "everywhere"])
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_paths_to_inputs_of_heads(family: tuple[Any, Raw], part: str, positions: Tensor | None) -> None:
    model, raw = family
    receivers = [(Head(1, 2), part), (Head(2, 1), part)]
    ours = patching.path_patch(
        model, CLEAN, CORRUPT, metric=metric, at=AT, receivers=receivers, receiver_positions=positions
    )
    for sender in [Head(0, 3), Head(1, 0)]:
        close(ours.patched[sender], slow_metric(path_patch(raw, CLEAN, CORRUPT, sender, receivers, positions)))
    assert (ours.patched - ours.clean).abs().max() > 1e-3


@pytest.mark.parametrize("node", get_args(Node))
def test_activation_patching(family: tuple[Any, Raw], node: str) -> None:
    model, raw = family

    def run() -> patching.ActivationPatch:
        return patching.activation_patch(
            model, CLEAN, CORRUPT, node=node, metric=metric, at=AT, positions=torch.stack([PLACE, AT])
        )

    if node == "resid_mid" and raw.name in PARALLEL:
        with pytest.raises(ValueError, match="no stream between"):
            run()
        return
    ours = run()
    for layer in range(LAYERS):
        for s, where in enumerate((PLACE, AT)):
            marked = torch.arange(LENGTH) == where[:, None]
            for head in range(HEADS) if node in get_args(HeadNode) else [None]:
                got = ours.patched[layer, s] if head is None else ours.patched[layer, head, s]
                close(got, slow_metric(_slow_activation(raw, node, layer, head, marked)))


def _slow_activation(raw: Raw, node: str, layer: int, head: int | None, marked: Tensor) -> Tensor:
    if node == "resid_mid":  # between two modules: through what the attention adds
        old, new = raw.run(CLEAN)[1], raw.run(CORRUPT)[1]
        change = torch.where(marked[..., None], new["resid_mid", layer] - old["resid_mid", layer], 0.0)
        return raw.run(CLEAN, {("attn_out", layer): lambda x: x + change})[0]
    if node == "pattern":  # z is the pattern's sum of values
        old, new = raw.run(CLEAN)[1], raw.run(CORRUPT)[1]
        v = old["v", layer]
        v = v.clamp(-0.7, 0.7) if raw.name == "OLMo" else v
        z = torch.einsum("pqk,pkd->pqd", new["pattern", layer][:, head], v[:, :, head])

        def edit(x: Tensor) -> Tensor:
            x[:, :, head] = torch.where(marked[..., None], z, x[:, :, head])
            return x

        return raw.run(CLEAN, {("z", layer): edit})[0]
    return activation_patch(raw, CLEAN, CORRUPT, node, layer, head, marked)


def test_replacing_outputs(family: tuple[Any, Raw]) -> None:
    model, raw = family
    values, (_, other) = patching.record(model, MEAN), raw.run(MEAN)
    heads = torch.rand(2, LAYERS, HEADS, N, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.3
    mlps = torch.rand(2, LAYERS, N, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.3
    heads[1, :, :, :, :4], mlps[1, :, :, :4] = False, False
    ours = patching.replace(model, CLEAN, values, heads=heads, mlps=mlps, at=AT)
    for variant in range(2):

        def z(layer: int, variant: int = variant) -> Any:
            where = heads[variant, layer].permute(1, 2, 0)[..., None]
            return lambda x: torch.where(where, other["z", layer], x)

        def mlp(layer: int, variant: int = variant) -> Any:
            return lambda x: torch.where(mlps[variant, layer][..., None], other["mlp_out", layer], x)

        edits = {("z", i): z(i) for i in range(LAYERS)} | {("mlp_out", i): mlp(i) for i in range(LAYERS)}
        close(metric(ours[variant]), slow_metric(raw.run(CLEAN, edits)[0]))


def test_recorded_outputs_differ_from_the_raw_ones_by_constants_only(family: tuple[Any, Raw]) -> None:
    """z by the value bias, which loading folds into b_O; the MLP's output by its mean, where norms remove it."""
    model, raw = family
    ours, (_, theirs) = patching.record(model, CLEAN), raw.run(CLEAN)
    for layer in range(LAYERS):
        gap = theirs["z", layer] - ours.z[layer]
        close(gap, gap[:1, :1].expand_as(gap))
        gap = theirs["mlp_out", layer] - ours.mlp[layer]
        close(gap, gap.mean(-1, keepdim=True).expand_as(gap))


def test_zeros_and_the_raw_model_s_zeros(family: tuple[Any, Raw]) -> None:
    """Zeros here leave the value bias in the output; the raw model's zeros take it away."""
    model, raw = family
    values = patching.record(model, CLEAN)
    gone = patching.mask(model, CLEAN.shape, {Head(1, 2): None, Head(2, 0): None})

    def zero(head: int) -> Any:
        def edit(z: Tensor) -> Tensor:
            z[:, :, head] = 0
            return z

        return edit

    theirs = slow_metric(raw.run(CLEAN, {("z", 1): zero(2), ("z", 2): zero(0)})[0])
    ours = patching.replace(model, CLEAN, values.zeros_like(raw=model), heads=gone, at=AT)
    close(metric(ours), theirs)
    biases = patching.value_biases(model)
    assert biases.shape == (LAYERS, HEADS, values.z.shape[-1])
    has = raw.name in (
        "GPT-2",
        "OPT",
        "Pythia",
        "GPT-NeoX, serial",
        "Llama",
        "Qwen 2",
        "Phi",
        "Falcon",
        "GPT-J",
        "GPT-Neo",
    )
    assert bool(biases.abs().max() > 0) == has


def test_logits_at_a_position(family: tuple[Any, Raw]) -> None:
    model, raw = family
    ours, theirs = patching.logits_at(model, CLEAN, AT), raw.run(CLEAN)[0][ROWS, AT]
    close(ours.log_softmax(-1), theirs.log_softmax(-1))


def test_the_whole_context_is_compared_with_the_model_s_own_logits(family: tuple[Any, Raw]) -> None:
    model, raw = family
    tokens = torch.randint(1, VOCAB, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
    ours = patching.logits_at(model, tokens, torch.tensor([CONTEXT - 1]))
    close(ours.log_softmax(-1), raw.run(tokens)[0][:, -1].log_softmax(-1))
