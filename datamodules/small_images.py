"""MNIST and CIFAR-10, in the files that torchvision downloads."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from datamodules.base import ImageDataModule, check_split
from datamodules.dequantize import ArrayImages
from datamodules.errors import DataError, require
from flowprior.argument_types import check_types

MNIST_SUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 of MNIST's files, which torchvision checks only when it downloads them."""


class TorchvisionModule(ImageDataModule):
    """Small images in memory; the last 5000 training images are for validation."""

    max_bits = 8

    def __init__(self, root: str, download: bool, image_size: int, **options: Any) -> None:
        super().__init__(image_size, **options)
        self.root = root
        self.download = download
        self._kept: dict[bool, tuple[np.ndarray, np.ndarray | None]] = {}

    @abstractmethod
    def _read(self, train: bool) -> np.ndarray:
        """Training or test images (N, C, H, W), uint8; a RuntimeError if files are not original."""

    def images(self, split: str) -> ArrayImages:
        """Images of a split, unquantised; a DataError if files are missing or not original.

        The files are read once: checking them takes longer than what most callers want of them.
        """
        check_split(split)
        train = split != "test"
        if train not in self._kept:
            self._kept[train] = self._checked(train)
        pixels, wanted = self._kept[train]
        parts = {"train": slice(-5000), "val": slice(-5000, None), "test": slice(None)}
        pixels = pixels[parts[split]]
        return ArrayImages(pixels if wanted is None else pixels[wanted[parts[split]]])

    def _wanted(self, train: bool) -> np.ndarray | None:
        """Which training or test images are wanted (N,); None for all of them."""
        return None

    def _checked(self, train: bool) -> tuple[np.ndarray, np.ndarray | None]:
        name = type(self).__name__
        lock = FileLock(Path(self.root) / f".{name}.lock") if self.download else nullcontext()
        try:
            with lock:
                return self._read(train), self._wanted(train)
        except (RuntimeError, OSError) as error:
            advice = "`download: true` of the data fetches them (docs/data.md)"
            reason = " ".join(str(error).split()) if self.download else advice
            raise DataError(
                f"data.root={self.root}: the files of {name} are missing or not the original ones: "
                f"{reason}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the images, which another process reads for itself."""
        return {**vars(self), "_kept": {}}


class MNIST(TorchvisionModule):
    """Handwritten digits: 55000 / 5000 / 10000, one channel.

    Args:
        root: folder that holds ``MNIST/raw/``.
        download: fetch files that are missing or damaged; one process does, the others wait.
        image_size: 28 for the digits as they are, or a larger even number for black pixels around
            them, such as 32.
        digits: which ones, such as ``[0, 1, 2]``, to train on some and test on others; None for
            all ten.
        **options: of ``ImageDataModule``.
    """

    channels = 1

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        *,
        image_size: int = 28,
        digits: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        check_types(MNIST.__init__, locals(), "data.")
        known = digits is None or (len(digits) > 0 and set(digits) <= set(range(10)))
        require(known, "digits", digits, "some of 0, 1, ..., 9")
        self.digits = digits
        sizes = "28, or a larger even number for black pixels around the digits"
        require(image_size >= 28 and image_size % 2 == 0, "image_size", image_size, sizes)
        super().__init__(root, download, image_size, **options)

    def _read(self, train: bool) -> np.ndarray:
        raw = Path(self.root) / "MNIST" / "raw"
        if self.download:
            for name, md5 in MNIST_SUMS.items():
                if not check_integrity(raw / name, md5):
                    (raw / name).unlink(missing_ok=True)  # torchvision keeps any file that is there
            datasets.MNIST(self.root, download=True)
        pixels = self._bytes(train, "images-idx3", 16).reshape(-1, 1, 28, 28)
        border = (self.image_size - 28) // 2
        return np.pad(pixels, ((0, 0), (0, 0), (border, border), (border, border)))

    def _wanted(self, train: bool) -> np.ndarray | None:
        if self.digits is None:
            return None
        return np.isin(self._bytes(train, "labels-idx1", 8), list(self.digits))

    def _bytes(self, train: bool, kind: str, header: int) -> np.ndarray:
        """What a file has behind its header."""
        name = f"{'train' if train else 't10k'}-{kind}-ubyte"
        path = Path(self.root) / "MNIST" / "raw" / name
        if not check_integrity(path, MNIST_SUMS[name]):
            raise RuntimeError(f"{name} is missing or damaged")
        return np.fromfile(path, np.uint8, offset=header)


class CIFAR10(TorchvisionModule):
    """Small photographs of ten kinds of things: 45000 / 5000 / 10000, 32x32.

    The files are pickles, which can run any code when they are read, so only the original ones are.

    Args:
        root: folder that holds ``cifar-10-batches-py/``.
        download: fetch files that are missing or damaged; one process does, the others wait.
        **options: of ``ImageDataModule``.
    """

    def __init__(self, root: str = "data", download: bool = False, **options: Any) -> None:
        check_types(CIFAR10.__init__, locals(), "data.")
        super().__init__(root, download, image_size=32, **options)

    def _read(self, train: bool) -> np.ndarray:
        pixels = datasets.CIFAR10(self.root, train, download=self.download).data
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
