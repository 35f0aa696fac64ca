"""What an API's answers give away of the model behind it: its width, its output projection, its logits."""

from mechinterp.stealing.api import Answer, Ask, AskAtLength, Bill, Dropped, Provider, Refused, Terms, next_logits
from mechinterp.stealing.dimension import Width, collect, random_prompts, singular_values, width
from mechinterp.stealing.projection import Aligned, align, projection, up_to_rotation
from mechinterp.stealing.recover import (
    Recovered,
    bits,
    by_change,
    by_elimination,
    by_normaliser,
    by_repeating,
    by_search,
    by_top,
)
from mechinterp.stealing.server import Client, serve

__all__ = [
    "Aligned",
    "Answer",
    "Ask",
    "AskAtLength",
    "Bill",
    "Client",
    "Dropped",
    "Provider",
    "Recovered",
    "Refused",
    "Terms",
    "Width",
    "align",
    "bits",
    "by_change",
    "by_elimination",
    "by_normaliser",
    "by_repeating",
    "by_search",
    "by_top",
    "collect",
    "next_logits",
    "projection",
    "random_prompts",
    "serve",
    "singular_values",
    "up_to_rotation",
    "width",
]
