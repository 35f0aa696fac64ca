"""What a page is given to run: the weights as entries, recomputed here by the same steps as on the page."""

import itertools
import math

import pytest

from mechinterp import viz
from mechinterp.rasp import compile_program, evaluate, programs
from mechinterp.rasp.live import page

LIBRARY = programs()


def answers(machine, words):
    """The page's forward pass, in plain Python."""
    ids = [0, *(machine["words"].index(word) for word in words)]
    width, d_head = len(machine["directions"]), machine["d_head"]

    def times(x, entries, n):
        y = [0.0] * n
        for i, j, w in entries:
            y[j] += x[i] * w
        return y

    stream = [[0.0] * width for _ in ids]
    for p, token in enumerate(ids):
        for i, w in [*machine["embed"][token], *machine["places"][p]]:
            stream[p][i] += w
    for layer in machine["layers"]:
        wrote = [[0.0] * width for _ in ids]
        for head in layer["heads"]:
            q, k, v = ([times(x, head[part], d_head) for x in stream] for part in "qkv")
            for p in range(len(ids)):
                scores = [sum(a * b for a, b in zip(q[p], key, strict=True)) / math.sqrt(d_head) for key in k]
                raised = [math.exp(s - max(scores)) for s in scores]
                z = [sum(e * x[c] for e, x in zip(raised, v, strict=True)) / sum(raised) for c in range(d_head)]
                wrote[p] = [a + b for a, b in zip(wrote[p], times(z, head["o"], width), strict=True)]
        stream = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(stream, wrote, strict=True)]
        for p, x in enumerate(stream):
            neurons = [max(0.0, a) for a in times(x, layer["read"], layer["neurons"])]
            stream[p] = [a + b for a, b in zip(x, times(neurons, layer["write"], width), strict=True)]
    out = machine["variables"][-1]
    if out["values"] == [None]:
        return [x[out["at"][0]] for x in stream[1:]]
    hot = [[v for i, v in zip(out["at"], out["values"], strict=True) if x[i] > 0.5] for x in stream[1:]]
    return [values[0] if values else None for values in hot]


@pytest.mark.parametrize("name", ["reverse", "frac_prevs", "sort_unique", "pair_balance", "shift_by"])
def test_the_page_s_weights_compute_the_program(name):
    compiled = compile_program(**LIBRARY[name])
    machine = page(compiled, compiled.vocabulary[:2], "")
    for row in itertools.islice(itertools.product(compiled.vocabulary, repeat=3), 0, None, 7):
        wanted = evaluate(compiled.program, row)
        told = answers(machine, [str(x) for x in row])
        if compiled.program.numerical:
            assert told == pytest.approx(wanted, abs=1e-3)
        else:
            assert told == [None if x is None else str(x) for x in wanted]


def test_who_writes_a_variable_is_said():
    compiled = compile_program(**LIBRARY["hist"])
    variables = {v["name"]: v for v in page(compiled, "ab", "")["variables"]}
    assert variables["tokens"]["by"] == "input"
    assert variables["hist"] | {"at": [], "values": []} == {
        "name": "hist", "by": "a0.0, m0", "head": "0.0", "at": [], "values": [],
    }  # fmt: skip


def test_a_start_that_is_no_input_is_refused():
    compiled = compile_program(**LIBRARY["hist"])
    with pytest.raises(ValueError, match="'x' is not in the vocabulary"):
        page(compiled, "ax", "")
    with pytest.raises(ValueError, match="at least one"):
        viz.machines({}, caption="")


def test_words_cannot_end_the_script():
    compiled = compile_program(LIBRARY["hist"]["program"], ["</script>", "b"], 2)
    html = viz.machines({"hist": page(compiled, ["b"], "<b>")}, caption="a")._repr_html_()
    assert html.count("</script>") == 1
