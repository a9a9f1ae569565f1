"""Data of pairs that were made once, by `datamodules.prepare_pairs`, and are kept in a folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from flowprior.io import atomic_path
from flowprior.own_code import file_digest
from flowprior.settings import changes

INFO = "pairs.json"
PART_ROWS = 32
"""Rows in each file but the last of a split: a kill loses at most so many."""


def part_path(folder: Path, split: str, number: int) -> Path:
    """File of the rows from ``number * PART_ROWS`` on."""
    return folder / split / f"{number:05d}.npy"


def write_part(path: Path, rows: Tensor) -> None:
    """Write rows (N, ...), float32; all of them or nothing."""
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        np.save(temporary, rows.numpy())


def read_part(path: Path, shape: Sequence[int], sha256: str | None = None) -> np.ndarray:
    """Rows of a file, mapped, float32.

    Args:
        path: the file.
        shape: of the rows, with their number.
        sha256: of the file, if it is known.

    Raises:
        DataError: there is no such file, or it has something else.
    """
    try:
        rows = np.load(path, mmap_mode="r")
        known = sha256 is None or file_digest(path) == sha256
    except (OSError, ValueError, EOFError) as error:
        raise _bad_part(path) from error
    if rows.shape != tuple(shape) or rows.dtype != np.float32 or not known:
        raise _bad_part(path)
    return rows


def read_pairs_info(folder: Path) -> dict[str, Any] | None:
    """What is in a folder, or None if that is nothing; a DataError if it is damaged."""
    path = folder / INFO
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text())
        if not all(name in info for name in ("finished", "shape", "pairs")):
            raise ValueError(info)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: remove the folder and prepare it again") from error
    return info


def check_described(folder: Path, info: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a DataError unless a folder's data are of these images, this operator and noise."""
    changed = changes({name: info.get(name) for name in wanted}, wanted)
    if changed:
        raise DataError(
            f"data.folder={folder} has other pairs ({'; '.join(changed[:3])}): give another "
            "--data.folder, or remove it to make them anew"
        )


class StoredData:
    """Data of one split in a folder, mapped, not loaded.

    Args:
        folder: that `prepare_pairs` has finished.
        split: "train", "val" or "test".
        count: number of rows.
        shape: of a row.
        digests: SHA-256 of each file, which is compared when the file is first read.
    """

    def __init__(
        self, folder: Path, split: str, count: int, shape: Sequence[int], digests: Sequence[str]
    ) -> None:
        self.folder, self.split, self.count, self.shape = folder, split, count, tuple(shape)
        self.digests = digests
        self._parts: dict[int, np.ndarray] = {}

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Rows (B, ...), float32."""
        return torch.from_numpy(np.stack([self._row(index) for index in indices]))

    def check(self) -> None:
        """Raise a DataError unless all files are there and have their size."""
        for number in range(len(self.digests)):
            read_part(*self._described(number))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": {}}  # each process maps the files itself

    def _row(self, index: int) -> np.ndarray:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.folder}: index {index}, expected 0 to {self.count - 1}")
        number, place = divmod(index, PART_ROWS)
        if number not in self._parts:
            digest = self.digests[number]
            self._parts[number] = read_part(*self._described(number), digest)
        return self._parts[number][place]

    def _described(self, number: int) -> tuple[Path, tuple[int, ...]]:
        """A file and the shape of its rows."""
        rows = min(PART_ROWS, self.count - number * PART_ROWS)
        return part_path(self.folder, self.split, number), (rows, *self.shape)


def _bad_part(path: Path) -> DataError:
    return DataError(
        f"{path} is {'damaged' if path.exists() else 'missing'}: run python -m "
        "datamodules.prepare_pairs again, which makes it anew"
    )
