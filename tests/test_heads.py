"""Heads by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechinterp.heads import Head, all_heads, check_heads


@given(st.integers(0, 99), st.integers(0, 99))
def test_a_printed_head_reads_back(layer: int, head: int) -> None:
    assert Head.parse(str(Head(layer, head))) == Head.parse(f"L{layer}H{head}") == (layer, head)


@pytest.mark.parametrize("text", ["", "9", "9-6", "L9", "H6", "9.6.1", "-1.2", "a.b"])
def test_what_is_not_a_head(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a head; write it as 9\.6 or L9H6"):
        Head.parse(text)


def test_all_heads_come_layer_by_layer(tiny: object) -> None:
    heads = all_heads(tiny)
    assert len(heads) == 12
    assert heads == sorted(heads)


@pytest.mark.parametrize("head", [(12, 3), (0, 4), (-1, 0), (0, -1)])
def test_a_head_that_the_model_lacks(tiny: object, head: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"no head {head[0]}\.{head[1]} in this model: layers 0..2, heads 0..3"):
        check_heads(tiny, [Head(0, 0), Head(*head)])
