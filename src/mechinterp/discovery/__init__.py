"""A model as a graph of senders and receivers: edges and nodes scored, circuits found, and how these are judged."""

from mechinterp.discovery.acdc import Found, Step, acdc
from mechinterp.discovery.certificate import Certificate, TopEdge, certify, half_splits
from mechinterp.discovery.curves import SHARES, Completeness, Curve, NoGap, cmd, completeness, cpr, curve
from mechinterp.discovery.exact import exact
from mechinterp.discovery.files import CircuitFile, read_circuit, write_circuit
from mechinterp.discovery.forward import patched_logits, said
from mechinterp.discovery.gradients import eap, eap_ig, gim
from mechinterp.discovery.graph import Edge, Graph, Receiver, Sender, between_heads
from mechinterp.discovery.heads import drawing, head_scores, heads_of, to_circuit
from mechinterp.discovery.node_effects import node_effects
from mechinterp.discovery.nodes import Node, NodeScores, atp
from mechinterp.discovery.nulls import permuted, random_edges
from mechinterp.discovery.roc import Roc, auc, roc
from mechinterp.discovery.scores import Scores

__all__ = [
    "SHARES",
    "Certificate",
    "CircuitFile",
    "Completeness",
    "Curve",
    "Edge",
    "Found",
    "Graph",
    "NoGap",
    "Node",
    "NodeScores",
    "Receiver",
    "Roc",
    "Scores",
    "Sender",
    "Step",
    "TopEdge",
    "acdc",
    "atp",
    "auc",
    "between_heads",
    "certify",
    "cmd",
    "completeness",
    "cpr",
    "curve",
    "drawing",
    "eap",
    "eap_ig",
    "exact",
    "gim",
    "half_splits",
    "head_scores",
    "heads_of",
    "node_effects",
    "patched_logits",
    "permuted",
    "random_edges",
    "read_circuit",
    "roc",
    "said",
    "to_circuit",
    "write_circuit",
]
