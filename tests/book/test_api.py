"""The pages of the API: everything that a package exports has its place, and can be found by name."""

import contextlib
import importlib
import inspect
import pkgutil
import re
from functools import reduce
from typing import Any

import pytest
from visiting import HTML

import mechinterp

PAGES = sorted((HTML / "book" / "api").glob("*.html"))
ANCHOR = re.compile(r'<dt class="sig sig-object py" id="(mechinterp[\w.]*)"')


def resolve(name: str) -> Any:
    """The object with a dotted name; a function that is named like its module comes before the module."""
    parts = name.split(".")
    for n in range(1, len(parts)):
        try:
            return reduce(getattr, parts[n:], importlib.import_module(".".join(parts[:n])))
        except (AttributeError, ModuleNotFoundError):
            continue
    return importlib.import_module(name)


def anchors() -> dict[str, str]:
    return {name: page.name for page in PAGES for name in ANCHOR.findall(page.read_text(encoding="utf8"))}


def test_everything_exported_has_an_anchor_on_some_page() -> None:
    documented = set()
    for name in anchors():
        with contextlib.suppress(ModuleNotFoundError):  # a field that a dataclass has on its instances only
            documented.add(id(resolve(name)))
    missing = []
    walked = pkgutil.walk_packages(mechinterp.__path__, "mechinterp.")
    for name in ["mechinterp", *(found.name for found in walked if found.ispkg)]:
        package = importlib.import_module(name)
        for item in getattr(package, "__all__", []):
            thing = getattr(package, item)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and id(thing) not in documented:
                missing.append(f"{name}.{item}")
    assert missing == [], "give the package a page in book/api and a line in _toc.yml"


def test_nothing_is_documented_twice() -> None:
    every = [name for page in PAGES for name in ANCHOR.findall(page.read_text(encoding="utf8"))]
    assert len(every) == len(set(every)) > 300
    things = [id(thing) for name in every if callable(thing := _or_none(name)) and inspect.isfunction(thing)]
    assert len(things) == len(set(things))


def _or_none(name: str) -> Any:
    try:
        return resolve(name)
    except ModuleNotFoundError:
        return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_its_functions_and_ends_somewhere(visit, page) -> None:
    opened = visit(f"book/api/{page.name}").page
    links = opened.evaluate(
        "[...document.querySelectorAll('table.mi-functions a')].map(a => [a.getAttribute('href'), "
        "document.getElementById(a.hash.slice(1)) !== null])"
    )
    assert links
    assert all(there for _, there in links), links
    assert opened.evaluate("document.documentElement.scrollHeight") < 30_000


def test_the_index_leads_to_every_page_and_the_table_of_families_to_functions(visit) -> None:
    opened = visit("book/api.html").page
    links = set(opened.evaluate("[...document.querySelectorAll('article a')].map(a => a.getAttribute('href'))"))
    assert {f"api/{page.name}" for page in PAGES} <= links
    rows = opened.locator(".families th code").count()
    linked = opened.evaluate("[...document.querySelectorAll('.families th a')].map(a => a.getAttribute('href'))")
    assert rows > 40
    assert len(linked) >= 0.9 * rows
    known = anchors()
    for link in linked:
        page, _, name = link.removeprefix("api/").partition("#")
        assert known[name] == page


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("path_patch", "book/api/patching.html#mechinterp.patching.path_patch"),
        ("faithfulness", "book/api/circuits.html#mechinterp.circuits.faithfulness"),
        ("head_map", "book/api/viz.html#mechinterp.viz.head_map"),
    ],
)
def test_the_search_finds_a_function_by_its_name(visit, name: str, target: str) -> None:
    opened = visit(f"search.html?q={name}")
    opened.page.wait_for_selector("#search-results li a", timeout=15_000)
    opened.page.wait_for_timeout(500)
    found = opened.page.evaluate("[...document.querySelectorAll('#search-results li > a')].map(a => a.href)")
    assert any(link.endswith(target) for link in found[:5]), found[:5]
    assert opened.outside == []
