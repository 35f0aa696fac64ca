"""Figures say what the tensors say; pages stay whole whatever the tokens are."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from mechinterp import viz
from mechinterp.circuits import PAPER_CIRCUIT
from mechinterp.heads import Head
from mechinterp.stats import Estimate

WORDS = {"title": "T", "caption": 'a < b & "c"'}
LEVELS = {"input": -1, "a0.1": 0, "a0.2": 0, "m0": 0.5, "logits": 1}
EDGES = [
    ("a0.1", ["logits"], "into the logits", -2.0),
    ("input", ["a0.1", "a0.2"], "into keys", 1.0),
    ("input", ["m0"], "into MLPs", 0.1),
]
VOID = {"br", "img", "meta", "link", "input", "hr"}


class Balance(HTMLParser):
    """Fails on an element that is closed without being open, or left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def balanced(html: str) -> bool:
    parser = Balance()
    parser.feed(html)
    parser.close()
    return parser.open == []


def figures() -> Iterator[viz.Figure]:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, generator=g)
    yield viz.head_map(scores, highlight={Head(1, 2): "name mover"}, **WORDS)
    yield viz.head_map({"one": scores, "two": scores.abs()}, unit="score", **WORDS)
    yield viz.histogram(scores.flatten(), x="x", **WORDS)
    yield viz.scatter({"a": (scores[0], scores[1])}, x="x", y="y", diagonal=True, **WORDS)
    yield viz.scatter({"a": (scores[0].abs(), scores[1].abs())}, x="x", y="y", diagonal=True, log=True, **WORDS)
    yield viz.bars({"1.2": Estimate(0.5, (0.4, 0.6), 9, "prompts"), "2.0": -1.0}, y="y", **WORDS)
    yield viz.bars({"1.2": 0.5, "2.0": 1.0}, groups={"1.2": "first", "2.0": "second"}, y="y", **WORDS)
    yield viz.curves({"a": ([1, 2], [3, 4])}, x="x", y="y", log_x=True, **WORDS)
    yield viz.moving_points({"0": torch.zeros(3, 2) + 1, "1": torch.ones(3, 2)}, ["a", "b", "c"], **WORDS)
    yield viz.circuit_graph(PAPER_CIRCUIT, **WORDS)
    yield viz.wiring_graph([(Head(0, 1), Head(2, 0), "q", True), (Head(1, 1), Head(2, 0), "q", False)], {}, **WORDS)
    yield viz.edge_graph(LEVELS, EDGES, sizes=[1, 3], **WORDS)
    yield viz.head_map(scores, axes=("row", "column"), **WORDS)
    yield viz.head_map(scores, axes=("row", "column"), labels=("xyz", "1234"), **WORDS)
    yield viz.attention_map(torch.rand(2, 3, 3, generator=g), ["a", "<b>", " "], ["0.1", "0.2"], **WORDS)


@pytest.mark.parametrize("figure", list(figures()))
def test_every_figure_is_whole_and_in_the_house_style(figure: viz.Figure) -> None:
    html = figure.html()
    assert balanced(html)
    assert "a &lt; b &amp; " in html
    assert "<strong>T</strong>" in html
    assert "cdn." not in html
    assert "https://" not in re.sub(r"https://plot\.ly", "", html)
    assert figure.plot.layout.autosize, "fits a phone"
    assert figure.plot.layout.width is None
    assert figure.plot.layout.paper_bgcolor is None, "both themes"


def test_a_head_map_shows_every_score_and_zero_in_the_middle() -> None:
    scores = torch.tensor([[0.5, -2.0], [0.1, 0.0]])
    [trace] = viz.head_map(scores, **WORDS).plot.data
    assert (trace.z == scores.numpy()).all()
    assert trace.zmin == -trace.zmax == -2.0
    assert trace.text[1][0] == "head 1.0"


def test_a_table_calls_its_rows_and_columns_by_their_names_and_leaves_out_what_is_not_there() -> None:
    scores = torch.tensor([[0.5, torch.nan], [0.1, 0.0]])
    [trace] = viz.head_map(scores, axes=("number", "moved to"), labels=(["7", "8"], ["a", "b"]), **WORDS).plot.data
    assert (trace.y, trace.x) == (("7", "8"), ("a", "b"))
    assert trace.text[1][0] == "number 8, moved to a"
    assert (trace.zmin, trace.zmax) == (0, 0.5)
    with pytest.raises(ValueError, match="a table of 2 x 2 needs as many labels, got 1 x 2"):
        viz.head_map(scores, labels=(["7"], ["a", "b"]), **WORDS)


