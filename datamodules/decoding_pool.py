"""Decode many images in parallel processes, in order, with few of them in memory."""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

import numpy as np

from datamodules.decoding import read_square
from datamodules.dequantize import ImageError
from flowprior.processes import end_with_parent, interrupts_held

_CHUNK = 16
_CHUNKS_PER_WORKER = 4

Outcome = np.ndarray | ImageError


def decode_all(
    data: Iterable[Path | bytes], image_size: int, channels: int, workers: int
) -> Iterator[Outcome]:
    """Squares (C, image_size, image_size), uint8, or why there is none, in the order of ``data``.

    Args:
        data: files, or the bytes of files.
        image_size: H = W.
        channels: 1 or 3.
        workers: processes; 0 for this one alone.

    Raises:
        ImageError: a process died.
    """
    if not workers:
        yield from (outcome(item, image_size, channels) for item in data)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, not in each process
    chunks = _chunks(data)
    with ProcessPoolExecutor(workers, context, end_with_parent) as pool:

        def submit(number: int) -> Iterator[Future[list[Outcome]]]:
            for chunk in islice(chunks, number):
                yield pool.submit(_decode_chunk, chunk, image_size, channels)

        with interrupts_held():
            waiting = deque(submit(_CHUNKS_PER_WORKER * workers))
        try:
            while waiting:
                yield from waiting.popleft().result()
                waiting.extend(submit(1))
        except BrokenProcessPool as error:
            raise ImageError(
                "a decoding process died, perhaps for want of memory: run the same command again "
                "to continue, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def outcome(data: Path | bytes, image_size: int, channels: int) -> Outcome:
    """A square, or why there is none."""
    try:
        return read_square(data, image_size, channels)
    except ImageError as error:
        return error


def _chunks(data: Iterable[Path | bytes]) -> Iterator[list[Path | bytes]]:
    items = iter(data)
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def _decode_chunk(chunk: Sequence[Path | bytes], image_size: int, channels: int) -> list[Outcome]:
    return [outcome(item, image_size, channels) for item in chunk]
