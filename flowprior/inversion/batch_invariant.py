"""Results that do not depend on the rest of the batch."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

WORTH_ONE_CALL = 1e9
"""Floating-point operations of a row that keep a core busy: more rows in a call gain little."""
_SIZE = 8


class _Inline:
    """An executor that computes at once."""

    map = staticmethod(map)


_POOL: ContextVar[ThreadPoolExecutor | _Inline | None] = ContextVar("pool", default=None)
_TRIAL: ContextVar[bool] = ContextVar("trial", default=False)


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Make `by_rows` exact in this block: one PyTorch thread for each call, several calls at once.

    With several threads in one call a long sum is split between them, but only if it is the only
    row, and a matrix product rounds differently from one number of threads to another. With one,
    sums over a row, elementary arithmetic and the optimisers are the same in every batch.
    Everything else (convolutions, matrix products, FFTs, activations) also needs `by_rows`, which
    uses as many cores as PyTorch had threads before. GPUs are not affected.
    """
    if _POOL.get() is not None:  # an outer block
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Every new thread begins with as many PyTorch threads as there are cores.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    token = _POOL.set(pool if threads > 1 else _Inline())
    try:
        yield
    finally:
        _POOL.reset(token)
        pool.shutdown()
        torch.set_num_threads(threads)


def by_rows(function: Callable[..., Any], *tensors: Tensor, size: int = 1) -> Any:
    """Apply a function of a batch to a few rows at a time, the same number in every call.

    On a CPU, and within `batch_invariant`, the result for a row is then the same to the last bit
    whatever the other rows are, however many there are, and wherever the row stands. Libraries for
    convolutions and matrix products choose their algorithm by the size of the batch, round the
    rows at the edge of a block differently, and depend on how the memory is aligned; so do
    activations, such as the sigmoid, of an odd number of entries. Hence every call has `size` rows,
    the last of them repeated if there are fewer, on memory of its own. With `size` = 1 this holds
    for any function that is deterministic; with more it holds where `rows_per_call` says so.
    L-BFGS on an ill-posed problem turns a difference in the last digit into a visible one.

    Several calls run at once, on threads, so that the function must not change anything that
    another call uses. On other devices this is one call with all rows, and nothing is promised to
    the last bit.

    Args:
        function: takes one tensor (k, ...) for each of `tensors`, and returns a tensor (k, ...), or
            a tuple, a named tuple or a dictionary of such, or None. It takes its gradients itself.
        tensors: (B, ...) each, on one device.
        size: rows of each call.

    Returns:
        What the function returns, for all rows.

    Raises:
        ValueError: the tensors do not have equal numbers of rows.
    """
    counts = {len(tensor) for tensor in tensors}
    if len(counts) != 1:
        raise ValueError(f"by_rows: tensors must have equal numbers of rows, got {sorted(counts)}")
    (count,) = counts
    if count == 0 or tensors[0].device.type != "cpu":
        return function(*tensors)
    gradients = torch.is_grad_enabled()

    def call(start: int) -> Any:
        with torch.set_grad_enabled(gradients):  # each thread has a mode of its own
            return function(*(padded(tensor[start : start + size], size) for tensor in tensors))

    pool = _POOL.get() or _Inline()
    return _joined(list(pool.map(call, range(0, count, size))), count)


def rows_per_call(function: Callable[..., Any], *row: Tensor) -> int:
    """Number of rows in each call of `by_rows`: 8 where that is exact and faster, otherwise 1.

    It is the same for all batches of a problem.

    It is faster where a row is so little work that calling PyTorch takes most of the time. It is
    exact where a row has the same bits at every place of a call and beside any others, which is
    tried out.

    Args:
        function: as for `by_rows`.
        row: arguments of it, (1, ...) each; floating-point ones are replaced by draws of N(0, I),
            so that the answer does not depend on the batch.
    """
    if row[0].device.type != "cpu":
        return 1
    with trial():
        return _found_rows_per_call(function, row)


@contextmanager
def trial() -> Iterator[None]:
    """Mark calls in this block as trials, whose results nobody uses."""
    token = _TRIAL.set(True)
    try:
        yield
    finally:
        _TRIAL.reset(token)


def is_trial() -> bool:
    """Whether this is a call within `trial`."""
    return _TRIAL.get()


def _found_rows_per_call(function: Callable[..., Any], row: tuple[Tensor, ...]) -> int:
    with _Operations() as counter:
        function(*row)
    if counter.total > WORTH_ONE_CALL:
        return 1
    generator = torch.Generator().manual_seed(0)
    # Where it is not exact, some rows agree all the same; which ones depends on the data.
    exact = all(_is_exact(function, row, shift, generator) for shift in (1, 3, 4, 6))
    return _SIZE if exact else 1


def _is_exact(
    function: Callable[..., Any], row: tuple[Tensor, ...], shift: int, generator: torch.Generator
) -> bool:
    """Whether draws have the same bits at other places and, the first of them, beside others."""
    draws = [
        torch.randn(_SIZE, *r.shape[1:], generator=generator, dtype=r.dtype)
        if r.is_floating_point()
        else r.expand(_SIZE, *r.shape[1:])
        for r in row
    ]
    first = _flat(function(*(padded(d, _SIZE) for d in draws)))
    turned = _flat(function(*(padded(d.roll(shift, 0), _SIZE) for d in draws)))
    if not all(torch.equal(t, f.roll(shift, 0)) for f, t in zip(first, turned, strict=True)):
        return False
    alike = _flat(function(*(padded(d[:1], _SIZE) for d in draws))) if shift == 1 else []
    return all(torch.equal(a, f[:1].expand_as(a)) for f, a in zip(first, alike, strict=False))


class _Operations(TorchDispatchMode):
    """Counts floating-point operations of matrix products and convolutions, both ways."""

    total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def padded(rows: Tensor, size: int) -> Tensor:
    """Rows on memory of their own, the last one repeated up to `size` of them."""
    missing = size - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    parts = result.values() if isinstance(result, Mapping) else result
    return [tensor for part in parts for tensor in _flat(part)]


def _joined(results: list[Any], count: int) -> Any:
    """Join the results of all calls, without the rows that were repeated."""
    first = results[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {name: _joined([result[name] for result in results], count) for name in first}
    if isinstance(first, tuple):
        parts = [_joined(list(part), count) for part in zip(*results, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return torch.cat(results)[:count]
