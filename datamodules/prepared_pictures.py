"""The format of a prepared set: Arrow files of 8-bit squares, memory-mapped."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import SPLITS
from datamodules.dequantize import ImageSource
from datamodules.errors import DataError
from flowprior.io import atomic_path

INFO = "prepared.json"
_SHARD_BYTES = 2**25
_SHARD_IMAGES = 4096


def shard_length(image_shape: tuple[int, int, int]) -> int:
    """Images per Arrow file: about 32 MiB of them."""
    return min(max(_SHARD_BYTES // prod(image_shape), 1), _SHARD_IMAGES)


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Arrow file of a split."""
    return folder / split / f"{number:05d}.arrow"


def write_shard(
    path: Path, names: Sequence[str], pixels: np.ndarray, skipped: Sequence[str]
) -> None:
    """Write names and pixels (N, C, H, W), uint8, and what was skipped; all of it or nothing."""
    import pyarrow as pa

    columns = {
        "name": pa.array(names, pa.string()),
        "pixels": pa.FixedSizeListArray.from_arrays(pixels.reshape(-1), prod(pixels.shape[1:])),
    }
    table = pa.table(columns).replace_schema_metadata({"skipped": json.dumps(skipped)})
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(names), 1))


def read_shard(path: Path) -> tuple[np.ndarray, list[str]]:
    """(pixels (N, C H W), what was skipped), mapped, not loaded; a DataError if damaged."""
    import pyarrow as pa

    try:
        # NumPy closes the file after mapping it, so the number of open files does not limit it.
        reader = pa.ipc.open_file(pa.py_buffer(np.memmap(path, mode="r")))
        column = reader.read_all()["pixels"]
    except (FileNotFoundError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise _damaged(path) from error
    skipped = json.loads(reader.schema.metadata[b"skipped"])
    if not len(column):
        return np.empty((0, column.type.list_size), np.uint8), skipped
    flat = column.chunk(0).flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(len(column), -1), skipped


class PreparedImages(ImageSource):
    """Images of one split of the prepared set in a folder, described by ``read_pictures_info``."""

    def __init__(self, folder: Path, split: str, info: Mapping[str, Any]) -> None:
        self.folder = folder
        self.split = split
        self.image_shape = (info["channels"], info["image_size"], info["image_size"])
        self._ends = [0, *accumulate(info["images"][split])]
        self._shards: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def pixels(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Arrays (C, H, W), uint8, mapped from the files."""
        return [self._pixels(index) for index in indices]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # each process maps the files itself

    def _pixels(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: index {index}, expected 0 to {len(self) - 1}")
        number = int(np.searchsorted(self._ends, index, side="right")) - 1
        if number not in self._shards:
            self._shards[number] = self._shard(number)
        return self._shards[number][index - self._ends[number]].reshape(self.image_shape)

    def _shard(self, number: int) -> np.ndarray:
        path = shard_path(self.folder, self.split, number)
        pixels, _ = read_shard(path)
        if pixels.shape != (self._ends[number + 1] - self._ends[number], prod(self.image_shape)):
            raise _damaged(path)
        return pixels


def read_pictures_info(folder: Path) -> dict[str, Any] | None:
    """What was prepared in a folder, or None if it is no prepared set; a DataError if damaged."""
    path = folder / INFO
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text())
        if info["finished"]:
            numbers = [info["channels"], info["image_size"], len(info["skipped"])]
            numbers += [count for split in SPLITS for count in info["images"][split]]
            if not all(isinstance(number, int) and number >= 0 for number in numbers):
                raise ValueError(numbers)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    return info


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is damaged: remove the folder and prepare it again")
