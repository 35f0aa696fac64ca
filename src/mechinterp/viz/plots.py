"""Every kind of figure of the book, as functions of tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from mechinterp.heads import Head
from mechinterp.viz.figure import GRID, INK, PALETTE, Figure, finish, head_label, lines_of

# Low is red, high is blue, nothing is transparent, so that zero is the page itself in either theme.
DIVERGING = [[0, "rgb(178,24,43)"], [0.5, "rgba(150,150,150,0.06)"], [1, "rgb(33,102,172)"]]
SEQUENTIAL = [[0, "rgba(150,150,150,0.06)"], [1, "rgb(33,102,172)"]]


def _menu(buttons: list[dict[str, Any]]) -> dict[str, Any]:
    return {"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}


def _array(x: Any) -> np.ndarray:
    if isinstance(x, Tensor):
        return x.detach().cpu().float().numpy()
    return np.asarray([v.detach().cpu() if isinstance(v, Tensor) else v for v in x], dtype=float)


def head_map(
    scores: Float[Tensor, "layer head"] | Mapping[str, Float[Tensor, "layer head"]],
    *,
    title: str,
    caption: str,
    unit: str = "relative change",
    highlight: Mapping[Head, str] | None = None,
    axes: tuple[str, str] = ("layer", "head"),
    labels: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Figure:
    """One cell a head: layers downwards, heads to the right; several maps share a menu.

    Maps with negative values get a diverging scale with zero in the middle. `unit` names the scale;
    "relative change" is shown in per cent. Highlighted heads are outlined, their label in the hover text.
    Other tables of that shape say what their rows and columns are by `axes`, and by `labels` what each is called; a
    cell that is NaN stays empty.

    Errors: `ValueError` for labels that do not fit the table.
    """
    maps = scores if isinstance(scores, Mapping) else {unit: scores}
    plot = go.Figure()
    for i, (name, values) in enumerate(maps.items()):
        z = _array(values)
        most = float(np.nanmax(np.abs(z))) or 1.0
        signed = np.nanmin(z) < 0
        down, across = labels or (range(z.shape[0]), range(z.shape[1]))
        if (len(down), len(across)) != z.shape:
            raise ValueError(
                f"a table of {z.shape[0]} x {z.shape[1]} needs as many labels, got {len(down)} x {len(across)}"
            )
        text = [[head_label(Head(layer, h), highlight) for h in range(z.shape[1])] for layer in range(z.shape[0])]
        if axes != ("layer", "head"):
            text = [[f"{axes[0]} {i}, {axes[1]} {j}" for j in across] for i in down]
        form = ":+.1%" if unit == "relative change" else ":.2f"
        plot.add_heatmap(
            z=z,
            x=list(across),
            y=list(down),
            colorscale=DIVERGING if signed else SEQUENTIAL,
            zmin=-most if signed else 0,
            zmax=most,
            text=text,
            hovertemplate="%{text}<br>" + unit + " %{z" + form + "}<extra></extra>",
            xgap=2,
            ygap=2,
            visible=i == 0,
            name=name,
            colorbar={"thickness": 12, "tickformat": ".0%" if unit == "relative change" else None, "outlinewidth": 0},
        )
    rows = z.shape[0]
    for head in highlight or {}:
        plot.add_shape(
            type="rect",
            x0=head[1] - 0.5,
            x1=head[1] + 0.5,
            y0=head[0] - 0.5,
            y1=head[0] + 0.5,
            line={"color": PALETTE[1], "width": 2.5},
        )
    plot.update_xaxes(title=axes[1], dtick=1, showgrid=False, zeroline=False, constrain="domain")
    plot.update_yaxes(title=axes[0], dtick=1, showgrid=False, zeroline=False, autorange="reversed")
    if labels:
        plot.update_xaxes(type="category").update_yaxes(type="category")
    if len(maps) > 1:
        buttons = [
            {"label": name, "method": "update", "args": [{"visible": [j == i for j in range(len(maps))]}]}
            for i, name in enumerate(maps)
        ]
        plot.update_layout(
            updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}]
        )
    # A model of thirty layers still fits a screen.
    return finish(plot, title, caption, height=130 + (30 if rows <= 16 else 18) * max(rows, 5))


def histogram(values: Float[Tensor, " sample"], *, x: str, title: str, caption: str, bins: int = 40) -> Figure:
    """Distribution of one number over prompts, with a line at zero."""
    plot = go.Figure(go.Histogram(x=_array(values), nbinsx=bins, marker={"color": PALETTE[0], "line": {"width": 0}}))
    plot.add_vline(x=0, line={"color": INK, "dash": "dot"})
    plot.update_xaxes(title=x)
    plot.update_yaxes(title="prompts")
    return finish(plot, title, caption, height=300)


def scatter(
    series: Mapping[str, tuple[Any, Any]],
    *,
    x: str,
    y: str,
    title: str,
    caption: str,
    diagonal: bool = False,
    log: bool = False,
) -> Figure:
    """Points of one or more series; `diagonal` draws the line y = x, and `log` both axes by decades.

    Errors: `ValueError` for values that are not above 0, with `log`.
    """
    if log and any((_array(v) <= 0).any() for pair in series.values() for v in pair):
        raise ValueError("values on logarithmic axes must be above 0: take their size, and a least one to draw")
    plot = go.Figure()
    symbols = ("circle", "diamond", "cross", "square")
    for i, (name, (xs, ys)) in enumerate(series.items()):
        plot.add_scatter(
            x=_array(xs),
            y=_array(ys),
            mode="markers",
            name=name,
            marker={"size": 6, "opacity": 0.7, "symbol": symbols[i % 4], "color": PALETTE[i % len(PALETTE)]},
        )
    if diagonal:
        every = np.concatenate([_array(v) for pair in series.values() for v in pair])
        ends = [float(every.min()), float(every.max())]
        plot.add_scatter(x=ends, y=ends, mode="lines", line={"color": INK, "dash": "dot"}, name="y = x")
    kind: dict[str, Any] = {"type": "log", "dtick": 1, "exponentformat": "power"} if log else {}
    plot.update_xaxes(title=x, **kind)
    plot.update_yaxes(title=y, **kind)
    return finish(plot, title, caption, height=400)


def bars(
    values: Mapping[str, Any],
    *,
    y: str,
    title: str,
    caption: str,
    groups: Mapping[str, str] | None = None,
) -> Figure:
    """One horizontal bar a name; bars of a group share a colour and a legend entry.

    `values` are numbers or `Estimate`s, which come with their interval.
    """
    kinds = list(dict.fromkeys(groups.values())) if groups else [""]
    plot = go.Figure()
    for i, kind in enumerate(kinds):
        names = [n for n in values if not groups or groups[n] == kind]
        level = [float(values[n]) for n in names]
        ends = [getattr(values[n], "interval", None) or (v, v) for n, v in zip(names, level, strict=True)]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, hi - v) for (_, hi), v in zip(ends, level, strict=True)],
            "arrayminus": [max(0.0, v - lo) for (lo, _), v in zip(ends, level, strict=True)],
            "color": INK,
        }
        drawn = error if any(lo < hi for lo, hi in ends) else None
        plot.add_bar(
            y=names, x=level, error_x=drawn, orientation="h", name=kind, marker={"color": PALETTE[i % len(PALETTE)]}
        )
    plot.update_xaxes(title=y, zeroline=True)
    plot.update_yaxes(type="category", autorange="reversed", categoryarray=list(values), categoryorder="array")
    plot.update_layout(showlegend=bool(groups), barmode="overlay", bargap=0.3)
    height = 112 + 18 * len(lines_of(y)) + 26 * len(values) + (30 if groups else 0)
    return finish(plot, title, caption, height=height)


def curves(
    series: Mapping[str, tuple[Any, Any]],
    *,
    x: str,
    y: str,
    title: str,
    caption: str,
    log_x: bool = False,
    log_y: bool = False,
    bands: Mapping[str, tuple[Any, Any]] | None = None,
    marks: Mapping[str, float] | None = None,
    groups: Mapping[str, str] | None = None,
    order: Sequence[str] = (),
) -> Figure:
    """Lines of one or more series.

    Args:
        bands: lower and upper edge of an interval around some of the series, drawn in their colour.
        marks: vertical lines, with their names.
        groups: lines of a group share a colour and a legend entry.
        order: names that take the first colours whether they are drawn or not, so that figures agree.
    """
    plot = go.Figure()
    kinds = list(dict.fromkeys([*order, *((groups or {}).get(name, name) for name in series)]))
    shown: set[str] = set()
    for name, (xs, ys) in series.items():
        kind = (groups or {}).get(name, name)
        colour = PALETTE[kinds.index(kind) % len(PALETTE)]
        if bands and name in bands:
            low, high = map(_array, bands[name])
            edge = {"x": np.concatenate([_array(xs), _array(xs)[::-1]]), "y": np.concatenate([high, low[::-1]])}
            plot.add_scatter(
                **edge, fill="toself", mode="none", fillcolor=colour, opacity=0.2, showlegend=False, hoverinfo="skip"
            )
        plot.add_scatter(
            x=_array(xs),
            y=_array(ys),
            mode="lines+markers" if len(_array(xs)) <= 20 else "lines",
            name=kind,
            legendgroup=kind,
            showlegend=kind not in shown,
            line={"color": colour},
        )
        shown.add(kind)
    for name, where in (marks or {}).items():
        plot.add_vline(x=where, line={"color": INK, "dash": "dot"})
        # On a logarithmic axis annotations are placed by exponent.
        plot.add_annotation(
            x=float(np.log10(where)) if log_x else where,
            text=name,
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            font={"color": INK},
        )
    plot.update_xaxes(title=x, type="log" if log_x else "linear")
    if log_x:
        every = np.concatenate([_array(xs) for xs, _ in series.values()])
        low, high = every.min(), every.max()
        fine = (1, 2, 5) if high < 300 * low else (1,)
        ticks = [m * 10.0**e for e in range(-9, 10) for m in fine if low <= m * 10.0**e <= high]
        plot.update_xaxes(tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    plot.update_yaxes(title=y, type="log" if log_y else "linear", exponentformat="power")
    return finish(plot, title, caption, height=360)


def moving_points(
    frames: Mapping[str, Float[Tensor, "point two"]], names: Sequence[str], *, title: str, caption: str
) -> Figure:
    """Points in a plane, one position for every frame, joined in order; a slider and a button play the frames."""
    keys = list(frames)
    reach = 1.1 * max(float(np.abs(_array(xy)).max()) for xy in frames.values())

    def trace(key: str) -> go.Scatter:
        xy = _array(frames[key])
        return go.Scatter(
            x=xy[:, 0],
            y=xy[:, 1],
            text=list(names),
            mode="markers+lines",
            marker={"size": 9, "color": np.arange(len(xy)), "colorscale": "Twilight", "showscale": False},
            line={"color": GRID, "width": 1},
            hovertemplate="%{text}<extra></extra>",
        )

    plot = go.Figure(trace(keys[-1]), frames=[go.Frame(data=[trace(key)], name=key) for key in keys])
    step = {"frame": {"duration": 250, "redraw": False}, "transition": {"duration": 150}, "mode": "immediate"}
    plot.update_layout(
        showlegend=False,
        updatemenus=[
            {
                "type": "buttons",
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 34},
                "buttons": [{"label": "Play", "method": "animate", "args": [keys, step | {"fromcurrent": False}]}],
            }
        ],
        sliders=[
            {
                "active": len(keys) - 1,
                "x": 0.22,
                "len": 0.78,
                "pad": {"t": 30},
                "currentvalue": {"prefix": "epoch "},
                "steps": [{"label": key, "method": "animate", "args": [[key], step]} for key in keys],
            }
        ],
    )
    plot.update_xaxes(range=[-reach, reach], visible=False)
    plot.update_yaxes(range=[-reach, reach], visible=False, scaleanchor="x")
    return finish(plot, title, caption, height=480)


def attention_map(
    pattern: Float[Tensor, "head query key"], tokens: Sequence[str], labels: Sequence[str], *, title: str, caption: str
) -> Figure:
    """Attention patterns as heat maps with a menu of heads; works where scripts of `attention` do not."""
    maps = _array(pattern)
    plot = go.Figure()
    ticks = [f"{i} {t.strip() or repr(t)}" for i, t in enumerate(tokens)]
    for i, (z, label) in enumerate(zip(maps, labels, strict=True)):
        plot.add_heatmap(
            z=z, x=ticks, y=ticks, colorscale=SEQUENTIAL, zmin=0, zmax=1, visible=i == 0, name=label, showscale=False,
            hovertemplate="from %{y} to %{x}: %{z:.2f}<extra>" + label + "</extra>",
        )  # fmt: skip
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(tickangle=-60, showgrid=False)
    buttons = [
        {"label": label, "method": "update", "args": [{"visible": [j == i for j in range(len(maps))]}]}
        for i, label in enumerate(labels)
    ]
    plot.update_layout(updatemenus=[_menu(buttons)])
    return finish(plot, title, caption, height=160 + 20 * len(tokens))
