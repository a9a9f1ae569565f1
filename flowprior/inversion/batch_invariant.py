"""Results that do not depend on the rest of the batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Run PyTorch on one CPU thread in this block, and restore the number of threads afterwards.

    With several threads a long sum is split between them, but only if it is the only row, and a
    matrix product rounds differently from one number of threads to another. With one thread, sums
    over a row, elementary arithmetic and the optimisers are the same in every batch. Everything
    else (convolutions, matrix products, FFTs, activations) also needs `by_rows`.

    To use more cores, run more processes. GPUs are not affected.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def by_rows(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Apply a function of a batch to one row at a time.

    On a CPU, and within `batch_invariant`, the result for a row is then the same to the last bit
    whatever the other rows are, however many there are, and wherever the row stands. Libraries for
    convolutions and matrix products choose their algorithm by the size of the batch, round the
    rows at the edge of a block differently, and depend on how the memory is aligned; so do
    activations, such as the sigmoid, of an odd number of entries. Hence every row is a call of its
    own, on memory of its own. This holds for any function that is deterministic when it is called
    twice with the same rows. L-BFGS on an ill-posed problem turns a difference in the last digit
    into a visible one.

    Gradients are exact in the same sense, both for `backward` within the function, which needs the
    memory of one row only, and for `backward` through the result. What is computed from the result
    must be exact by itself.

    On other devices this is one call with all rows, and nothing is promised to the last bit.

    Args:
        function: takes one tensor (B, ...) for each of `tensors`, and returns a tensor (B, ...), or
            a tuple, a named tuple or a dictionary of tensors (B, ...) or None.
        tensors: (B, ...) each, on one device.

    Returns:
        What the function returns, for all rows.

    Raises:
        ValueError: the tensors do not have equal numbers of rows.
    """
    counts = {len(tensor) for tensor in tensors}
    if len(counts) != 1:
        raise ValueError(f"by_rows: tensors must have equal numbers of rows, got {sorted(counts)}")
    if counts == {0} or tensors[0].device.type != "cpu":
        return function(*tensors)
    rows = zip(*(tensor.split(1) for tensor in tensors), strict=True)
    return _joined([function(*map(_aligned, row)) for row in rows])


def _joined(results: list[Any]) -> Any:
    """Join the results of single rows."""
    first = results[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {name: _joined([result[name] for result in results]) for name in first}
    if isinstance(first, tuple):
        parts = [_joined(list(part)) for part in zip(*results, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    for result in results:
        if result.requires_grad:
            result.register_hook(_aligned)
    return torch.cat(results)


def _aligned(row: Tensor) -> Tensor:
    """A copy at the start of a block of memory."""
    return row.clone(memory_format=torch.contiguous_format)
