"""Pictures where they are, decoded when they are asked for."""

import os
from collections.abc import Iterator, Sequence
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

    def __len__(self) -> int: ...

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

    def __len__(self) -> int:
        return len(self.names)

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
        return len(self.pictures)

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
            name = printable(self.pictures.names[index])
            raise ImageError(
                f"image {name} {error}; python -m datamodules.prepare makes a set without such "
                "images (docs/data.md)"
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
    """Image files of a folder and its subfolders, sorted, as paths relative to it.

    Hidden files and folders are passed over, links to folders elsewhere are followed.
    """
    return sorted(path.relative_to(folder).as_posix() for path in _image_files(folder, set()))


def _image_files(folder: Path, walked: set[Path]) -> Iterator[Path]:
    """Image files below a folder; ``walked`` are the folders that links have led to before."""
    walked.add(folder.resolve())
    links = []
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [Path(path, name) for name in folders if Path(path, name).is_symlink()]
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(path, name)
    for link in sorted(links):
        target = link.resolve()
        if not any(a.is_relative_to(b) for w in walked for a, b in ((target, w), (w, target))):
            yield from _image_files(link, walked)


def printable(name: str) -> str:
    """The name of a file, which need not be UTF-8, as text."""
    return name.encode(errors="backslashreplace").decode()


def split_of(name: str, val_fraction: float, test_fraction: float) -> str:
    """The split of a name, by its hash: other names that come or go do not change it."""
    position = int(digest(os.fsencode(name)), 16) / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def digest(data: bytes) -> str:
    """16 hexadecimal digits."""
    return blake2b(data, digest_size=8).hexdigest()
