"""Share the batches of a sweep out among processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation
from flowprior.processes import end_with_parent, interrupts_held

POLL_SECONDS = 0.5


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
    processes: int,
    on_progress: Callable[[float], None],
) -> Iterator[Measured]:
    """Results of all batches as they come.

    Args:
        evaluation: what to measure.
        batches: of it.
        arrays: where it keeps what figures need.
        processes: at most so many; 1 stays in this one.
        on_progress: told now and then how many images' worth of work is done in batches underway.

    Raises:
        ValueError, OSError, ...: what `Evaluation.evaluate` raises, in whichever process.
        OSError: a process died.
    """
    processes = min(processes, len(batches))
    if processes > 1:
        yield from _measure_in_processes(evaluation, batches, arrays, processes, on_progress)
        return
    for batch in batches:
        images = len(batch.images)
        evaluation.progress = lambda share, images=images: on_progress(share * images)
        yield _timed(evaluation, batch, arrays)


def default_processes(evaluation: Evaluation) -> int:
    """One for each GPU, or for each core where there is none; 1 where batches cannot be shared."""
    import torch

    if not evaluation.shareable:
        return 1
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def _timed(evaluation: Evaluation, batch: Batch, arrays: ArrayStore) -> Measured:
    start = time.perf_counter()
    metrics = evaluation.evaluate(batch.cell, batch.images, arrays)
    return Measured(batch, metrics, time.perf_counter() - start)


def _measure_in_processes(
    evaluation: Evaluation,
    batches: Sequence[Batch],
    arrays: ArrayStore,
    processes: int,
    on_progress: Callable[[float], None],
) -> Iterator[Measured]:
    context = multiprocessing.get_context("spawn")  # a fork of CUDA or of threads does not work
    underway = context.Array("d", processes, lock=False)
    counter = context.Value("i", 0)
    evaluation.progress = _ignore
    pool = ProcessPoolExecutor(
        processes, context, _Worker.start, (evaluation, arrays, underway, counter)
    )
    try:
        with interrupts_held():
            running = {pool.submit(_Worker.measure, batch) for batch in batches}
        while running:
            done, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                yield future.result()
            on_progress(sum(underway))
    except BrokenProcessPool as error:
        raise OSError(
            "a process of the evaluation was killed, perhaps for lack of memory: try fewer "
            "--processes or a smaller batch_size. What is measured is kept"
        ) from error
    finally:
        started = list(pool._processes.values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:  # it may be in the middle of a batch
            process.terminate()


class _Worker:
    """State of a process that measures batches."""

    evaluation: Evaluation
    arrays: ArrayStore
    underway: Any
    number: int

    @classmethod
    def start(cls, evaluation: Evaluation, arrays: ArrayStore, underway: Any, counter: Any) -> None:
        """Take a number, a GPU if there are some and a share of the cores; end with the parent."""
        import torch

        end_with_parent()
        with counter.get_lock():
            cls.number = counter.value
            counter.value += 1
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // len(underway)))
        evaluation.use_device(cls.number)
        evaluation.progress = cls._note
        cls.evaluation, cls.arrays, cls.underway = evaluation, arrays, underway

    @classmethod
    def measure(cls, batch: Batch) -> Measured:
        """Measure a batch."""
        cls._images = len(batch.images)
        try:
            return _timed(cls.evaluation, batch, cls.arrays)
        finally:
            cls.underway[cls.number] = 0.0

    @classmethod
    def _note(cls, share: float) -> None:
        cls.underway[cls.number] = share * cls._images


def _ignore(share: float) -> None:
    pass
