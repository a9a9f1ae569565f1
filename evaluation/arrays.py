"""Arrays that figures need, kept beside the records so that a finished run can be redrawn."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowprior.figures import to_numpy
from flowprior.io import atomic_path

if TYPE_CHECKING:
    import numpy as np

_LONGEST = 150


def file_name(name: str) -> str:
    """A name as part of a file name: anything but letters, digits, ``_`` and ``-`` becomes ``-``.

    >>> file_name("SNR 10 dB/glow")
    'SNR-10-dB-glow'
    """
    return re.sub(r"[^\w-]+", "-", name).strip("-")[:_LONGEST] or "unnamed"


def file_names(names: Iterable[str]) -> dict[str, str]:
    """File names of all names, numbered where two would be one.

    >>> list(file_names(["flow", "total variation", "flow+"]).values())
    ['flow', 'total-variation', 'flow-2']
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = candidate = file_name(name)
        number = 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{plain}-{number}"
        taken.add(candidate.casefold())
        found[name] = candidate
    return found


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays or tensors to an ``.npz`` file, all of them or nothing."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez(temporary, **{key: to_numpy(array) for key, array in arrays.items()})


class ArrayStore:
    """Arrays of images, one ``.npz`` file for each group and image: ``<group>/<image>.npz``.

    The group is `Cell.key`, or what else tells a set of images from others, without ``/``. Save
    inside `Evaluation.evaluate`: records are written after it returns, so an image that has a
    record has its arrays too.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, group: str, image: int, arrays: Mapping[str, Any]) -> None:
        """Keep arrays or tensors of an image, in place of those that it had before."""
        save_arrays(self._path(group, image), arrays)

    def has(self, group: str, image: int) -> bool:
        """Whether arrays of an image are kept."""
        return self._path(group, image).exists()

    def load(self, group: str, image: int) -> dict[str, np.ndarray]:
        """The arrays of an image; ValueError if they are missing or damaged."""
        import numpy as np

        path = self._path(group, image)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path}, which belongs to a record, is missing or damaged: remove "
                f"{self.folder.parent} to measure anew"
            ) from error

    def clean(self) -> None:
        """Remove half-written files of processes that were killed; nobody may be writing."""
        for path in self.folder.glob("*/.*.npz"):
            path.unlink()

    def _path(self, group: str, image: int) -> Path:
        return self.folder / group / f"{image}.npz"
