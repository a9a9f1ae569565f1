"""The processes that a run starts on one machine: none of them outlives the first one."""

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from rich.console import Console

_CONTINUES = "the same command continues from the last checkpoint"
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset)")
_LOADER = "DataLoader worker (pid"
_FIRST = "FLOWPRIOR_FIRST_PROCESS"
_PERIOD = 0.2  # seconds between two looks
_PATIENCE = 10.0  # seconds that a process has to end by itself


class LinkedDDP(DDPStrategy):
    """DDP whose processes on one machine end together, the last with one line of what happened.

    Lightning's own ends them without a word as soon as one has left, so that the others may not
    have said why or saved; and where the first one is killed, the others wait for it.
    """

    def _configure_launcher(self) -> None:
        if self.cluster_environment is not None:
            self._launcher = LinkedLauncher(
                self.cluster_environment, self.num_processes, self.num_nodes
            )


class LinkedLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine, and sees to it that all end together."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._leaving = threading.Event()

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, unless something else does, and call `function`."""
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            os.environ[_FIRST] = str(os.getpid())
            self._call_children_scripts()
            threading.Thread(target=self._watch_others, daemon=True).start()
            atexit.register(self._end_others)
        elif started_by_first():
            threading.Thread(target=_watch_first, daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def died(self, patience: float = 0.0) -> str:
        """Which of the other processes has died and how, in brackets; "" if none has.

        A killed process is gone some time after its connections, for which it has `patience`
        (seconds): less than others take to leave that have met the same error.
        """
        deadline = time.monotonic() + patience
        while all(other.poll() is None for other in self.procs) and time.monotonic() < deadline:
            time.sleep(_PERIOD / 10)
        statuses = {rank: other.poll() for rank, other in enumerate(self.procs, 1)}
        found = sorted((status, rank) for rank, status in statuses.items() if status)
        return f" (number {found[0][1]}: {_reason(found[0][0])})" if found else ""

    def _watch_others(self) -> None:
        while not self.died():
            if self._leaving.wait(_PERIOD):
                return
        died = self.died()
        # An error that all have met, or a lost connection, ends this process too.
        if not self._leaving.wait(_PATIENCE):
            for other in self.procs:
                other.kill()
            _die(f"another process of the run has died{died}")

    def _end_others(self) -> None:
        self._leaving.set()
        deadline = time.monotonic() + _PATIENCE
        for other in self.procs:
            try:
                other.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                other.kill()


def death(error: RuntimeError | ConnectionError, trainer: pl.Trainer) -> str:
    """What an error says of a process that has died; "" if it is about something else.

    A lost connection to a loading process is noticed at times before its death is.
    """
    lost = isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError)
    if _LOADER in str(error) or (lost and getattr(trainer.datamodule, "num_workers", 0)):
        why = "perhaps because memory ran out (data.num_workers: fewer of them take less)"
        return f"a loading process has died, {why}: {_CONTINUES}"
    if trainer.world_size == 1 or not _LOST.search(str(error)):
        return ""
    launcher = trainer.strategy.launcher
    died = launcher.died(3 * _PERIOD) if isinstance(launcher, LinkedLauncher) else ""
    return f"another process of the run has died{died}: {_CONTINUES}"


def started_by_first() -> bool:
    """Whether this process was started by the first one of its machine, which speaks for both."""
    return os.environ.get(_FIRST, str(os.getpid())) != str(os.getpid())


def leave(status: int) -> None:
    """End a process that the first one has started, without a word."""
    time.sleep(4 * _PERIOD)  # if the first one is gone, the watcher has a word to say
    sys.exit(status)


def _watch_first() -> None:
    """End this process when the first one is gone: it was killed, or else it would have waited."""
    while str(os.getppid()) == os.environ[_FIRST]:
        time.sleep(_PERIOD)
    if os.environ.get("LOCAL_RANK") == "1":
        _die("the first process of the run has died")
    os._exit(1)


def _die(what: str) -> None:
    Console(stderr=True).show_cursor()  # a bar may have hidden it
    print(f"{Path(sys.argv[0]).name}: error: {what}: {_CONTINUES}", file=sys.stderr, flush=True)
    os._exit(1)


def _reason(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
