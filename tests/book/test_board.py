"""The scoreboard in a browser: what the results files say is what its cells, counts, filters and cards show."""

import json
from collections import Counter
from typing import Any

import pytest
from visiting import FAINT, ROOT

from mechinterp.claims import CLAIMS

PAGE = "book/scoreboard.html"
SCALES = ("lab", "laptop", "paper")
SIGNS = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "undecided": "?",
    "absent here": "∅",
    "not asked here": "○",
    "not run yet": "…",
}


def runs() -> dict[tuple[str, str], dict[str, Any]]:
    """The results files as they are, by chapter and scale."""
    found = {}
    for scale in SCALES:
        for path in (ROOT / "results" / scale).glob("*.json"):
            found[path.stem, scale] = json.loads(path.read_text(encoding="utf8"))
    return found


def expected() -> dict[tuple[str, str, str], str]:
    """The verdict of every chapter, scale and claim, from the files alone."""
    made, verdicts = runs(), {}
    for chapter, claims in CLAIMS.items():
        for scale in SCALES:
            recorded = made.get((chapter, scale), {"claims": {}})["claims"]
            for id, claim in claims.items():
                open_ = "not asked here" if claim.why_not(scale) else "not run yet"
                verdicts[chapter, scale, id] = recorded[id]["verdict"] if id in recorded else open_
    return verdicts


def silent(verdicts: dict[tuple[str, str, str], str]) -> set[tuple[str, str]]:
    """Chapters and scales at which nothing was measured: their rows are folded."""
    rows = {(chapter, scale) for chapter, scale, _ in verdicts}
    return rows - {key[:2] for key, v in verdicts.items() if v not in ("not asked here", "not run yet")}


CELLS = """() => [...document.querySelectorAll('.mi-cell')].map(cell => ({
    chapter: cell.closest('.mi-chapter').id.replace('board-', ''),
    scale: cell.closest('.mi-row').dataset.scale,
    card: cell.getAttribute('popovertarget'),
    sign: cell.querySelector('span').textContent,
    classes: [...cell.classList],
    told: cell.getAttribute('aria-label'),
    seen: cell.getBoundingClientRect().width > 0,
}))"""


def test_a_cell_for_every_claim_and_scale_says_what_the_results_say(visit) -> None:
    cells = visit(PAGE).page.evaluate(CELLS)
    found = {(c["chapter"], c["scale"], c["card"].removeprefix(f"card-{c['chapter']}-")): c for c in cells}
    verdicts = expected()
    assert len(cells) == len(found) == len(verdicts) == 3 * sum(map(len, CLAIMS.values()))
    assert set(found) == set(verdicts)
    for key, verdict in verdicts.items():
        assert f"mi-{verdict.replace(' ', '-')}" in found[key]["classes"], key
        assert found[key]["sign"] == SIGNS[verdict]
        assert verdict in found[key]["told"]
    folded = silent(verdicts)
    assert all(c["seen"] == ((c["chapter"], c["scale"]) not in folded) for c in cells)


def test_trained_for_is_never_a_full_green(visit) -> None:
    cells = visit(PAGE).page.evaluate(CELLS)
    hollow = {c["card"] for c in cells if "mi-trained" in c["classes"]}
    assert all(c["scale"] == "lab" for c in cells if "mi-trained" in c["classes"])
    verdicts = expected()
    assert hollow == {
        f"card-{chapter}-{id}"
        for chapter, claims in CLAIMS.items()
        for id, claim in claims.items()
        if claim.trained_for and verdicts[chapter, "lab", id] == "reproduced"
    }


@pytest.mark.parametrize("path", [PAGE, "book/intro.html"])
def test_the_bars_count_every_claim_once(visit, path) -> None:
    bars = visit(path).page.evaluate(
        "[...document.querySelectorAll('.mi-bar')].map(bar => [...bar.children].map(piece => piece.textContent))"
    )
    assert len(bars) == len(SCALES)
    for scale, pieces in zip(SCALES, bars, strict=True):
        counts: Counter[str] = Counter()
        for piece in pieces:
            sign, number = piece.split()
            counts[sign] += int(number)
        assert counts == Counter(SIGNS[v] for (_, at, _), v in expected().items() if at == scale)


