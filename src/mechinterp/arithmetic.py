"""How PyTorch computes, for a while: settings that hold for the whole process are put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(*, threads: int = 0, matmul: str | None = None, flush_denormal: bool = False) -> Iterator[None]:
    """Compute with other settings inside a `with` block.

    Args:
        threads: CPU threads; 0 leaves them.
        matmul: `torch.set_float32_matmul_precision`; None leaves it.
        flush_denormal: numbers too small for a normal float are zero, which spares a CPU their slow path. Threads that
            PyTorch starts inside the block keep this.

    >>> with arithmetic(matmul="medium"):
    ...     torch.get_float32_matmul_precision()
    'medium'
    >>> torch.get_float32_matmul_precision()
    'highest'
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    # First of all, so that all threads have it: they inherit it when they start.
    if flush_denormal:
        torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        if flush_denormal:
            torch.set_flush_denormal(False)
