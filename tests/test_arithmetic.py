"""Settings of the whole process hold inside the block and nowhere else, whatever happens in it."""

import pytest
import torch

from mechinterp.arithmetic import arithmetic


def settings() -> tuple[int, str, bool]:
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), bool(torch.tensor(1e-40) * 1 > 0)


def test_settings_hold_inside_and_are_put_back() -> None:
    before = settings()
    assert before[2], "denormal numbers are numbers before"
    with arithmetic(threads=2, matmul="medium", flush_denormal=True):
        assert settings() == (2, "medium", False)
    assert settings() == before


def test_settings_are_put_back_after_an_error() -> None:
    before = settings()

    def fail() -> None:
        with arithmetic(threads=2, flush_denormal=True):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert settings() == before