def test_on_logarithmic_axes_sizes_are_drawn_by_decades_and_nothing_else_is() -> None:
    plot = viz.scatter({"a": ([0.01, 1.0], [1.0, 100.0])}, x="x", y="y", log=True, **WORDS).plot
    assert {plot.layout.xaxis.type, plot.layout.yaxis.type} == {"log"}
    assert list(plot.data[0].x) == [0.01, 1.0]
    with pytest.raises(ValueError, match="must be above 0"):
        viz.scatter({"a": ([0.0, 1.0], [1.0, 100.0])}, x="x", y="y", log=True, **WORDS)


def test_bars_keep_their_order_and_intervals() -> None:
    values = {"b": Estimate(2.0, (1.5, 3.0), 9, "prompts"), "a": Estimate(1.0, (0.0, 1.25), 9, "prompts")}
    plot = viz.bars(values, y="y", **WORDS).plot
    [trace] = plot.data
    assert list(trace.y) == ["b", "a"]
    assert list(trace.x) == [2.0, 1.0]
    assert list(trace.error_x.array) == [1.0, 0.25]
    assert list(trace.error_x.arrayminus) == [0.5, 1.0]


def test_the_circuit_graph_names_every_head_and_draws_every_edge_between_roles_that_are_there() -> None:
    plot: go.Figure = viz.circuit_graph(PAPER_CIRCUIT, **WORDS).plot
    text = " ".join(a.text for a in plot.layout.annotations)
    assert all(re.search(rf"(?<![\d.]){re.escape(str(head))}(?!\d)", text) for head in PAPER_CIRCUIT)
    arrows = sum(bool(a.showarrow) for a in plot.layout.annotations)
    smaller = PAPER_CIRCUIT.without(PAPER_CIRCUIT.heads("induction"))
    fewer = sum(bool(a.showarrow) for a in viz.circuit_graph(smaller, **WORDS).plot.layout.annotations)
    assert arrows == 9 + 2, "the paper's edges between roles, and tokens into the two roles that read no head"
    assert 0 < fewer < arrows


def test_an_edge_graph_draws_each_edge_by_weight_and_a_slider_chooses_how_many() -> None:
    plot = viz.edge_graph(LEVELS, EDGES, sizes=[1, 2], **WORDS).plot
    lines = [t for t in plot.data if t.mode == "lines" and t.x[0] is not None]
    assert [t.hovertext for t in lines] == [
        "a0.1 → logits into the logits: -2", "input → a0.1, a0.2 into keys: 1", "input → m0 into MLPs: 0.1",
    ]  # fmt: skip
    assert lines[0].line.width > 1.5 * lines[1].line.width > 1.5 * lines[2].line.width
    assert [t.line.dash for t in lines] == ["dot", "solid", "solid"]
    assert len({t.line.color for t in lines}) == 3
    assert (lines[1].y, lines[0].x[0]) == ((-1, -0.5, 0, None, -1, -0.5, 0), lines[1].x[2])
    # What is shown at first is what the slider's last step shows.
    [slider] = plot.layout.sliders
    assert [step.label for step in slider.steps] == ["1", "2"]
    shown = [list(step.args[0]["visible"]) for step in slider.steps]
    assert [t.visible is not False for t in plot.data] == shown[slider.active]
    assert [flags[:3] for flags in shown] == [[True, False, False], [True, True, False]]
    nodes = [
        [t.text for t, on in zip(plot.data, flags, strict=True) if on and t.mode == "markers+text"] for flags in shown
    ]
    assert nodes == [[("a0.1", "logits")], [("input", "a0.1", "a0.2", "logits")]]
    assert not viz.edge_graph(LEVELS, EDGES, **WORDS).plot.layout.sliders


def test_two_hundred_edges_are_a_light_figure() -> None:
    levels = {"input": -1.0} | {f"a{layer}.{h}": float(layer) for layer in range(12) for h in range(12)}
    edges = [("input", [name], "into queries", 1 / (i + 1)) for i, name in enumerate(levels) if i] * 2
    figure = viz.edge_graph(levels, edges[:200], sizes=[10, 20, 50, 100, 200], **WORDS)
    assert len(figure.html()) < 100_000


def test_an_edge_graph_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="no edges to draw"):
        viz.edge_graph(LEVELS, [], **WORDS)
    with pytest.raises(ValueError, match=r"a9\.9 has no level"):
        viz.edge_graph(LEVELS, [("a9.9", ["logits"], "into the logits", 1.0)], **WORDS)
    for sizes in ([2, 1], [4], [0, 1]):
        with pytest.raises(ValueError, match=r"sizes must rise within 1\.\.3"):
            viz.edge_graph(LEVELS, EDGES, sizes=sizes, **WORDS)


TOKENS = ["<bos>", " Mary", "</script><b>", "\n"]


