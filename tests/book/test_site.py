"""The built site in headless Chromium with the network off: every page, both themes, laptop and phone."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
PAGES = sorted(p.relative_to(HTML).as_posix() for d in ("book", "chapters") for p in (HTML / d).glob("*.html"))

pytestmark = [
    pytest.mark.skipif(not (HTML / "index.html").is_file(), reason="the site is not built: make book"),
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium to open the site with"),
]


FAINT = """() => {
    const rgba = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = c => c.slice(0, 3).map(x => x / 255)
        .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = node => {
        for (; node; node = node.parentElement) {
            const c = rgba(getComputedStyle(node).backgroundColor);
            if (c.length == 3 || c[3] > 0.5) return c;
        }
        return [255, 255, 255];
    };
    const text = '.mi-figure figcaption, .claim-card, .claim-table td, .xtitle, .mi-figure strong, .mi-circuitsvis h2';
    return [...document.querySelectorAll(text)].flatMap(node => {
        const style = getComputedStyle(node);
        const [a, b] = [light(rgba(node instanceof SVGElement ? style.fill : style.color)), light(ground(node))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return contrast < 4 ? [`${contrast.toFixed(1)} ${node.textContent.slice(0, 40)}`] : [];
    });
}"""
"""Texts of figures, cards and tables that stand out too little from what is behind them."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS.split()])
        yield chromium
        chromium.close()


class Visit:
    """One page, opened; what went wrong is kept."""

    def __init__(self, browser: Any, server: str, path: str, width: int = 1366, theme: str = "light") -> None:
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');")
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("requestfailed", lambda r: self.errors.append(f"failed: {r.url}"))
        self.page.on("response", lambda r: self.errors.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        self.page.route("**/*", lambda route: self._route(route, server))
        self.page.goto(f"{server}/{path}", wait_until="load")
        self.page.wait_for_timeout(600)

    def _route(self, route: Any, server: str) -> None:
        if route.request.url.startswith((server, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


def test_there_are_pages() -> None:
    assert {"book/intro.html", "book/scoreboard.html", "chapters/01_ioi.html"} <= set(PAGES)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1366, 390])
@pytest.mark.parametrize("path", PAGES)
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
        faint = visit.page.evaluate(FAINT)
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
        ("02_copy_suppression", 8, 0, 22),
        ("03_successor_heads", 11, 0, 13),
        ("04_grokking_efficiency", 10, 0, 13),
        ("05_attention_output_saes", 10, 0, 11),
        ("06_gated_vs_jumprelu", 12, 0, 24),
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


def test_the_explorer_follows_the_chosen_word(browser: Any, server: str) -> None:
    visit = Visit(browser, server, "chapters/02_copy_suppression.html")
    try:
        words = visit.page.locator(".mi-explorer button")
        assert words.count() > 20
        before = visit.page.locator(".mi-explorer dl").inner_text()
        words.nth(9).click()
        after = visit.page.locator(".mi-explorer dl").inner_text()
        assert "lowers" in after
        assert after != before
        assert visit.errors == []
    finally:
        visit.page.close()


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


def test_search_finds_a_word(browser: Any, server: str) -> None:
    visit = Visit(browser, server, "search.html?q=ablation")
    try:
        visit.page.wait_for_selector("#search-results li", timeout=15_000)
        assert visit.outside == []
    finally:
        visit.page.close()
