"""The compressions that come with the package, and the command that makes them."""

import hashlib
import json

import pytest
import torch

from mechinterp.rasp import study
from mechinterp.rasp.compression import all_inputs, quality


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(study.PLANS, "tiny", {"frac_prevs": study.Plan((3, 14), (0, 1), 6)})
    monkeypatch.setattr(study, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(study, "SAVE_EVERY", 4)
    return tmp_path


def test_the_command_goes_on_and_gives_what_it_would_have_given(tiny, monkeypatch):
    study.main(["tiny", "--out", str(tiny / "whole"), "--export"])
    whole = study.measured("frac_prevs", "tiny")
    real = study.train

    def killed(*args, **options):
        if args[1].step:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(study, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        study.main(["tiny", "--out", str(tiny / "parts")])
    monkeypatch.setattr(study, "train", real)
    study.main(["tiny", "--out", str(tiny / "parts"), "--export"])
    again = study.measured("frac_prevs", "tiny")
    torch.testing.assert_close(again.W, whole.W, atol=2e-3, rtol=0)
    assert whole.dims == (3, 3, 14, 14)
    assert (whole.W[:2, 3:] == 0).all()
    assert whole.at(14, 1).shape == (14, 14)
    with pytest.raises(ValueError, match=r"no compression to 5 dimensions with seed 0; sizes \[3, 14\]"):
        whole.at(5)


def test_programs_that_there_are_not_are_refused(tiny, capsys):
    with pytest.raises(SystemExit):
        study.main(["tiny", "--out", str(tiny), "--only", "hist"])
    assert "no such program: hist; there are frac_prevs" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"hist has not been compressed at tiny scale: python -m mechinterp\.rasp\.study"
    ):
        study.measured("hist", "tiny")


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_what_comes_with_the_package_is_what_its_plan_says(scale):
    for name, plan in study.PLANS[scale].items():
        found, model = study.measured(name, scale), study.compiled(name)
        assert set(zip(found.dims, found.seeds, strict=True)) == {(d, s) for d in plan.dims for s in plan.seeds}
        tokens = all_inputs(model, model.max_len)[::7]
        start = study.begin(model, plan.dims, plan.seeds)
        before, after = (quality(model, W, tokens) for W in (start.W, found.W))
        assert (after.layers < before.layers).float().mean() > 0.9, "trained"
    assert json.loads((study.MEASURED / f"{scale}.json").read_text()).keys() == study.PLANS[scale].keys()
    data = (study.MEASURED / f"{scale}.json").read_bytes()
    assert study.describe(scale)["sha256"] == hashlib.sha256(data).hexdigest()
