"""Heads and what they read from each other, drawn as graphs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from mechinterp.heads import Head
from mechinterp.viz.figure import INK, PALETTE, Figure, finish, head_label


def circuit_graph(
    nodes: Mapping[Head, Any],
    *,
    title: str,
    caption: str,
    reads: Sequence[tuple[str, str]] = (
        ("previous token", "induction"),
        ("duplicate token", "S-inhibition"),
        ("S2 informant", "S-inhibition"),
        ("induction", "S-inhibition"),
        ("S-inhibition", "name mover"),
        ("S-inhibition", "negative name mover"),
        ("S-inhibition", "backup name mover"),
        ("name mover", "logits"),
        ("negative name mover", "logits"),
        ("backup name mover", "logits"),
    ),
) -> Figure:
    """A circuit drawn from the tokens (bottom) to the logits (top).

    Args:
        nodes: the heads, each with `.role` and `.positions` (a `circuits.Circuit` or its nodes).
        reads: (writing role, reading role) pairs to connect; absent roles are passed over.
    """
    nodes = getattr(nodes, "nodes", nodes)
    order = {"previous token": 1, "duplicate token": 1, "S2 informant": 1, "induction": 2, "S-inhibition": 3}
    roles: dict[str, list[Head]] = {}
    for head, node in nodes.items():
        roles.setdefault(node.role, []).append(head)
    rows: dict[int, list[str]] = {}
    for role in roles:
        rows.setdefault(order.get(role, 4), []).append(role)
    place: dict[str, tuple[float, float]] = {"tokens": (0.5, 0.0), "logits": (0.5, 5.0)}
    for level, present in rows.items():
        for i, role in enumerate(present):
            place[role] = ((i + 0.5) / len(present), float(level))
    edges = [pair for pair in reads if pair[0] in place and pair[1] in place]
    written, fed = {a for a, _ in edges}, {b for _, b in edges}
    edges += [("tokens", role) for role in roles if role not in fed]
    edges += [(role, "logits") for role in roles if role not in written]
    plot = go.Figure()
    for a, b in edges:
        (x0, y0), (x1, y1) = place[a], place[b]
        plot.add_annotation(
            x=x1, y=y1 - 0.27, ax=x0, ay=y0 + 0.27, xref="x", yref="y", axref="x", ayref="y",
            showarrow=True, arrowhead=2, arrowwidth=1.5, arrowcolor=INK, text="",
        )  # fmt: skip
    for i, (role, (x, y)) in enumerate(place.items()):
        heads = roles.get(role, [])
        where = ", ".join(nodes[heads[0]].positions) if heads else ""
        lines = [", ".join(map(str, heads[j : j + 4])) for j in range(0, len(heads), 4)]
        label = f"<b>{role}</b>" + (f" ({where})" if where else "") + "".join(f"<br>{line}" for line in lines)
        colour = PALETTE[i % len(PALETTE)] if heads else INK
        plot.add_annotation(
            x=x, y=y, text=label, showarrow=False, bordercolor=colour, borderwidth=2, borderpad=5,
            bgcolor="rgba(128,138,152,0.12)", font={"size": 12},
        )  # fmt: skip
    plot.update_xaxes(visible=False, range=[-0.02, 1.02], fixedrange=True)
    plot.update_yaxes(visible=False, range=[-0.5, 5.5], fixedrange=True)
    return finish(plot, title, caption, height=560)


def wiring_graph(
    edges: Sequence[tuple[Head, Head, str, bool]],
    roles: Mapping[Head, str],
    *,
    title: str,
    caption: str,
    noun: str = "head",
) -> Figure:
    """Heads by layer, and an arrow from each writer to the head that reads it.

    Args:
        edges: (writer, reader, kind, expected); arrows of a kind share a colour, an unexpected one is dotted.
        roles: what each head does, for its label and colour; other heads are grey.
        noun: what they are, if not heads: latents of a layer, say.
    """
    heads = sorted({h for a, b, *_ in edges for h in (a, b)})
    by_layer: dict[int, list[Head]] = {}
    for head in heads:
        by_layer.setdefault(head.layer, []).append(head)
    widest = max(map(len, by_layer.values()))
    place = {
        h: ((i + 0.5) / len(row) * widest + 0.2 * (layer % 2), layer)
        for layer, row in by_layer.items()
        for i, h in enumerate(row)
    }
    plot = go.Figure()
    for k, kind in enumerate(dict.fromkeys(kind for *_, kind, _ in edges)):
        for expected in (True, False):
            lines: list[Any] = []
            for a, b, own, known in edges:
                if own == kind and known == expected:
                    lines += [(place[a], a), (place[b], b), None]
            if lines:
                plot.add_scatter(
                    x=[p and p[0][0] for p in lines], y=[p and p[0][1] for p in lines], mode="lines", hoverinfo="skip",
                    name=kind + ("" if expected else ", not expected"),
                    line={"color": PALETTE[k], "width": 2, "dash": "solid" if expected else "dot"},
                )  # fmt: skip
    kinds = list(dict.fromkeys(roles.values()))
    plot.add_scatter(
        x=[place[h][0] for h in heads], y=[place[h][1] for h in heads], mode="markers+text", showlegend=False,
        text=[f" {h}" for h in heads], textposition="middle right",
        hovertext=[head_label(h, roles, noun) for h in heads], hoverinfo="text",
        marker={"size": 13, "color": [PALETTE[3 + kinds.index(roles[h]) % 4] if h in roles else INK for h in heads]},
    )  # fmt: skip
    plot.update_xaxes(visible=False, range=[-0.2, widest + 0.6])
    plot.update_yaxes(title="layer", dtick=1, zeroline=False)
    return finish(plot, title, caption, height=560)


def edge_graph(
    levels: Mapping[str, float],
    edges: Sequence[tuple[str, Sequence[str], str, float]],
    *,
    title: str,
    caption: str,
    sizes: Sequence[int] = (),
) -> Figure:
    """A circuit of weighted edges, from the input at the bottom to the logits at the top.

    Args:
        levels: how high each node is drawn: its layer, and half a layer more for MLPs, which stand at the right;
            `discovery.drawing` makes them and the edges.
        edges: (writer, readers, kind, weight), the most important first; those of a kind share a colour, the width is
            the size of the weight, and a negative one is dotted.
        sizes: numbers of edges among which a slider chooses, the last one first.

    Errors: `ValueError` for no edges, a node without a level, sizes that do not rise or ask for more than there are.
    """
    if not edges:
        raise ValueError("no edges to draw")
    missing = next((n for a, readers, *_ in edges for n in (a, *readers) if n not in levels), None)
    if missing is not None:
        raise ValueError(f"{missing} has no level to be drawn at")
    sizes = list(sizes) or [len(edges)]
    if not all(0 < a < b for a, b in pairwise([*sizes, len(edges) + 1])):
        raise ValueError(f"sizes must rise within 1..{len(edges)}, got {sizes}")
    rows: dict[float, list[str]] = {}
    for name, level in levels.items():
        rows.setdefault(level, []).append(name)
    place = {
        n: (0.88 * (i + 0.5) / len(row) if y % 1 == 0 else 0.97 - 0.06 * i, y)
        for y, row in rows.items()
        for i, n in enumerate(row)
    }
    kinds = list(dict.fromkeys(kind for *_, kind, _ in edges))
    most = max(abs(weight) for *_, weight in edges) or 1.0
    plot = go.Figure()
    for writer, readers, kind, weight in edges:
        (x0, y0), ends = place[writer], [place[reader] for reader in readers]
        plot.add_scatter(
            x=[x for x1, _ in ends for x in (x0, round((x0 + x1) / 2, 3), x1, None)][:-1],
            y=[y for _, y1 in ends for y in (y0, (y0 + y1) / 2, y1, None)][:-1],
            mode="lines", opacity=0.7, showlegend=False, legendgroup=kind, hoverinfo="text",
            hovertext=f"{writer} → {', '.join(readers)} {kind}: {weight:.3g}",
            line={
                "color": PALETTE[kinds.index(kind) % len(PALETTE)], "width": round(0.6 + 4.4 * abs(weight) / most, 2),
                "dash": "dot" if weight < 0 else "solid",
            },
        )  # fmt: skip
    for size in sizes:
        nodes = [n for n in levels if any(n == a or n in readers for a, readers, *_ in edges[:size])]
        plot.add_scatter(
            x=[place[n][0] for n in nodes], y=[place[n][1] for n in nodes], text=nodes, mode="markers+text",
            textposition="top center", hoverinfo="text", showlegend=False, visible=size == sizes[-1],
            marker={"size": 8, "color": INK}, textfont={"size": 10},
        )  # fmt: skip
    for i, kind in enumerate(kinds):
        colour = {"color": PALETTE[i % len(PALETTE)], "width": 3}
        plot.add_scatter(x=[None], y=[None], mode="lines", name=kind, legendgroup=kind, line=colour)
    for trace in plot.data[sizes[-1] : len(edges)]:
        trace.visible = False
    if len(sizes) > 1:
        shown = {size: [*(i < size for i in range(len(edges))), *(size == s for s in sizes)] for size in sizes}
        steps = [
            {"label": str(size), "method": "restyle", "args": [{"visible": shown[size] + [True] * len(kinds)}]}
            for size in sizes
        ]
        slider = {"active": len(sizes) - 1, "steps": steps, "currentvalue": {"prefix": "edges: "}, "pad": {"t": 30}}
        plot.update_layout(sliders=[slider], legend={"yref": "paper", "y": 1, "yanchor": "bottom"})
    plot.update_xaxes(visible=False, range=[-0.02, 1.02])
    layers = {int(levels[name]) for name in levels if name not in ("input", "logits")} or {0}
    plot.update_yaxes(title="layer", tickvals=list(range(min(layers), max(layers) + 1)), zeroline=False)
    return finish(plot, title, caption, height=200 + 34 * len(rows) + 60 * (len(sizes) > 1))
