"""Visible tests for the exercises: the reader's stub may be empty, a wrong answer says so, a right one says so."""

from collections.abc import Callable
from typing import Any


def check(test: Callable[[Any], None], answer: Any, *, solution: bool = False) -> None:
    """Run an exercise's test on an answer and say how it went.

    A stub that raises `NotImplementedError` is "not done yet" and never stops the notebook; neither
    does a wrong answer. With `solution=True` a failure is raised: the book's own solutions must pass.

    >>> def test(double): assert double(2) == 4, f"double(2) should be 4, got {double(2)}"
    >>> check(test, lambda x: x + x)
    Right.
    >>> check(test, lambda x: x)
    Not yet: double(2) should be 4, got 2
    """
    try:
        test(answer)
    except NotImplementedError:
        if solution:
            raise
        print("Not done yet: replace the line that raises NotImplementedError.")
    except Exception as error:
        if solution:
            raise
        print(f"Not yet: {error or type(error).__name__}")
    else:
        print("Right.")
