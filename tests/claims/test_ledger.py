import dataclasses
import errno
import json
import os

import numpy as np
import pytest
import torch

from mechinterp import Head, claims
from mechinterp.claims import CLAIMS, Ledger, read_results, results_folder
from mechinterp.claims import ledger as ledger_module
from mechinterp.selection import Found
from mechinterp.stats import Estimate

MODEL = {"name": "lab", "sha256": "ab" * 32, "layers": 5}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHINTERP_RESULTS", str(tmp_path))
    return tmp_path


def start(scale="lab", **changes):
    return Ledger("ioi", scale=scale, model=MODEL, **changes)


def near(value, half=0.0):
    return Estimate(float(value), (float(value - half), float(value + half)), 15, "templates")


def test_a_value_is_judged_and_written(folder):
    card = start().record("IOI-1", near(7.25, 0.25), null=near(0.1, 0.2), note="held-out pairs")
    assert card.verdict == "reproduced"
    data = json.loads((folder / "lab/ioi.json").read_text())
    assert data["schema"] == 2
    assert (data["chapter"], data["scale"], data["device"], data["seed"]) == ("ioi", "lab", "cpu", 0)
    assert data["model"] == {"name": "lab", "sha256": "ab" * 32}
    ends = {"n": 15, "unit": "templates"}
    assert data["claims"] == {
        "IOI-1": {
            "value": {"value": 7.25, "interval": [7.0, 7.5], **ends},
            "null": {"value": {"value": 0.1, "interval": [-0.1, 0.3], **ends}, "passes": 0.0},
            "expected": [3.0, None],
            "verdict": "reproduced",
            "why": "",
            "note": "held-out pairs",
        }
    }
    assert set(data) == {*"schema chapter scale version model device seed date seconds claims environment".split()}


@pytest.mark.parametrize(
    ("value", "null", "verdict", "why"),
    [
        (near(5, 1), near(0, 1), "reproduced", ""),
        (near(5, 1), [0.0] * 19 + [4.0], "reproduced", ""),
        (near(5, 1), [0.0] * 18 + [4.0] * 2, "undecided", "the null meets"),
        (near(5, 1), near(4, 0.5), "undecided", "the null meets"),
        (near(5, 1), near(2.9, 0.5), "undecided", "the null meets"),
        (near(5, 1), None, "undecided", "null has not been measured"),
        (near(5, 1), claims.Chance(0.2), "undecided", "the null meets"),
        (near(3, 1), near(0), "undecided", "crosses a bound"),
        (near(1, 1), near(0), "not reproduced", ""),
        (near(1, 1), near(9), "not reproduced", ""),
    ],
)
def test_the_six_verdicts_but_two(value, null, verdict, why):
    card = start().record("IOI-1", value, null=null)
    assert card.verdict == verdict
    assert why in card.entry.why
    assert bool(why) == bool(card.entry.why)


def test_what_is_absent_is_red_and_says_why(folder):
    card = start().absent("IOI-8", "no head writes against the answer by 2 %")
    assert (card.verdict, card.entry.value) == ("absent here", None)
    assert "∅" in card._repr_html_()
    assert read_results(folder / "lab/ioi.json").claims["IOI-8"].why == "no head writes against the answer by 2 %"
    with pytest.raises(ValueError, match="give the reason"):
        start().absent("IOI-8", "")


def test_a_claim_without_meaning_at_a_scale_is_never_reproduced_there(monkeypatch):
    claim = dataclasses.replace(CLAIMS["ioi"]["IOI-9"], lab=None, why_not_lab="these heads exist in GPT-2 only")
    monkeypatch.setitem(ledger_module.CLAIMS["ioi"], "IOI-9", claim)
    card = start().record("IOI-9", ["7.3", "7.9", "8.6", "8.10"])
    assert (card.verdict, card.entry.why) == ("not asked here", "these heads exist in GPT-2 only")
    assert start().absent("IOI-9", "none found").verdict == "not asked here"
    assert "not asked here" in str(start().table())


