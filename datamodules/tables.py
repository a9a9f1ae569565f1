"""Pictures in rows of parquet files, here or on a Hugging Face hub."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.dequantize import DataError
from datamodules.sources import digest

if TYPE_CHECKING:
    import datasets
    from datasets import Dataset

HUB = "hub:"
"""What the source of a hub set starts with."""
_HUB_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


class Rows:
    """Image files in rows of a ``datasets.Dataset``.

    Args:
        table: with one column, of {"bytes", "path"}.
        rows: which of its rows.
    """

    def __init__(self, table: "Dataset", rows: Sequence[int]) -> None:
        self.table = table
        self.rows = rows

    @cached_property
    def names(self) -> list[str]:
        """Paths, with the digest of the bytes where a row has none."""
        names = row_names(self.table)
        return [names[row] for row in self.rows]

    def data(self, index: int) -> bytes | Path:
        """The bytes of a row, or the file that it names."""
        return cell_data(self.table[self.rows[index]][self.table.column_names[0]])


def is_table(source: str) -> bool:
    """Whether a source is a hub set or a folder with parquet files."""
    return source.startswith(HUB) or next(Path(source).rglob("*.parquet"), None) is not None


def load_tables(source: str) -> dict[str, "Dataset"]:
    """Splits ("train", "val", "test") that a set in parquet files has, each with one column.

    Args:
        source: a folder, or ``hub:owner/name``.

    Raises:
        DataError: there is no such set, or it has no training images.
    """
    import datasets

    with _named(source):
        tables = datasets.load_dataset(source.removeprefix(HUB))
    found = _known_splits(source, tables)
    return {split: undecoded(table, source) for split, table in found.items()}


def table_files(source: str) -> dict[str, list[str]]:
    """Parquet files, by split ("train", "val", "test"), to be read from start to end.

    Raises:
        DataError: as for ``load_tables``.
    """
    import datasets

    with _named(source):
        files = datasets.load_dataset_builder(source.removeprefix(HUB)).config.data_files or {}
    return _known_splits(source, {str(split): list(names) for split, names in files.items()})


def open_stream(source: str, files: Sequence[str]) -> "datasets.IterableDataset":
    """Rows of parquet files in their order, with one column of {"bytes", "path"}."""
    import datasets

    stream = datasets.load_dataset(
        "parquet", data_files={"train": list(files)}, split="train", streaming=True
    )
    return undecoded(stream, source)


def undecoded(table: Any, source: str) -> Any:
    """The column with images alone, as {"bytes", "path"}, of a (streamed) data set."""
    import datasets

    for name, feature in table.features.items():
        encoded = isinstance(feature, dict) and "bytes" in feature
        if encoded or isinstance(feature, datasets.Image):
            column = table.select_columns([name])
            return column if encoded else column.cast_column(name, datasets.Image(decode=False))
    raise DataError(f"data.source={source}: no column of images among {', '.join(table.features)}")


def cell_data(cell: dict[str, Any]) -> bytes | Path:
    """What {"bytes", "path"} holds, or points to."""
    return Path(cell["path"]) if cell["bytes"] is None else cell["bytes"]


def cell_name(cell: dict[str, Any]) -> str:
    """The path of {"bytes", "path"}, or the digest of the bytes where it is not known."""
    return cell["path"] or digest(cell["bytes"])


def content(data: bytes | Path) -> bytes:
    """The bytes themselves."""
    return data.read_bytes() if isinstance(data, Path) else data


def row_names(table: "Dataset") -> list[str]:
    """Names of all rows; reads bytes only of those that have no path."""
    import pyarrow.compute as pc

    column = table.column_names[0]
    paths = pc.struct_field(table.data.column(column), "path").to_pylist()
    return [path or digest(table[row][column]["bytes"]) for row, path in enumerate(paths)]


def _known_splits(source: str, splits: Mapping[str, Any]) -> dict[str, Any]:
    found = {_HUB_SPLITS[name]: item for name, item in splits.items() if name in _HUB_SPLITS}
    if "train" not in found:
        raise DataError(f"data.source={source}: expected a split train, found {', '.join(splits)}")
    return found


@contextmanager
def _named(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(f"data.source={source}: {str(error).splitlines()[0]}") from error
