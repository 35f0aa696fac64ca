"""A model as a graph of senders and receivers, passes with edges on and off, and how found circuits are judged."""

from mechinterp.discovery.certificate import Certificate, certify, half_splits
from mechinterp.discovery.curves import SHARES, Completeness, Curve, NoGap, cmd, completeness, cpr, curve
from mechinterp.discovery.files import CircuitFile, read_circuit, write_circuit
from mechinterp.discovery.forward import patched_logits, said
from mechinterp.discovery.graph import Edge, Graph, Receiver, Sender
from mechinterp.discovery.heads import drawing, heads_of, to_circuit
from mechinterp.discovery.nulls import permuted, random_edges
from mechinterp.discovery.roc import Roc, roc
from mechinterp.discovery.scores import Scores

__all__ = [
    "SHARES",
    "Certificate",
    "CircuitFile",
    "Completeness",
    "Curve",
    "Edge",
    "Graph",
    "NoGap",
    "Receiver",
    "Roc",
    "Scores",
    "Sender",
    "certify",
    "cmd",
    "completeness",
    "cpr",
    "curve",
    "drawing",
    "half_splits",
    "heads_of",
    "patched_logits",
    "permuted",
    "random_edges",
    "read_circuit",
    "roc",
    "said",
    "to_circuit",
    "write_circuit",
]
