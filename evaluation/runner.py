"""Run what is missing of an evaluation, then write its table, figures and report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation
from evaluation.layout import labels_text
from evaluation.outputs import write_figures, write_tables, write_tensorboard
from evaluation.records import Record, RecordStore
from evaluation.report import Report, environment
from evaluation.table import SECONDS, Table, aggregate
from evaluation.workers import Batch, Measured, measure
from evaluation.writers import print_table
from flowprior.io import atomic_write
from flowprior.progress import Meter, SweepProgress

if TYPE_CHECKING:
    from rich.console import Console


def run(
    evaluation: Evaluation,
    output: str | Path,
    config_yaml: str,
    console: Console | None = None,
    processes: int = 1,
) -> Table:
    """Measure what has no record yet and write every output from the records.

    ``output`` gets records.jsonl, table.json, table.csv, table.md, table.tex, figures/*.png,
    tensorboard/ and report.html. Killed at any moment, the same call continues; when all is
    measured it only writes the outputs again.

    Args:
        evaluation: what to measure.
        output: folder; made if it does not exist.
        config_yaml: the settings, shown in the report.
        console: where to print; standard output by default.
        processes: that share the batches out.

    Raises:
        ValueError: ``output`` holds results of other settings, or a damaged file of records.
        OSError: ``output`` cannot be written, or another process is evaluating into it.
    """
    from rich.console import Console

    start = time.perf_counter()
    console = console or Console()
    output = Path(output)
    cells = _checked(evaluation.cells())
    arrays = ArrayStore(output / "arrays")
    with RecordStore(output / "records.jsonl", evaluation.fingerprint()) as store:
        _measure(evaluation, cells, store, arrays, console, processes)
        records = []
        for cell in cells:
            kept = [store.get(cell.labels, image, cell.part) for image in cell.images]
            records += evaluation.derived(kept, arrays)
        table = aggregate(records, _metrics(evaluation), evaluation.paper, evaluation.compare)
        write_tables(table, output)
        figures = write_figures(evaluation.figures(table, records, arrays), output / "figures")
        write_tensorboard(table, figures, output / "tensorboard")
        facts = environment(time.perf_counter() - start, _measuring_seconds(records))
        evaluation.write(records, arrays, output)
        notes = evaluation.notes()
        report = Report(evaluation.title, table, figures, config_yaml, facts, notes)
        atomic_write(output / "report.html", report.html())
    print_table(table, console, evaluation.title)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    path = str((output / "report.html").resolve())
    console.print(path, markup=False, highlight=False, soft_wrap=True)
    return table


def _checked(cells: Sequence[Cell]) -> list[Cell]:
    keys = [Record(cell.labels, 0, {}, cell.part).cell for cell in cells]
    for i, (cell, key) in enumerate(zip(cells, keys, strict=True)):
        if key in keys[:i]:
            raise ValueError(f"two cells have the labels {dict(cell.labels)}")
        if len(set(cell.images)) < len(cell.images):
            raise ValueError(f"an image occurs twice in the cell {dict(cell.labels)}")
    return list(cells)


def _metrics(evaluation: Evaluation) -> list:
    others = [metric for metric in evaluation.metrics if metric.name != SECONDS.name]
    return [*others, SECONDS]


def _measuring_seconds(records: Sequence[Record]) -> float:
    return sum(record.metrics.get(SECONDS.name, 0.0) for record in records)


def _measure(
    evaluation: Evaluation,
    cells: Sequence[Cell],
    store: RecordStore,
    arrays: ArrayStore,
    console: Console,
    processes: int,
) -> None:
    total = sum(len(cell.images) for cell in cells)
    done = sum(len(store.done(cell.labels, cell.part).intersection(cell.images)) for cell in cells)
    if done == total:
        message = f"Already finished: {total} of {total} images. Writing the outputs again."
        console.print(message, highlight=False)
        return
    if done:
        console.print(f"Continuing: {done} of {total} images are done.", highlight=False)
    batches = [
        Batch(cell, images)
        for cell in cells
        for images in _batches(cell, store.done(cell.labels, cell.part))
    ]
    with SweepProgress(Meter(total, done), console) as progress:
        progress.start(labels_text(batches[0].cell.labels))
        for result in measure(evaluation, batches, arrays, processes, progress.report):
            store.append(_records(evaluation, result))
            progress.start(labels_text(result.batch.cell.labels))
            progress.report(0.0)
            progress.advance(len(result.batch.images))


def _batches(cell: Cell, done: frozenset[int]) -> list[list[int]]:
    """Images still to do, in the same batches as in a run that is not interrupted."""
    size = cell.batch_size
    batches = [cell.images[i : i + size] for i in range(0, len(cell.images), size)]
    missing = [[image for image in batch if image not in done] for batch in batches]
    return [batch for batch in missing if batch]


def _records(evaluation: Evaluation, measured: Measured) -> list[Record]:
    cell, images = measured.batch.cell, measured.batch.images
    timing = {SECONDS.name: measured.seconds / len(images)} if cell.timed else {}
    _check_results(evaluation, images, measured.metrics)
    return [
        Record(cell.labels, image, {**timing, **metrics}, cell.part)
        for image, metrics in zip(images, measured.metrics, strict=True)
    ]


def _check_results(
    evaluation: Evaluation, images: Sequence[int], results: Sequence[Mapping[str, float]]
) -> None:
    where = f"{type(evaluation).__name__}.evaluate"
    if len(results) != len(images):
        raise ValueError(f"{where} returned {len(results)} results for {len(images)} images")
    known = {SECONDS.name, *(metric.name for metric in evaluation.metrics)}
    unknown = sorted({name for metrics in results for name in metrics} - known)
    if unknown:
        raise ValueError(f"{where} returned {unknown}, which its `metrics` do not list")
