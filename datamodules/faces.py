"""Celebrity faces: CelebA and CelebA-HQ, in CelebA's official partition."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.base import SPLITS
from datamodules.decoding import Files
from datamodules.errors import DataError
from datamodules.tables import TableModule
from flowprior.argument_types import check_types

PARTITION = "list_eval_partition.txt"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"


class CelebA(TableModule):
    """CelebA, aligned: 162770 / 19867 / 19962 faces of 178x218 pixels, cropped to 178x178.

    Args:
        source: a prepared folder; one with ``img_align_celeba/`` and ``list_eval_partition.txt``;
            a folder of tables; or ``hub:owner/name``.
        image_size: H = W, such as 32 or 64.
        **options: of ``TableModule``.
    """

    command_name = "celeba"
    official_counts = (162770, 19867, 19962)

    def __init__(self, source: str, image_size: int = 64, **options: Any) -> None:
        check_types(CelebA.__init__, locals(), "data.")
        super().__init__(source, image_size, **options)

    def files(self) -> dict[str, Files]:
        """Aligned images of each split, in the order of the partition file."""
        return _files(self, "img_align_celeba", read_partition(self.listed(PARTITION)))


class CelebAHQ(TableModule):
    """CelebA-HQ: 24183 / 2993 / 2824 faces, each in the split of the CelebA image it was made of.

    Args:
        source: a prepared folder; CelebAMask-HQ with CelebA's ``list_eval_partition.txt`` in it; a
            folder of tables; or ``hub:owner/name``.
        image_size: H = W, at most 1024.
        **options: of ``TableModule``.
    """

    command_name = "celeba-hq"
    official_counts = (24183, 2993, 2824)

    def __init__(self, source: str, image_size: int = 128, **options: Any) -> None:
        check_types(CelebAHQ.__init__, locals(), "data.")
        super().__init__(source, image_size, **options)

    def files(self) -> dict[str, Files]:
        """Images of each split, in the order of the mapping file."""
        partition = read_partition(self.listed(PARTITION))
        rows = list(_rows(self.listed(MAPPING), columns=3, header=True))
        unknown = next((name for _, _, name in rows if name not in partition), None)
        if unknown is not None:
            raise DataError(f"data.source={self.source}: {unknown} is not in {PARTITION}")
        splits = {f"{index}.jpg": partition[name] for index, _, name in rows}
        return _files(self, "CelebA-HQ-img", splits)


def _files(module: TableModule, folder: str, splits: dict[str, str]) -> dict[str, Files]:
    """Files of a folder by split, given the split of each name; a DataError if some are missing."""
    path = module.listed(folder)
    found = set(os.listdir(path))
    missing = [name for name in splits if name not in found]
    if missing:
        raise DataError(
            f"data.source={module.source}: {len(missing)} of {len(splits)} images are missing in "
            f"{folder}/, {missing[0]} first"
        )
    return {
        split: Files(path, [name for name, its in splits.items() if its == split])
        for split in SPLITS
    }


def read_partition(path: Path) -> dict[str, str]:
    """File name to split, in the order of CelebA's partition file; a DataError if damaged."""
    codes = dict(zip("012", SPLITS, strict=True))
    rows = list(_rows(path, columns=2))
    for name, code in rows:
        if code not in codes:
            raise DataError(f"{path}: {name} has the code {code}, expected 0, 1 or 2")
    return {name: codes[code] for name, code in rows}


def _rows(path: Path, columns: int, header: bool = False) -> Iterator[list[str]]:
    """Fields of each line; a DataError if it is no text, or a line has another number of them."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, {error}") from error
    for number, fields in enumerate(lines[header:], start=1 + header):
        if len(fields) not in (0, columns):
            raise DataError(f"{path}, line {number}: expected {columns} columns, got {fields}")
        if fields:
            yield fields
