"""What a worker of a Dask cluster does for `evaluation.cluster`: one call after another."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, NamedTuple

import torch
from distributed import Worker, get_worker

from evaluation.batches import read_job
from flowprior.command_line import UsageError, import_beside
from flowprior.own_code import our_digest, own_modules

_PACKAGES = ("torch", "deepinv", "numpy", "scipy", "distributed")
_CODE = our_digest()[:12]  # of what this process runs: the files may change later
_FIRST = frozenset(sys.modules)
_lock = threading.Lock()
_calls: dict[str, int] = {}  # thread by token
_stopped: set[str] = set()
_ready: list[str] = []  # the token of the last setup


class Setup(NamedTuple):
    """What a worker needs to know of the process whose calls it does.

    Args:
        token: tells it from others.
        folder: its current folder.
        imports: config files and modules beside them.
        modules: digest by name of the user's own modules among them.
        software: as `software` describes it.
    """

    token: str
    folder: Path
    imports: Sequence[tuple[Path, list[str]]]
    modules: Mapping[str, str]
    software: Mapping[str, str]


class Stopped(BaseException):
    """The process whose call this is has given it up."""


def software() -> dict[str, str]:
    """Versions of what results depend on, and a digest of flowprior's own code."""
    return {
        "Python": python_version(),
        **{p: _version(p) for p in _PACKAGES},
        "code of flowprior": _CODE,
    }


def check_software(wanted: Mapping[str, str], who: str) -> None:
    """Raise ValueError for what this process has in another version than is wanted."""
    found = software()
    other = [
        f"{name} {found[name]}, not {version}"
        for name, version in wanted.items()
        if found[name] != version
    ]
    if other:
        raise ValueError(
            f"{who} has {'; '.join(other)}: install there what is installed here, and restart it"
        )


def check_worker(setup: Setup, dask_worker: Worker) -> None:
    """Import what a setup names, unless it is that of the last call.

    Modules of a user's own are imported anew, for they may have changed since another setup.

    Raises:
        ValueError: this worker differs from the process that has sent the setup, does several calls
            at a time, or does not see its folder or modules.
    """
    if _ready == [setup.token]:
        return
    who = f"worker {dask_worker.address} on {socket.gethostname()}"
    check_software(setup.software, who)
    if dask_worker.state.nthreads > 1:
        raise ValueError(
            f"{who} has {dask_worker.state.nthreads} threads, which would share what belongs to a "
            "process: start it with --nthreads 1"
        )
    if not setup.folder.is_dir():
        raise ValueError(f"{who} does not see {setup.folder}: it must share the file system")
    with _lock:
        if _calls.keys() - {setup.token}:  # what another process's call needs stays as it is
            return
    _forget()
    try:
        with contextlib.chdir(setup.folder):
            for config, names in setup.imports:
                import_beside(config, names)
    except UsageError as error:
        raise ValueError(f"{who}: {error}") from error
    for name, digest in _imported().items():
        if digest != setup.modules.get(name, digest):
            raise ValueError(f"{who}: the module {name} is not the one that this command runs")
    _ready[:] = [setup.token]


def call(pickled: bytes, setup: Setup) -> Any:
    """Do a call, with as many threads as OMP_NUM_THREADS says, or one.

    Raises:
        ValueError: as for `check_worker`.
        Stopped: `stop` was called meanwhile.
    """
    check_worker(setup, get_worker())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # in each thread that calls: it is not one setting for all
    with _stoppable(setup.token), contextlib.chdir(setup.folder):
        function, args, kwargs = pickle.loads(pickled)
        return function(*args, **kwargs)


def stop(token: str) -> None:
    """End the call of a setup as soon as its thread is in Python again, and begin no other."""
    with _lock:
        _stopped.add(token)
        if token in _calls:
            thread, kind = ctypes.c_ulong(_calls[token]), ctypes.py_object(Stopped)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, kind)


@contextlib.contextmanager
def _stoppable(token: str) -> Iterator[None]:
    with _lock:
        if token in _stopped:
            raise Stopped
        _calls[token] = threading.get_ident()
    try:
        yield
    finally:
        with _lock:
            _calls.pop(token, None)


def _forget() -> None:
    """Forget the evaluation of another setup, and the user's own modules that it was made of."""
    read_job.cache_clear()
    for name in _imported():
        del sys.modules[name]


def _imported() -> dict[str, str]:
    return {name: digest for name, digest in own_modules().items() if name not in _FIRST}


def _version(package: str) -> str:
    """Without what says for which device it was built."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "(not installed)"
