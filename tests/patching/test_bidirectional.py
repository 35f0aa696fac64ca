"""Interventions where every position sees every other one, no norms, and another vocabulary at the output: by hooks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp import patching
from mechinterp.anatomy import Anatomy
from mechinterp.heads import Head
from mechinterp.models.handmade import native

G = torch.Generator().manual_seed(0)
CLEAN, CORRUPT = (torch.randint(1, 11, (4, 6), generator=G) for _ in range(2))
AT = torch.tensor([2, 0, 5, 3])
PLACE = torch.tensor([4, 0, 1, 5])
ROWS = torch.arange(4)


@pytest.fixture(scope="module")
def model() -> Any:
    shape = {"n_layers": 3, "n_heads": 2, "d_head": 5, "d_model": 16, "d_mlp": 12, "n_ctx": 8}
    shape |= {"d_vocab": 11, "d_vocab_out": 3, "attention_dir": "bidirectional"}
    sizes = {"attn.q": (10, 16), "attn.k": (10, 16), "attn.v": (10, 16), "attn.o": (16, 10)}
    sizes |= {"mlp.fc_in": (12, 16), "mlp.fc_out": (16, 12)}
    sizes = {f"layers.{i}.{name}": size for i in range(3) for name, size in sizes.items()}
    sizes |= {"tok_embed": (11, 16), "pos": (8, 16), "head": (3, 16)}
    generator = torch.Generator().manual_seed(1)
    weights = {f"{name}.weight": 0.4 * torch.randn(size, generator=generator) for name, size in sizes.items()}
    weights |= {name: w / 2 for name, w in weights.items() if "attn.q" in name or "attn.k" in name}  # soft patterns
    weights |= {f"layers.{i}.attn.o.bias": 0.4 * torch.randn(16, generator=generator) for i in range(3)}
    return native(shape, weights, ["<bos>", *map(str, range(10))], name="bidirectional")


def metric(logits: Tensor) -> Tensor:
    return logits[:, 0] - logits[:, 2]


def run(model: Any, tokens: Tensor) -> tuple[Tensor, Any]:
    """The metric, and everything recorded."""
    logits, cache = model.run_with_cache(tokens)
    return metric(logits[ROWS, AT]), cache


def marks(positions: Tensor, head: int | None = None) -> Tensor:
    marked = torch.zeros(4, 6, 2 if head is not None else 1, dtype=torch.bool)
    marked[ROWS, positions, head or 0] = True
    return marked[..., None] if head is not None else marked


def test_the_anatomy_is_the_model(model: Any) -> None:
    anatomy = Anatomy.of(model, bidirectional=True)
    x = anatomy.embed(CLEAN)
    for layer in anatomy.layers:
        x = layer(x)
    torch.testing.assert_close(anatomy.unembed(x), model(CLEAN), atol=1e-4, rtol=1e-4)
    assert (model(CLEAN)[:, 0] - model(torch.cat([CLEAN[:, :-1], CORRUPT[:, -1:]], 1))[:, 0]).abs().max() > 1e-3


def test_what_takes_attention_to_be_causal_refuses_it(model: Any) -> None:
    with pytest.raises(ValueError, match="attention that is not causal, which is not supported here"):
        Anatomy.of(model)


def test_logits_and_attributions(model: Any) -> None:
    torch.testing.assert_close(
        patching.logits_at(model, CLEAN, AT, batch_size=3), model(CLEAN)[ROWS, AT], atol=1e-4, rtol=1e-4
    )
    parts = patching.direct_logit_attribution(model, CLEAN, AT, torch.zeros(4, dtype=torch.long), torch.full((4,), 2))
    torch.testing.assert_close(parts.total(), metric(model(CLEAN)[ROWS, AT]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"right: ids must lie in 0\.\.2"):
        patching.direct_logit_attribution(model, CLEAN, AT, torch.full((4,), 3))


@pytest.mark.parametrize("node", ["resid_pre", "mlp_out", "z", "q", "k", "v"])
def test_activation_patching(model: Any, node: Any) -> None:
    ours = patching.activation_patch(model, CLEAN, CORRUPT, node=node, metric=metric, at=AT, positions=PLACE)
    _, other = run(model, CORRUPT)
    for layer in range(3):
        for head in range(2) if node in "zqkv" else [None]:
            name = f"blocks.{layer}." + (f"attn.hook_{node}" if node in "zqkv" else f"hook_{node}")
            new = other[name]

            def put(x: Tensor, hook: Any, head: int | None = head, new: Tensor = new) -> Tensor:
                shape = (*x.shape[:2], -1, 5) if head is not None else x.shape
                y = x.reshape(shape).clone()
                where = marks(PLACE, head)
                return torch.where(where, new.reshape(shape), y).view(x.shape)

            with model.hooks(fwd_hooks=[(name, put)]):
                expected = metric(model(CLEAN)[ROWS, AT])
            got = ours.patched[layer, 0] if head is None else ours.patched[layer, head, 0]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert (ours.patched - ours.clean).abs().max() > 1e-3


def test_replacing_outputs(model: Any) -> None:
    values = patching.record(model, CORRUPT)
    gone = patching.mask(model, CLEAN.shape, {Head(1, 0): PLACE, Head(0, 1): None})
    ours = metric(patching.replace(model, CLEAN, values, heads=gone, at=AT))
    _, other = run(model, CORRUPT)

    def one(x: Tensor, hook: Any) -> Tensor:
        return torch.where(marks(PLACE, 0), other["blocks.1.attn.hook_z"].view(4, 6, 2, 5), x.view(4, 6, 2, 5)).view(
            x.shape
        )

    def two(x: Tensor, hook: Any) -> Tensor:
        y = x.view(4, 6, 2, 5).clone()
        y[:, :, 1] = other["blocks.0.attn.hook_z"].view(4, 6, 2, 5)[:, :, 1]
        return y.view(x.shape)

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", one), ("blocks.0.attn.hook_z", two)]):
        expected = metric(model(CLEAN)[ROWS, AT])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", [PLACE, None], ids=["at a position", "everywhere"])
@pytest.mark.parametrize("part", ["logits", "q", "k", "v"])
def test_paths(model: Any, part: str, positions: Tensor | None) -> None:
    """Appendix B of Wang et al., literally: heads frozen but the sender, the receiver's input recorded and put in."""
    receiver = Head(2, 1)
    receivers: Any = "logits" if part == "logits" else [(receiver, part)]
    ours = patching.path_patch(
        model, CLEAN, CORRUPT, metric=metric, at=AT, receivers=receivers, receiver_positions=positions
    )
    _, here = run(model, CLEAN)
    _, other = run(model, CORRUPT)
    for sender in [Head(0, 0), Head(1, 1)]:

        def freeze(layer: int, sender: Head = sender) -> Any:
            z = here[f"blocks.{layer}.attn.hook_z"].view(4, 6, 2, 5).clone()
            if layer == sender.layer:
                z[:, :, sender.head] = other[f"blocks.{layer}.attn.hook_z"].view(4, 6, 2, 5)[:, :, sender.head]
            return (f"blocks.{layer}.attn.hook_z", lambda x, hook: z.view(x.shape))

        with model.hooks(fwd_hooks=[freeze(layer) for layer in range(3)]):
            logits, got = model.run_with_cache(CLEAN)
        if part != "logits":
            name = f"blocks.2.attn.hook_{part}"
            where = torch.ones(4, 6, 1, dtype=torch.bool) if positions is None else marks(positions)

            def put(x: Tensor, hook: Any, got: Any = got, name: str = name, where: Tensor = where) -> Tensor:
                y = x.view(4, 6, 2, 5).clone()
                y[:, :, 1] = torch.where(where, got[name].view(4, 6, 2, 5)[:, :, 1], y[:, :, 1])
                return y.view(x.shape)

            with model.hooks(fwd_hooks=[(name, put)]):
                logits = model(CLEAN)
        torch.testing.assert_close(ours.patched[sender], metric(logits[ROWS, AT]), atol=1e-5, rtol=1e-4)
    assert (ours.patched - ours.clean).abs().max() > 1e-3