def choose(page: Any, name: str, value: str) -> None:
    page.locator(f"label:has(input[name='mi-{name}'][value='{value}'])").click()


@pytest.mark.parametrize("script", [True, False])
def test_filters_leave_what_was_chosen(visit, script: bool) -> None:
    page = visit(PAGE, script=script).page
    verdicts = expected()

    def seen() -> int:
        return page.locator(".mi-cell:visible").count()

    for verdict in SIGNS:
        slug = verdict.replace(" ", "-")
        choose(page, "verdict", slug)
        assert page.locator(f".mi-cell.mi-{slug}:visible").count() == seen() == list(verdicts.values()).count(verdict)
        assert page.locator(".mi-none:visible").count() == (verdict not in verdicts.values())
        rows = {(chapter, scale) for (chapter, scale, _), v in verdicts.items() if v == verdict}
        assert page.locator(".mi-row:visible").count() == len(rows), "no empty rows"
        assert page.locator(".mi-chapter:visible").count() == len({chapter for chapter, _ in rows})
    choose(page, "verdict", "reproduced")
    choose(page, "scale", "lab")
    green = {key for key, v in verdicts.items() if v == "reproduced" and key[1] == "lab"}
    assert seen() == len(green) > 0
    assert page.locator(".mi-chapter:visible").count() == len({chapter for chapter, _, _ in green})
    choose(page, "verdict", "")
    assert seen() == sum(map(len, CLAIMS.values()))
    choose(page, "scale", "")
    assert seen() == sum(key[:2] not in silent(verdicts) for key in verdicts)


@pytest.mark.parametrize("script", [True, False])
def test_a_scale_without_a_measurement_is_a_line_that_unfolds(visit, script: bool) -> None:
    page = visit(PAGE, script=script).page
    folded = silent(expected())
    assert page.locator(".mi-fold").count() == len({chapter for chapter, _ in folded})
    for chapter in {chapter for chapter, _ in folded}:
        line = page.locator(f"#board-{chapter} .mi-fold")
        hidden = {scale for name, scale in folded if name == chapter}
        assert all(f"{scale}: " in line.inner_text() for scale in hidden)
        rows = page.locator(f"#board-{chapter} .mi-row:visible")
        assert rows.count() == len(SCALES) - len(hidden)
        line.locator("input").focus()
        page.keyboard.press("Space")
        assert rows.count() == len(SCALES)
        line.click()
        assert rows.count() == len(SCALES) - len(hidden)
    choose(page, "scale", "paper")
    assert page.locator(".mi-row[data-scale='paper']:visible").count() == len(CLAIMS), "whoever asks for it sees it"
    assert page.locator(".mi-fold:visible").count() == 0


@pytest.mark.parametrize("script", [True, False])
def test_a_click_opens_the_card_and_escape_closes_it(visit, script: bool) -> None:
    page = visit(PAGE, script=script).page
    assert page.locator(".mi-popover:visible").count() == 0
    page.locator(".mi-cell[popovertarget='card-ioi-IOI-5']").first.click()
    card = page.locator(".mi-popover:visible")
    assert card.count() == 1
    assert card.get_attribute("id") == "card-ioi-IOI-5"
    page.keyboard.press("Escape")
    assert page.locator(".mi-popover:visible").count() == 0
    page.locator(".mi-cell[popovertarget='card-ioi-IOI-6']").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#card-ioi-IOI-6").is_visible()
    page.locator("#card-ioi-IOI-6 .mi-close").click()
    assert page.locator(".mi-popover:visible").count() == 0


