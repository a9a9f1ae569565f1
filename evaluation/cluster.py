"""Batches of an evaluation on the workers of a Dask cluster, as docs/clusters.md describes."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowprior.command_line import one_line
from flowprior.extras import extra
from flowprior.own_code import own_modules

with extra("cluster"):
    import distributed

from evaluation.cluster_worker import Setup, call, check_software, check_worker, software, stop

_ANSWER = 10.0
"""Seconds that a scheduler has to answer at first."""
_END = 10.0
"""Seconds that workers have to stop what they compute, and the scheduler to forget it."""


class ClusterExecutor(Executor):
    """The workers of a running cluster, each of which does one call at a time.

    Calls of a worker that dies are done by others; workers may come later. All are given up when
    the block ends. Workers, scheduler and this process must have the same code and packages, and
    share the file system: calls are made in this process's current folder.

    Args:
        cluster: address of the scheduler, such as ``tcp://host:8786``, or the file that it writes.
        imports: config files and modules beside them, which every worker imports.

    Raises:
        ValueError: there is no such file, or a worker differs from this process, has more than one
            thread, or does not see the current folder or the modules; of workers that come later,
            calls do.
        OSError: no scheduler answers; by calls, it is gone, or four workers have died with a call.
    """

    def __init__(self, cluster: str, imports: Sequence[tuple[Path, list[str]]] = ()) -> None:
        self._setup = Setup(uuid.uuid4().hex, Path.cwd(), imports, own_modules(), software())
        self._lock = threading.Lock()
        self._new: list[tuple[bytes, Future]] = []
        self._done: list[distributed.Future] = []
        self._running: dict[str, tuple[distributed.Future, Future]] = {}
        self._client = _connected(cluster)
        self._address = self._client.scheduler.address
        try:
            self._check()
        except BaseException:
            self.shutdown()
            raise

    @property
    def workers(self) -> int:
        """How many there are now."""
        return len(self._client.nthreads())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Schedule a call."""
        future: Future = Future()
        with self._lock:
            self._new.append((pickle.dumps((fn, args, kwargs)), future))
        self._client.loop.add_callback(self._send)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Give up what is not done, in the middle of a call if need be, and leave the cluster."""
        with suppress(OSError, CancelledError, asyncio.CancelledError):
            if self._running:
                self._client.sync(self._give_up)
        with suppress(OSError):
            self._client.close(_END)

    def _check(self) -> None:
        about = self._setup.software, "the scheduler"
        found = {"the scheduler": _caught(self._client.run_on_scheduler, check_software, *about)}
        found |= self._client.run(check_worker, self._setup, on_error="return")
        for who, error in found.items():
            if isinstance(error, ValueError):
                raise error
            if isinstance(error, Exception):
                reason = one_line(Exception(f"{type(error).__name__}: {error}"))
                raise ValueError(
                    f"{who} cannot do what it is asked ({reason}): install there what is "
                    "installed here, and restart it"
                ) from error

    def _send(self) -> None:
        """All new calls at once: a scheduler takes as long for one message as for many calls."""
        with self._lock:
            new, self._new = self._new, []
        if not new:
            return
        calls = [pickled for pickled, _ in new]
        try:
            if self._client.status != "running":
                raise ConnectionError(self._client.status)
            sent = self._client.map(call, calls, setup=self._setup, key="evaluation", pure=False)
        except Exception as error:  # or nobody would ever hear of these calls again
            for _, future in new:
                future.set_exception(self._gone(error))
            return
        for one, (_, future) in zip(sent, new, strict=True):
            self._running[one.key] = one, future
            one.add_done_callback(self._note)

    def _note(self, one: distributed.Future) -> None:
        with self._lock:
            self._done.append(one)
        self._client.loop.add_callback(self._receive)

    async def _receive(self) -> None:
        """Results of all calls that are done, together; of those that have failed, one by one."""
        with self._lock:
            done, self._done = self._done, []
        good = [one for one in done if one.status == "finished"]
        try:
            results = await self._client.gather(good)
        except (Exception, asyncio.CancelledError):  # of one of them, and it may be one only
            good, results = [], []
        for one, result in zip(good, results, strict=True):
            self._running.pop(one.key)[1].set_result(result)
        await asyncio.gather(*(self._receive_one(one) for one in done if one.key in self._running))

    async def _receive_one(self, one: distributed.Future) -> None:
        """A result that was lost with its worker comes once another has done the call again."""
        try:
            result = await one.result()
        except BaseException as error:  # or nobody would ever hear of this call again
            self._running.pop(one.key)[1].set_exception(self._failure(one, error))
            return
        self._running.pop(one.key)[1].set_result(result)

    def _failure(self, one: distributed.Future, error: BaseException) -> BaseException:
        if isinstance(error, distributed.KilledWorker):
            return OSError(
                "workers died of the same batch, one after another, perhaps for lack of memory: "
                "try a smaller batch_size, or workers with more memory. What is measured is kept"
            )
        lost = isinstance(error, OSError | CancelledError | asyncio.CancelledError)
        return self._gone(error) if lost and one.status != "error" else error

    def _gone(self, error: BaseException | None = None) -> OSError:
        gone = OSError(
            f"the scheduler at {self._address} is gone. What is measured is kept: once there is a "
            "scheduler again, the same command continues"
        )
        gone.__cause__ = error
        return gone

    async def _give_up(self) -> None:
        async with asyncio.timeout(_END):
            await self._client.cancel([one for one, _ in self._running.values()])
            await self._client.run(stop, self._setup.token, on_error="ignore")


def _connected(cluster: str) -> distributed.Client:
    address = cluster
    if Path(cluster).is_file():
        try:
            address = json.loads(Path(cluster).read_text())["address"]
            if not isinstance(address, str) or not address:
                raise ValueError("address")
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"--cluster {cluster} is not a file of a Dask scheduler") from None
    elif ":" not in cluster:
        raise ValueError(
            f"--cluster {cluster}: neither the file of a Dask scheduler nor an address such as "
            "tcp://host:8786"
        )
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":  # what is lost is told in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return distributed.Client(address, timeout=_ANSWER, set_as_default=False)
    except ValueError as error:
        raise ValueError(f"--cluster {cluster}: {error}") from error
    except OSError as error:
        raise OSError(f"--cluster {cluster}: no Dask scheduler answers at {address}") from error


def _caught(function: Callable[..., Any], *args: Any) -> Exception | None:
    try:
        function(*args)
    except Exception as error:  # whatever happens there
        return error
    return None
