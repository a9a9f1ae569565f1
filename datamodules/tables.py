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

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def names(self) -> list[str]:
        """Paths, with the digest of the bytes where a row has none."""
        names = row_names(self.table)
        return [names[row] for row in self.rows]

    def data(self, index: int) -> bytes | Path:
        """The bytes of a row, or the file that it names."""
        return cell_data(self.table[self.rows[index]][self.table.column_names[0]])


def is_table(source: str) -> bool:
    """Whether a source is a hub set or a folder with parquet files that hold images."""
    return source.startswith(HUB) or any(map(_holds_images, Path(source).rglob("*.parquet")))


def _holds_images(file: Path) -> bool:
    """Whether a parquet file has a column of images, or is damaged, which reading it will tell."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowInvalid):
        return True
    structs = [field.type for field in schema if pa.types.is_struct(field.type)]
    known = b'"_type": "Image"' in (schema.metadata or {}).get(b"huggingface", b"")
    return known or any(struct.get_field_index("bytes") >= 0 for struct in structs)


def load_tables(source: str) -> dict[str, "Dataset"]:
    """Splits ("train", "val", "test") that a set in parquet files has, each with one column.

    Args:
        source: a folder, or ``hub:owner/name``.

    Raises:
        DataError: there is no such set, or it has no training images.
    """
    import datasets

    with named(source):
        _builder(source)
        tables = datasets.load_dataset(source.removeprefix(HUB))
    found = _known_splits(source, tables)
    return {split: undecoded(table, source) for split, table in found.items()}


def table_files(source: str) -> dict[str, list[str]]:
    """Parquet files, by split ("train", "val", "test"), to be read from start to end.

    Raises:
        DataError: as for ``load_tables``.
    """
    with named(source):
        files = _builder(source).config.data_files or {}
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


def cell_data(cell: dict[str, Any] | None) -> bytes | Path:
    """What {"bytes", "path"} holds, or points to; nothing where there is nothing."""
    data, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    return Path(path) if path and data is None else data or b""


def cell_name(cell: dict[str, Any] | None) -> str:
    """The path of {"bytes", "path"}, or the digest of the bytes where it is not known."""
    return (cell or {}).get("path") or digest((cell or {}).get("bytes") or b"")


def content(data: bytes | Path) -> bytes:
    """The bytes themselves."""
    return data.read_bytes() if isinstance(data, Path) else data


def row_names(table: "Dataset") -> list[str]:
    """Names of all rows; reads bytes only of those that have no path."""
    import pyarrow.compute as pc

    name = table.column_names[0]
    column = table.data.column(name)
    if column.type.get_field_index("path") < 0:
        return [cell_name(row[name]) for row in table]
    paths = pc.struct_field(column, "path").to_pylist()
    return [path or cell_name(table[row][name]) for row, path in enumerate(paths)]


def _known_splits(source: str, splits: Mapping[str, Any]) -> dict[str, Any]:
    found = {_HUB_SPLITS[name]: item for name, item in splits.items() if name in _HUB_SPLITS}
    if "train" not in found:
        raise DataError(f"data.source={source}: expected a split train, found {', '.join(splits)}")
    return found


def _builder(source: str) -> "datasets.DatasetBuilder":
    """What reads the files of the kind that a source has most of, which must be parquet."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = datasets.load_dataset_builder(source.removeprefix(HUB))
    if not (isinstance(builder, Parquet) or source.startswith(HUB)):
        raise DataError(
            f"data.source={source}: other files outnumber the parquet files with images, expected "
            "the one or the other"
        )
    return builder


@contextmanager
def named(source: str) -> Iterator[None]:
    """Errors of reading name the source."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error.__cause__ or error) or type(error).__name__
        raise DataError(f"data.source={source}: {reason.splitlines()[0]}") from error
