"""Ctrl-C, and what processes that work for another one have in common."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def interrupts_heeded() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends this block with a KeyboardInterrupt, whatever a library makes of it.

    Yields a function that says whether Ctrl-C was pressed, for a place to check: Python loses a
    KeyboardInterrupt that is raised in a callback. Lightning turns it into an exit with status 1.
    """
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and previous != signal.SIG_IGN:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    except BaseException:
        if noted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Processes started in this block never see Ctrl-C; this one sees it when the block ends."""
    resource_tracker.ensure_running()  # it lets signals through when it starts
    received: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if main:  # another thread may take the signal, whose handler this thread runs all the same
        signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # is inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it; to be called once in a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
