"""Pictures in rows of tables: parquet files, ``save_to_disk`` folders, Hugging Face hub sets."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from datamodules.base import SPLITS
from datamodules.decoding import Files, Pictures
from datamodules.errors import DataError, notice
from datamodules.pictures import SPLIT_NAMES, PictureModule, digest, image_names, split_of

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub:"
"""What the source of a hub set starts with."""
_SAVED = (["dataset_dict.json"], ["dataset_info.json", "state.json"])
"""Files that ``save_to_disk`` writes for several splits, and for one."""


class TableModule(PictureModule):
    """Pictures that may also come as tables: parquet files or a Hugging Face hub set.

    A split that the tables lack is taken from their training rows, by the hash of the name.

    Args:
        source: as for ``PictureModule``, or a folder of tables, or ``hub:owner/name``.
        image_size: as for ``PictureModule``.
        column: of the tables, with the images; needed only if several columns have images.
        **options: of ``ImageDataModule``.
    """

    val_fraction = 0.1
    test_fraction = 0.1

    def __init__(
        self, source: str, image_size: int, column: str | None = None, **options: Any
    ) -> None:
        super().__init__(source, image_size, **options)
        self.column = column

    @abstractmethod
    def files(self) -> Mapping[str, Pictures]:
        """Image files of "train", "val" and "test" in a folder without tables."""

    def find(self) -> Mapping[str, Pictures]:
        """Encoded images of "train", "val" and "test" in the source."""
        if not _is_table(self.source):
            return self.files()
        tables = _load(self.source).items()
        found = {split: _rows(table, self.source, self.column) for split, table in tables}
        val = 0 if "val" in found else self.val_fraction
        test = 0 if "test" in found else self.test_fraction
        splits = [split_of(name, val, test) for name in found["train"].names]
        lacking = {"train", *SPLITS} - (found.keys() - {"train"})
        rows = {split: [row for row, its in enumerate(splits) if its == split] for split in lacking}
        return found | {split: found["train"].select(its) for split, its in rows.items()}

    def check_source(self) -> None:
        """Raise a DataError if the source is a folder that does not exist, or no hub's name."""
        if self.source == HUB:
            raise DataError(f"data.source={self.source}: expected {HUB}owner/name")
        if not self.source.startswith(HUB):
            super().check_source()


@dataclass(eq=False)
class Rows(Pictures):
    """Image files in rows of a table with one column, of {"bytes", "path"}."""

    table: "Dataset"
    paths: Sequence[str | None]
    source: str

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def names(self) -> list[str]:
        """Paths; with the digest of the content where rows share one, or have none."""
        count = Counter(self.paths)
        return [
            path if path and count[path] == 1 else (path or "") + self._digest(row)
            for row, path in enumerate(self.paths)
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


def _is_table(source: str) -> bool:
    """Whether a source is a hub set, or a folder with more files of tables than of images."""
    if source.startswith(HUB) or _is_saved(Path(source)):
        return True
    tables = sum(1 for _ in Path(source).rglob("*.parquet"))
    return tables > 0 and tables > len(image_names(Path(source))[0])


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
    if len(found) == 1 and column is None:
        return found[0]
    images = ", ".join(found) or "none"
    if column is not None:
        raise DataError(
            f"data.column={column}: expected a column of images, which in {source} are {images}"
        )
    if not found:
        columns = ", ".join(table.column_names)
        raise DataError(f"data.source={source}: no column of images among {columns}")
    raise DataError(
        f"data.column: {source} has images in several columns, expected one of {images}"
    )


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
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error.__cause__ or error) or type(error).__name__
        raise DataError(f"data.source={source}: {reason.splitlines()[0]}") from error
