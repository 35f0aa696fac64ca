import dataclasses
import json
import re

import pytest
import torch

from mechinterp.claims import (
    CLAIMS,
    Entry,
    Ledger,
    Names,
    Null,
    Results,
    compare,
    read_results,
    results_folder,
    scoreboard,
    write_results,
)
from mechinterp.claims.compare import spread
from mechinterp.claims.scoreboard import board, summary
from mechinterp.stats import Estimate

RESULTS = Results("ioi", "lab", "0.1.0", {"name": "lab", "sha256": "ab" * 32}, "cpu", 0, "2026-01-01", 9.5).with_entry(
    "IOI-1", Entry(Estimate(7.25, (7.0, 7.5), 15, "templates"), Null(None, 0.0), [3.0, None], "reproduced")
)


def number(value, **facts):
    return dataclasses.replace(Estimate(value, (value - 0.25, value + 0.25), 15, "templates"), **facts)


def table(**rows):
    return {name: Names(tuple(row)) if isinstance(row, list) else number(row) for name, row in rows.items()}


def changed(**fields):
    entry = dataclasses.replace(RESULTS.claims["IOI-1"], **fields)
    return RESULTS.with_entry("IOI-1", entry)


def test_a_file_comes_back_as_it_was_written(tmp_path):
    assert read_results(write_results(RESULTS, tmp_path)) == RESULTS


def test_the_folder_is_the_environments_or_the_projects(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHINTERP_RESULTS", str(tmp_path / "elsewhere"))
    assert results_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("MECHINTERP_RESULTS")
    (tmp_path / "book/chapters").mkdir(parents=True)
    (tmp_path / "book/pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "book/chapters")
    assert results_folder() == tmp_path / "book/results"
    monkeypatch.chdir(tmp_path)
    assert results_folder() == tmp_path / "results"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: {**data, "schema": 1}, "has schema 1, this version reads 2"),
        (lambda data: [], "has schema 'list'"),
        (lambda data: {k: v for k, v in data.items() if k != "model"}, "lacks model"),
        (lambda data: {**data, "claims": {"IOI-1": {"value": 1}}}, "claim IOI-1 lacks null"),
        (
            lambda data: {**data, "claims": {"IOI-1": {**data["claims"]["IOI-1"], "verdict": "great"}}},
            "claim IOI-1 has the verdict 'great'",
        ),
        (
            lambda data: {**data, "claims": {"IOI-1": {**data["claims"]["IOI-1"], "value": 7.25}}},
            "claim IOI-1: a value is an estimate",
        ),
        (lambda data: {**data, "scale": "huge"}, "unknown scale 'huge'"),
        (lambda data: {**data, "model": "lab"}, "by its name and sha256, not 'lab'"),
        (lambda data: {**data, "model": {"name": "lab", "sha256": "ab"}}, "64 hexadecimal digits"),
        (lambda data: {**data, "device": 0}, "device is 0"),
        (lambda data: {**data, "seed": 0.0}, "seed is 0.0"),
        (lambda data: {**data, "date": "yesterday"}, "date is 'yesterday'"),
        (lambda data: {**data, "seconds": "many"}, "seconds are 'many'"),
    ],
)
def test_a_damaged_file_is_an_error_with_a_way_out(tmp_path, damage, message):
    path = write_results(RESULTS, tmp_path)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=f"{message}.*git checkout"):
        read_results(path)


