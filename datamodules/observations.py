"""Measured data, read from a file."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from flowprior.argument_types import check_fields


@dataclass(frozen=True)
class Observations:
    """Measured data of n images, float32.

    Attributes:
        y: data (n, ...), finite, real or complex.
        truth: true images (n, C, H, W) in [0, 1], if known.
        start: starting images (n, C, H, W) in [0, 1], if any.
    """

    y: Tensor
    truth: Tensor | None = None
    start: Tensor | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def load(cls, path: str | Path) -> "Observations":
        """Read a ``.npy`` file (y), or a ``.npz`` file with y and optionally truth and start.

        Raises:
            DataError: there is no such file, or it holds something else.
        """
        arrays = _read(Path(path))
        if "y" not in arrays or arrays.keys() - {"y", "truth", "start"}:
            raise DataError(
                f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; expected y, and if known "
                "truth and start"
            )
        found = cls(**{name: _tensor(path, name, array) for name, array in arrays.items()})
        for name, images in (("truth", found.truth), ("start", found.start)):
            if images is not None:
                _check_images(images, len(found.y), f"{path}: {name}")
        return found


def _check_images(images: Tensor, count: int, name: str) -> None:
    """Raise a DataError unless images are about in [0, 1]: an interpolation may overshoot."""
    if images.ndim != 4 or len(images) != count:
        raise DataError(
            f"{name} must be ({count}, C, H, W), one image for each row of y, got "
            f"{tuple(images.shape)}"
        )
    low, high = images.real.min(), images.real.max()
    if images.is_complex() or low < -0.5 or high > 1.5:
        raise DataError(f"{name} must be in [0, 1], got {low:.3g} to {high:.3g}")


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"there is no file of observations {path}{where}")
    try:
        content = np.load(path, allow_pickle=False)
        return {"y": content} if isinstance(content, np.ndarray) else dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no .npy or .npz file of numbers: {error}") from error


def _tensor(path: str | Path, name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiuc" or array.ndim < 2 or 0 in array.shape:
        raise DataError(
            f"{path}: {name} must be an array of numbers (n, ...), not empty, got {array.dtype} "
            f"{array.shape}"
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.complex64 if array.dtype.kind == "c" else np.float32)
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if bad.any():
        raise DataError(
            f"{path}: {name} must be finite; rows {np.flatnonzero(bad)[:10].tolist()} have NaN or "
            "infinite entries, in single precision"
        )
    return torch.from_numpy(array)
