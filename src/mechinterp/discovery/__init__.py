"""A model as a graph of senders and receivers: edges and nodes scored, circuits found, and how these are judged."""

from mechinterp.discovery.acdc import Found, Step, acdc
from mechinterp.discovery.diagnostics import Missed, mean_cost, missed, subset_bound, verification_cost
from mechinterp.discovery.exact import exact
from mechinterp.discovery.forward import patched_logits, said
from mechinterp.discovery.gradients import eap, eap_ig, gim
from mechinterp.discovery.graph import Edge, Graph, Receiver, Sender, between_heads
from mechinterp.discovery.node_effects import node_effects
from mechinterp.discovery.nodes import Node, NodeScores, atp
from mechinterp.discovery.scores import Scores

__all__ = [
    "Edge",
    "Found",
    "Graph",
    "Missed",
    "Node",
    "NodeScores",
    "Receiver",
    "Scores",
    "Sender",
    "Step",
    "acdc",
    "atp",
    "between_heads",
    "eap",
    "eap_ig",
    "exact",
    "gim",
    "mean_cost",
    "missed",
    "node_effects",
    "patched_logits",
    "said",
    "subset_bound",
    "verification_cost",
]
