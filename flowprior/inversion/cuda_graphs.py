"""Objectives replayed as CUDA graphs, so that a GPU need not wait for their launches."""

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import trial

LAUNCH_BOUND = 0.6
"""Part of a call that it takes to launch its kernels, from which on a graph is worth its making."""
TOLERANCE = 1e-3
"""Largest difference of a replay from the call that it repeats, relative to the largest entry."""

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
    """A function of a batch, replayed as a CUDA graph wherever that is faster.

    A flow is thousands of small kernels, which take longer to launch than to run unless the batch
    is large. A graph launches all of them at once. On a GPU the first call is as always, and so is
    the second, which is timed. Where launches take most of it, the third is recorded, and from
    then on replayed, if the replay gives what the call gave. Nothing is recorded of functions
    that wait for the GPU, for example to decide by a value what to compute. Batches are filled up
    to the next of a few sizes, each with a graph of its own: all rows, half of them, and so on.

    On other devices, and within `no_cuda_graphs`, the function is called.

    Args:
        function: takes tensors (k, ...) on one device and returns a tensor (k, ...), or a tuple or
            dictionary of such, without a gradient. Called again on the same tensors it must compute
            the same, on the same memory: what else it reads may only be changed in place.
        most: largest number of rows k.
    """

    def __init__(self, function: Callable[..., Any], most: int) -> None:
        self.function, self.most = function, most
        self._calls = 0
        self._refused = False
        self._graphs: dict[int, _Graph | None] = {}
        self._memory: Any = None  # which graphs share, as one is replayed at a time

    def __call__(self, *tensors: Tensor) -> Any:
        """What the function returns, on memory of its own."""
        if tensors[0].device.type != "cuda" or self._refused or not _ALLOWED.get():
            return self.function(*tensors)
        count = len(tensors[0])
        size = self._size(count)
        filled = [_filled(tensor, size) for tensor in tensors]
        if self._calls < 2:
            self._calls += 1
            return _first(self._tried(filled), count)
        if size not in self._graphs:  # libraries choose their kernels in a first call
            self._graphs[size] = None
            return _first(self.function(*filled), count)
        graph = self._graphs[size] or self._recorded(filled)
        if graph is None:
            self._refused = True
            return _first(self.function(*filled), count)
        self._graphs[size] = graph
        return _first(graph.replay(filled), count, copy=True)

    def _size(self, count: int) -> int:
        size = self.most
        while size > 1 and (size + 1) // 2 >= count:
            size = (size + 1) // 2
        return size

    def _tried(self, tensors: list[Tensor]) -> Any:
        """Call the function; the second time find out whether a graph is worth its making."""
        if self._calls < 2:
            return self.function(*tensors)
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = self.function(*tensors)
        launched = time.perf_counter()
        torch.cuda.synchronize()
        self._refused = launched - start < LAUNCH_BOUND * (time.perf_counter() - start)
        return result

    def _recorded(self, tensors: list[Tensor]) -> "_Graph | None":
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.device(tensors[0].device):
                with _no_waiting(), trial():
                    expected = self.function(*tensors)
                graph = _Graph.record(self.function, tensors, self._memory)
        except (RuntimeError, NotImplementedError):  # whatever cannot be recorded is called
            return None
        return graph if _alike(graph.replay(tensors), expected) else None


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
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return cls(graph, inputs, outputs)

    def replay(self, tensors: list[Tensor]) -> Any:
        for own, tensor in zip(self.inputs, tensors, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return self.outputs


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


def _filled(rows: Tensor, size: int) -> Tensor:
    missing = size - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def _first(result: Any, count: int, copy: bool = False) -> Any:
    """The first rows of every tensor, copied where the next replay would overwrite them."""
    if isinstance(result, Mapping):
        return {name: _first(value, count, copy) for name, value in result.items()}
    if isinstance(result, tuple):
        return tuple(_first(value, count, copy) for value in result)
    return result[:count].clone() if copy else result[:count]


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, Mapping):
        found, expected = tuple(found.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        return all(map(_alike, found, expected))
    limit = TOLERANCE * expected.abs().nan_to_num(0, 0, 0).max()
    return bool(((found - expected).abs() <= limit).logical_or(~expected.isfinite()).all())