def test_a_card_says_the_claim_every_scale_and_whose_run_it_was(visit) -> None:
    page = visit(PAGE).page
    texts = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.mi-popover')].map(card => [card.id, card.textContent]))"
    )
    assert len(texts) == sum(map(len, CLAIMS.values()))
    verdicts = expected()
    for (chapter, scale), run in runs().items():
        for id in run["claims"]:
            text = texts[f"card-{chapter}-{id}"]
            assert CLAIMS[chapter][id].statement in text
            assert f"{scale} {SIGNS[verdicts[chapter, scale, id]]} {verdicts[chapter, scale, id]}" in text
            for fact in (run["model"]["name"], run["model"]["sha256"][:12], run["device"], run["date"]):
                assert fact in text, (id, fact)
        caption = page.locator(f".mi-run[data-chapter='{chapter}'][data-scale='{scale}']").text_content()
        assert run["model"]["sha256"][:12] in caption
        assert run["date"] in caption


def test_a_link_to_a_card_opens_it(visit) -> None:
    page = visit(f"{PAGE}#card-ioi-IOI-5").page
    assert page.locator(".mi-popover:visible").get_attribute("id") == "card-ioi-IOI-5"


@pytest.mark.parametrize("width", [1366, 900, 390])
def test_every_card_fits_the_screen(visit, width: int) -> None:
    page = visit(PAGE, width).page
    wrong = page.evaluate(
        """() => [...document.querySelectorAll('.mi-popover')].flatMap(card => {
            card.showPopover();
            const box = card.getBoundingClientRect();
            const bad = box.left < 0 || box.right > innerWidth || box.bottom > innerHeight
                || card.scrollWidth > card.clientWidth + 1;
            card.hidePopover();
            return bad ? [card.id] : [];
        })"""
    )
    assert wrong == []


def test_the_board_fits_two_screens(visit) -> None:
    page = visit(PAGE).page
    assert page.evaluate("document.documentElement.scrollHeight") <= 1700
    missing = max(14 - len(CLAIMS), 0)
    page.evaluate(
        "n => [...document.querySelectorAll('.mi-chapter')].slice(0, n).forEach(c => c.after(c.cloneNode(true)))",
        missing,
    )
    assert page.locator(".mi-chapter").count() == len(CLAIMS) + missing
    assert page.evaluate("document.documentElement.scrollHeight") <= 1700, "with fourteen chapters"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_verdict_can_be_read_and_stands_out(visit, theme: str) -> None:
    page = visit(PAGE, theme=theme).page
    # Every kind of cell, whether the results have it or not.
    kinds = [f"mi-{verdict.replace(' ', '-')}" for verdict in SIGNS] + ["mi-reproduced mi-trained"]
    page.evaluate(
        "kinds => document.querySelectorAll('.mi-cell').forEach((cell, i) => {"
        " if (i < kinds.length) cell.className = `mi-cell mi-sample ${kinds[i]}`; })",
        kinds,
    )
    assert page.locator(".mi-sample").count() == 7
    text = ".mi-cell span, .mi-cell small, .mi-run, .mi-fold, .mi-head small, .mi-bar span, .mi-filters label"
    text += ", .mi-filters b, .mi-legend"
    assert page.evaluate(FAINT, [text, 4.5]) == []
    page.locator(".mi-cell").nth(9).click()
    assert page.evaluate(FAINT, [".mi-popover:popover-open :is(dt, dd, h3, h3 span, p, button)", 4.5]) == []
    # The fill of what was measured against the page: taken as ink on it.
    page.keyboard.press("Escape")
    page.evaluate(
        """() => document.querySelectorAll('.mi-sample').forEach(cell => {
            const style = getComputedStyle(cell);
            const swatch = document.createElement('i');
            swatch.className = 'swatch';
            swatch.textContent = cell.className;
            swatch.style.color = style.borderTopStyle === 'dashed' || cell.className.includes('trained')
                ? style.borderTopColor : style.backgroundColor;
            document.querySelector('.mi-legend').append(swatch);
        })"""
    )
    faint = page.evaluate(FAINT, [".swatch", 3])
    assert [f for f in faint if "not-asked" not in f and "not-run" not in f] == []
