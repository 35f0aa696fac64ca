import dataclasses
import errno
import json
import math
import os

import numpy as np
import pytest
import torch

from mechinterp import Head
from mechinterp.claims import CLAIMS, Ledger, read_results, results_folder
from mechinterp.claims import ledger as ledger_module

MODEL = {"name": "lab", "sha256": "ab" * 32, "layers": 5}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHINTERP_RESULTS", str(tmp_path))
    return tmp_path


def start(scale="lab", **changes):
    return Ledger("ioi", scale=scale, model=MODEL, **changes)


def test_a_value_is_judged_and_written(folder):
    card = start().record("IOI-1", 7.25, (7.0, 7.5), "held-out pairs")
    assert card.verdict == "reproduced"
    data = json.loads((folder / "lab/ioi.json").read_text())
    assert data["schema"] == 1
    assert (data["chapter"], data["scale"], data["device"], data["seed"]) == ("ioi", "lab", "cpu", 0)
    assert data["model"] == {"name": "lab", "sha256": "ab" * 32}
    assert data["claims"] == {
        "IOI-1": {
            "value": 7.25,
            "interval": [7.0, 7.5],
            "expected": [3.0, None],
            "verdict": "reproduced",
            "note": "held-out pairs",
        }
    }
    assert set(data) == {*"schema chapter scale version model device seed date seconds claims".split()}


def test_a_red_verdict_is_a_result():
    card = start().record("IOI-2", 0.5)
    assert card.verdict == "not reproduced"
    assert "✗" in card._repr_html_()


def test_sets_and_tables_with_intervals(folder):
    ledger = start(scale="paper")
    ledger.record("IOI-9", [Head(7, 3), Head(7, 9), Head(8, 6), Head(8, 10)], {"7.3": (-0.4, -0.2)})
    value = {"for": [Head(9, 9), Head(9, 6), Head(10, 0)], "against": [Head(10, 7)]}
    ledger.record("IOI-4", value, {"9.9": (-0.6, -0.5), "10.7": (0.1, 0.2)})
    claims = read_results(folder / "paper/ioi.json").claims
    assert claims["IOI-9"].verdict == "reproduced"
    assert claims["IOI-4"].verdict == "not reproduced"
    assert claims["IOI-4"].value["against"] == ["10.7"]


def test_recording_twice_replaces():
    ledger = start()
    ledger.record("IOI-1", 1.0)
    ledger.record("IOI-1", 5.0)
    assert read_results(results_folder() / "lab/ioi.json").claims["IOI-1"].value == 5.0
    assert str(ledger.table()).splitlines()[0] == "1 of 27 claims reproduced at lab scale, 1 recorded."


def test_a_second_run_of_the_same_model_keeps_what_it_has_not_reached(folder):
    start().record("IOI-1", 5.0)
    second = start()
    second.record("IOI-2", 0.99)
    assert set(read_results(folder / "lab/ioi.json").claims) == {"IOI-1", "IOI-2"}
    assert "IOI-1    not run yet" in str(second.table())


def test_another_model_starts_afresh(folder):
    start().record("IOI-1", 5.0)
    Ledger("ioi", scale="lab", model={"name": "lab", "sha256": "cd" * 32}).record("IOI-2", 0.99)
    assert set(read_results(folder / "lab/ioi.json").claims) == {"IOI-2"}


def test_claims_are_written_in_their_natural_order(folder):
    ledger = start()
    for id in ("IOI-W1", "IOI-10", "IOI-2"):
        ledger.record(id, 0.7)
    assert list(json.loads((folder / "lab/ioi.json").read_text())["claims"]) == ["IOI-2", "IOI-10", "IOI-W1"]


def test_a_rehearsal_judges_and_writes_nothing(folder):
    ledger = start(scale="rehearsal")
    assert ledger.record("IOI-1", 0.01).verdict == "not reproduced"
    assert list(folder.rglob("*")) == []


def test_not_here_is_for_the_lab(folder):
    card = start().not_here("IOI-8", "no negative name mover has formed")
    assert (card.verdict, card.value) == ("paper scale only", None)
    assert read_results(folder / "lab/ioi.json").claims["IOI-8"].note == "no negative name mover has formed"
    with pytest.raises(ValueError, match="belongs to this scale"):
        start(scale="rehearsal").not_here("IOI-8", "reason")
    with pytest.raises(ValueError, match="give the reason"):
        start().not_here("IOI-8", "")


def test_a_claim_without_meaning_in_the_lab_is_never_reproduced_there(monkeypatch):
    claim = dataclasses.replace(CLAIMS["ioi"]["IOI-9"], lab=None, why_not_lab="these heads exist in GPT-2 only")
    monkeypatch.setitem(ledger_module.CLAIMS["ioi"], "IOI-9", claim)
    card = start().record("IOI-9", ["7.3", "7.9", "8.6", "8.10"])
    assert (card.verdict, card.note) == ("paper scale only", "these heads exist in GPT-2 only")


