"""What all image data sets share: splits, dequantisation, global batches, exact resume."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from datamodules.batches import GlobalBatchSampler, ResumableLoader
from datamodules.dequantize import DequantizedImages, ImageSource
from datamodules.errors import require
from datamodules.prepared_rows import PreparedRows

SPLITS = ("train", "val", "test")


def check_split(split: str) -> None:
    """Raise a ValueError unless ``split`` is "train", "val" or "test"."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")


class ImageDataModule(pl.LightningDataModule, ABC):
    """Batches of images, float32 (B, C, H, W) in ``data_range``; a subclass provides ``images``.

    Training noise is new in each epoch; validation and test noise is always the same. Neither the
    noise nor the order depends on the number of processes, workers or images per batch. A
    ``Trainer`` on several processes needs ``use_distributed_sampler=False``, because the batches
    are divided among processes here.

    Args:
        image_size: H = W, in pixels.
        batch_size: number of images per step, over all processes.
        n_bits: 1 to 16, or to 8 for 8-bit images: quantise to this many bits and add uniform
            noise. None for the images as they are; their likelihood means nothing if they have
            constant areas.
        data_range: (lower, upper) of the batches.
        num_workers: number of loading processes per training process.
        seed: of order, noise and flips.
        horizontal_flips: mirror half of the training images, different ones in each epoch.
        flat_noise: where a pixel has the level of all its neighbours, take normal noise of a sixth
            of a level instead of uniform noise. A flow fits it with fewer bits: uniform noise costs
            it up to 0.25 bits in each pixel of a flat area. It needs `n_bits`.

    Attributes:
        prepared: by split, what a training has prepared of the images; its loaders give that
            instead.

    Raises:
        ValueError: an option is out of its range.
    """

    channels = 3
    max_bits: ClassVar[int] = 16

    def __init__(
        self,
        image_size: int,
        batch_size: int = 64,
        n_bits: int | None = 8,
        data_range: tuple[float, float] = (-0.5, 0.5),
        num_workers: int = 0,
        seed: int = 0,
        horizontal_flips: bool = False,
        flat_noise: bool = False,
    ) -> None:
        super().__init__()
        bits = f"1 to {self.max_bits}, or null for no quantisation"
        ordered = len(data_range) == 2 and data_range[0] < data_range[1]
        flat = not flat_noise or n_bits is not None
        require(image_size >= 1, "image_size", image_size, "at least 1")
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        require(n_bits is None or 1 <= n_bits <= self.max_bits, "n_bits", n_bits, bits)
        require(ordered, "data_range", data_range, "(lower, upper) with lower < upper")
        require(num_workers >= 0, "num_workers", num_workers, "0 or more")
        require(0 <= seed < 2**64, "seed", seed, "0 to 2^64 - 1")
        require(flat, "flat_noise", "true", "a number of bits in data.n_bits, got null")
        self.image_size = image_size
        self.batch_size = batch_size
        self.n_bits = n_bits
        self.data_range = tuple(data_range)
        self.num_workers = num_workers
        self.seed = seed
        self.horizontal_flips = horizontal_flips
        self.flat_noise = flat_noise
        self.prepared: dict[str, PreparedRows] = {}
        self._train_loader: ResumableLoader | None = None
        self._restored: dict[str, Any] | None = None

    @abstractmethod
    def images(self, split: str) -> ImageSource:
        """Images of "train", "val" or "test", unquantised."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    def fingerprint(self, split: str = "test") -> dict[str, Any]:
        """Everything that the images of a split and their noise depend on, JSON-like."""
        images = self.images(split)
        return {
            "class": type(self).__name__,
            "split": split,
            "image_shape": list(self.image_shape),
            "n_bits": self.n_bits,
            "data_range": list(self.data_range),
            "seed": self.seed,
            "horizontal_flips": self.horizontal_flips and split == "train",
            **({"flat_noise": True} if self.flat_noise else {}),
            "images": len(images),
            "digest": images.digest(),
        }

    def dataset(self, split: str, dequantized: bool = True) -> Dataset:
        """What batches of a split are made of, by (epoch, index): the images."""
        return self.image_dataset(split, dequantized)

    def image_dataset(self, split: str, dequantized: bool = True) -> DequantizedImages:
        """Images of a split by (epoch, index), in ``data_range``; with noise if ``dequantized``."""
        check_split(split)
        return DequantizedImages(
            self.images(split),
            split,
            self.n_bits if dequantized else None,
            self.data_range,
            self.seed,
            self.horizontal_flips and dequantized and split == "train",
            self.flat_noise,
        )

    def check(self, world_size: int) -> None:
        """Raise a ValueError unless there are images, and enough for a batch of all processes."""
        GlobalBatchSampler(len(self.images("train")), self.batch_size, world_size=world_size)
        found = len(self.images("val"))
        if found < world_size:
            least = f"{world_size}, one for each process" if world_size > 1 else "1"
            raise ValueError(
                f"data: there are {found or 'no'} validation images, expected at least {least}: "
                "raise data.val_fraction or add images"
            )

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
            indices: of the images; all of the split by default.
            dequantized: False for the images as they are, only mapped to ``data_range``.
        """
        return in_order(self.image_dataset(split, dequantized), batch_size, indices)

    def unit_images(self, split: str, indices: Sequence[int]) -> Tensor:
        """Images (B, C, H, W) of a split as they are, in [0, 1]: for operators and metrics."""
        _, images = next(self.batches(split, len(indices), list(indices), dequantized=False))
        low, high = self.data_range
        return (images - low) / (high - low)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, new noise in each epoch; resumes in the middle of an epoch."""
        if self.trainer is not None and self.trainer.overfit_batches:
            # Its meaning is "the same few batches in each epoch".
            return self._loader("train", training=False)
        self._train_loader = self._loader("train", training=True)
        if self._restored is not None:
            self._train_loader.load_state_dict(self._restored)
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """Where training is; Lightning restores loaders only within an epoch, not after one."""
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, with the next training loader."""
        self._restored = state_dict.get("train")

    def val_dataloader(self) -> DataLoader:
        """Each validation image once, in order."""
        return self._loader("val", training=False)

    def test_dataloader(self) -> DataLoader:
        """Each test image once, in order."""
        return self._loader("test", training=False)

    def _loader(self, split: str, training: bool) -> DataLoader:
        prepared, process = self.prepared.get(split), (0, 1)
        dataset = self.dataset(split) if prepared is None else prepared
        workers = self.num_workers if prepared is None else 0
        if self.trainer is not None:
            process = (self.trainer.global_rank, self.trainer.world_size)
        sampler = GlobalBatchSampler(len(dataset), self.batch_size, self.seed, *process, training)
        return (ResumableLoader if training else DataLoader)(
            dataset,
            batch_sampler=sampler,
            collate_fn=default_convert,  # the data set gives whole batches
            # A loader that drew its workers' seed from the global generator would change the
            # model's random numbers at each (re)start.
            generator=torch.Generator(),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def in_order(
    dataset: Dataset, batch_size: int, indices: Sequence[int] | None
) -> Iterator[tuple[list[int], Any]]:
    """(indices, batch of epoch 0) of a data set by (epoch, index), all of it by default."""
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    wanted = list(range(len(dataset)) if indices is None else indices)
    parts = (wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size))
    return ((part, dataset.__getitems__([(0, index) for index in part])) for part in parts)
