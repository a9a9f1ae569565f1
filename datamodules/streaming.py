"""Training on parquet files that are read from start to end, for sets larger than the disk."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.decoding import read_square
from datamodules.dequantize import DataError, DequantizedImages, ImageError, random_stream
from datamodules.sources import digest
from datamodules.tables import cell_data, cell_name, content, named, open_stream

BLOCK = 512
"""Encoded images of a lane that are in memory at once, and shuffled."""

State = dict[str, Any]
START: State = {"stream": None, "block": 0, "taken": 0}
"""State of a lane: that of its stream before a block, the block's number, images taken of it."""


@dataclass(frozen=True)
class Stream:
    """Training images of parquet files, in lanes that are read side by side.

    In each epoch the files are shuffled, shared out to the lanes (``split_dataset_by_node``), and
    each lane is shuffled within blocks. Global batch b is the b-th B / L images of every lane, and
    the epoch ends with the first lane that has not enough of them; so what is seen depends on the
    number of lanes, never on that of processes and workers, among which the lanes are shared out.

    Args:
        source: of the files, for messages.
        files: paths or addresses.
        accept: whether the image of a name is for training.
        images: how to dequantise; has no images itself.
        image_size: H = W.
        channels: 1 or 3.
        batch_size: B, images per step over all processes.
        lanes: L, which divides B.
    """

    source: str
    files: Sequence[str]
    accept: Callable[[str], bool]
    images: DequantizedImages
    image_size: int
    channels: int
    batch_size: int
    lanes: int

    def lane(self, number: int, epoch: int, state: State) -> Iterator[tuple[np.ndarray, int]]:
        """(pixels (C, H, W), digest of the file) of a lane, from where a state stands.

        Args:
            number: of the lane, 0 to L - 1.
            epoch: 0 or more.
            state: of an earlier iterator, or a copy of ``START``; it is kept up to date.
        """
        with named(self.source):
            yield from self._decoded(self._cells(number, epoch, state))

    def first(self, number: int) -> list[np.ndarray]:
        """The first images in the order of the files, (C, H, W) each."""
        with named(self.source):
            rows = open_stream(self.source, self.files)
            cells = (cell for row in rows for cell in row.values() if self.accept(cell_name(cell)))
            return [pixels for pixels, _ in islice(self._decoded(cells), number)]

    def _decoded(self, cells: Iterator[dict[str, Any]]) -> Iterator[tuple[np.ndarray, int]]:
        for cell in cells:
            try:
                data = content(cell_data(cell))
                square = read_square(data, self.image_size, self.channels)
            except (ImageError, FileNotFoundError) as error:
                warnings.warn(f"{self.source}: left out {cell_name(cell)}: {error}", stacklevel=2)
            else:
                yield square, int(digest(data), 16)

    def _cells(self, number: int, epoch: int, state: State) -> Iterator[dict[str, Any]]:
        from datasets.distributed import split_dataset_by_node

        order = random_stream(self.images.seed, "order/files", epoch).permutation(len(self.files))
        stream = open_stream(self.source, [self.files[i] for i in order])
        stream = split_dataset_by_node(stream, rank=number, world_size=self.lanes)
        if state["stream"] is not None:
            stream.load_state_dict(state["stream"])
        for block in stream.iter(BLOCK):
            (cells,) = block.values()
            cells = [cell for cell in cells if self.accept(cell_name(cell))]
            name = f"order/lane {number}, block {state['block']}"
            order = random_stream(self.images.seed, name, epoch).permutation(len(cells))
            for i in order[state["taken"] :]:
                state["taken"] += 1
                yield cells[i]
            state |= {"stream": stream.state_dict(), "block": state["block"] + 1, "taken": 0}


