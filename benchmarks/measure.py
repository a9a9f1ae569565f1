"""Time and peak memory of a training step, the same way for every candidate."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.glows import Candidate

MIB = 2**20


def training_step(candidate: Candidate, x: Tensor) -> None:
    """Forward log-density and backward, from cleared gradients; no optimiser."""
    candidate.model.zero_grad(set_to_none=True)
    (-candidate.log_prob(x).mean()).backward()


def alternate(
    functions: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every function, called in turn `repeats` times after one warm-up round.

    Taking turns lets every function meet the same load of the machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if round_:
                seconds[name].append(clock() - start)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median of every list."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul(device: str, side: int = 2048) -> tuple[Callable[[], object], float]:
    """A float32 matrix product to compare with, and its number of operations."""
    a, b = torch.randn(2, side, side, device=device)
    return lambda: torch.mm(a, b), 2.0 * side**3


def activation_peak(candidate: Candidate, x: Tensor) -> float:
    """Peak MiB allocated in a training step above the parameters and their gradients.

    Gradients appear one by one in the backward pass. Their full size is subtracted from the peak
    of the step, and the peak of the forward pass, which has none, bounds the result from below.
    """
    training_step(candidate, x)
    gradients = sum(p.grad.nbytes for p in candidate.model.parameters() if p.grad is not None)
    candidate.model.zero_grad(set_to_none=True)
    forward = allocation_peak(lambda: candidate.log_prob(x), x.device.type)
    step = allocation_peak(lambda: training_step(candidate, x), x.device.type)
    candidate.model.zero_grad(set_to_none=True)
    return max(forward, step - gradients) / MIB


def initialize(candidate: Candidate, x: Tensor) -> None:
    """Move the model to x's device and let data-dependent layers see a first batch."""
    candidate.model.to(x.device).train()
    with torch.no_grad():
        candidate.log_prob(x)


def wall_clock(device: str) -> Callable[[], float]:
    """Seconds of real time, after the device's work is done."""
    if device != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def allocation_peak(function: Callable[[], object], device: str) -> float:
    """Bytes that a call allocates at its peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # The allocator's own record, so that buffers inside operators count as on CUDA.
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = record.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    changes.sort(key=lambda change: change[0])
    return max(accumulate(size for _, size in changes), default=0)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    # The profiler's C++ side reports every start and stop there, and no setting stops it.
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
