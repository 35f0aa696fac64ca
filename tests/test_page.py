import nbformat
import plotly.graph_objects as go
import pytest

from mechinterp.notebooks import inject, read
from mechinterp.page import markdown, to_html


def code(source, *outputs, tags=(), count=1):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": [*tags]}, execution_count=count)


def page(*cells):
    return to_html(nbformat.v4.new_notebook(cells=list(cells)), "A <title>")


def data(**mimes):
    return nbformat.v4.new_output("display_data", data={k.replace("__", "/"): v for k, v in mimes.items()})


def test_a_page_needs_nothing_from_outside():
    figure = nbformat.v4.new_output(
        "display_data", data={"application/vnd.plotly.v1+json": go.Figure(go.Bar(y=[1, 2])).to_plotly_json()}
    )
    html = page(code("show()", figure, figure))
    assert html.count('class="plotly-graph-div"') == 2
    assert html.count("plotly.js v") == 1
    assert "<script src" not in html
    assert "cdn.plot.ly" not in html.split("<body>")[1]
    assert "A &lt;title&gt;" in html


def test_a_large_script_of_several_figures_is_written_once():
    bundle = nbformat.v4.new_output("display_data", data={"text/html": f"<script>{'x' * 200_000}</script><p>view</p>"})
    html = page(code("a", bundle), code("b", bundle))
    assert html.count("x" * 200_000) == 1
    assert html.count("<p>view</p>") == 2


def test_outputs_are_escaped_and_progress_bars_left_out():
    out = nbformat.v4.new_output("stream", name="stdout", text="1 < 2 \x1b[31mred\x1b[0m")
    err = nbformat.v4.new_output("stream", name="stderr", text="50%|#####")
    html = page(code("a<b", out, err))
    assert "1 &lt; 2 red" in html
    assert "#####" not in html


def test_tags_hide_and_remove():
    out = nbformat.v4.new_output("stream", name="stdout", text="answer")
    assert "secret" not in page(code("secret", out, tags=["remove-input"]))
    assert "secret" not in page(code("secret", out, tags=["remove-cell"]))
    assert "answer" not in page(code("secret", out, tags=["remove-output"]))
    assert page(code("secret", out, tags=["hide-cell"])).count("<details>") == 2


def test_a_cell_that_never_ran_is_refused():
    with pytest.raises(ValueError, match="was not run"):
        page(code("x = 1", count=None))


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("$x^2$", "<math"),
        ("$$\\sum_i x_i$$", 'display="block"'),
        ("```{math}\n:label: a\nx\n```", 'display="block"'),
        ("{math}`x`", "<math"),
        ("{term}`name mover <nm>`", "name mover"),
        ("{py:func}`~mechinterp.load`", "<code>mechinterp.load</code>"),
        ("```python\nx = 1\n```", "<pre><code>"),
        ("```{admonition} Look\nhere **now**\n```", "<aside><b>Look</b><p>here <strong>now</strong>"),
        (":::{note}\nhere\n:::", "<aside><b>Note</b>"),
        ("````{solution} ex\n```python\nx\n```\n````", "<details><summary>ex"),
        ("```{admonition} Hint\n:class: dropdown\nlook\n```", "<details><summary>Hint"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "<table>"),
        ("```{figure} none.png\n:alt: a circuit\n```", "a circuit"),
    ],
)
def test_markdown(source, part):
    assert part in markdown(source)


def test_parameters_are_injected_after_their_cell():
    notebook = nbformat.v4.new_notebook(cells=[code("scale = None", tags=["parameters"], count=None)])
    injected = inject(notebook, {"scale": "paper"})
    assert [cell.source for cell in injected.cells] == ["scale = None", "scale = 'paper'"]
    assert len(notebook.cells) == 1
    with pytest.raises(ValueError, match="does not set size"):
        inject(notebook, {"size": 3})
    with pytest.raises(ValueError, match="no cell tagged"):
        inject(nbformat.v4.new_notebook(), {})


def test_a_file_that_is_no_notebook_is_refused(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a notebook"):
        read(path)
