"""Arrays that figures need, kept beside the records so that a finished run can be redrawn."""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections import Counter
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


def unique_file_name(name: str) -> str:
    """The same with digits that tell it from those of all other names.

    >>> unique_file_name("flow+") != unique_file_name("flow")
    True
    """
    return f"{file_name(name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def file_names(names: Iterable[str]) -> dict[str, str]:
    """File names of all names, with digits only where two would be one.

    >>> list(file_names(["flow", "total variation"]).values())
    ['flow', 'total-variation']
    """
    found = {name: file_name(name) for name in names}
    alike = Counter(found.values())
    return {
        name: plain if alike[plain] == 1 else unique_file_name(name)
        for name, plain in found.items()
    }


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays or tensors to an ``.npz`` file, all of them or nothing."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez(temporary, **{key: to_numpy(array) for key, array in arrays.items()})


class ArrayStore:
    """Named groups of arrays, one ``.npz`` file each.

    Save inside `Evaluation.evaluate`, under a name that follows from the cell and the image:
    records are written after it returns, so an image that has a record has its arrays too.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Keep arrays or tensors under a name, in place of those that had it before."""
        save_arrays(self._path(name), arrays)

    def load(self, name: str) -> dict[str, np.ndarray]:
        """The arrays kept under a name; ValueError if there are none, or damaged ones."""
        import numpy as np

        try:
            with np.load(self._path(name), allow_pickle=False) as arrays:
                return dict(arrays)
        except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{self._path(name)}, which belongs to a record, is missing or damaged: remove "
                f"{self.folder.parent} to measure anew"
            ) from error

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        return self.folder / f"{unique_file_name(name)}.npz"
