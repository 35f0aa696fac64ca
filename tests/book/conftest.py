"""The built site, served to headless Chromium with the network off."""

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from visiting import CHROMIUM, HTML, Visit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the site's tests out where there is no site or, except in CI, no browser."""
    reason = ""
    if not (HTML / "index.html").is_file():
        reason = "the site is not built: make book"
    elif CHROMIUM is None and not os.environ.get("CI"):
        reason = "no Chromium to open the site with"
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Callable[..., Visit]]:
    """Opens a page: `visit(path, width, theme)`; closed after the test."""
    opened: list[Visit] = []

    def go(*args: Any, **options: Any) -> Visit:
        opened.append(Visit(browser, server, *args, **options))
        return opened[-1]

    yield go
    for one in opened:
        one.page.close()
