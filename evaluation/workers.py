"""Measure the batches of a sweep, here or in other processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from evaluation.arrays import ArrayStore
from evaluation.base import Evaluation
from evaluation.cells import Cell
from flowprior.processes import end_with_parent, interrupts_held


@dataclass(frozen=True)
class Batch:
    """Images of a cell to measure in one call."""

    cell: Cell
    images: Sequence[int]


@dataclass(frozen=True)
class Measured:
    """What came out of a batch, and how long it took."""

    batch: Batch
    metrics: Sequence[Mapping[str, float]]
    seconds: float


def measure(
    evaluation: Evaluation,
    batches: Sequence[Batch],
    arrays: ArrayStore,
    executor: Executor | None,
) -> Iterator[Measured]:
    """Results of all batches as they come.

    Args:
        evaluation: what to measure.
        batches: of it.
        arrays: where it keeps what figures need; on a file system that all workers share.
        executor: that measures them; None stays in this process. Whoever made it ends it, and what
            is left to do after an error.

    Raises:
        ValueError: the evaluation cannot be sent to other processes.
        ValueError, OSError, ...: what `Evaluation.evaluate` raises, in whichever process.
        OSError: a worker died.
    """
    if executor is None:
        for batch in batches:
            yield Measured(batch, *measure_batch(evaluation, batch, arrays))
        return
    try:
        pickled = pickle.dumps(evaluation)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"a part of the evaluation cannot be sent to another process ({error}): use "
            "--processes 1"
        ) from error
    futures = {executor.submit(measure_pickled, pickled, batch, arrays): batch for batch in batches}
    try:
        for future in as_completed(futures):
            yield Measured(futures[future], *future.result())
    except BrokenExecutor as error:
        raise OSError(
            "a process of the evaluation was killed, perhaps for lack of memory: try fewer "
            "--processes or a smaller batch_size. What is measured is kept"
        ) from error


def measure_batch(
    evaluation: Evaluation, batch: Batch, arrays: ArrayStore
) -> tuple[Sequence[Mapping[str, float]], float]:
    """Metrics of a batch, and the seconds they took, in this process."""
    start = time.perf_counter()
    metrics = evaluation.evaluate(batch.cell, batch.images, arrays)
    return metrics, time.perf_counter() - start


def measure_pickled(
    evaluation: bytes, batch: Batch, arrays: ArrayStore
) -> tuple[Sequence[Mapping[str, float]], float]:
    """The same in a worker, which keeps the evaluation, and its models, for the next batch."""
    return measure_batch(_unpickled(evaluation), batch, arrays)


@lru_cache(maxsize=1)
def _unpickled(evaluation: bytes) -> Evaluation:
    return pickle.loads(evaluation)


def default_processes(evaluation: Evaluation) -> int:
    """One for each GPU, or for each core where there is none; 1 where batches cannot be shared."""
    return (len(_gpus()) or len(os.sched_getaffinity(0))) if evaluation.parallel else 1


class ProcessPool(ProcessPoolExecutor):
    """Processes with a share of the cores and one GPU each, that end when the pool does.

    Args:
        processes: their number; more than there are GPUs share these.
    """

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of CUDA or of threads fails
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        started = context.Value("i", 0)
        super().__init__(processes, context, _start_worker, (threads, started, _gpus()))

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
        """Schedule a call; a process that this starts leaves Ctrl-C to this one."""
        with interrupts_held():
            return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """End the processes, in the middle of a call if need be."""
        processes = list((self._processes or {}).values())
        super().shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # Lightning lets nothing less end it


def _start_worker(threads: int, started: Any, gpus: Sequence[str]) -> None:
    end_with_parent()
    with started.get_lock():
        number = started.value
        started.value += 1
    if gpus:  # before anything of CUDA is used here
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    import torch

    torch.set_num_threads(threads)


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]
