"""MNIST and CIFAR-10, in the files that torchvision downloads."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock
from torchvision import datasets

from datamodules.base import ImageDataModule, check_split
from datamodules.dequantize import DataError
from datamodules.sources import ArrayImages


class TorchvisionModule(ImageDataModule):
    """Small images in memory; the last ``held_out`` training images are for validation.

    Args:
        root: folder that holds torchvision's ``MNIST/raw`` or ``cifar-10-batches-py``.
        download: fetch the files if they are not there; one process does, the others wait for it.
        **options: of ``ImageDataModule``.
    """

    held_out: ClassVar[int]

    def __init__(self, root: str = "data", download: bool = False, **options: Any) -> None:
        super().__init__(32, **options)
        self.root = root
        self.download = download

    @abstractmethod
    def read(self, train: bool) -> np.ndarray:
        """Training or test images (N, C, 32, 32), uint8; a RuntimeError if they are not there."""

    def images(self, split: str) -> ArrayImages:
        """Images of "train", "val" or "test", unquantised.

        Raises:
            DataError: torchvision does not find its files.
        """
        check_split(split)
        if self.download:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            with FileLock(Path(self.root) / f".{type(self).__name__}.lock"):
                return self._images(split)
        return self._images(split)

    def _images(self, split: str) -> ArrayImages:
        name = type(self).__name__
        try:
            pixels = self.read(split != "test")
        except (RuntimeError, OSError) as error:
            if self.download:
                reason = " ".join(str(error).split())
                raise DataError(
                    f"data.root={self.root}: no download of {name}: {reason}"
                ) from error
            raise DataError(
                f"data.root={self.root}: torchvision's files of {name} are not there, or not the "
                "original ones; --data.download true fetches them (docs/data.md)"
            ) from error
        cut = len(pixels) - self.held_out
        return ArrayImages({"train": pixels[:cut], "val": pixels[cut:], "test": pixels}[split])


class MNIST(TorchvisionModule):
    """Handwritten digits: 55000 / 5000 / 10000, one channel, 28x28 with two black pixels around.

    Args:
        root: folder that holds ``MNIST/raw/``.
        download: fetch the files if they are not there; one process does, the others wait for it.
        **options: of ``ImageDataModule``.
    """

    channels = 1
    held_out = 5000

    def read(self, train: bool) -> np.ndarray:
        """Training or test images (N, 1, 32, 32), uint8."""
        pixels = datasets.MNIST(self.root, train, download=self.download).data.numpy()
        return np.pad(pixels[:, None], ((0, 0), (0, 0), (2, 2), (2, 2)))


class CIFAR10(TorchvisionModule):
    """Small photographs of ten kinds of things: 45000 / 5000 / 10000, 32x32.

    Args:
        root: folder that holds ``cifar-10-batches-py/``.
        download: fetch the files if they are not there; one process does, the others wait for it.
        checksums: refuse files that are not the original ones. They are pickles, which can run
            anything when they are read: without checksums use only files of your own.
        **options: of ``ImageDataModule``.
    """

    held_out = 5000

    def __init__(
        self, root: str = "data", download: bool = False, checksums: bool = True, **options: Any
    ) -> None:
        super().__init__(root, download, **options)
        self.checksums = checksums

    def read(self, train: bool) -> np.ndarray:
        """Training or test images (N, 3, 32, 32), uint8."""
        reader = datasets.CIFAR10 if self.checksums else _UncheckedCIFAR10
        pixels = reader(self.root, train, download=self.download).data
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


class _UncheckedCIFAR10(datasets.CIFAR10):
    """Torchvision's reader, where a checksum of None asks only whether the file is there."""

    train_list: ClassVar = [[name, None] for name, _ in datasets.CIFAR10.train_list]
    test_list: ClassVar = [[name, None] for name, _ in datasets.CIFAR10.test_list]
    meta: ClassVar = {**datasets.CIFAR10.meta, "md5": None}
