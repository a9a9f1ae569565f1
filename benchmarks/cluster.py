"""Sweeps on one and two workers, and what a batch costs beside its own work.

python -m benchmarks.cluster --repeats 3 --batches 2000
"""

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import alternate
from datamodules import LayerModels
from evaluation import Cell, Evaluation, Metric, run
from evaluation.arrays import ArrayStore
from evaluation.batches import Job, missing_batches
from evaluation.experiment import Experiment, Method
from evaluation.inversion import InversionEvaluation
from evaluation.records import RecordStore
from evaluation.runner import _measured
from flowprior.inversion import MAP
from flowprior.physics import Gaussian


class Busy(Evaluation):
    """Batches of some CPU time each, which keep arrays or not."""

    title = "Busy"
    metrics = (Metric("value"),)

    def __init__(self, batches: int, seconds: float, keeps: bool) -> None:
        self.batches, self.seconds, self.keeps = batches, seconds, keeps

    def cells(self) -> Sequence[Cell]:
        """Ten rows."""
        size = self.batches // 10
        return [Cell({"row": row}, range(size), {"seconds": self.seconds}) for row in range(10)]

    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Count while the process has had less than its time."""
        end, count = time.thread_time() + self.seconds, 0
        while time.thread_time() < end:
            count += 1
        if self.keeps:
            arrays.save(cell.key, images[0], {"count": torch.zeros(32, 32)})
        return [{"value": 1.0} for _ in images]


def main() -> None:
    """Start a cluster, measure, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="of the sweep; minima count")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--milliseconds", type=float, default=10.0, help="CPU time of a batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = {n: stack.enter_context(_cluster(Path(folder), n)) for n in arguments.workers}
        console.print(_scaling(Path(folder), files, arguments))
        console.print(_costs(Path(folder), files, arguments))


@contextlib.contextmanager
def _cluster(folder: Path, workers: int) -> Iterator[Path]:
    """The file of a scheduler with so many workers."""
    file = folder / f"{workers}.json"
    common = [sys.executable, "-m", "dask"]
    options = ["--scheduler-file", str(file), "--no-dashboard"]
    worker = ["worker", *options, "--nthreads", "1", "--no-nanny", "--memory-limit", "0"]
    commands = [["scheduler", *options, "--port", "0"], *[worker] * workers]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen([*common, *c], cwd=folder, env=environment, **quiet) for c in commands
    ]
    try:
        while not file.exists():
            time.sleep(0.1)
        yield file
    finally:
        for process in processes:
            process.kill()
            process.wait()
