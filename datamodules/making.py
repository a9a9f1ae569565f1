"""What commands that prepare data share: a folder of their own, items made by several processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from datamodules.errors import DataError
from flowprior.io import remove_temporaries, sole_writer
from flowprior.processes import end_with_parent, interrupts_held


@contextmanager
def alone(output: Path, option: str = "--output") -> Iterator[None]:
    """Make the folder of an option, and keep other processes from writing it."""
    output.mkdir(parents=True, exist_ok=True)
    try:
        with sole_writer(output):
            remove_temporaries(output)
            yield
    except BlockingIOError as error:
        raise DataError(
            f"{option} {output} is being written by another process: wait for it, or give "
            f"another {option}"
        ) from error


def made(
    dataset: Dataset, keys: Sequence[Any], workers: int, at_once: int, context: str | None = None
) -> Iterator[Any]:
    """Items of a dataset in the order of their keys, made in parallel, with few of them in memory.

    The first is made before this returns: processes start slowly, which no rate should count.

    Args:
        dataset: gives an item for a key.
        keys: of the items wanted.
        workers: number of processes; 0 to make them in this one.
        at_once: number of items that a process is asked for at once.
        context: how processes start, "spawn" or "fork"; as the system does by default.
    """
    options: dict[str, Any] = {"num_workers": workers, "collate_fn": list}
    if workers:
        options |= {"multiprocessing_context": context, "worker_init_fn": _begin}
    with interrupts_held():
        chunks = iter(DataLoader(dataset, at_once, sampler=keys, **options))
    items = chain.from_iterable(chunks)
    return chain(list(islice(items, 1)), items)


@contextmanager
def deaths_reported(kind: type[DataError]) -> Iterator[None]:
    """Raise an error of this kind if a process of `made` dies.

    torch raises in the main thread then, wherever that is: the block is of all that uses the items.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise kind(
            "a process died, perhaps because memory ran out: run the same command again to "
            "continue, with fewer --workers"
        ) from error


def _begin(_: int) -> None:
    end_with_parent()
