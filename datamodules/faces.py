"""Celebrity faces: CelebA and CelebA-HQ, in CelebA's official partition."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.base import SPLITS
from datamodules.dequantize import DataError
from datamodules.pictures import TableModule
from datamodules.sources import Files

PARTITION = "list_eval_partition.txt"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"


class CelebA(TableModule):
    """CelebA, aligned: 162770 / 19867 / 19962 faces of 178x218 pixels, cropped to 178x178.

    Args:
        source: a prepared folder; one with ``img_align_celeba/`` and ``list_eval_partition.txt``;
            a folder of parquet files; or ``hub:owner/name``.
        image_size: H = W, such as 32 or 64.
        **options: of ``ImageDataModule``.
    """

    command_name = "celeba"
    official_counts = (162770, 19867, 19962)

    def __init__(self, source: str, image_size: int = 64, **options: Any) -> None:
        super().__init__(source, image_size, **options)

    def files(self, split: str) -> Files:
        """Aligned images of a split, in the order of the partition file."""
        partition = read_partition(self.listed(PARTITION))
        names = [name for name, its in partition.items() if its == split]
        return self.present("img_align_celeba", names)


class CelebAHQ(TableModule):
    """CelebA-HQ: 24183 / 2993 / 2824 faces, each in the split of the CelebA image it was made of.

    Args:
        source: a prepared folder; CelebAMask-HQ with CelebA's ``list_eval_partition.txt`` in it; a
            folder of parquet files; or ``hub:owner/name``.
        image_size: H = W, at most 1024.
        **options: of ``ImageDataModule``.
    """

    command_name = "celeba-hq"
    official_counts = (24183, 2993, 2824)

    def __init__(self, source: str, image_size: int = 128, **options: Any) -> None:
        super().__init__(source, image_size, **options)

    def files(self, split: str) -> Files:
        """Images of a split, in the order of the mapping file."""
        partition = read_partition(self.listed(PARTITION))
        rows = list(_rows(self.listed(MAPPING), columns=3, header=True))
        unknown = next((name for _, _, name in rows if name not in partition), None)
        if unknown is not None:
            raise DataError(f"data.source={self.source}: {unknown} is not in {PARTITION}")
        names = [f"{index}.jpg" for index, _, name in rows if partition[name] == split]
        return self.present("CelebA-HQ-img", names)


def read_partition(path: Path) -> dict[str, str]:
    """File name to split, in the order of CelebA's partition file."""
    splits = dict(zip("012", SPLITS, strict=True))
    return {name: splits.get(number, number) for name, number in _rows(path, columns=2)}


def _rows(path: Path, columns: int, header: bool = False) -> Iterator[list[str]]:
    """Fields of each line.

    Raises:
        DataError: it is no text, or a line has another number of fields.
    """
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, {error}") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or (header and number == 1):
            continue
        if len(fields) != columns:
            raise DataError(f"{path}, line {number}: expected {columns} columns, got {line!r}")
        yield fields
