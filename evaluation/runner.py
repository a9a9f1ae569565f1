"""Measure what is missing of an evaluation, here or in other processes; then write its outputs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from rich.console import Console

from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation, Result, label_text
from evaluation.batches import (
    Batch,
    Job,
    Measured,
    measure_batch,
    measure_sent,
    missing_batches,
    remove_sent,
    sent,
)
from evaluation.records import RecordStore
from evaluation.table import SECONDS, Table, aggregate
from flowprior.command_line import import_beside
from flowprior.io import remove_temporaries
from flowprior.processes import end_with_parent, interrupts_heeded, interrupts_held
from flowprior.progress import SweepProgress

RECORDS = "records.jsonl"
WORTH_PROCESSES = 120.0
"""Seconds of work that are worth other processes, each of which takes some ten to start."""


def run(
    evaluation: Evaluation,
    output: str | Path,
    config_yaml: str,
    console: Console,
    executor: Executor | None = None,
) -> Table:
    """Measure what has no record yet and write every output from the records.

    ``output`` gets records.jsonl, table.{json,csv,md,tex}, figures/, tensorboard/ and report.html.
    Killed at any moment, the same call continues.

    Args:
        evaluation: what to measure.
        output: folder; made if it does not exist, after `Evaluation.check`.
        config_yaml: the settings, shown in the report.
        console: where to print.
        executor: that measures the batches; None stays in this process. Its workers share the file
            system. Whoever made it ends it, and what is left to do after an error.

    Raises:
        ValueError: the evaluation is mistaken or cannot be sent to other processes, or ``output``
            holds results of a cell under other settings or a damaged file of records. Nothing is
            written.
        OSError: ``output`` cannot be written, another process is evaluating into it, or a worker
            died.
    """
    start = time.perf_counter()
    output = Path(output)
    with interrupts_heeded() as interrupted:
        with console.status("checking methods, priors and data ..."):  # takes seconds
            evaluation.check()
            cells = _distinct(evaluation.cells())
        arrays = ArrayStore(output / "arrays")
        with RecordStore(output / RECORDS, cells) as store:
            _measure(evaluation, cells, store, arrays, console, executor, interrupted)
            if interrupted():  # after the last batch, where Python has lost it
                raise KeyboardInterrupt
            results = _results(evaluation, cells, store, arrays)
            others = [metric for metric in evaluation.metrics if metric.name != SECONDS.name]
            metrics = [*others, SECONDS]
            table = aggregate(results, metrics, evaluation.paper, evaluation.compare)
            # Processes that only measure are spared matplotlib, pandas and TensorBoard.
            from evaluation.report import show, write

            with console.status("writing tables and figures ..."):
                write(evaluation, table, results, output, config_yaml, start)
    show(evaluation, table, output, console)
    return table


def _distinct(cells: Sequence[Cell]) -> Sequence[Cell]:
    found: dict[str, Cell] = {}
    for cell in cells:
        if found.setdefault(cell.key, cell) is not cell:
            raise ValueError(f"two cells have the labels {cell}: their rows need different labels")
    return cells


def _results(
    evaluation: Evaluation, cells: Sequence[Cell], store: RecordStore, arrays: ArrayStore
) -> list[Result]:
    """Everything that is known, in the order of the cells; each file of arrays is read once."""
    found = []
    for cell in cells:
        results = [
            Result(
                cell,
                image,
                store.metrics(cell, image),
                arrays.load(cell.key, image) if store.has_arrays(cell, image) else {},
            )
            for image in cell.images
        ]
        extra = evaluation.derived(results)
        found += [
            replace(result, metrics={**result.metrics, **more})
            for result, more in zip(results, extra, strict=True)
        ]
    return found


def _measure(
    evaluation: Evaluation,
    cells: Sequence[Cell],
    store: RecordStore,
    arrays: ArrayStore,
    console: Console,
    executor: Executor | None,
    interrupted: Callable[[], bool],
) -> None:
    total = sum(len(cell.images) for cell in cells)
    batches = [batch for cell in cells for batch in missing_batches(cell, store.done(cell))]
    done = total - sum(len(batch.images) for batch in batches)
    if done == total:
        message = f"Already finished: {total} of {total} images. Writing the outputs again."
        console.print(message, highlight=False)
        return
    if done:
        console.print(f"Continuing: {done} of {total} images are done.", highlight=False)
    remove_temporaries(arrays.folder)
    remove_sent(arrays.folder.parent)
    advice = ""
    with SweepProgress(total, done, console) as progress, _shown(evaluation, progress, executor):
        progress.start(_values(batches[0].cell))
        told = batches if executor is not None else _told(batches, progress)
        for group in _measured(Job(evaluation, cells, arrays), told, executor):
            with interrupts_held():  # what is measured is kept
                store.extend([(*one, _kept(arrays, *one)) for one in group])
            if executor is not None:
                progress.start(_values(group[-1][0]))
            progress.advance(sum(len(measured) for _, measured in group))
            if executor is None and evaluation.parallel and not advice:
                advice = _advice(progress.seconds_left)
                if advice:
                    console.print(advice, highlight=False)
            if interrupted():
                raise KeyboardInterrupt


def _told(batches: Sequence[Batch], progress: SweepProgress) -> Iterator[Batch]:
    """The batches, of which progress names each as it is taken."""
    for batch in batches:
        progress.start(_values(batch.cell))
        yield batch


@contextmanager
def _shown(
    evaluation: Evaluation, progress: SweepProgress, executor: Executor | None
) -> Iterator[None]:
    """In this process, show how far a batch is while the block runs."""
    evaluation.on_progress = progress.show_part if executor is None else None
    try:
        yield
    finally:
        evaluation.on_progress = None


def _values(cell: Cell) -> str:
    """Values of the labels, those of the experiment first: `0.1, total variation`."""
    return ", ".join(map(label_text, cell.labels.values()))


def _kept(arrays: ArrayStore, cell: Cell, measured: Measured) -> list[int]:
    return [image for image in measured if arrays.has(cell.key, image)]


def _measured(
    job: Job, batches: Iterable[Batch], executor: Executor | None
) -> Iterator[list[tuple[Cell, Measured]]]:
    """Results of all batches as they come, those together that have come together."""
    if executor is None:
        for batch in batches:
            yield [(batch.cell, measure_batch(job.evaluation, batch, job.arrays))]
        return
    numbers = {cell.key: number for number, cell in enumerate(job.cells)}
    finished: SimpleQueue[Future] = SimpleQueue()
    cells: dict[Future, Cell] = {}
    try:
        with sent(job) as file:
            for cell, images in batches:
                future = executor.submit(measure_sent, file, numbers[cell.key], images)
                cells[future] = cell
                future.add_done_callback(finished.put)
            while cells:
                done = [finished.get(), *(finished.get() for _ in range(finished.qsize()))]
                good = [future for future in done if future.exception() is None]
                if good:
                    yield [(cells.pop(future), future.result()) for future in good]
                for future in done:
                    future.result()  # raises what has failed, after the others are kept
    except BrokenExecutor as error:
        raise OSError(
            "a process of the evaluation was killed, perhaps for lack of memory: try fewer "
            "--processes or a smaller batch_size. What is measured is kept"
        ) from error


def _advice(seconds_left: float) -> str:
    """What to tell who measures in one process; nothing where more would not help."""
    processes = len(_gpus()) or len(os.sched_getaffinity(0))
    if processes < 2 or seconds_left < WORTH_PROCESSES:
        return ""
    return (
        f"About {seconds_left / 60:.0f} min left in one process. Ctrl-C, and the same command "
        f"with --processes {processes} shares what is left."
    )


class ProcessPool(ProcessPoolExecutor):
    """Processes with a share of the cores and one GPU each, that end when the pool does.

    Args:
        processes: their number; more than there are GPUs share these.
        imports: config files and modules beside them, which every process imports: an exported
            flow of a user's own is looked up among what is imported already.
    """

    def __init__(self, processes: int, imports: Sequence[tuple[Path, list[str]]] = ()) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of CUDA or of threads fails
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        started = context.Value("i", 0)
        super().__init__(processes, context, _start_worker, (threads, started, _gpus(), imports))

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


def _start_worker(
    threads: int, started: Any, gpus: Sequence[str], imports: Sequence[tuple[Path, list[str]]]
) -> None:
    end_with_parent()
    with started.get_lock():
        number = started.value
        started.value += 1
    if gpus:  # before anything of CUDA is used here
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    torch.set_num_threads(threads)
    for config, names in imports:
        import_beside(config, names)


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]
