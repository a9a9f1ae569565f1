"""Pictures where they are, decoded when they are asked for."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from datamodules.decoding import read_square
from datamodules.dequantize import ImageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Pictures(Protocol):
    """Encoded images of one split, in a fixed order."""

    names: Sequence[str]

    def data(self, index: int) -> Path | bytes:
        """A file, or the bytes of one."""


class Files:
    """Image files of a folder.

    Args:
        folder: where they are.
        names: paths relative to it.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names

    def data(self, index: int) -> Path:
        """The file of a name."""
        return self.folder / self.names[index]


class DecodedPictures:
    """Pictures as float32 (C, image_size, image_size) in [0, 1], decoded when asked for."""

    def __init__(self, pictures: Pictures, image_size: int, channels: int) -> None:
        self.pictures = pictures
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.pictures.names)

    def __getitem__(self, index: int) -> Tensor:
        """(C, image_size, image_size)."""
        return torch.from_numpy(self.pixels([index])[0]).float().div_(255)

    def pixels(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Arrays (C, image_size, image_size), uint8.

        Raises:
            ImageError: one cannot be used; the message names it and says how to skip such images.
        """
        return [self._pixels(index) for index in indices]

    def _pixels(self, index: int) -> np.ndarray:
        try:
            return read_square(self.pictures.data(index), self.image_size, self.channels)
        except ImageError as error:
            raise ImageError(
                f"image {self.pictures.names[index]} {error}; python -m datamodules.prepare makes "
                "a set without such images (docs/data.md)"
            ) from error


class ArrayImages:
    """Images in memory as float32 (C, H, W) in [0, 1].

    Args:
        arrays: (N, C, H, W), uint8.
    """

    def __init__(self, arrays: np.ndarray) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Tensor:
        """(C, H, W)."""
        return torch.from_numpy(self.arrays[index]).float().div_(255)

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, C, H, W), uint8."""
        return self.arrays[list(indices)]


def image_names(folder: Path) -> list[str]:
    """Image files of a folder and its subfolders, sorted, as paths relative to it."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        path.relative_to(folder).as_posix() for path in files if not path.name.startswith(".")
    )


def split_of(name: str, val_fraction: float, test_fraction: float) -> str:
    """The split of a name, by its hash: other names that come or go do not change it."""
    position = int(digest(name.encode()), 16) / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def digest(data: bytes) -> str:
    """16 hexadecimal digits."""
    return blake2b(data, digest_size=8).hexdigest()
