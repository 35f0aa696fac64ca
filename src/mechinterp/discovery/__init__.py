"""A model as a graph of senders and receivers, and passes with edges on and off."""

from mechinterp.discovery.forward import patched_logits, said
from mechinterp.discovery.graph import Edge, Graph, Receiver, Sender, between_heads
from mechinterp.discovery.scores import Scores

__all__ = ["Edge", "Graph", "Receiver", "Scores", "Sender", "between_heads", "patched_logits", "said"]
