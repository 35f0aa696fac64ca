"""A model as a graph of senders and receivers, and passes with edges on and off."""

from mechinterp.discovery.acdc import Found, Step, acdc
from mechinterp.discovery.exact import exact
from mechinterp.discovery.forward import patched_logits, said
from mechinterp.discovery.gradients import eap, eap_ig, gim
from mechinterp.discovery.graph import Edge, Graph, Receiver, Sender
from mechinterp.discovery.scores import Scores

__all__ = [
    "Edge",
    "Found",
    "Graph",
    "Receiver",
    "Scores",
    "Sender",
    "Step",
    "acdc",
    "eap",
    "eap_ig",
    "exact",
    "gim",
    "patched_logits",
    "said",
]
