"""What all image data sets share: splits, dequantisation, global batches, exact resume."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.dequantize import DequantizedImages, ImageSource, dequantize, quantize
from datamodules.loading import GlobalBatchSampler, ResumableLoader, evaluation_loader

if TYPE_CHECKING:
    from datamodules.streaming import StreamingLoader

__all__ = [
    "SPLITS",
    "DequantizedImages",
    "GlobalBatchSampler",
    "ImageDataModule",
    "ImageSource",
    "ResumableLoader",
    "check_split",
    "dequantize",
    "quantize",
]

SPLITS = ("train", "val", "test")


def check_split(split: str) -> None:
    """Raise a ValueError unless ``split`` is "train", "val" or "test"."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")


class ImageDataModule(pl.LightningDataModule, ABC):
    """Batches of images, float32 (B, C, H, W) in ``data_range``; a subclass provides ``images``.

    Training noise is new in each epoch; validation and test noise is always the same. Neither it
    nor the order depends on the number of processes, workers or images per batch. A ``Trainer``
    on several processes needs ``use_distributed_sampler=False``: the batches are shared out here.

    Args:
        image_size: H = W, in pixels.
        batch_size: images per step over all processes.
        n_bits: 1 to 16, quantise and dequantise with uniform noise; None for the images as they
            are, whose likelihood means nothing where they have constant areas.
        data_range: (lower, upper) of the batches.
        num_workers: loading processes per process.
        pin_memory: page-locked batches; ignored where there is no CUDA.
        seed: of order, noise and flips.
        horizontal_flips: mirror half of the training images, others in each epoch.

    Raises:
        ValueError: an option is out of its range.
    """

    channels = 3

    def __init__(
        self,
        image_size: int,
        batch_size: int = 64,
        n_bits: int | None = 8,
        data_range: tuple[float, float] = (-0.5, 0.5),
        num_workers: int = 0,
        pin_memory: bool = True,
        seed: int = 0,
        horizontal_flips: bool = False,
    ) -> None:
        super().__init__()
        _require(image_size >= 1, f"data.image_size={image_size}: expected at least 1")
        _require(batch_size >= 1, f"data.batch_size={batch_size}: expected at least 1")
        _require(
            n_bits is None or 1 <= n_bits <= 16,
            f"data.n_bits={n_bits}: expected 1 to 16, or null for no quantisation",
        )
        _require(
            len(data_range) == 2 and data_range[0] < data_range[1],
            f"data.data_range={data_range}: expected (lower, upper) with lower < upper",
        )
        _require(num_workers >= 0, f"data.num_workers={num_workers}: expected 0 or more")
        _require(0 <= seed < 2**64, f"data.seed={seed}: expected 0 to 2^64 - 1")
        self.image_size = image_size
        self.batch_size = batch_size
        self.n_bits = n_bits
        self.data_range = tuple(data_range)
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.seed = seed
        self.horizontal_flips = horizontal_flips
        self._train_loader: ResumableLoader | StreamingLoader | None = None
        self._restored: dict[str, Any] | None = None

    @abstractmethod
    def images(self, split: str) -> ImageSource:
        """Images of "train", "val" or "test", unquantised, in [0, 1]."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    def dataset(self, split: str, dequantized: bool = True) -> DequantizedImages:
        """Images of a split in ``data_range``, by (epoch, index).

        Args:
            split: "train", "val" or "test".
            dequantized: False for the images as they are, only mapped to ``data_range``.
        """
        check_split(split)
        return DequantizedImages(
            self.images(split),
            split,
            self.n_bits if dequantized else None,
            self.data_range,
            self.seed,
            self.horizontal_flips and dequantized and split == "train",
        )

    def check(self, world_size: int) -> None:
        """Raise a ValueError unless there are images, and enough for a batch of all processes."""
        GlobalBatchSampler(len(self.images("train")), self.batch_size, world_size=world_size)
        if not len(self.images("val")):
            raise ValueError("data: there are no validation images, expected at least 1")

    def batches(
        self,
        split: str,
        batch_size: int,
        indices: Sequence[int] | None = None,
        dequantized: bool = True,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """(indices, images (B, C, H, W)) in the order given, with the noise of epoch 0.

        Needs no trainer and starts no workers.

        Args:
            split: "train", "val" or "test".
            batch_size: images per batch; the last one may have fewer.
            indices: which images; all of the split by default.
            dequantized: False for the images as they are, as inversion uses them.
        """
        _require(batch_size >= 1, f"batch_size={batch_size}: expected at least 1")
        dataset = self.dataset(split, dequantized)
        wanted = list(range(len(dataset)) if indices is None else indices)
        parts = (wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size))
        return ((part, dataset.__getitems__([(0, index) for index in part])) for part in parts)

    def train_dataloader(self) -> "DataLoader | StreamingLoader":
        """Shuffled batches, new noise in each epoch; resumes in the middle of an epoch."""
        if self.trainer is not None and self.trainer.overfit_batches:
            # Its meaning is "the same few batches in each epoch".
            return self._evaluation_loader("train")
        self._train_loader = self.resumable_loader()
        if self._restored is not None:
            self._train_loader.load_state_dict(self._restored)
        return self._train_loader

    def resumable_loader(self) -> "ResumableLoader | StreamingLoader":
        """Training batches, from the first epoch."""
        dataset = self.dataset("train")
        sampler = GlobalBatchSampler(len(dataset), self.batch_size, self.seed, *self._process())
        return ResumableLoader(dataset, sampler, **self._loader_options())

    def state_dict(self) -> dict[str, Any]:
        """Where training is; Lightning restores loaders only within an epoch, not after one."""
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, with the next training loader."""
        self._restored = state_dict.get("train")

    def val_dataloader(self) -> DataLoader:
        """Each validation image once, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        """Each test image once, in order."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset = self.dataset(split)
        sampler = GlobalBatchSampler(
            len(dataset),
            self.batch_size,
            self.seed,
            *self._process(),
            shuffle=False,
            drop_last=False,
        )
        return evaluation_loader(dataset, sampler, **self._loader_options())

    def _process(self) -> tuple[int, int]:
        """(rank, world_size)."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader_options(self) -> dict[str, bool | int]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self.pin_memory and torch.cuda.is_available(),
        }


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
