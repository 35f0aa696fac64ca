"""Heads and what they read from each other, drawn as graphs."""

from collections.abc import Mapping, Sequence
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