@pytest.mark.parametrize("cut", [0, 1, 50, -3])
def test_every_half_written_file_is_noticed(tmp_path, cut):
    path = write_results(RESULTS, tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not complete JSON"):
        read_results(path)


def test_equal_results_have_no_changes():
    later = dataclasses.replace(RESULTS, date="2027-01-01", seconds=1.0, version="9", device="other")
    assert compare(RESULTS, later) == []
    assert compare(RESULTS, changed(value=number(7.26, interval=(7.1, 7.4)), note="other words")) == []


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (changed(value=number(6.5)), "IOI-1: was 7.25 .*, is 6.5"),
        (changed(value=Names(("9.9",))), "IOI-1: was 7.25 .*, is 9.9"),
        (changed(value=None), "IOI-1: was 7.25 .*, is —"),
        (changed(value=number(7.25, interval=None)), "IOI-1: another unit or number of units, or an interval"),
        (changed(value=number(7.25, unit="prompts")), "IOI-1: another unit"),
        (changed(value=number(7.25, n=14)), "IOI-1: another unit"),
        (changed(null=None), "IOI-1: has gained or lost its null"),
        (changed(verdict="not reproduced"), "IOI-1: verdict was reproduced, is not reproduced"),
        (changed(expected=[2.0, None]), r"IOI-1: expected was \[3.0, None\], is \[2.0, None\]"),
        (dataclasses.replace(RESULTS, claims={}), "IOI-1: was recorded, is missing"),
        (RESULTS.with_entry("IOI-2", RESULTS.claims["IOI-1"]), "IOI-2: is new"),
        (dataclasses.replace(RESULTS, seed=1), "seed: was 0, is 1"),
        (dataclasses.replace(RESULTS, model={"name": "lab", "sha256": "cd" * 32}), "model: was"),
    ],
)
def test_every_silent_change_is_found(new, message):
    changes = compare(RESULTS, new)
    assert len(changes) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(str(changes[0]))


def test_heads_and_tables_are_compared_row_by_row():
    one, two = changed(value=Names(("1.1", "1.2"))), changed(value=Names(("1.2", "1.1")))
    assert compare(one, two) == []
    assert compare(changed(value=Names(("1.1",))), one)
    assert compare(changed(value=table(a=1.0, b=0.0)), changed(value=table(a=1.003, b=0.0015))) == []
    assert compare(changed(value=table(a=1.0, b=0.0)), changed(value=table(a=1.0, b=0.003)))
    assert compare(changed(value=table(a=1.0)), changed(value=table(a=1.0, b=0.0)))


def test_the_board_tells_the_truth_about_what_was_run(tmp_path):
    ioi = board(tmp_path, ["ioi"])[0]
    for claim in ioi.claims:
        for scale in ("lab", "laptop", "paper"):
            asked = claim.expected(scale) is not None
            assert ioi.verdict(claim, scale) == ("not run yet" if asked else "not asked here")
    assert ioi.caption("paper") == "not run yet"
    write_results(changed(verdict="not reproduced", value=number(1.0)), tmp_path)
    ioi = board(tmp_path, ["ioi"])[0]
    assert [ioi.verdict(ioi.claims[0], scale) for scale in ("lab", "laptop", "paper")] == [
        "not reproduced",
        "not run yet",
        "not run yet",
    ]
    assert "1 not reproduced, 2 not asked here, 26 not run yet" in ioi.caption("lab")
    assert "abababababab, cpu, 2026-01-01" in ioi.caption("lab")


@pytest.mark.parametrize(("missing", "shown"), [("lab", "laptop"), ("laptop", "lab"), (None, "laptop")])
def test_the_small_board_shows_the_fullest_run_of_a_chapter_and_the_larger_of_two_alike(tmp_path, missing, shown):
    for scale, model in (("lab", "lab"), ("laptop", "smollm2")):
        results = dataclasses.replace(RESULTS, scale=scale, model=RESULTS.model | {"name": model}, claims={})
        for claim in board(tmp_path, ["ioi"])[0].claims[int(scale == missing) :]:
            results = results.with_entry(claim.id, RESULTS.claims["IOI-1"])
        write_results(results, tmp_path)
    assert board(tmp_path, ["ioi"])[0].fullest() == shown
    html = summary(tmp_path, ["ioi"])
    assert html.count('<span class="mi-dots"') == html.count('<div class="mi-part"') == 1
    assert f"<b>{shown}</b><span" in html


