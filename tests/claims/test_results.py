import dataclasses
import json

import pytest

from mechinterp.claims import CLAIMS, Entry, Results, compare, read_results, results_folder, scoreboard, write_results
from mechinterp.claims.compare import spread

RESULTS = Results("ioi", "lab", "0.1.0", {"name": "lab", "sha256": "ab" * 32}, "cpu", 0, "2026-01-01", 9.5).with_entry(
    "IOI-1", Entry(7.25, [7.0, 7.5], [3.0, None], "reproduced")
)


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
        (lambda data: {**data, "schema": 2}, "has schema 2, this version reads 1"),
        (lambda data: [], "has schema 'list'"),
        (lambda data: {k: v for k, v in data.items() if k != "model"}, "lacks model"),
        (lambda data: {**data, "claims": {"IOI-1": {"value": 1}}}, "claim IOI-1 lacks interval"),
        (
            lambda data: {**data, "claims": {"IOI-1": {**data["claims"]["IOI-1"], "verdict": "great"}}},
            "claim IOI-1 has the verdict 'great'",
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
    assert compare(RESULTS, changed(value=7.26, note="other words", interval=[7.1, 7.4])) == []


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (changed(value=6.5), "IOI-1: was 7.25, is 6.5"),
        (changed(value=["9.9"]), "IOI-1: was 7.25, is 9.9"),
        (changed(value=None), "IOI-1: was 7.25, is —"),
        (changed(interval=None), "IOI-1: has gained or lost its interval"),
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
    assert compare(changed(value=["1.1", "1.2"]), changed(value=["1.2", "1.1"])) == []
    assert compare(changed(value=["1.1"]), changed(value=["1.1", "1.2"]))
    assert compare(changed(value={"a": 1.0, "b": 0.0}), changed(value={"a": 1.003, "b": 0.0015})) == []
    assert compare(changed(value={"a": 1.0, "b": 0.0}), changed(value={"a": 1.0, "b": 0.003}))
    assert compare(changed(value={"a": 1.0}), changed(value={"a": 1.0, "b": 0.0}))


def test_the_scoreboard_tells_the_truth_about_what_was_run(tmp_path):
    empty = scoreboard(tmp_path)
    assert empty.count("not run yet") >= 3 * len(CLAIMS["ioi"])
    write_results(changed(verdict="not reproduced", value=1.0, note="a | b"), tmp_path)
    board = scoreboard(tmp_path)
    row = next(line for line in board.splitlines() if line.startswith("| IOI-1 "))
    assert "not run yet | 1 [7, 7.5] (a \\| b) | paper: not run yet; lab: not reproduced" in row
    assert "0 reproduced, 1 not reproduced" in board
    assert all(line.replace("\\|", "").count("|") == 7 for line in board.splitlines() if line.startswith("| "))


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
    write_results(changed(value=9.0), tmp_path / "none")
    assert "7.25" not in scoreboard(), "results of one's own come first"


def test_the_scoreboard_as_html(tmp_path):
    write_results(changed(note="a < b"), tmp_path)
    html = scoreboard(tmp_path, style="html")
    assert "a &lt; b" in html
    assert html.count("<tr>") == sum(len(chapter) + 1 for chapter in CLAIMS.values())
    with pytest.raises(ValueError, match="markdown or html"):
        scoreboard(tmp_path, style="pdf")
    with pytest.raises(ValueError, match="unknown chapter"):
        scoreboard(tmp_path, chapters=["nope"])


def test_a_damaged_file_stops_the_scoreboard(tmp_path):
    write_results(RESULTS, tmp_path).write_text("{")
    with pytest.raises(ValueError, match="not complete JSON"):
        scoreboard(tmp_path)


def test_a_claim_over_networks_trained_on_the_spot_may_drift(monkeypatch):
    monkeypatch.setitem(CLAIMS["ioi"], "IOI-1", dataclasses.replace(CLAIMS["ioi"]["IOI-1"], drift=0.5))
    old, new, far = (changed(value=value) for value in (3.0, 3.4, 3.7))
    assert compare(old, new) == []
    assert [str(change) for change in compare(old, far)] == ["IOI-1: was 3, is 3.7"]


def test_the_spread_of_runs_is_the_largest_difference_and_the_widest_comes_first():
    runs = [changed(value={"a": a, "b": b, "heads": heads}) for a, b, heads in (
        (1.0, -2.0, ["1.1", "1.2"]), (1.001, -2.2, ["1.2"]), (0.999, -2.1, ["1.2", "1.1"]))]  # fmt: skip
    found = {s.row: s for s in spread(runs)}
    assert [s.row for s in spread(runs)] == ["heads", "b", "a"]
    assert (found["heads"].absolute, found["heads"].relative, found["heads"].allowed) == (1, 0.5, 0)
    assert found["a"].absolute == pytest.approx(0.002)
    assert found["b"].relative == pytest.approx(0.2 / 2.2)
    assert found["b"].allowed == pytest.approx(0.002 + 0.002 * 2.0)
    assert all((s.absolute > s.allowed) == (s.row != "a") for s in found.values())


def test_a_spread_agrees_with_compare_and_knows_what_a_claim_may_drift(monkeypatch):
    runs = [RESULTS, changed(value=7.25 + 0.4)]
    assert (spread(runs)[0].absolute > spread(runs)[0].allowed) == bool(compare(*runs)) is True
    monkeypatch.setitem(CLAIMS["ioi"], "IOI-1", dataclasses.replace(CLAIMS["ioi"]["IOI-1"], drift=0.5))
    assert (spread(runs)[0].absolute > spread(runs)[0].allowed) == bool(compare(*runs)) is False


def test_a_spread_needs_runs_of_one_kind():
    assert spread([RESULTS, dataclasses.replace(RESULTS, claims={})]) == []
    assert spread([RESULTS, changed(value=None)]) == []
    for runs in ([RESULTS], [], [RESULTS, dataclasses.replace(RESULTS, seed=1)]):
        with pytest.raises(ValueError, match="at least two runs of one chapter"):
            spread(runs)