def test_an_attention_view_survives_any_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHINTERP_SITE", "1")
    pattern = torch.eye(4).repeat(2, 1, 1)
    html = viz.attention(pattern, TOKENS, ["0.1", "2.3"], caption="c")._repr_html_()
    assert balanced(html)
    assert html.count("</script>") == 1
    assert "src=" not in html
    assert "2.3" in html


def test_off_the_site_the_bundle_comes_with_the_figure_and_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MECHINTERP_SITE", raising=False)
    html = viz.attention(torch.eye(4)[None], TOKENS, ["0.1"], caption="c")._repr_html_()
    assert len(html) > 500_000
    assert "src=" not in html.split("<script>")[0]
    assert "import(" not in html[-5000:]


@pytest.mark.usefixtures("unchecked")
def test_an_attention_view_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(1, 4, 4\)"):
        viz.attention(torch.eye(3)[None], TOKENS, ["0.1"], caption="c")


def test_a_menu_shows_one_explorer_and_keeps_all() -> None:
    parts = {
        name: viz.token_explorer(TOKENS, [{"looks at": [name]}] * len(TOKENS), caption=name)
        for name in ("a<b", "second")
    }
    html = viz.menu(parts)._repr_html_()
    assert html.count("<option>") == html.count("mi-explorer") == 2
    assert "<option>a&lt;b</option>" in html
    assert html.count("<div hidden>") == 1
    with pytest.raises(ValueError, match="at least one explorer"):
        viz.menu({})


def test_the_explorer_is_whole_and_keeps_every_view() -> None:
    views = [{"looks at": [(0, 0.5)], "lowers": [("</script>", -1.0)], "predicted": ["<b>"]} for _ in TOKENS]
    html = viz.token_explorer(TOKENS, views, caption="c")._repr_html_()
    assert balanced(html)
    assert html.count("<button") == len(TOKENS)
    assert html.count("</script>") == 1
    assert "src=" not in html
    with pytest.raises(ValueError, match="one view a token: 4 tokens, 1 views"):
        viz.token_explorer(TOKENS, views[:1], caption="c")


def test_curves_have_bands_marks_and_groups() -> None:
    x = torch.tensor([100.0, 1000.0])
    figure = viz.curves(
        {"a, 1": (x, x), "a, 2": (x, 2 * x), "b": (x, 3 * x)},
        bands={"b": (2 * x, 4 * x)},
        marks={"here": 300.0},
        groups={"a, 1": "a", "a, 2": "a"},
        x="x",
        y="y",
        title="t",
        caption="c",
        log_x=True,
    )
    lines = [t for t in figure.plot.data if t.fill is None]
    assert [(t.name, t.showlegend) for t in lines] == [("a", True), ("a", False), ("b", True)]
    assert lines[0].line.color == lines[1].line.color != lines[2].line.color
    [note] = figure.plot.layout.annotations
    assert abs(10**note.x - 300) < 1e-6, "annotations of a logarithmic axis are placed by exponent"
    assert list(figure.plot.layout.xaxis.ticktext) == ["100", "200", "500", "1000"]


def test_a_curve_has_the_same_colour_in_every_figure_that_names_the_order() -> None:
    def colours(*names: str) -> dict[str, str]:
        series = {name: ([1, 2], [1, 2]) for name in names}
        figure = viz.curves(series, x="x", y="y", title="t", caption="c", order=("a", "b", "c"))
        return {t.name: t.line.color for t in figure.plot.data}

    everything = colours("a", "b", "c")
    assert colours("c", "b") == {"c": everything["c"], "b": everything["b"]}


def test_moving_points_have_a_frame_for_every_position() -> None:
    frames = {str(i): torch.randn(5, 2) for i in range(3)}
    figure = viz.moving_points(frames, list("abcde"), title="t", caption="c")
    assert [f.name for f in figure.plot.frames] == ["0", "1", "2"]
    np.testing.assert_allclose(figure.plot.data[0].x, frames["2"][:, 0])
    html = figure.html()
    assert "Plotly.addFrames" in html
    assert "Plotly.animate" not in html, "nothing moves before the reader wants it to"


@pytest.mark.parametrize("kind", ["bars", "curves"])
def test_long_titles_of_axes_are_broken_into_lines(kind: str) -> None:
    long = "difference between two heads that share keys, divided by that between others"
    if kind == "bars":
        figure = viz.bars({"a": 1.0}, y=long, **WORDS)
        titles = [figure.plot.layout.xaxis.title.text]
    else:
        figure = viz.curves({"a": ([0, 1], [0, 1])}, x=long, y=long, **WORDS)
        titles = [figure.plot.layout.xaxis.title.text, figure.plot.layout.yaxis.title.text]
    for title in titles:
        lines = title.split("<br>")
        assert " ".join(lines) == long
        assert len(lines) > 1
        assert max(map(len, lines)) <= 34
