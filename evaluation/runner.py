"""Run what is missing of an evaluation, then write its table, figures and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.arrays import ArrayStore
from evaluation.base import Evaluation
from evaluation.cells import Cell, Result
from evaluation.formats import print_table
from evaluation.outputs import board, write_figures, write_summary, write_tables
from evaluation.records import RecordStore
from evaluation.report import Report, environment
from evaluation.table import SECONDS, Metric, Table, aggregate
from evaluation.workers import Batch, Measured, measure
from flowprior.io import atomic_write
from flowprior.processes import interrupts_heeded, interrupts_held
from flowprior.progress import SweepProgress

if TYPE_CHECKING:
    from rich.console import Console


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
        executor: that measures the batches; None stays in this process.

    Raises:
        ValueError: the evaluation is mistaken, or ``output`` holds results of a cell under other
            settings or a damaged file of records. Nothing is written.
        OSError: ``output`` cannot be written, or another process is evaluating into it.
    """
    start = time.perf_counter()
    output = Path(output)
    with interrupts_heeded() as interrupted:
        evaluation.check()
        cells = _distinct(evaluation.cells())
        arrays = ArrayStore(output / "arrays")
        with RecordStore(output / "records.jsonl", cells) as store:
            _measure(evaluation, cells, store, arrays, console, executor, interrupted)
            results = _results(evaluation, cells, store, arrays)
            table = aggregate(results, _metrics(evaluation), evaluation.paper, evaluation.compare)
            _write(evaluation, table, results, output, config_yaml, start)
    _print(evaluation, table, output, console)
    return table


def _print(evaluation: Evaluation, table: Table, output: Path, console: Console) -> None:
    print_table(table, console, evaluation.title)
    for line in (*evaluation.notes(table), str((output / "report.html").resolve())):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _distinct(cells: Sequence[Cell]) -> Sequence[Cell]:
    keys = set()
    for cell in cells:
        if cell.key in keys:
            raise ValueError(f"two cells have the labels {cell}: their rows need different labels")
        keys.add(cell.key)
    return cells


def _metrics(evaluation: Evaluation) -> list[Metric]:
    others = [metric for metric in evaluation.metrics if metric.name != SECONDS.name]
    return [*others, SECONDS]


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


def _write(
    evaluation: Evaluation,
    table: Table,
    results: Sequence[Result],
    output: Path,
    config_yaml: str,
    start: float,
) -> None:
    write_tables(table, output)
    pictures = write_figures(evaluation.figures(table, results), output / "figures")
    with board(output / "tensorboard") as writer:
        write_summary(writer, table, pictures)
    evaluation.write(results, output)
    measuring = sum(result.metrics.get(SECONDS.name, 0.0) for result in results)
    facts = environment(time.perf_counter() - start, measuring)
    report = Report(evaluation.title, table, pictures, config_yaml, facts, evaluation.notes(table))
    atomic_write(output / "report.html", report.html())


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
    done = sum(len(store.done(cell).intersection(cell.images)) for cell in cells)
    if done == total:
        message = f"Already finished: {total} of {total} images. Writing the outputs again."
        console.print(message, highlight=False)
        return
    if done:
        console.print(f"Continuing: {done} of {total} images are done.", highlight=False)
    batches = [Batch(cell, images) for cell in cells for images in _batches(cell, store.done(cell))]
    arrays.clean()
    with SweepProgress(total, done, console) as progress:
        progress.start(str(batches[0].cell))
        for measured in measure(evaluation, batches, arrays, executor):
            cell, images = measured.batch.cell, measured.batch.images
            kept = [image for image in images if arrays.has(cell.key, image)]
            with interrupts_held():  # what is measured is kept
                store.append(cell, _records(evaluation, measured), kept)
            progress.start(str(cell))
            progress.advance(len(images))
            if interrupted():
                raise KeyboardInterrupt


def _batches(cell: Cell, done: frozenset[int]) -> list[list[int]]:
    """Images still to do, in the same batches as in a run that is not interrupted."""
    size = cell.batch_size
    batches = [cell.images[i : i + size] for i in range(0, len(cell.images), size)]
    missing = [[image for image in batch if image not in done] for batch in batches]
    return [batch for batch in missing if batch]


def _records(evaluation: Evaluation, measured: Measured) -> dict[int, Mapping[str, float]]:
    """Metrics of a batch by image, with the time of each."""
    images, metrics = measured.batch.images, measured.metrics
    where = f"{type(evaluation).__name__}.evaluate"
    if len(metrics) != len(images):
        raise ValueError(f"{where} returned {len(metrics)} results for {len(images)} images")
    known = {SECONDS.name, *(metric.name for metric in evaluation.metrics)}
    unknown = sorted({name for values in metrics for name in values} - known)
    if unknown:
        raise ValueError(f"{where} returned {unknown}, which its `metrics` do not list")
    seconds = {SECONDS.name: measured.seconds / len(images)}
    return {image: {**seconds, **values} for image, values in zip(images, metrics, strict=True)}
