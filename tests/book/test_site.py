"""The built site in headless Chromium with the network off: every page, both themes, laptop, tablet and phone."""

import json
import random
from typing import Any

import pytest
from visiting import FAINT, HTML, ROOT, UNDRAWN, Visit

PAGES = sorted(p.relative_to(HTML).as_posix() for d in ("book", "chapters") for p in (HTML / d).rglob("*.html"))
TEXTS = (
    ".mi-figure figcaption, .claim-card, .claim-card dt, .claim-card span, .claim-table td, .claim-table span, "
    ".xtitle, .mi-figure strong, .mi-circuitsvis h2, details.hide > summary > p"
)
WIDTHS = (1366, 900, 390)
THEMES = ("light", "dark")
# Pages of the API are of one kind, made by one function: each is seen at every width, in one of the themes.
VISITS = [
    (path, width, theme)
    for path in PAGES
    for width in WIDTHS
    for theme in THEMES
    if not path.startswith("book/api/") or (theme == "dark") == (width == 390)
]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_names_no_folder_of_the_machine_that_made_it(path: str) -> None:
    text = (HTML / path).read_text(encoding="utf8")
    assert str(ROOT) not in text
    assert "site-packages" not in text


def test_there_are_pages() -> None:
    assert {"book/intro.html", "book/scoreboard.html", "chapters/01_ioi.html"} <= set(PAGES)


CUT_TITLES = """[...document.querySelectorAll('.plotly-graph-div')].flatMap(d => {
    const plot = d.getBoundingClientRect();
    return [...d.querySelectorAll('.xtitle, .ytitle')].filter(t => {
        const r = t.getBoundingClientRect();
        return r.width && (r.left < plot.left - 1 || r.right > plot.right + 1
            || r.top < plot.top - 1 || r.bottom > plot.bottom + 1);
    }).map(t => t.textContent);
})"""


@pytest.mark.parametrize(("path", "width", "theme"), VISITS)
def test_page(browser: Any, server: str, path: str, width: int, theme: str) -> None:
    visit = Visit(browser, server, path, width, theme)
    try:
        assert visit.outside == []
        assert visit.errors == []
        assert visit.page.evaluate("document.documentElement.dataset.theme") == theme
        overflow = visit.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 1, f"{path} is {overflow} px wider than a screen of {width}"
        figures = visit.page.evaluate(
            """[...document.querySelectorAll('.plotly-graph-div')].map(d => ({
                drawn: d.querySelectorAll('svg.main-svg').length,
                wide: d.getBoundingClientRect().width - d.parentElement.getBoundingClientRect().width,
                width: d.getBoundingClientRect().width}))"""
        )
        assert all(f["drawn"] and f["wide"] <= 1 and f["width"] > 100 for f in figures), figures
        for _ in range(20):  # titles shrink after the figures have been drawn
            cut = visit.page.evaluate(CUT_TITLES)
            if not cut:
                break
            visit.page.wait_for_timeout(250)
        assert cut == [], "titles of axes that are cut off"
        faint = visit.page.evaluate(FAINT, [TEXTS, 4])
        assert faint == [], faint[:5]
        views = visit.page.evaluate(
            "[...document.querySelectorAll('.mi-circuitsvis')]"
            ".map(d => d.querySelectorAll('svg, canvas, img, span').length)"
        )
        assert all(views), views
    finally:
        visit.page.close()