def test_a_scoreboard_is_of_a_folder_that_is_there(tmp_path):
    with pytest.raises(ValueError, match="none is not there; give a results folder"):
        scoreboard(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is not a folder"):
        scoreboard(tmp_path / "file")


def test_without_a_results_folder_the_package_s_own_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHINTERP_RESULTS", str(tmp_path / "none"))
    monkeypatch.setattr("mechinterp.claims.results.shipped_results", lambda: tmp_path / "shipped")
    with pytest.raises(ValueError, match=r"no results here.*--results"):
        scoreboard()
    write_results(RESULTS, tmp_path / "shipped")
    assert "7.25" in scoreboard()
    write_results(changed(value=number(9.0)), tmp_path / "none")
    assert "7.25" not in scoreboard(), "results of one's own come first"


def test_a_cell_a_claim_and_scale_a_card_a_claim(tmp_path):
    write_results(changed(note="a < b"), tmp_path)
    html = scoreboard(tmp_path)
    claims = [claim for chapter in CLAIMS.values() for claim in chapter.values()]
    assert html.count('class="mi-cell ') == 3 * len(claims)
    ids = re.findall(r'popover id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) == len(claims)
    assert set(re.findall(r'popovertarget="([^"]+)"', html)) == set(ids)
    assert "a &lt; b" in html
    assert "7.25 [7, 7.5] (15 templates)" in html
    assert html.count("mi-cell mi-reproduced") == 1
    with pytest.raises(ValueError, match="unknown chapter"):
        scoreboard(tmp_path, chapters=["nope"])


def test_a_damaged_file_stops_the_scoreboard(tmp_path):
    write_results(RESULTS, tmp_path).write_text("{")
    with pytest.raises(ValueError, match="not complete JSON"):
        scoreboard(tmp_path)


def test_a_claim_over_networks_trained_on_the_spot_may_drift(monkeypatch):
    monkeypatch.setitem(CLAIMS["ioi"], "IOI-1", dataclasses.replace(CLAIMS["ioi"]["IOI-1"], drift=0.5))
    old, new, far = (changed(value=number(value)) for value in (3.0, 3.4, 3.7))
    assert compare(old, new) == []
    assert [str(change) for change in compare(old, far)] == ["IOI-1: was 3 [2.75, 3.25], is 3.7 [3.45, 3.95]"]


def test_the_spread_of_runs_is_the_largest_difference_and_the_widest_comes_first():
    runs = [changed(value=table(a=a, b=b, heads=heads)) for a, b, heads in (
        (1.0, -2.0, ["1.1", "1.2"]), (1.001, -2.2, ["1.2"]), (0.999, -2.1, ["1.2", "1.1"]))]  # fmt: skip
    found = {s.row: s for s in spread(runs)}
    assert [s.row for s in spread(runs)] == ["heads", "b", "a"]
    assert (found["heads"].absolute, found["heads"].relative, found["heads"].allowed) == (1, 0.5, 0)
    assert found["a"].absolute == pytest.approx(0.002)
    assert found["b"].relative == pytest.approx(0.2 / 2.2)
    assert found["b"].allowed == pytest.approx(0.002 + 0.002 * 2.0)
    assert all((s.absolute > s.allowed) == (s.row != "a") for s in found.values())


def test_a_spread_agrees_with_compare_and_knows_what_a_claim_may_drift(monkeypatch):
    runs = [RESULTS, changed(value=number(7.25 + 0.4))]
    assert (spread(runs)[0].absolute > spread(runs)[0].allowed) == bool(compare(*runs)) is True
    monkeypatch.setitem(CLAIMS["ioi"], "IOI-1", dataclasses.replace(CLAIMS["ioi"]["IOI-1"], drift=0.5))
    assert (spread(runs)[0].absolute > spread(runs)[0].allowed) == bool(compare(*runs)) is False


def test_a_spread_needs_runs_of_one_kind():
    assert spread([RESULTS, dataclasses.replace(RESULTS, claims={})]) == []
    assert spread([RESULTS, changed(value=None)]) == []
    for runs in ([RESULTS], [], [RESULTS, dataclasses.replace(RESULTS, seed=1)]):
        with pytest.raises(ValueError, match="at least two runs of one chapter"):
            spread(runs)


def test_a_run_says_where_with_what_and_by_whom_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHINTERP_RESULTS", str(tmp_path))
    monkeypatch.setenv("MECHINTERP_CONTRIBUTOR", "Ada L.")
    ledger = Ledger("ioi", scale="paper", model={"name": "gpt2", "sha256": "00" * 32})
    ledger.record("IOI-1", Estimate(3.5, (3.4, 3.6), 15, "templates"), null=Estimate(0.0, None, 1, "run"))
    run = read_results(tmp_path / "paper/ioi.json")
    assert run.contributor == "Ada L."
    assert run.environment["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert run.environment["machine"]
    part = board(tmp_path, ["ioi"])[0]
    assert "run by Ada L." in part.caption("paper")
    other = dataclasses.replace(run, environment={}, contributor="")
    assert compare(other, run) == [], "who and where are no change"


def test_facts_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="environment and contributor are text"):
        dataclasses.replace(RESULTS, environment={"torch": 2})
