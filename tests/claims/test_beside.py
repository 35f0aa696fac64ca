"""Model beside model: what each results file says, and nothing that none says."""

import pytest

from mechinterp.claims import Results, beside, write_results
from mechinterp.claims.beside import models
from mechinterp.claims.results import Entry
from mechinterp.stats import Estimate

VALUE = Estimate(5.1, (4.5, 5.8), 15, "templates")


def results(scale, name):
    run = Results("ioi", scale, "0.1.0", {"name": name, "sha256": "ab" * 32}, "cpu", 0)
    return run.with_entry("IOI-1", Entry(VALUE, None, [2.0, None], "reproduced"))


def test_every_model_but_the_lab_s_has_a_column(tmp_path):
    for scale, name in (("lab", "lab"), ("paper", "gpt2"), ("laptop", "gemma3-270m"), ("laptop", "smollm2")):
        write_results(results(scale, name), tmp_path)
    assert [run.model["name"] for run in models("ioi", tmp_path)] == ["smollm2", "gemma3-270m", "gpt2"]
    table = beside("ioi", ["IOI-1", "IOI-3"], tmp_path)
    assert table.count("5.1 [4.5, 5.8]") == table.count("not run yet") == 3
    assert "lab" not in table.split("<thead>")[1].split("</thead>")[0]


def test_what_is_not_there_is_refused_or_left_out(tmp_path):
    assert models("ioi", tmp_path) == []
    assert "5.1" not in beside("ioi", ["IOI-1"], tmp_path)
    for chapter, id in (("ioi", "IOI-99"), ("iou", "IOI-1")):
        with pytest.raises(ValueError, match=f"chapter {chapter} has no claim {id}"):
            beside(chapter, [id], tmp_path)
    with pytest.raises(ValueError, match="is not there; give a results folder"):
        beside("ioi", ["IOI-1"], tmp_path / "none")
