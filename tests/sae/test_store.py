"""The store against activations collected by hand, its resuming, and what it refuses."""

import errno
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.datasets.text import packed_rows, sample
from mechinterp.models import load
from mechinterp.sae import site, sites
from mechinterp.sae.store import Given, Store, counted, geometric_median, skipped

HOOKS = ("blocks.1.attn.hook_z", "blocks.2.hook_mlp_out", "blocks.2.hook_resid_post", "blocks.3.hook_resid_pre")


@pytest.fixture(scope="module")
def model() -> Any:
    return load("lab", device="cpu")


@pytest.fixture(scope="module")
def rows() -> Tensor:
    found = torch.randint(1, 8192, (5, 17), generator=torch.Generator().manual_seed(0))
    found[:, 0] = 0
    found[2, 8] = 0
    return found


@pytest.mark.parametrize("hook", [*HOOKS, "blocks.1.attn.hook_q", "blocks.1.hook_attn_out"])
def test_activations_are_those_of_the_models_own_hook(model: Any, rows: Tensor, hook: str) -> None:
    got = {}
    model.run_with_hooks(rows, return_type=None, fwd_hooks=[(hook, lambda x, hook: got.update(x=x.clone()))])
    found = sites.activations(model, rows, [hook], batch_size=2)[hook]
    torch.testing.assert_close(found, got["x"].reshape(*rows.shape, -1), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("hook", [*HOOKS, "blocks.3.hook_attn_out", "blocks.1.attn.hook_v"])
def test_logits_with_a_site_replaced_are_those_of_a_hook(model: Any, rows: Tensor, hook: str) -> None:
    theirs = model.run_with_hooks(rows, fwd_hooks=[(hook, lambda x, hook: 0.5 * x)])
    ours = sites.logits(model, rows, hook, lambda x: 0.5 * x)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
    assert (ours - sites.logits(model, rows)).abs().max() > 0.01


def test_one_pass_has_every_token_but_bos_once(model: Any, rows: Tensor) -> None:
    store = Store(model, rows, HOOKS[:2], batch=79, block=5)
    assert len(store) == 1
    batch = next(store.batches())
    for hook in store.hooks:
        expected = sites.activations(model, rows, [hook])[hook][rows != 0]
        ours, theirs = (x[x[:, 0].argsort()] for x in (batch[hook], expected))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 30), batch=st.integers(1, 40))
def test_batches_go_on_from_anywhere(start: int, batch: int) -> None:
    given_ = Given({"here": torch.arange(120.0).reshape(60, 2)}, batch=batch, seed=3)
    whole, part = given_.batches(), given_.batches(start)
    for _ in range(start):
        next(whole)
    for _ in range(4):
        torch.testing.assert_close(next(whole)["here"], next(part)["here"])


def test_a_store_goes_on_from_anywhere_and_from_its_cache(model: Any, rows: Tensor, tmp_path: Path) -> None:
    plain = Store(model, rows, HOOKS[:2], batch=10, block=2)
    cached = Store(model, rows, HOOKS[:2], batch=10, block=2, cache=tmp_path)
    for source in (plain, cached, cached):
        stream, later = source.batches(), source.batches(4)
        expected = [next(stream) for _ in range(7)]
        for one in expected[4:]:
            torch.testing.assert_close(next(later), one, atol=0, rtol=0)
    assert len(list(tmp_path.iterdir())) == 6, "three blocks, two hooks"
    torch.testing.assert_close(next(plain.batches()), next(cached.batches()), atol=0, rtol=2**-8)


