"""Pairs of images and data of one's own, from two files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import SPLITS, check_split
from datamodules.dequantize import ImageSource
from datamodules.errors import DataError, require
from datamodules.pairs import PairDataModule
from flowprior.argument_types import check_types
from flowprior.checks import check_positive
from flowprior.physics import ScaledData

_AT_ONCE = 256


class FileRows(ImageSource):
    """Some of the rows of an array in a file: images, or data for their digest."""

    def __init__(self, arrays: np.ndarray, numbers: range) -> None:
        self.arrays, self.numbers = arrays, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, ...), uint8 or float32."""
        found = self.arrays[[self.numbers[index] for index in indices]]
        return found if found.dtype == np.uint8 else found.astype(np.float32)


class ArrayPairs(PairDataModule):
    """Images x and data y of them in two ``.npy`` files, however they were measured or made.

    The last `num_test` pairs are the test ones, the `num_val` before them the validation ones: put
    pairs that resemble each other, such as slices of one patient, side by side. Files are read
    piece by piece, may be larger than the memory, and must not change while they are in use.

    Args:
        x: file of images (N, C, S, S): bytes, or floating-point numbers in [0, 1].
        y: file of real, finite data (N, ...), a row for each image.
        num_val: number of validation pairs.
        num_test: number of test pairs.
        scale: the flow is given scale·y; flows are best given numbers of about 1.
        batch_size: this and all others as for `ImageDataModule`.

    Raises:
        DataError: there is no such file, or it holds something else.
        ValueError: another option is out of its range.
    """

    def __init__(
        self,
        x: Path,
        y: Path,
        num_val: int,
        num_test: int,
        scale: float = 1.0,
        batch_size: int = 64,
        n_bits: int | None = 8,
        data_range: tuple[float, float] = (-0.5, 0.5),
        num_workers: int = 0,
        seed: int = 0,
        flat_noise: bool = False,
    ) -> None:
        check_types(ArrayPairs.__init__, locals(), "data.")
        check_positive("data.scale", scale)
        for name, number in (("num_val", num_val), ("num_test", num_test)):
            require(number >= 1, name, number, "at least 1")
        self.files = {"x": Path(x), "y": Path(y)}
        self._x, self._y = (_opened(name, path) for name, path in self.files.items())
        self._check_shapes()
        self._shapes = self._x.shape, self._y.shape
        require(
            n_bits is None or n_bits <= 8 or self._x.dtype != np.uint8,
            "n_bits",
            n_bits,
            "1 to 8 for images of bytes",
        )
        self.channels, size = self._x.shape[1:3]
        options = (batch_size, n_bits, data_range, num_workers, seed)
        super().__init__(size, *options, flat_noise=flat_noise)
        self.conditioning = ScaledData(scale)
        count = len(self._x)
        least = count - num_val - num_test
        require(least >= 1, "num_val + num_test", num_val + num_test, f"fewer than {count} pairs")
        ends = (0, least, least + num_val, count)
        self.numbers = {s: range(*ends[i : i + 2]) for i, s in enumerate(SPLITS)}

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """That of y."""
        return self._y.shape[1:]

    def images(self, split: str) -> FileRows:
        """The images of "train", "val" or "test"."""
        check_split(split)
        return FileRows(self._x, self.numbers[split])

    def conditions(self, split: str, indices: Sequence[int]) -> Tensor:
        """scale·y (B, ...), float32."""
        return self.conditioning.scale * self.measured(split, indices)

    def measured(self, split: str, indices: Sequence[int]) -> Tensor:
        """The data y (B, ...) as they are in the file, float32: for `invert`."""
        check_split(split)
        numbers = self.numbers[split]
        return torch.from_numpy(_single(self._y[[numbers[index] for index in indices]]))

    def check(self, world_size: int) -> None:
        """See ``PairDataModule``; also that all numbers in the files are what they should be."""
        super().check(world_size)
        for start in range(0, len(self._x), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            x, y = self._x[rows], self._y[rows]
            if x.dtype != np.uint8 and not ((x >= 0) & (x <= 1)).all():
                self._refuse("x", start, (x >= 0) & (x <= 1), "in [0, 1]")
            given = np.isfinite(np.float32(self.conditioning.scale) * _single(y))
            if not given.all():
                self._refuse("y", start, given, "scale·y to be finite in single precision")

    def fingerprint(self, split: str = "test") -> dict[str, Any]:
        """See ``ImageDataModule``."""
        data = FileRows(self._y, self.numbers[split]).digest()
        return {**super().fingerprint(split), "data": data, "scale": self.conditioning.scale}

    def _check_shapes(self) -> None:
        x, y = self._x, self._y
        if x.ndim != 4 or x.shape[2] != x.shape[3] or (x.dtype != np.uint8 and x.dtype.kind != "f"):
            raise DataError(
                f"data.x={self.files['x']}: expected square images (N, C, S, S), bytes or "
                f"floating-point numbers in [0, 1], got {x.dtype} {x.shape}"
            )
        if y.ndim < 2 or y.dtype.kind not in "fiu" or len(y) != len(x):
            hint = ": give real and imaginary parts as channels" if y.dtype.kind == "c" else ""
            raise DataError(
                f"data.y={self.files['y']}: expected real data ({len(x)}, ...), a row for each "
                f"image, got {y.dtype} {y.shape}{hint}"
            )

    def _refuse(self, name: str, start: int, fine: np.ndarray, expected: str) -> None:
        rows = start + np.flatnonzero(~fine.reshape(len(fine), -1).all(1))
        raise DataError(
            f"data.{name}={self.files[name]}: expected {expected}, which rows "
            f"{rows[:10].tolist()} are not"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_x", "_y")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._x, self._y = (_opened(name, path) for name, path in self.files.items())
        for name, found, shape in zip("xy", (self._x, self._y), self._shapes, strict=True):
            if found.shape != shape:
                raise DataError(f"data.{name}={self.files[name]} has changed: {found.shape}")


def _single(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _opened(name: str, path: Path) -> np.ndarray:
    """The array of a file, whose numbers are read when they are asked for."""
    if not path.is_file():
        raise DataError(f"data.{name}={path}: there is no such file")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # what is no such file may raise anything
        raise DataError(f"data.{name}={path} is no .npy file of numbers") from error
    if not isinstance(found, np.ndarray) or 0 in found.shape:
        raise DataError(
            f"data.{name}={path}: expected one array that is not empty, as np.save makes"
        )
    return found