def test_a_scale_is_measured_after_its_expectation_was_stated(monkeypatch):
    monkeypatch.setitem(ledger_module.CLAIMS["ioi"], "IOI-9", dataclasses.replace(CLAIMS["ioi"]["IOI-9"], laptop=None))
    with pytest.raises(ValueError, match="IOI-9: state the expectation for laptop scale before"):
        start(scale="laptop").record("IOI-9", ["1.1"])


def test_a_red_verdict_is_a_result():
    card = start().record("IOI-2", near(0.5))
    assert card.verdict == "not reproduced"
    assert "✗" in card._repr_html_()


def test_sets_and_tables(folder):
    ledger = start(scale="paper")
    ledger.record("IOI-9", [Head(7, 3), Head(7, 9), Head(8, 6), Head(8, 10)], null=[])
    splits = (frozenset([Head(9, 9), Head(9, 6), Head(10, 0)]),) * 20
    found = Found(tuple(splits[0]), {Head(9, 9): near(-0.5, 0.1)}, splits)
    ledger.record("IOI-4", {"for": found, "against": [Head(10, 7)]}, null={"for": [], "against": []})
    stored = read_results(folder / "paper/ioi.json").claims
    assert stored["IOI-9"].verdict == "reproduced"
    assert stored["IOI-4"].verdict == "not reproduced"
    assert stored["IOI-4"].value["against"].names == ("10.7",)
    assert stored["IOI-4"].value["for"].estimates["9.9"].interval == (-0.6, -0.4)


def test_recording_twice_replaces():
    ledger = start()
    ledger.record("IOI-1", near(1.0))
    ledger.record("IOI-1", near(5.0), null=near(0))
    assert read_results(results_folder() / "lab/ioi.json").claims["IOI-1"].value.value == 5.0
    expected = "29 claims at lab scale: 26 not run yet, 2 not asked here, 1 reproduced."
    assert str(ledger.table()).splitlines()[0] == expected


def test_a_second_run_of_the_same_model_keeps_what_it_has_not_reached(folder):
    start().record("IOI-1", near(5.0))
    second = start()
    second.record("IOI-2", near(0.99))
    assert set(read_results(folder / "lab/ioi.json").claims) == {"IOI-1", "IOI-2"}
    assert "IOI-1    not run yet" in str(second.table())


def test_another_model_starts_afresh(folder):
    start().record("IOI-1", near(5.0))
    Ledger("ioi", scale="lab", model={"name": "lab", "sha256": "cd" * 32}).record("IOI-2", near(0.99))
    assert set(read_results(folder / "lab/ioi.json").claims) == {"IOI-2"}


def test_claims_are_written_in_their_natural_order(folder):
    ledger = start()
    for id in ("IOI-W1", "IOI-19", "IOI-2"):
        ledger.record(id, near(0.7))
    assert list(json.loads((folder / "lab/ioi.json").read_text())["claims"]) == ["IOI-2", "IOI-19", "IOI-W1"]


def test_a_rehearsal_judges_and_writes_nothing(folder):
    ledger = start(scale="rehearsal")
    assert ledger.record("IOI-1", near(0.01)).verdict == "not reproduced"
    assert list(folder.rglob("*")) == []


