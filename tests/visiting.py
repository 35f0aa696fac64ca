"""A page of the built site, opened in headless Chromium with the network off."""

import os
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
UNDRAWN = ".plotly-graph-div:not(:has(svg)), .mi-circuitsvis > div:empty"
"""A figure whose turn has not come: `figures.js` draws those near the screen, and the rest for print."""


class Visit:
    """One page, opened; what went wrong is kept. With `draw`, the figures further down are drawn too, as for print."""

    def __init__(
        self,
        browser: Any,
        server: str,
        path: str,
        width: int = 1366,
        theme: str = "light",
        script: bool = True,
        draw: bool = True,
    ) -> None:
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=theme, java_script_enabled=script
        )
        self.page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');")
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("requestfailed", lambda r: self.errors.append(f"failed: {r.url}"))
        self.page.on("response", lambda r: self.errors.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        self.page.route("**/*", lambda route: self._route(route, server))
        self.page.goto(f"{server}/{path}", wait_until="load")
        if script and draw:
            self.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
            self.page.wait_for_function(f"document.querySelectorAll('{UNDRAWN}').length === 0")
        self.page.wait_for_timeout(150)

    def _route(self, route: Any, server: str) -> None:
        if route.request.url.startswith((server, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


FAINT = """([selector, least]) => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const seen = {};
    const rgba = text => seen[text] ??= (() => {  // whatever syntax the colour is in
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = text;
        paint.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    })();
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
    const light = c => c.slice(0, 3).map(x => x / 255)
        .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = node => {
        const layers = [];
        for (; node; node = node.parentElement) layers.push(rgba(getComputedStyle(node).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    return [...document.querySelectorAll(selector)].flatMap(node => {
        const style = getComputedStyle(node), behind = ground(node);
        const ink = over(rgba(node instanceof SVGElement ? style.fill : style.color), behind);
        const [a, b] = [light(ink), light(behind)];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return contrast < least ? [`${contrast.toFixed(1)} ${node.textContent.slice(0, 40)}`] : [];
    });
}"""
"""Texts that stand out too little from what is behind them: `page.evaluate(FAINT, [selector, least])`."""