@pytest.mark.parametrize(
    ("chapter", "plots", "views", "claims"),
    [
        ("01_ioi", 8, 2, 23),
        ("02_copy_suppression", 6, 0, 22),
        ("03_successor_heads", 11, 0, 13),
        ("04_grokking_efficiency", 10, 0, 13),
        ("05_attention_output_saes", 10, 0, 11),
        ("06_gated_vs_jumprelu", 12, 0, 24),
        ("07_compiled_transformers", 5, 0, 16),
        ("08_acdc", 4, 0, 13),
        ("09_attribution", 7, 0, 18),
        ("10_model_stealing", 4, 0, 17),
    ],
)
def test_a_chapter_has_its_figures_links_and_no_failed_cell(
    browser: Any, server: str, chapter: str, plots: int, views: int, claims: int
) -> None:
    visit = Visit(browser, server, f"chapters/{chapter}.html")
    try:
        count = visit.page.locator
        assert count(".plotly-graph-div").count() >= plots
        assert count(".mi-circuitsvis").count() >= views
        assert count(".mi-figure figcaption").count() >= plots + views
        assert count(".claim-card").count() + count(".claim-table tr").count() >= claims
        assert count(".traceback").count() == 0
        colab = visit.page.locator("a[href*='colab.research.google.com']").first.get_attribute("href")
        assert colab.endswith(f"mechinterp/mechinterp/blob/main/chapters/{chapter}.ipynb")
        assert visit.page.locator(f"a[href$='_sources/chapters/{chapter}.ipynb']").count() >= 1
    finally:
        visit.page.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_on_the_first_page_is_cut(visit, width: int, theme: str) -> None:
    page = visit("book/intro.html", width, theme).page
    cut = page.evaluate(
        """[...document.querySelectorAll('article *:not(svg, svg *)')].filter(node => {
            const style = getComputedStyle(node);
            return style.display !== 'inline' && node.clientWidth && node.scrollWidth > node.clientWidth + 1
                && style.overflowX !== 'visible' && !node.closest('.js-plotly-plot');
        }).map(node => `${node.tagName}.${node.className}: ${node.textContent.slice(0, 40)}`)"""
    )
    # A phone may scroll the table of chapters sideways.
    assert [c for c in cut if not (width == 390 and c.startswith("TABLE"))] == []
    assert page.locator("pre", has_text="pip install").is_visible()


def test_the_first_screen_shows_what_the_book_is(visit) -> None:
    page = visit("book/intro.html").page
    box = {name: page.locator(css).first.bounding_box() for name, css in {
        "figure": "article .js-plotly-plot", "board": ".mi-small", "cards": ".sd-card",
        "logo": ".navbar-brand img",
    }.items()}  # fmt: skip
    assert box["figure"]["y"] + box["figure"]["height"] < 900
    assert box["board"]["y"] + box["board"]["height"] < 900
    assert box["cards"]["y"] < 800
    assert box["logo"]["height"] <= 60
    assert page.locator(".sd-card-title").all_inner_texts() == ["Read", "Run", "Import"]
    counts = [page.locator(f".mi-small {css}").count() for css in (".mi-part", "a", ".mi-dots")]
    assert counts == [CHAPTERS] * 3
    # The figure is live: it answers the mouse.
    bar = page.locator("article .js-plotly-plot .bars .point").first.bounding_box()
    page.mouse.move(bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] / 2)
    page.wait_for_selector("article .js-plotly-plot .hoverlayer .hovertext", timeout=5_000)


CHAPTERS = len(list((ROOT / "chapters").glob("*.ipynb")))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1366, 390])
@pytest.mark.parametrize("path", sorted(p.stem for p in (ROOT / "chapters").glob("*.ipynb")))
def test_cells_that_only_draw_are_folded(visit, path: str, width: int, theme: str) -> None:
    cells = json.loads((ROOT / "chapters" / f"{path}.ipynb").read_text(encoding="utf8"))["cells"]
    tagged = sum("hide-input" in c["metadata"].get("tags", []) and bool("".join(c["source"])) for c in cells)
    page = visit(f"chapters/{path}.html", width, theme, draw=False).page
    folds = page.locator("details.hide.above-input")
    assert folds.count() == tagged
    if not tagged:
        return
    assert page.locator("details.hide.above-input .cell_input:visible").count() == 0
    button = folds.first.locator("summary")
    box = button.bounding_box()
    assert box["height"] >= 24
    assert box["width"] < 200, "a button, not a bar"
    assert button.inner_text().strip() == "Show code"
    button.click()
    assert folds.first.locator(".cell_input").is_visible()
    assert button.inner_text().strip() == "Hide code"
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 1
    button.click()
    assert not folds.first.locator(".cell_input").is_visible()


@pytest.mark.parametrize("path", sorted(p.stem for p in (ROOT / "chapters").glob("*.ipynb")))
def test_eighty_columns_of_code_fit_a_laptop(visit, path: str) -> None:
    page = visit(f"chapters/{path}.html", 1280, draw=False).page
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    cells = page.evaluate(
        """[...document.querySelectorAll('.cell_input pre')].map(pre => ({
            columns: Math.max(...pre.textContent.split('\\n').map(line => line.length)),
            over: pre.scrollWidth - pre.clientWidth}))"""
    )
    assert max(cell["columns"] for cell in cells) > 70
    assert [cell for cell in cells if cell["columns"] <= 80 and cell["over"] > 0] == []