@pytest.mark.parametrize(
    ("id", "value", "null", "message"),
    [
        ("IOI-99", near(1.0), None, "unknown claim 'IOI-99'"),
        ("IOI-1", 1.0, None, "IOI-1: .* bare number"),
        ("IOI-1", ["9.9"], None, "IOI-1: expected an estimate"),
        ("IOI-1", near(1.0), [0.1], "IOI-1: 1 draws"),
        ("IOI-1", near(1.0), ["9.9"], "IOI-1: expected an estimate"),
        ("IOI-13", {"position": near(1.0), "token": near(1.0)}, None, "a table with the rows"),
        ("IOI-13", {n: near(0.1) for n in ("position", "token", "error")}, {"slope": near(1)}, "has a bound"),
    ],
)
def test_bad_records_are_refused_and_leave_no_trace(folder, id, value, null, message):
    with pytest.raises(ValueError, match=message):
        start().record(id, value, null=null)
    assert list(folder.rglob("*.json")) == []


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
    start(seed=np.int64(3), device=torch.device("cuda", 0)).record("IOI-1", near(5.0))
    data = json.loads((folder / "lab/ioi.json").read_text())
    assert (data["seed"], data["device"]) == (3, "cuda:0")


def test_a_results_folder_that_is_none_is_noticed_at_the_start(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("MECHINTERP_RESULTS", str(folder / "file"))
    with pytest.raises(ValueError, match=r"file is not a folder.*--results or MECHINTERP_RESULTS"):
        start()
    start(scale="rehearsal").record("IOI-1", near(1.0))


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
        ledger.record("IOI-1", near(5.0))
    assert raised.value.errno == number
    assert ("free some space" in str(raised.value)) == (way_out == "free some space")


def test_a_folder_that_became_a_file_during_the_run(folder):
    ledger = start()
    (folder / "lab").touch()
    with pytest.raises(OSError, match="a file stands where a folder must be"):
        ledger.record("IOI-1", near(5.0))


def test_a_full_disk_keeps_the_earlier_file(folder, monkeypatch):
    ledger = start()
    ledger.record("IOI-1", near(5.0))
    before = (folder / "lab/ioi.json").read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mechinterp.files.os.fsync", full)
    with pytest.raises(
        OSError, match=r"earlier file is untouched: No space left on device; free some space.*ioi\.json"
    ) as raised:
        ledger.record("IOI-2", near(0.99))
    assert raised.value.errno == errno.ENOSPC
    assert (folder / "lab/ioi.json").read_bytes() == before
    assert [p.name for p in (folder / "lab").iterdir()] == ["ioi.json"]
    monkeypatch.undo()
    monkeypatch.setenv("MECHINTERP_RESULTS", str(folder))
    ledger.record("IOI-3", near(0.5))
    assert set(read_results(folder / "lab/ioi.json").claims) == {"IOI-1", "IOI-2", "IOI-3"}


def test_a_card_says_everything_as_text_and_html():
    card = start(scale="paper").record(
        "IOI-16", {"recovered": near(0.5, 0.1)}, null={"recovered": [0.1] * 20}, note="N = 100 & <mixed>"
    )
    text, html = str(card), card._repr_html_()
    for part in (
        "IOI-16",
        "not reproduced",
        "87 %",
        "0.5 [0.4, 0.6] (15 templates)",
        "0.75 to 1.05",
        "0.1 [0.1, 0.1] (20 draws)",
        "never",
        CLAIMS["ioi"]["IOI-16"].null,
    ):
        assert part in text
        assert part in html
    assert "N = 100 &amp; &lt;mixed&gt;" in html
    assert "<mixed>" not in html


def test_the_table_lists_every_claim():
    table = start().table()
    assert [row[0] for row in table.rows] == list(CLAIMS["ioi"])
    assert table._repr_html_().count("… not run yet") == sum(c.lab is not None for c in CLAIMS["ioi"].values())


def test_a_card_tells_what_a_reader_should_hold_against_it(monkeypatch):
    claim = dataclasses.replace(
        CLAIMS["ioi"]["IOI-1"],
        trained_for=True,
        unverified=True,
        revised=(claims.Revision("2026-01-01", "lab", "at least 4", "another model"),),
    )
    monkeypatch.setitem(ledger_module.CLAIMS["ioi"], "IOI-1", claim)
    card = start().record("IOI-1", near(5.0), null=near(0))
    for told in ("training text contains it", "unverified", "was: at least 4. another model", claim.seen_before):
        assert told in card._repr_html_()
