"""The layout of the board by itself, in a browser, without the book around it."""

from collections.abc import Iterator
from typing import Any

import pytest
from visiting import ROOT

from mechinterp.claims import CLAIMS, scoreboard
from mechinterp.claims.scoreboard import board, summary

AROUND = 455
"""Pixels that the page of the book has above and below its board, at a width of 1366."""
FOURTEEN = ([*CLAIMS] * 2)[:14]
"""As many chapters as the board has room for."""


@pytest.fixture
def draw(browser: Any) -> Iterator[Any]:
    """Draws some HTML in a column as wide as the book's, on a screen of some width."""
    opened = []

    def go(html: str, column: int, screen: int = 1366) -> Any:
        opened.append(browser.new_page(viewport={"width": screen, "height": 850}))
        style = f"margin:0;width:{column}px;font-family:sans-serif;line-height:1.65"
        opened[-1].set_content(f"<!doctype html><body style='{style}'>{html}</body>")
        return opened[-1]

    yield go
    for page in opened:
        page.close()


def height(page: Any, css: str) -> float:
    return page.locator(css).bounding_box()["height"]


def test_fourteen_chapters_fit_two_screens(draw):
    page = draw(scoreboard(ROOT / "results", FOURTEEN), 1028)
    assert page.locator(".mi-chapter").count() == 14
    assert height(page, ".mi-board") + AROUND <= 2 * 850


def test_fourteen_chapters_in_small_leave_the_first_screen_to_the_cards(draw):
    page = draw(summary(ROOT / "results", FOURTEEN), 498)
    assert page.locator(".mi-part").count() == 14
    assert height(page, ".mi-small") <= 490


@pytest.mark.parametrize(("column", "screen"), [(1028, 1366), (836, 900), (358, 390)])
def test_no_board_is_wider_than_its_column(draw, column, screen):
    for html in (scoreboard(ROOT / "results"), summary(ROOT / "results")):
        page = draw(html, column, screen)
        assert page.evaluate("document.body.scrollWidth") <= column
        cells = page.locator(".mi-cell:visible").evaluate_all("cells => cells.map(c => c.scrollWidth - c.clientWidth)")
        assert all(over <= 0 for over in cells)


def test_a_line_says_at_which_scales_nothing_was_measured(draw):
    page = draw(scoreboard(ROOT / "results"), 1028)
    for chapter in board(ROOT / "results"):
        silent = [scale for scale in chapter.runs if chapter.silent(scale)]
        lines = page.locator(f"#board-{chapter.name} .mi-fold").all_inner_texts()
        assert lines == (["; ".join(f"{scale}: {chapter.counts(scale)}" for scale in silent)] if silent else [])
        assert page.locator(f"#board-{chapter.name} .mi-row:visible").count() == len(chapter.runs) - len(silent)


def test_whose_runs_are_shown_is_told_for_each(draw):
    page = draw(scoreboard(ROOT / "results"), 1028)
    told = page.locator(".mi-run").all_text_contents()
    runs = [run for chapter in board(ROOT / "results") for run in chapter.runs.values() if run is not None]
    assert len(told) == len(runs)
    assert all(run.date in text and run.model["sha256"][:12] in text for run, text in zip(runs, told, strict=True))
    assert page.locator(".mi-run:visible").count() == 0
    page.locator(".mi-runs summary").click()
    assert page.locator(".mi-run:visible").count() == len(runs)
