"""A Dask cluster of processes of its own, started as a user starts one."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import distributed

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 500.0
"""Seconds to wait for a process on a busy machine; a test has 600."""


class Cluster:
    """A scheduler and its workers, which end with the block."""

    def __init__(self, folder: Path, workers: int = 0) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.processes: list[subprocess.Popen] = []
        self.scheduler = self._start("scheduler", "--port", "0", "--idle-timeout", "900")
        wait(self.file.exists)
        self.address = json.loads(self.file.read_text())["address"]
        self.client = distributed.Client(self.address, set_as_default=False)
        self.add(workers)

    def add(
        self, workers: int, *options: str, threads: int = 1, path: Path = ROOT
    ) -> list[subprocess.Popen]:
        """Start workers, and wait until the scheduler knows them."""
        before = len(self.client.nthreads())
        arguments = ("--nthreads", str(threads), "--no-nanny", "--memory-limit", "0", *options)
        new = [self._start("worker", *arguments, path=path) for _ in range(workers)]
        self.client.wait_for_workers(before + workers, timeout=PATIENCE)
        return new

    def pids(self) -> dict[str, int]:
        """Process by address of a worker."""
        return self.client.run(os.getpid)

    def kill(self, process: subprocess.Popen) -> None:
        """SIGKILL a worker, and wait until the scheduler knows."""
        before = len(self.client.nthreads())
        process.kill()
        process.wait()
        wait(lambda: len(self.client.nthreads()) < before)

    def _start(self, kind: str, *arguments: str, path: Path = ROOT) -> subprocess.Popen:
        options = ("--scheduler-file", str(self.file), "--no-dashboard")
        with open(self.folder / f"{kind}-{len(self.processes)}.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", kind, *options, *arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        self.processes.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        for process in reversed(self.processes):
            process.kill()
            process.wait()


_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Tests that are killed have no time to end what they have started."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait(condition) -> None:
    """Until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)
