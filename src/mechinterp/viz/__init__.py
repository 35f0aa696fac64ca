"""Every figure in one house style: functions of tensors, each with a caption in words."""

from mechinterp.viz.attention import AttentionView, attention
from mechinterp.viz.explorer import Menu, TokenExplorer, menu, token_explorer
from mechinterp.viz.figure import Figure
from mechinterp.viz.graphs import circuit_graph, edge_graph, wiring_graph
from mechinterp.viz.machine import Machines, machines
from mechinterp.viz.plots import (
    attention_map,
    bars,
    curves,
    head_map,
    histogram,
    moving_points,
    scatter,
)

__all__ = [
    "AttentionView",
    "Figure",
    "Machines",
    "Menu",
    "TokenExplorer",
    "attention",
    "attention_map",
    "bars",
    "circuit_graph",
    "curves",
    "edge_graph",
    "head_map",
    "histogram",
    "machines",
    "menu",
    "moving_points",
    "scatter",
    "token_explorer",
    "wiring_graph",
]
