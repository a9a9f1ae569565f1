"""Measured data, read from a file."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError


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

    @classmethod
    def load(cls, path: str | Path) -> "Observations":
        """Read a ``.npy`` file (y), or a ``.npz`` file with y and optionally truth and start.

        Raises:
            DataError: there is no such file, or it holds something else.
        """
        arrays = _read(Path(path))
        unknown = sorted(arrays.keys() - {"y", "truth", "start"})
        if "y" not in arrays or unknown:
            raise DataError(
                f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; expected y, and if known "
                "truth and start"
            )
        tensors = {name: _tensor(path, name, array) for name, array in arrays.items()}
        found = cls(**tensors)
        for name in ("truth", "start"):
            images = tensors.get(name)
            if images is not None and (images.ndim != 4 or len(images) != len(found.y)):
                raise DataError(
                    f"{path}: {name} must be ({len(found.y)}, C, H, W), one image for each row of "
                    f"y, got {tuple(images.shape)}"
                )
            if images is not None and (images.is_complex() or not _in_range(images)):
                raise DataError(
                    f"{path}: {name} must be in [0, 1], got {images.real.min():.3g} to "
                    f"{images.real.max():.3g}"
                )
        return found


def _in_range(images: Tensor) -> bool:
    """Whether images are in [0, 1], except for what an interpolation may overshoot."""
    return float(images.min()) >= -0.5 and float(images.max()) <= 1.5


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"there is no file of observations {path}")
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