def test_blocks_serve_every_store_that_has_them(
    model: Any, rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Store(model, rows[:4], HOOKS[:2], batch=10, block=2, cache=tmp_path)
    both.fill()
    written = sorted(p.name for p in tmp_path.iterdir())
    assert len(written) == 4
    assert both.bytes < sum(p.stat().st_size for p in tmp_path.iterdir()) < both.bytes + 4 * 400
    passes, real = [], sites.activations
    monkeypatch.setattr("mechinterp.sae.store.activations", lambda *a, **k: passes.append(a[2]) or real(*a, **k))
    both.fill()
    one = Store(model, rows[:4], HOOKS[1:2], batch=10, block=2, cache=tmp_path)
    torch.testing.assert_close(one.compute(1)[HOOKS[1]], both.compute(1)[HOOKS[1]], atol=0, rtol=0)
    assert passes == [], "what is there is not computed again"
    more = Store(model, rows, HOOKS[1:3], batch=10, block=2, cache=tmp_path)
    more.fill()
    assert passes == [[HOOKS[2]], [HOOKS[2]], list(HOOKS[1:3])], "only the hook and the rows that are new"
    assert len(list(tmp_path.iterdir())) == 4 + 3 + 1
    torch.testing.assert_close(
        more.compute(2)[HOOKS[1]], sites.activations(model, rows[4:], HOOKS[1:2])[HOOKS[1]][counted(model, rows[4:])],
        atol=0, rtol=2**-8, check_dtype=False,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["one bit", "cut", "another tensor"])
def test_a_block_that_has_changed_on_disk_is_refused(model: Any, rows: Tensor, tmp_path: Path, how: str) -> None:
    store = Store(model, rows, HOOKS[:1], batch=10, block=5, cache=tmp_path)
    store.fill()
    [path] = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if how == "one bit":
        data[-77] ^= 4
    path.write_bytes({"cut": data[:-9], "another tensor": safetensors.torch.save({"x": torch.ones(3)})}.get(how, data))
    with pytest.raises(ValueError, match=rf"{path.name} (is no whole file|has changed).*: delete it, and it is comp"):
        store.compute(0)
    path.unlink()
    assert torch.isfinite(store.compute(0)[HOOKS[0]]).all()


def test_a_disk_that_is_too_small_is_refused_before_the_first_pass(
    model: Any, rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=40_000))
    monkeypatch.setattr("mechinterp.sae.store.activations", lambda *a, **k: pytest.fail("a pass was made"))
    store = Store(model, rows, HOOKS[:2], batch=10, cache=tmp_path)
    with pytest.raises(OSError, match=r"activations take 0\.0 GB in .*, where 0\.0 GB are free"):
        store.fill()
    with pytest.raises(ValueError, match="no cache to fill"):
        Store(model, rows, HOOKS[:1], batch=10).fill()


@pytest.fixture
def other() -> Any:
    """A model that may be edited."""
    return load("lab", device="cpu")


