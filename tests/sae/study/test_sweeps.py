"""Sweeps: the committed results are those of the committed command, and reading gives what was written."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mechinterp.sae import sites
from mechinterp.sae.files import released
from mechinterp.sae.files.formats import load
from mechinterp.sae.sites import layer_of
from mechinterp.sae.study import frontier, plans, sweeps

SETTINGS = ("kind", "hook", "d_sae", "sparsity", "seed", "lr", "variant")


COMMITTED = [
    (scale, name)
    for scale in plans.PLANS
    if (sweeps.MEASURED / f"{scale}.json").exists()
    for name in json.loads((sweeps.MEASURED / f"{scale}.json").read_text())
]


@pytest.mark.parametrize(("scale", "name"), COMMITTED)
def test_committed_sweeps_have_the_settings_of_the_code(scale: plans.ScaleName, name: str) -> None:
    wanted, found = plans.sweep(name, scale), sweeps.measured(name, scale)
    assert json.loads(json.dumps(asdict(wanted.config))) == found.config
    assert [tuple(s[key] for key in SETTINGS) for s in found.saes] == [
        tuple(asdict(spec)[key] for key in SETTINGS) for spec in wanted.specs
    ]
    for s in found.saes if sweeps.in_model(name) else ():
        for measure in sweeps.INTERVALS:
            lo, hi = s["interval"][measure]
            assert lo <= s[measure] <= hi or hi - lo < 1e-4


@pytest.mark.parametrize("scale", plans.PLANS)
def test_shipped_saes_are_those_of_the_plan(scale: plans.ScaleName) -> None:
    plan = plans.PLANS[scale]
    there = {name for name in released.names() if name.startswith(f"{plan.model}/attention-")}
    wanted = {f"{plan.model}/attention-{layer_of(hook)}": hook for hook in plan.attention}
    assert there in (set(wanted), set())
    for name in there:
        sae = released.shipped(name)
        assert (sae.kind, sae.hook, sae.d_sae) == ("standard", wanted[name], plan.attention_d_sae)


def test_what_is_shipped_is_small() -> None:
    sizes = [path.stat().st_size for path in released.SHIPPED.rglob("*") if path.is_file()]
    assert max(sizes) < 16e6
    assert sum(sizes) < 60e6


def test_an_sae_that_is_not_shipped() -> None:
    with pytest.raises(ValueError, match="no SAE 'lab/attention-9' in the package; there are lab/attention-0"):
        released.shipped("lab/attention-9")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A plan that takes seconds, and a folder of text."""
    plan = replace(
        plans.LAB,
        rows=8,
        short_rows=4,
        length=32,
        batch=32,
        attention=("blocks.1.attn.hook_z",),
        attention_d_sae=256,
        attention_l1=(0.1,),
        attention_rows=8,
        d_sae=256,
        widths=(256, 300),
        few=(0,),
    )
    monkeypatch.setitem(plans.PLANS, "lab", plan)
    monkeypatch.setattr(sweeps, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(released, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "train_0.txt").write_text("\0".join(["It was the best of times, it was the worst of times. " * 9] * 4))
    return tmp_path


def test_export_and_read_back(small: Path) -> None:
    with pytest.raises(ValueError, match="has not been run at lab scale"):
        sweeps.measured("attention", "lab")
    command = ["lab", "--text", str(small), "--out", str(small / "runs"), "--only", "attention", "mlp topk", "width"]
    sweeps.main([*command, "--device", "cpu", "--export"])
    [found] = sweeps.measured("attention", "lab").choose(kind="standard")
    assert 0 < found["l0"] < 256
    assert sum(found["density"]) == round((1 - found["dead"]) * 256)
    assert sum(found["rows"]) / len(found["rows"]) == pytest.approx(found["delta_loss"], rel=1e-3, abs=1e-5)
    sae = load(small / "shipped" / "lab" / "attention-1")
    assert sae.params["W_dec"].dtype == torch.float32
    assert released.shipped("lab/mlp-topk").k in plans.LAB.sparsities["topk"]
    with pytest.raises(ValueError, match="no SAE of this sweep"):
        sweeps.measured("attention", "lab").choose(kind="topk")
    before = {path: path.stat().st_mtime_ns for path in (small / "runs").rglob("*") if path.is_file()}
    sweeps.main([*command, "--device", "cpu"])
    assert before == {path: path.stat().st_mtime_ns for path in before}, "finished sweeps are read"


def test_sweeps_of_other_lengths_share_their_activations(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, real = [], sites.activations
    monkeypatch.setattr("mechinterp.sae.store.activations", lambda *a, **k: passes.append(len(a[1])) or real(*a, **k))
    command = ["lab", "--text", str(small), "--out", str(small / "runs"), "--device", "cpu", "--only"]
    monkeypatch.setitem(plans.PLANS, "lab", replace(plans.PLANS["lab"], block=4))
    sweeps.main([*command, "width"])
    assert passes == [4]
    sweeps.main([*command, "mlp topk", "width"])
    assert passes == [4, 4], "the rows that both read are there"


def test_other_text_in_the_same_folder_is_read_again(small: Path) -> None:
    before = sweeps.text_rows("lab", str(small))
    assert sweeps.text_rows("lab", str(small)) is before
    path = small / "train_0.txt"
    path.write_text(path.read_text().replace("best", "tseb"))
    assert not torch.equal(sweeps.text_rows("lab", str(small)), before)


def test_what_is_refused(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match="no sweep 'frontier' at scale 'lab'"):
        plans.sweep("frontier", "lab")
    with pytest.raises(ValueError, match="no sweep 'resid gated' at scale 'laptop'"):
        plans.sweep("resid gated", "laptop")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=r"no .txt or .txt.xz files matching"):
        sweeps.text_rows("lab", str(empty))


def test_frontiers_of_other_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "LIBRARIES_FILE", tmp_path / "libraries.json")
    with pytest.raises(ValueError, match="no comparison of topk SAEs with 300 steps; there are: none"):
        sweeps.by_library("topk", 300)
    own = [{"sparsity": k, "seed": 0, "lr": 0.001, "l0": k, "fvu": 1 / k, "added_loss": 0.1} for k in (4, 8)]
    (tmp_path / "libraries.json").write_text(json.dumps({"topk 300": {"ours": own}}))
    curve = frontier.curve(sweeps.by_library("topk", 300)["ours"], "fvu")
    assert curve.at(torch.tensor([8.0], dtype=torch.float64)).item() == pytest.approx(0.125)
