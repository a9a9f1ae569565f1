"""Arrays that figures need, kept beside the records so that a finished run can be redrawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowprior.figures import to_numpy
from flowprior.io import atomic_path

if TYPE_CHECKING:
    import numpy as np


def file_name(name: str) -> str:
    """A name as part of a file name: anything but letters, digits, ``_`` and ``-`` becomes ``-``.

    >>> file_name("SNR 10 dB/glow")
    'SNR-10-dB-glow'
    """
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "unnamed"


class ArrayStore:
    """Named groups of arrays, one ``.npz`` file each.

    Save inside `Evaluation.evaluate`, under a name that follows from the cell and the image:
    records are written after it returns, so an image that has a record has its arrays too.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Keep arrays or tensors under a name, in place of those that had it before."""
        import numpy as np

        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path(name)) as path:
            np.savez(path, **{key: to_numpy(array) for key, array in arrays.items()})

    def load(self, name: str) -> dict[str, np.ndarray]:
        """The arrays kept under a name; KeyError if there are none."""
        import numpy as np

        if name not in self:
            raise KeyError(f"no arrays {name!r} in {self.folder}")
        with np.load(self._path(name), allow_pickle=False) as arrays:
            return dict(arrays)

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        return self.folder / f"{file_name(name)}.npz"