@pytest.mark.parametrize(
    ("id", "value", "interval", "message"),
    [
        ("IOI-99", 1.0, None, "unknown claim 'IOI-99'"),
        ("IOI-1", math.nan, None, "IOI-1: the value is nan"),
        ("IOI-1", 1.0, (math.nan, 1), "finite ends in order"),
        ("IOI-1", 1.0, (2, 1), r"finite ends in order, got \(2.0, 1.0\)"),
        ("IOI-1", 1.0, (1, 2, 3), "a pair"),
        ("IOI-1", 1.0, 0.5, "a pair"),
        ("IOI-1", 1.0, {"LD": (0, 1)}, "one pair"),
        ("IOI-1", ["9.9"], None, "IOI-1: expected a number"),
        ("IOI-13", {"position": 1.0, "token": 1.0}, None, "a table with the rows"),
        ("IOI-13", {"position": 1.0, "token": 1.0, "error": 0.1}, (0, 1), "a dict of pairs"),
        ("IOI-13", {"position": 1.0, "token": 1.0, "error": 0.1}, {"slope": (0, 1)}, "'slope'"),
    ],
)
def test_bad_records_are_refused_and_leave_no_trace(folder, id, value, interval, message):
    with pytest.raises(ValueError, match=message):
        start().record(id, value, interval)
    assert list(folder.rglob("*.json")) == []


def test_an_interval_may_leave_out_a_skewed_statistic():
    assert start().record("IOI-19", 0.01, (0.02, 0.03)).interval == [0.02, 0.03]


def test_a_bad_start_is_refused():
    with pytest.raises(ValueError, match="unknown chapter 'iou'"):
        Ledger("iou", scale="lab", model=MODEL)
    with pytest.raises(ValueError, match="unknown scale 'big'"):
        start(scale="big")
    with pytest.raises(ValueError, match="sha256 must be given"):
        Ledger("ioi", scale="lab", model={"name": "lab"})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"model": {"name": "lab", "sha256": "00"}}, "sha256 is '00'; expected 64 hexadecimal digits"),
        ({"model": {"name": "lab", "sha256": "AB" * 32}}, "64 hexadecimal digits"),
        ({"model": {"name": "", "sha256": "ab" * 32}}, "by its name and sha256"),
        ({"device": "the fast one"}, "device is 'the fast one'"),
        ({"device": ""}, "device is ''"),
        ({"seed": 0.5}, "seed is 0.5; expected an integer"),
        ({"seed": "0"}, "seed is '0'"),
        ({"seed": None}, "seed is None"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_facts_of_a_run_are_checked_before_they_are_written(folder, facts, message):
    with pytest.raises(ValueError, match=message):
        Ledger("ioi", scale="lab", **({"model": MODEL} | facts))
    assert list(folder.iterdir()) == []


def test_devices_and_seeds_of_other_types_are_written_as_json(folder):
    start(seed=np.int64(3), device=torch.device("cuda", 1)).record("IOI-1", 5.0)
    data = json.loads((folder / "lab/ioi.json").read_text())
    assert (data["seed"], data["device"]) == (3, "cuda:1")


def test_a_results_folder_that_is_none_is_noticed_at_the_start(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("MECHINTERP_RESULTS", str(folder / "file"))
    with pytest.raises(ValueError, match=r"file is not a folder.*--results or MECHINTERP_RESULTS"):
        start()
    start(scale="rehearsal").record("IOI-1", 1.0)


def test_a_half_written_file_stops_the_run_and_is_kept(folder):
    path = folder / "lab/ioi.json"
    path.parent.mkdir()
    path.write_text('{"schema": 1, "chapter": "io')
    with pytest.raises(ValueError, match=r"not complete JSON .*git checkout"):
        start()
    assert path.read_text() == '{"schema": 1, "chapter": "io'


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "choose another folder with --results"),
        (errno.EROFS, "choose another folder with --results"),
        (errno.ENOTDIR, "a file stands where a folder must be"),
        (errno.EISDIR, "a folder where the file must be"),
    ],
)
def test_the_way_out_fits_the_cause(monkeypatch, number, way_out):
    ledger = start()

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("mechinterp.claims.results.atomic_write", fail)
    with pytest.raises(OSError, match=f"{os.strerror(number)}; .*{way_out}") as raised:
        ledger.record("IOI-1", 5.0)
    assert raised.value.errno == number
    assert ("free some space" in str(raised.value)) == (way_out == "free some space")


def test_a_folder_that_became_a_file_during_the_run(folder):
    ledger = start()
    (folder / "lab").touch()
    with pytest.raises(OSError, match="a file stands where a folder must be"):
        ledger.record("IOI-1", 5.0)


def test_a_full_disk_keeps_the_earlier_file(folder, monkeypatch):
    ledger = start()
    ledger.record("IOI-1", 5.0)
    before = (folder / "lab/ioi.json").read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mechinterp.files.os.fsync", full)
    with pytest.raises(
        OSError, match=r"earlier file is untouched: No space left on device; free some space.*ioi\.json"
    ) as raised:
        ledger.record("IOI-2", 0.99)
    assert raised.value.errno == errno.ENOSPC
    assert (folder / "lab/ioi.json").read_bytes() == before
    assert [p.name for p in (folder / "lab").iterdir()] == ["ioi.json"]
    monkeypatch.undo()
    monkeypatch.setenv("MECHINTERP_RESULTS", str(folder))
    ledger.record("IOI-3", 0.5)
    assert set(read_results(folder / "lab/ioi.json").claims) == {"IOI-1", "IOI-2", "IOI-3"}


def test_a_card_says_everything_as_text_and_html():
    card = start(scale="paper").record("IOI-16", 0.5, (0.4, 0.6), "N = 100 & <mixed>")
    text, html = str(card), card._repr_html_()
    for part in ("IOI-16", "not reproduced", "87 %", "0.5 [0.4, 0.6]", "0.75 to 1.05"):
        assert part in text
        assert part in html
    assert "N = 100 &amp; &lt;mixed&gt;" in html
    assert "<mixed>" not in html


def test_the_table_lists_every_claim():
    table = start().table()
    assert [row[0] for row in table.rows] == list(CLAIMS["ioi"])
    assert table._repr_html_().count("not run yet") == len(CLAIMS["ioi"])
