"""Arrays kept beside the records, so that a finished run can be redrawn."""

import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowprior.figures import to_numpy
from flowprior.io import atomic_path


def file_names(names: Iterable[str]) -> dict[str, str]:
    """File names of all names, numbered where two would be one.

    Anything but letters, digits, ``_`` and ``-`` becomes ``-``.

    >>> list(file_names(["flow", "SNR 10 dB/glow", "flow+"]).values())
    ['flow', 'SNR-10-dB-glow', 'flow-2']
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w-]+", "-", name).strip("-")[:150] or "unnamed"
        file, number = plain, 1
        while file.casefold() in taken:
            number += 1
            file = f"{plain}-{number}"
        taken.add(file.casefold())
        found[name] = file
    return found


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays or tensors to an ``.npz`` file, all of them or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez(temporary, **{key: to_numpy(array) for key, array in arrays.items()})


class ArrayStore:
    """Arrays of images, one ``.npz`` file for each: ``<cell>/<image>.npz``.

    The cell is its `Cell.key`. Save inside `Evaluation.evaluate`: records are written after it
    returns, so an image that has a record has its arrays too.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, cell: str, image: int, arrays: Mapping[str, Any]) -> None:
        """Keep arrays or tensors of an image, in place of those that it had before."""
        save_arrays(self._path(cell, image), arrays)

    def has(self, cell: str, image: int) -> bool:
        """Whether arrays of an image are kept."""
        return self._path(cell, image).exists()

    def load(self, cell: str, image: int) -> dict[str, np.ndarray]:
        """The arrays of an image; ValueError if they are missing or damaged."""
        path = self._path(cell, image)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path}, which belongs to a record, is missing or damaged: remove "
                f"{self.folder.parent} to measure anew"
            ) from error

    def _path(self, cell: str, image: int) -> Path:
        return self.folder / cell / f"{image}.npz"
