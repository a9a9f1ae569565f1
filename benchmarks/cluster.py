"""Sweeps on one and two workers, and what a batch costs beside its own work.

python -m benchmarks.cluster --repeats 3 --batches 2000
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import alternate
from datamodules import LayerModels
from evaluation import Cell, Evaluation, Metric
from evaluation.arrays import ArrayStore
from evaluation.cluster import ClusterExecutor
from evaluation.experiment import Experiment, Method
from evaluation.inversion import InversionEvaluation
from evaluation.records import RecordStore
from evaluation.runner import RECORDS, _measure
from flowprior.inversion import MAP
from flowprior.physics import Gaussian
from flowprior.weights import SHIPPED


class Busy(Evaluation):
    """Batches of one image that take some CPU time or wait, and keep an array or not."""

    title = "Busy"
    metrics = (Metric("value"),)

    def __init__(
        self, batches: int, seconds: float, keeps: bool = False, waits: bool = False
    ) -> None:
        self.batches, self.seconds, self.keeps, self.waits = batches, seconds, keeps, waits

    def cells(self) -> Sequence[Cell]:
        """Ten rows."""
        images = range(self.batches // 10)
        return [Cell({"row": row}, images, {"seconds": self.seconds}) for row in range(10)]

    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Count until the thread has had its time."""
        if self.waits:
            time.sleep(self.seconds)
            return [{"value": 1.0} for _ in images]
        end, count = time.thread_time() + self.seconds, 0
        while time.thread_time() < end:
            count += 1
        if self.keeps:
            arrays.save(cell.key, images[0], {"x": torch.zeros(32, 32)})
        return [{"value": 1.0} for _ in images]


def main() -> None:
    """Start clusters, measure, print two tables."""
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        clusters = {n: stack.enter_context(_Cluster(Path(folder), n)) for n in arguments.workers}
        for cluster in clusters.values():
            _measured(Busy(40, 0.0), cluster.executor)  # workers import what they need
        sweeps = {
            f"{arguments.images} images, {arguments.iterations} iterations": _inversions(arguments),
            "40 batches that wait 0.5 s": Busy(40, 0.5, waits=True),
        }
        for title, sweep in sweeps.items() if arguments.repeats else ():
            console.print(_scaling(title, sweep, clusters, arguments.repeats))
        console.print(_costs(clusters[max(clusters)], arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--repeats", type=int, default=3, help="of sweeps, minima count; 0 for none"
    )
    parser.add_argument("--images", type=int, default=32, help="of the sweep of inversions")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--batches", type=int, default=2000, help="that are short")
    parser.add_argument("--milliseconds", type=float, default=10.0, help="CPU time of a batch")
    return parser


class _Cluster:
    """A scheduler and workers of one thread each, which end with the block."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.workers, file = workers, folder / f"{workers}.json"
        options = ["--scheduler-file", str(file), "--no-dashboard"]
        worker = ["worker", *options, "--nthreads", "1", "--no-nanny", "--memory-limit", "0"]
        commands = [["scheduler", *options, "--port", "0"], *[worker] * workers]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "dask", *c], cwd=folder, env=environment, **quiet
            )
            for c in commands
        ]
        while not file.exists():
            time.sleep(0.1)
        self.executor = ClusterExecutor(str(file))
        while self.executor.workers < workers:
            time.sleep(0.1)

    def scheduler_seconds(self) -> float:
        """CPU time of the scheduler so far."""
        return sum(psutil.Process(self.processes[0].pid).cpu_times()[:2])

    def __enter__(self) -> "_Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()
        for process in reversed(self.processes):
            process.kill()
            process.wait()


def _measured(evaluation: Evaluation, executor: Executor | None) -> None:
    """What `evaluation.run` does before it writes tables and figures."""
    cells = evaluation.cells()
    with (
        tempfile.TemporaryDirectory() as folder,
        RecordStore(Path(folder, RECORDS), cells) as store,
    ):
        arrays, console = ArrayStore(Path(folder, "arrays")), Console(file=io.StringIO())
        _measure(evaluation, cells, store, arrays, console, executor, lambda: False)


def _inversions(arguments: argparse.Namespace) -> InversionEvaluation:
    prior, noise = SHIPPED / "glow_layers_32", Gaussian(0.1)
    experiment = Experiment({}, "gaussian_blur", {"tau": 1.5}, noise)
    return InversionEvaluation(
        {"glow": prior},
        {"flow": Method(MAP(beta=0.5))},
        [experiment],
        LayerModels(image_size=32, num_train=64, num_val=64, num_test=arguments.images),
        images=arguments.images,
        iterations=arguments.iterations,
        batch_size=1,
        device="cpu",
    )


def _scaling(
    title: str, evaluation: Evaluation, clusters: Mapping[int, _Cluster], repeats: int
) -> Table:
    executors = {"none": None, **{str(n): one.executor for n, one in clusters.items()}}
    functions = {name: partial(_measured, evaluation, one) for name, one in executors.items()}
    seconds = alternate(functions, repeats, time.perf_counter)
    table = Table("workers", title=title)
    for column in ("min s", "median s", "times one process"):
        table.add_column(column, justify="right")
    for name, its in seconds.items():
        best, ratio = min(its), min(seconds["none"]) / min(its)
        table.add_row(name, f"{best:.1f}", f"{statistics.median(its):.1f}", f"{ratio:.2f}")
    return table


def _costs(cluster: _Cluster, arguments: argparse.Namespace) -> Table:
    """Wall time, and the CPU time of the two processes that every batch passes through."""
    table = Table("batches", "of", "kept", "by", title=f"per batch, {cluster.workers} workers")
    for column in ("wall ms", "this process ms", "scheduler ms"):
        table.add_column(column, justify="right")
    work, workers = arguments.milliseconds / 1000, cluster.executor
    for seconds, keeps, executor in (
        (0.0, False, None),
        (0.0, False, workers),
        (work, False, workers),
        (0.0, True, workers),
    ):
        before = _clocks(cluster)
        _measured(Busy(arguments.batches, seconds, keeps), executor)
        spent = [after - one for after, one in zip(_clocks(cluster), before, strict=True)]
        table.add_row(
            str(arguments.batches),
            f"{1000 * seconds:g} ms",
            "records, arrays" if keeps else "records",
            "workers" if executor else "this process",
            *(f"{1000 * value / arguments.batches:.2f}" for value in spent),
        )
    return table


def _clocks(cluster: _Cluster) -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), cluster.scheduler_seconds()


if __name__ == "__main__":
    from benchmarks import cluster  # workers must find what is pickled

    cluster.main()
