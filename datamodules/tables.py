"""Pictures in rows of tables: parquet files, ``save_to_disk`` folders, Hugging Face hub sets."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from datamodules.errors import DataError, notice
from datamodules.files import SPLIT_NAMES, Files, Pictures, digest, image_names, split_of

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub:"
"""What the source of a hub set starts with."""
_SAVED = (["dataset_dict.json"], ["dataset_info.json", "state.json"])
"""Files that ``save_to_disk`` writes for several splits, and for one."""


class Rows(Pictures):
    """Image files in rows of a ``datasets.Dataset``.

    Args:
        table: with one column, of {"bytes", "path"}.
        paths: of its rows, where they are known.
        source: of the table.
    """

    def __init__(self, table: "Dataset", paths: Sequence[str | None], source: str) -> None:
        self.table = table
        self.paths = paths
        self.source = source

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def names(self) -> list[str]:
        """Paths; with the digest of the content where rows share one, or have none."""
        count = Counter(self.paths)
        unique = [path and count[path] == 1 for path in self.paths]
        return [
            path if own else (path or "") + self._digest(row)
            for row, (path, own) in enumerate(zip(self.paths, unique, strict=True))
        ]

    def data(self, index: int) -> bytes | Path:
        """The bytes of a row, or the file that it names."""
        (cell,) = self.table[index].values()
        return Path(cell["path"]) if cell["bytes"] is None else cell["bytes"]

    def _digest(self, row: int) -> str:
        data = self.data(row)
        return digest(data if isinstance(data, bytes) else os.fsencode(data))

    def stamps(self) -> Iterator[str]:
        """Names of the rows, and the stamps of the table's own files."""
        yield from self.names
        if not self.source.startswith(HUB):
            folder = Path(self.source)
            tables = (path for kind in (".parquet", ".arrow") for path in folder.rglob(f"*{kind}"))
            names = sorted(path.relative_to(folder).as_posix() for path in tables)
            yield from Files(folder, names).stamps()

    def select(self, rows: Sequence[int]) -> "Rows":
        """Some of the rows."""
        return Rows(self.table.select(rows), [self.names[row] for row in rows], self.source)


def is_table(source: str) -> bool:
    """Whether a source is a hub set, or a folder with more files of tables than of images."""
    if source.startswith(HUB) or _is_saved(Path(source)):
        return True
    tables = sum(1 for _ in Path(source).rglob("*.parquet"))
    return tables > 0 and tables > len(image_names(Path(source))[0])


def table_splits(
    source: str, column: str | None, val_fraction: float, test_fraction: float
) -> dict[str, Pictures]:
    """Rows of "train", "val" and "test".

    A split that the tables lack is taken from their training rows, by the hash of the name.

    Args:
        source: a folder, or ``hub:owner/name``.
        column: with the images; None if there is only one such column.
        val_fraction: part of the training rows that is for validation, if a split is missing.
        test_fraction: part that is for testing.

    Raises:
        DataError: there are no such tables, or they have no training images.
    """
    found = {split: _rows(table, source, column) for split, table in _load(source).items()}
    val = 0 if "val" in found else val_fraction
    test = 0 if "test" in found else test_fraction
    splits = [split_of(name, val, test) for name in found["train"].names]
    lacking = {"train", "val", "test"} - (found.keys() - {"train"})
    rows = {split: [row for row, its in enumerate(splits) if its == split] for split in lacking}
    return found | {split: found["train"].select(its) for split, its in rows.items()}


def _is_saved(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in _SAVED)


def _load(source: str) -> "dict[str, Dataset]":
    """Tables by split."""
    import datasets

    with _named(source):
        load = datasets.load_from_disk if _is_saved(Path(source)) else datasets.load_dataset
        tables = load(source.removeprefix(HUB))
    if not isinstance(tables, Mapping):
        tables = {"train": tables}
    found = {SPLIT_NAMES[name]: table for name, table in tables.items() if name in SPLIT_NAMES}
    if "train" not in found:
        raise DataError(f"data.source={source}: expected a split train, found {', '.join(tables)}")
    return found


def _rows(table: "Dataset", source: str, column: str | None) -> Rows:
    """The rows of a table that have an image."""
    import datasets
    import pyarrow.compute as pc

    name = _image_column(table, source, column)
    with _named(source):
        images = table.select_columns([name]).cast_column(name, datasets.Image(decode=False))
    cells = images.data.column(name)
    paths, content = (pc.struct_field(cells, field) for field in ("path", "bytes"))
    present = pc.or_(pc.is_valid(paths), pc.is_valid(content))
    rows = pc.indices_nonzero(present).to_pylist()
    if len(rows) < len(table):
        notice(f"{source}: left out {len(table) - len(rows)} rows that have no image")
    return Rows(images.select(rows), paths.filter(present).to_pylist(), source)


def _image_column(table: "Dataset", source: str, column: str | None) -> str:
    found = [name for name in table.column_names if _is_image(table, name)]
    if column in found:
        return column
    if column is not None:
        raise DataError(
            f"data.column={column}: expected a column of images, which in {source} are "
            f"{', '.join(found) or 'none'}"
        )
    if not found:
        columns = ", ".join(table.column_names)
        raise DataError(f"data.source={source}: no column of images among {columns}")
    if len(found) > 1:
        raise DataError(
            f"data.column: {source} has images in several columns, expected one of "
            f"{', '.join(found)}"
        )
    return found[0]


def _is_image(table: "Dataset", name: str) -> bool:
    """Whether a column has images, or bytes the first of which are an image."""
    import datasets
    import pyarrow as pa

    feature = table.features[name]
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
        return True
    cells = table.data.column(name)
    if not (pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)):
        return False
    first = next((cell.as_py() for cell in cells if cell.is_valid), b"")
    try:
        with Image.open(BytesIO(first)):
            return True
    except Exception:  # bytes that are no image make Pillow raise nearly anything
        return False


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Errors of reading name the source."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error.__cause__ or error) or type(error).__name__
        raise DataError(f"data.source={source}: {reason.splitlines()[0]}") from error