@dataclass
class LaneBatches(IterableDataset):
    """One process's part of the global batches of an epoch, each worker with lanes of its own.

    Yields (worker, its part of a batch, states of its lanes after it).
    """

    stream: Stream
    epoch: int
    states: dict[int, State]

    def __iter__(self) -> Iterator[tuple[int, Tensor, dict[int, State]]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        share = len(self.states) // workers
        mine = sorted(self.states)[worker * share : (worker + 1) * share]
        states = {lane: dict(self.states[lane]) for lane in mine}
        lanes = [self.stream.lane(lane, self.epoch, states[lane]) for lane in mine]
        number = self.stream.batch_size // self.stream.lanes
        while True:
            parts = [list(islice(lane, number)) for lane in lanes]
            if any(len(part) < number for part in parts):
                return
            pixels, digests = zip(*(image for part in parts for image in part), strict=True)
            keys = [(self.epoch, index) for index in digests]
            batch = self.stream.images.finish(pixels, keys)
            yield worker, batch, {lane: dict(state) for lane, state in states.items()}


class StreamingLoader:
    """Batches of a stream that continue exactly where a checkpoint was written.

    Nobody knows the number of batches before the end of an epoch, so Lightning fetches each batch
    while it trains on the one before. A batch therefore counts as consumed when the next one is
    asked for.

    Args:
        stream: of images.
        rank: this process, 0 to W - 1.
        world_size: W; W times the number of workers divides the number of lanes.
        num_workers: loading processes.
        **options: of ``DataLoader``.

    Raises:
        ValueError: batch size, lanes, processes and workers do not divide as they must.
    """

    def __init__(
        self,
        stream: Stream,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        readers = world_size * max(num_workers, 1)
        if stream.lanes % readers or stream.batch_size % stream.lanes:
            raise ValueError(
                f"data.lanes={stream.lanes}: expected a multiple of the {readers} loading processes"
                f" that divides data.batch_size={stream.batch_size}"
            )
        self.stream = stream
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.options = options
        self.epoch = 0
        self.states = self._start()

    def __iter__(self) -> Iterator[Tensor]:
        readers = max(self.num_workers, 1)
        batches = DataLoader(
            LaneBatches(self.stream, self.epoch, self.states),
            batch_size=None,
            num_workers=self.num_workers,
            generator=torch.Generator(),
            **self.options,
        )
        items, empty = iter(batches), self.states == self._start()
        while True:
            parts = list(islice(items, readers))
            if not _everywhere([worker for worker, _, _ in parts] == list(range(readers))):
                break
            empty = False
            yield torch.cat([batch for _, batch, _ in parts])
            for _, _, states in parts:
                self.states |= states
        if empty:
            raise DataError(
                f"data.source={self.stream.source}: fewer training images than a batch, or than "
                "data.lanes can share out"
            )
        self.epoch += 1
        self.states = self._start()

    def state_dict(self) -> State:
        """Where all lanes are; all processes must call this together."""
        states = [self.states]
        if self.world_size > 1:
            states = [{} for _ in range(self.world_size)]
            dist.all_gather_object(states, self.states)
        lanes = {lane: state for part in states for lane, state in part.items()}
        return {"epoch": self.epoch, "lanes": lanes, **self._identity()}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state; the number of processes and workers may be another one.

        Raises:
            DataError: the state is that of other files, another batch size, seed or lanes.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise DataError(
                    f"cannot resume: the checkpoint was written with {name}={state[name]}, "
                    f"now it is {value}; expected the same data options"
                )
        self.epoch = state["epoch"]
        self.states = {lane: state["lanes"][lane] for lane in self._start()}

    def _start(self) -> dict[int, State]:
        share = self.stream.lanes // self.world_size
        return {lane: dict(START) for lane in range(self.rank * share, (self.rank + 1) * share)}

    def _identity(self) -> dict[str, int]:
        return {
            "files": len(self.stream.files),
            "batch_size": self.stream.batch_size,
            "num_lanes": self.stream.lanes,
            "seed": self.stream.images.seed,
        }


def _everywhere(flag: bool) -> bool:
    """Whether the flag is set on all processes, which must call this together."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    flags: list[bool | None] = [None] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return all(flags)
