"""Divide global batches among processes, and resume in the middle of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from datamodules.dequantize import Key, random_stream
from datamodules.errors import DataError, require


@dataclass(eq=False)
class GlobalBatchSampler(Sampler[list[Key]]):
    """Lists of (epoch, index) keys: this process's part of each global batch.

    In training, global batch b of an epoch is images b B to (b + 1) B of an order that depends on
    (seed, epoch) alone. Each process takes 1 / W of it, so together they see the same images at any
    number of processes. Images that do not fill a global batch are left out.

    In evaluation, every image comes exactly once over all processes, and the shares of the
    processes differ by at most one image. Each share is divided into ceil(N / B) batches of about
    the same size, because processes with different numbers of batches can wait for each other
    forever. Only a share with fewer images than that gives fewer batches.

    Iteration starts at batch number ``position``, counted over all epochs, and ends with the epoch.

    Attributes:
        num_images: N.
        batch_size: B, images per step over all processes; a multiple of W, in training at most N.
        seed: of the order.
        rank: this process, 0 to W - 1.
        world_size: W, the number of processes.
        training: whether it is training.

    Raises:
        ValueError: the batch size is out of its range.
    """

    num_images: int
    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    training: bool = True
    position: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        size, shared = self.batch_size, f"a positive multiple of the {self.world_size} processes"
        require(size > 0 == size % self.world_size, "batch_size", size, shared)
        enough = f"at most {self.num_images}, the number of training images"
        require(size <= self.num_images or not self.training, "batch_size", size, enough)

    def __len__(self) -> int:
        """Number of batches in one epoch that this process gets."""
        if self.training:
            return self.num_images // self.batch_size
        share = len(np.array_split(np.arange(self.num_images), self.world_size)[self.rank])
        return min(share, -(-self.num_images // self.batch_size))

    def __iter__(self) -> Iterator[list[Key]]:
        # Workers ask ahead: what is handed out must not move `position`.
        epoch, start = divmod(self.position, max(len(self), 1))
        return ([(epoch, int(i)) for i in batch] for batch in self._batches(epoch)[start:])

    def _batches(self, epoch: int) -> list[np.ndarray]:
        order = np.arange(self.num_images)
        if self.training:
            order = random_stream(self.seed, "order", epoch).permutation(order)
            whole = order[: len(self) * self.batch_size]
            return list(whole.reshape(len(self), self.world_size, -1)[:, self.rank])
        share = np.array_split(order, self.world_size)[self.rank]
        return np.array_split(share, len(self)) if len(share) else []


class ResumableLoader(DataLoader):
    """Batches of a training ``GlobalBatchSampler`` that continue exactly at a checkpoint.

    The main process counts the batches that it has handed out, over all epochs, so batches that
    workers have fetched ahead do not matter. Lightning saves the count in the checkpoint. An
    iterator covers the rest of the current epoch, from the position at its first step: creating
    one consumes nothing, and the next continues one that was left early. Only one iterator may be
    in use at a time.
    """

    consumed = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.batch_sampler.position = self.consumed
        for batch in super().__iter__():
            self.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of batches handed out, and the settings that this number depends on."""
        return {"consumed": self.consumed, **self._settings()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state; the number of processes may differ.

        Raises:
            DataError: the state has another batch size, number of images or seed.
        """
        for name, value in self._settings().items():
            if state[name] != value:
                raise DataError(
                    f"cannot resume: the checkpoint was written with {name}={state[name]}, "
                    f"now it is {value}; expected the same data options"
                )
        self.consumed = state["consumed"]

    def _settings(self) -> dict[str, int]:
        names = ("num_images", "batch_size", "seed")
        return {name: getattr(self.batch_sampler, name) for name in names}
