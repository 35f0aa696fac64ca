"""Sweeps: the committed results are those of the committed command, and reading gives what was written."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mechinterp.sae.files.formats import load
from mechinterp.sae.study import sweeps

PATH = sweeps.MEASURED / "lab.json"
SETTINGS = ("kind", "hook", "d_sae", "sparsity", "seed", "lr", "variant")


@pytest.mark.parametrize("name", sweeps.SWEEPS)
def test_committed_sweeps_have_the_settings_of_the_code(name: str) -> None:
    wanted, found = sweeps.sweep(name, "lab"), sweeps.measured(name, "lab")
    assert json.loads(json.dumps(asdict(wanted.config))) == found.config
    assert [tuple(s[key] for key in SETTINGS) for s in found.saes] == [
        tuple(asdict(spec)[key] for key in SETTINGS) for spec in wanted.specs
    ]
    for s in found.saes:
        for measure in sweeps.INTERVALS:
            lo, hi = s["interval"][measure]
            assert lo <= s[measure] <= hi or hi - lo < 1e-4


def test_shipped_saes_are_those_of_the_sweep() -> None:
    found = sweeps.measured("attention", "lab")
    for i, s in enumerate(found.saes):
        sae = sweeps.shipped(f"attention-{i}")
        assert (sae.kind, sae.hook, sae.d_sae) == (s["kind"], s["hook"], s["d_sae"])
    with pytest.raises(ValueError, match="no SAE 'attention-9' in the package; there are attention-0"):
        sweeps.shipped("attention-9")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A plan that takes seconds, and a folder of text."""
    plan = replace(
        sweeps.LAB,
        rows=8,
        length=32,
        batch=32,
        attention=("blocks.1.attn.hook_z",),
        attention_l1=(0.1,),
        attention_rows=8,
        d_sae=256,
        config=replace(sweeps.LAB.config, steps=4, log_every=2),
    )
    monkeypatch.setitem(sweeps.PLANS, "lab", plan)
    monkeypatch.setattr(sweeps, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(sweeps, "SHIPPED", tmp_path / "lab")
    (tmp_path / "train_0.txt").write_text("\0".join(["It was the best of times, it was the worst of times. " * 9] * 4))
    return tmp_path


def test_export_and_read_back(small: Path) -> None:
    with pytest.raises(ValueError, match="has not been run at lab scale"):
        sweeps.measured("attention", "lab")
    command = ["lab", "--text", str(small), "--out", str(small / "runs"), "--only", "attention"]
    sweeps.main([*command, "--device", "cpu", "--export"])
    [found] = sweeps.measured("attention", "lab").choose(kind="standard")
    assert 0 < found["l0"] < 256
    assert sum(found["density"]) == round((1 - found["dead"]) * 256)
    sae = load(small / "lab" / "attention-0")
    assert sae.params["W_dec"].dtype == torch.float32
    with pytest.raises(ValueError, match="no SAE of this sweep"):
        sweeps.measured("attention", "lab").choose(kind="topk")


def test_other_text_in_the_same_folder_is_read_again(small: Path) -> None:
    before = sweeps.text_rows("lab", 4, str(small))
    assert sweeps.text_rows("lab", 4, str(small)) is before
    path = small / "train_0.txt"
    path.write_text(path.read_text().replace("best", "tseb"))
    assert not torch.equal(sweeps.text_rows("lab", 4, str(small)), before)


def test_what_is_refused(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match="no sweep 'frontier' at scale 'lab'"):
        sweeps.sweep("frontier", "lab")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=r"no .txt or .txt.xz files matching"):
        sweeps.run_sweep("attention", "lab", str(empty), small / "runs")
