"""A model as a graph: passes with edges on and off, and how much its edges and nodes matter."""

from mechinterp.discovery.diagnostics import Missed, mean_cost, missed, subset_bound, verification_cost
from mechinterp.discovery.forward import patched_logits, said
from mechinterp.discovery.graph import Edge, Graph, Receiver, Sender
from mechinterp.discovery.node_effects import node_effects
from mechinterp.discovery.nodes import Node, NodeScores, atp
from mechinterp.discovery.scores import Scores

__all__ = [
    "Edge",
    "Graph",
    "Missed",
    "Node",
    "NodeScores",
    "Receiver",
    "Scores",
    "Sender",
    "atp",
    "mean_cost",
    "missed",
    "node_effects",
    "patched_logits",
    "said",
    "subset_bound",
    "verification_cost",
]