def test_the_explorer_follows_the_chosen_word_and_passage(visit) -> None:
    """Twenty passages, one shown at a time."""
    opened = visit("chapters/02_copy_suppression.html", draw=False)
    page = opened.page
    assert page.locator(".mi-menu .mi-explorer").count() == 20
    shown = page.locator(".mi-menu .mi-explorer:visible")
    assert shown.count() == 1
    assert shown.locator("button").count() > 20
    before = shown.locator("dl").inner_text()
    shown.locator("button").nth(9).click()
    after = shown.locator("dl").inner_text()
    assert "lowers" in after
    assert after != before
    page.locator(".mi-menu select:visible").select_option(index=3)
    assert shown.count() == 1
    assert shown.locator("dl").inner_text() not in (before, after)
    assert opened.errors == []


@pytest.mark.parametrize("chapter", ["01_ioi", "04_grokking_efficiency"])
def test_a_figure_is_drawn_when_it_comes_near(visit, chapter: str) -> None:
    """All at once took 25 seconds on two cores."""
    opened = visit(f"chapters/{chapter}.html", draw=False)
    page = opened.page
    page.wait_for_timeout(500)
    waiting = page.locator(UNDRAWN).count()
    assert waiting > 5
    last = page.locator(".plotly-graph-div").last
    assert not last.locator("svg").count()
    last.scroll_into_view_if_needed()
    last.locator("svg.main-svg").first.wait_for(timeout=10_000)
    assert page.locator(UNDRAWN).count() < waiting
    assert opened.errors == []


def test_the_embedding_s_circle_plays(browser: Any, server: str) -> None:
    """The slider starts at the last frame; the button plays all of them, and the points move."""
    visit = Visit(browser, server, "chapters/04_grokking_efficiency.html")
    try:
        points = (
            "document.querySelector('.slider-container').closest('.js-plotly-plot')._fullData[0].x.slice(0, 5).join()"
        )
        visit.page.wait_for_selector(".slider-container")
        last = visit.page.evaluate(points)
        button = visit.page.locator(".updatemenu-button", has_text="Play")
        button.scroll_into_view_if_needed()
        button.click()
        visit.page.wait_for_timeout(700)
        assert visit.page.evaluate(points) != last
        assert visit.errors == []
    finally:
        visit.page.close()


def test_compiled_programs_run_in_the_page(visit) -> None:
    """What the page's own forward pass says is what the interpreter says; clicking changes the input."""
    from mechinterp.rasp import evaluate, programs

    opened = visit("chapters/07_compiled_transformers.html")
    page = opened.page
    answers = "([name, words]) => document.querySelector('.mi-machine').answers(name, words)"
    draw = random.Random(0)
    for name, spec in programs().items():
        for _ in range(10):
            row = [draw.choice(spec["vocabulary"]) for _ in range(draw.randint(1, spec["max_len"]))]
            told, wanted = page.evaluate(answers, [name, [str(x) for x in row]]), evaluate(spec["program"], row)
            if spec["program"].numerical:
                assert [float(x) for x in told] == pytest.approx(wanted, abs=1e-3), (name, row)
            else:
                assert told == ["" if x is None else str(x) for x in wanted], (name, row)
    machine = page.locator(".mi-machine")
    machine.locator("select").select_option("reverse")
    last_row = machine.locator("[data-part=stream] tr").last
    assert last_row.locator("td").all_inner_texts()[2:] == ["a", "d", "c", "b", "a"]
    machine.locator("[data-part=input] button").first.click()
    assert last_row.locator("td").all_inner_texts()[2:] == ["a", "d", "c", "b", "b"]
    machine.locator("[data-part=fewer]").click()
    assert last_row.locator("td").all_inner_texts()[2:] == ["d", "c", "b", "b"]
    machine.locator("[data-part=stream] button").first.click()
    assert "computes length" in machine.locator("[data-part=who]").inner_text()
    assert opened.errors == []


def test_search_finds_a_word(browser: Any, server: str) -> None:
    visit = Visit(browser, server, "search.html?q=ablation")
    try:
        visit.page.wait_for_selector("#search-results li", timeout=15_000)
        assert visit.outside == []
    finally:
        visit.page.close()
