"""Images of a cell that are measured in one call, here or in another process."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation
from evaluation.table import SECONDS
from flowprior.io import atomic_write

Measured = dict[int, Mapping[str, float]]
"""Metrics by image."""
_SENT = "-evaluation.pickle"


class Batch(NamedTuple):
    """Images of a cell to measure in one call."""

    cell: Cell
    images: Sequence[int]


class Job(NamedTuple):
    """What workers measure, and where they keep arrays."""

    evaluation: Evaluation
    cells: Sequence[Cell]
    arrays: ArrayStore


class SentJob(NamedTuple):
    """The file of a pickled `Job`, and its SHA-256."""

    path: Path
    digest: str


def missing_batches(cell: Cell, done: frozenset[int]) -> list[Batch]:
    """Images still to do, in the same batches as in a run that is not interrupted."""
    size = cell.batch_size
    batches = [cell.images[i : i + size] for i in range(0, len(cell.images), size)]
    missing = [[image for image in batch if image not in done] for batch in batches]
    return [Batch(cell, images) for images in missing if images]


def measure_batch(evaluation: Evaluation, batch: Batch, arrays: ArrayStore) -> Measured:
    """Metrics of a batch, with the time that each image took."""
    start = time.perf_counter()
    metrics = evaluation.evaluate(batch.cell, batch.images, arrays)
    seconds = {SECONDS.name: (time.perf_counter() - start) / len(batch.images)}
    where = f"{type(evaluation).__name__}.evaluate"
    if len(metrics) != len(batch.images):
        raise ValueError(f"{where} returned {len(metrics)} results for {len(batch.images)} images")
    known = {SECONDS.name, *(metric.name for metric in evaluation.metrics)}
    unknown = sorted({name for values in metrics for name in values} - known)
    if unknown:
        raise ValueError(f"{where} returned {unknown}, which its `metrics` do not list")
    return {i: {**seconds, **values} for i, values in zip(batch.images, metrics, strict=True)}


@contextmanager
def sent(job: Job) -> Iterator[SentJob]:
    """Write a job beside its arrays, where workers read it once each, while the block runs.

    An evaluation may hold a large prior, which would be slow to send with every batch.

    Raises:
        ValueError: a part of it cannot be pickled.
        OSError: the file cannot be written.
    """
    try:
        pickled = pickle.dumps(job)
    except Exception as error:  # whatever a part of a user's raises
        raise ValueError(
            "a part of the evaluation cannot be sent to another process "
            f"({' '.join(str(error).split())}): use --processes 1, and no --cluster"
        ) from error
    digest = hashlib.sha256(pickled).hexdigest()
    path = job.arrays.folder.parent.absolute() / f".{digest[:8]}{_SENT}"
    atomic_write(path, pickled)
    del pickled
    try:
        yield SentJob(path, digest)
    finally:
        path.unlink(missing_ok=True)


def remove_sent(output: Path) -> None:
    """Remove the jobs that killed runs have left in a folder."""
    for path in output.glob(f".????????{_SENT}"):
        path.unlink(missing_ok=True)


def measure_sent(job: SentJob, number: int, images: Sequence[int]) -> Measured:
    """Measure images of the cell of that number in a worker, which keeps the job for the next.

    Raises:
        OSError: this process does not see the file.
        RuntimeError: instead of an error that cannot be sent, with what it says.
    """
    try:
        evaluation, cells, arrays = read_job(job)
        return measure_batch(evaluation, Batch(cells[number], images), arrays)
    except Exception as error:
        failure = _sendable(error)
    raise failure  # out here: Dask would send the error that is being handled with it


def _sendable(error: Exception) -> Exception:
    """The error, if another process can read it: one of a user's own may take other arguments."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a user's raises
        told = RuntimeError(f"{type(error).__name__}: {error}")
        return told.with_traceback(error.__traceback__)
    return error


@lru_cache(maxsize=1)
def read_job(job: SentJob) -> Job:
    """The job of a file, which is kept until another one is read."""
    try:
        pickled = job.path.read_bytes()
    except OSError as error:
        raise OSError(
            f"process {os.getpid()} on {socket.gethostname()} does not see {job.path.parent} as "
            f"this command does ({error.strerror}): workers must share the file system with it"
        ) from error
    if hashlib.sha256(pickled).hexdigest() != job.digest:
        raise OSError(f"{job.path}, read on {socket.gethostname()}, is not what was written")
    return pickle.loads(pickled)