EDITS: dict[str, Any] = {
    "one weight deep in an MLP": lambda w: w[700, 31].add_(1e-3),
    "rows exchanged, all sums equal": lambda w: w.copy_(w.flip(0)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_store_notices_every_change_of_the_weights(other: Any, rows: Tensor, tmp_path: Path, edit: Any) -> None:
    store = Store(other, rows, HOOKS[1:2], batch=10, cache=tmp_path)
    before, digest = next(store.batches())[HOOKS[1]], store.digest
    with torch.no_grad():
        edit(other.blocks[2].mlp.W_out)
    assert store.digest != digest
    after = next(store.batches())[HOOKS[1]]
    assert not torch.equal(after, before)
    fresh = next(Store(other, rows, HOOKS[1:2], batch=10).batches())[HOOKS[1]]
    torch.testing.assert_close(after, fresh, atol=2e-2, rtol=1e-3)


def test_a_new_store_notices_what_went_past_autograd(other: Any, rows: Tensor) -> None:
    digest = Store(other, rows, HOOKS[1:2], batch=10).digest
    other.blocks[1].mlp.W_in.data[5, 900] += 1e-3
    assert Store(other, rows, HOOKS[1:2], batch=10).digest != digest


def test_the_digest_is_made_of_all_that_makes_a_block(other: Any, rows: Tensor, tmp_path: Path) -> None:
    store = Store(other, rows, HOOKS[:2], batch=10, block=2)
    turned = rows.clone()
    turned[0, [3, 4]] = rows[0, [4, 3]]
    found = [
        store.digest,
        replace(store, rows=turned).digest,
        replace(store, hooks=HOOKS[1:3]).digest,
        replace(store, block=3).digest,
        replace(store, rows=rows[:4]).digest,
        replace(store, skip=(0, 7)).digest,
        replace(store, cache=tmp_path).digest,
    ]
    eps, other.cfg.eps = other.cfg.eps, 1e-3
    found.append(replace(store).digest)
    other.cfg.eps = eps
    other.register_buffer("mask", torch.ones(2))
    found.append(replace(store).digest)
    assert len(set(found)) == len(found)
    fresh = load("lab", device="cpu")
    assert Store(fresh, rows, HOOKS[:2], batch=3, block=2, seed=5).digest == found[0], "and of nothing else"
    assert Store(fresh, rows, HOOKS[:2], batch=3, block=2, skip=(0,)).digest == found[0]


def test_given_activations_are_told_apart_by_every_value() -> None:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    swapped = x.clone()
    swapped[4, [1, 2]] = x[4, [2, 1]]
    digests = {Given({hook: y}, batch=5).digest for hook in ("a", "b") for y in (x, swapped, x.double(), x[:19])}
    assert len(digests) == 8
    assert Given({"a": x.clone()}, batch=10).digest in digests


def test_activations_beyond_bfloat16_are_not_cached(other: Any, rows: Tensor, tmp_path: Path) -> None:
    def huge(*_: Any) -> dict[str, Tensor]:
        return {HOOKS[1]: torch.full((5, 17, 3), 3.4e38)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechinterp.sae.store.activations", huge)
        assert Store(other, rows, HOOKS[1:2], batch=10).compute(0)[HOOKS[1]].isfinite().all()
        with pytest.raises(ValueError, match=r"reach 3\.4e\+38: bfloat16 ends at 3\.39e38"):
            Store(other, rows, HOOKS[1:2], batch=10, cache=tmp_path).compute(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bos", "skip", "left_out"), [(7, None, {7}), (None, None, set()), (7, (0, 5), {0, 5}), (7, (), set())]
)
def test_the_tokenizers_own_bos_is_left_out(
    other: Any, rows: Tensor, bos: int | None, skip: tuple[int, ...] | None, left_out: set[int]
) -> None:
    other.tokenizer = deepcopy(other.tokenizer)
    other.tokenizer.bos_token = None if bos is None else other.tokenizer.convert_ids_to_tokens(bos)
    rows = rows.clone()
    rows[:, 3], rows[:, 4] = 7, 5
    kept = sum(int(t) not in left_out for t in rows[:, 1:].flatten())
    assert skipped(other, skip) == tuple(sorted(left_out))
    store = Store(other, rows, HOOKS[:1], batch=1, skip=skip)
    assert len(store) == kept
    assert len(store.compute(0)[HOOKS[0]]) == kept
    assert site(other, rows, HOOKS[0], skip=skip).counted.sum() == kept


def test_the_first_token_never_counts(model: Any, rows: Tensor) -> None:
    without = rows.clamp(min=1)
    assert len(Store(model, without, HOOKS[:1], batch=1)) == without[:, 1:].numel()
    assert not counted(model, without, [])[:, 0].any()


def test_the_first_token_of_a_real_model_is_a_sink_without_bos(smollm2: Any) -> None:
    rows = packed_rows(smollm2.tokenizer, sample(), 2, 64)
    hook = "blocks.14.hook_resid_post"
    norm = sites.activations(smollm2, rows, [hook])[hook].norm(dim=-1)
    kept = counted(smollm2, rows)
    assert (kept.sum(1) == 63).all(), "this tokenizer's text has no BOS"
    assert norm[~kept].min() > 20 * norm[kept].max()


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(
    model: Any, rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        next(Store(model, rows, HOOKS[:1], batch=10, cache=tmp_path).batches())
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(model: Any, rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"no hook 'blocks.1.hook_mlp_oot'.*"):
        Store(model, rows, ("blocks.1.hook_mlp_oot",))
    with pytest.raises(ValueError, match=r"no hook 'blocks\.9\.attn\.hook_z' to read; in layers 0 to 4"):
        Store(model, rows, ("blocks.9.attn.hook_z",))
    with pytest.raises(ValueError, match="do not fill one batch of 4096"):
        Store(model, rows, HOOKS[:1])
    with pytest.raises(ValueError, match=r"rows must have shape \[row pos\]"):
        Store(model, rows[0], HOOKS[:1], batch=2)
    with pytest.raises(ValueError, match="at least 1"):
        Store(model, rows, HOOKS[:1], batch=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(bad: float) -> None:
    x = torch.ones(20, 3)
    x[4, 1] = bad
    with pytest.raises(ValueError, match="here contain NaN or infinity"):
        Given({"here": x}, batch=5)


def test_a_broken_model_is_refused(rows: Tensor) -> None:
    broken = load("lab", device="cpu")
    broken.blocks[1].mlp.b_out.data[3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        next(Store(broken, rows, HOOKS[1:2], batch=10).batches())


def test_activations_that_do_not_vary_are_refused() -> None:
    with pytest.raises(ValueError, match="constant"):
        Given({"here": torch.ones(20, 3)}, batch=5).scale("here")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(3, 30), d=st.integers(1, 5))
def test_no_point_has_a_smaller_sum_of_distances_than_the_geometric_median(seed: int, n: int, d: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g).exp()
    found = geometric_median(x, steps=300)

    def total(point: Tensor) -> float:
        return (x - point).norm(dim=1).sum().item()

    others = [x.mean(0), x.median(0).values, *x, *(found + 0.1 * torch.randn(50, d, generator=g))]
    assert total(found) <= min(map(total, others)) * (1 + 1e-3)


def test_the_median_of_a_store_is_that_of_its_first_block(model: Any, rows: Tensor) -> None:
    store = Store(model, rows, HOOKS[:1], batch=4, block=2)
    first = sites.activations(model, rows[:2], HOOKS[:1])[HOOKS[0]][rows[:2] != 0]
    torch.testing.assert_close(store.median(HOOKS[0]), geometric_median(first), atol=1e-3, rtol=1e-3)


def test_a_block_is_computed_once(model: Any, rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    store, passes = Store(model, rows, HOOKS[:1], batch=4, block=2), []
    real = sites.activations
    monkeypatch.setattr("mechinterp.sae.store.activations", lambda *a, **k: passes.append(1) or real(*a, **k))
    store.scale(HOOKS[0]), store.variance(HOOKS[0]), store.median(HOOKS[0])
    batches = store.batches()
    for _ in range(store.counts()[0]):
        next(batches)
    assert len(passes) == 1
    next(batches)
    assert len(passes) == 2
