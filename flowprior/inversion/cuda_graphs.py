"""Objectives replayed as CUDA graphs, so that a GPU need not wait for their launches."""

import gc
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import padded, trial

LAUNCH_BOUND = 0.6
"""Part of a call that it takes to launch its kernels, from which on a graph is worth its making."""
REPEATS = 10
"""Calls of a size before it is recorded: a guess of how many take as long as to make a graph."""
TOLERANCE = 1e-3
"""Largest difference of a replay from the call that it repeats, relative to the row's largest."""

_LOGGER = logging.getLogger(__name__)
_ALLOWED: ContextVar[bool] = ContextVar("cuda_graphs", default=True)


@contextmanager
def no_cuda_graphs() -> Iterator[None]:
    """Launch every kernel singly in this block, as for an operator that counts its own calls."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


class Graphed:
    """Calls a function of a batch, or replays it as a CUDA graph wherever that is faster.

    A flow is thousands of small kernels, which take longer to launch than to run unless the batch
    is large. A graph launches all of them at once. On a GPU the second call is timed. Where
    launches take most of it, calls are recorded, and from then on replayed, if the replay gives
    what the call gave. Nothing is recorded of functions that wait for the GPU, for example to
    decide by a value what to compute. Batches are filled up to the next of a few sizes by
    repeating the last row: all rows, half of them, and so on. Each size has a graph of its own,
    made after `REPEATS` calls, so that a short run is not slowed down by graphs that it hardly
    uses. Why there is none is logged, at the level of debugging.

    On other devices, and within `no_cuda_graphs`, the function is called. While a graph is made,
    what waits for the GPU raises in all threads of the process.

    Args:
        most: largest number of rows.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._calls: Counter[int] = Counter()  # by their size
        self._refused = False
        self._graphs: dict[int, _Graph] = {}
        self._memory: Any = None  # which graphs share, as one is replayed at a time

    def __call__(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """What the function returns, on memory of its own.

        Args:
            function: the same in every call; takes `tensors` and returns a tensor (k, ...), or a
                tuple or dictionary of such, without a gradient. Of the same tensors it must compute
                the same each time: what else it reads may only be changed in place. Rows that
                repeat the last one must not change the others.
            tensors: (k, ...) each, on one device.
        """
        if not _on_gpu(tensors[0]) or self._refused or not _ALLOWED.get():
            return function(*tensors)
        count = len(tensors[0])
        size = self._size(count)
        filled = [padded(tensor, size) for tensor in tensors]
        if size in self._graphs:
            return _first(self._graphs[size].replay(filled), count)
        self._calls[size] += 1
        if self._calls.total() == 2:  # not the first, in which libraries choose their kernels
            return _first(self._timed(function, filled), count)
        if self._calls[size] <= REPEATS:
            return _first(function(*filled), count)
        return _first(self._recorded(function, filled, size), count)

    def _size(self, count: int) -> int:
        size = self.most
        while size > 1 and (size + 1) // 2 >= count:
            size = (size + 1) // 2
        return size

    def _timed(self, function: Callable[..., Any], tensors: list[Tensor]) -> Any:
        """Call the function, and find out whether a graph is worth its making."""
        device = tensors[0].device
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        result = function(*tensors)
        launched = time.perf_counter()
        torch.cuda.synchronize(device)
        if launched - start < LAUNCH_BOUND * (time.perf_counter() - start):
            self._refuse("launches take a small part of a call")
        return result

    def _recorded(self, function: Callable[..., Any], tensors: list[Tensor], size: int) -> Any:
        """Make a graph of this size, and replay it; or call, and make no more graphs."""
        with trial():
            expected = function(*tensors)
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.device(tensors[0].device):
                with _no_waiting(), trial():
                    function(*tensors)
                graph = _Graph.record(function, tensors, self._memory)
        except Exception as error:  # whatever cannot be recorded is called
            self._refuse(f"{type(error).__name__}: {error}")
            return function(*tensors)
        found = graph.replay(tensors)
        if _alike(found, expected):
            self._graphs[size] = graph
            return found
        self._refuse("a replay gave something else")
        with trial():  # the replay has been counted
            return function(*tensors)

    def _refuse(self, reason: str) -> None:
        _LOGGER.debug("no CUDA graph is made: %s", " ".join(reason.split()))
        self._refused = True
        self._graphs.clear()


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any

    @classmethod
    def record(cls, function: Callable[..., Any], tensors: list[Tensor], memory: Any) -> "_Graph":
        inputs, graph = [tensor.clone() for tensor in tensors], torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        gc.collect()  # a former graph that ended in the middle of recording would spoil it
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=memory, capture_error_mode="thread_local")
            try:
                outputs = function(*inputs)
            finally:
                _end(graph, memory)
        torch.cuda.current_stream().wait_stream(stream)
        return cls(graph, inputs, outputs)

    def replay(self, tensors: list[Tensor]) -> Any:
        """The outputs, on memory of their own."""
        for own, tensor in zip(self.inputs, tensors, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return _mapped(torch.clone, self.outputs)


def _end(graph: torch.cuda.CUDAGraph, memory: Any) -> None:
    try:
        graph.capture_end()
    except RuntimeError:  # PyTorch would go on to take memory for this graph
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), memory)
        raise


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise RuntimeError where PyTorch would wait for the GPU: this cannot be recorded."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _mapped(change: Callable[[Tensor], Tensor], result: Any) -> Any:
    if isinstance(result, Mapping):
        return {name: _mapped(change, value) for name, value in result.items()}
    if isinstance(result, tuple):
        return tuple(_mapped(change, value) for value in result)
    return change(result)


def _first(result: Any, count: int) -> Any:
    return _mapped(lambda tensor: tensor[:count], result)


def _alike(found: Any, expected: Any) -> bool:
    """Whether every row agrees, and is finite at the same places."""
    if isinstance(expected, Mapping):
        found, expected = tuple(found.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        return all(map(_alike, found, expected))
    found, expected = (part.double().reshape(len(part), -1) for part in (found, expected))
    sizes = expected.abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
    limit = TOLERANCE * sizes + 1e-6 * sizes.amax()
    close = (found - expected).abs() <= limit
    same = (found == expected) | (found.isnan() & expected.isnan())
    return bool((close | same).all())
