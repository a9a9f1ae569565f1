"""What the data modules of pictures share: the source, and reading a prepared set instead of it."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datamodules.base import SPLITS, ImageDataModule, check_split
from datamodules.dequantize import DataError, ImageSource
from datamodules.prepared import PreparedImages, check_info, read_info
from datamodules.sources import SUFFIXES, DecodedPictures, Files, Pictures, split_of
from datamodules.tables import HUB, Rows, is_table, load_tables, row_names


class PictureModule(ImageDataModule):
    """Pictures of a prepared set, or decoded anew each time; a subclass says which make a split.

    Args:
        source: folder that ``python -m datamodules.prepare`` has made, or the images' own; where
            the subclass reads tables also a folder of parquet files or ``hub:owner/name``.
        image_size: H = W; larger images are cropped to their central square and scaled down.
        **options: of ``ImageDataModule``.
    """

    command_name: ClassVar[str]
    """Of the set in ``python -m datamodules.prepare``."""
    split_options: ClassVar[tuple[str, ...]] = ()
    """Options that decide what is in a split."""

    def __init__(self, source: str, image_size: int, **options: Any) -> None:
        super().__init__(image_size, **options)
        self.source = source

    @abstractmethod
    def pictures(self, split: str) -> Pictures:
        """Encoded images of "train", "val" or "test" in the source."""

    def images(self, split: str) -> ImageSource:
        """Images of "train", "val" or "test", unquantised.

        Raises:
            DataError: they are not there; the message says how to get them.
        """
        check_split(split)
        self.check_source()
        info = read_info(Path(self.source))
        if info is None:
            return DecodedPictures(self.pictures(split), self.image_size, self.channels)
        check_info(Path(self.source), info, self.settings)
        return PreparedImages(Path(self.source), split, info)

    @property
    def settings(self) -> dict[str, Any]:
        """What a prepared set depends on, but for its source."""
        names = ("image_size", "channels", *self.split_options)
        return {"set": self.command_name} | {name: getattr(self, name) for name in names}

    def check_source(self) -> None:
        """Raise a DataError if the source is a folder that does not exist, or no hub's name."""
        if self.source == HUB:
            raise DataError(f"data.source={self.source}: expected {HUB}owner/name")
        if not self.source.startswith(HUB) and not Path(self.source).is_dir():
            raise DataError(
                f"data.source={self.source}: no such folder; get the images as docs/data.md says, "
                f"then python -m datamodules.prepare {self.command_name} --source <their folder> "
                f"--output {self.source} --image-size {self.image_size}"
            )

    def listed(self, name: str) -> Path:
        """A file or folder that belongs to the set.

        Raises:
            DataError: it is not in the source.
        """
        path = Path(self.source) / name
        if not path.exists():
            raise DataError(f"data.source={self.source}: {name} is missing there (docs/data.md)")
        return path

    def present(self, folder: str, names: Sequence[str]) -> Files:
        """Files of a folder of the set.

        Raises:
            DataError: some are not there.
        """
        path = self.listed(folder)
        found = set(os.listdir(path))
        missing = [name for name in names if name not in found]
        if missing:
            raise DataError(
                f"data.source={self.source}: {len(missing)} of {len(names)} images are missing in "
                f"{folder}/, {missing[0]} first"
            )
        return Files(path, names)


class TableModule(PictureModule):
    """Pictures that may also come as tables: parquet files here or on a Hugging Face hub.

    A split that the tables lack is taken from their training images by the hash of the name.
    """

    val_fraction = 0.1
    test_fraction = 0.1
    official_counts: ClassVar[tuple[int, int, int] | None] = None

    @abstractmethod
    def files(self, split: str) -> Pictures:
        """Encoded images of a split of a folder without tables."""

    def pictures(self, split: str) -> Pictures:
        """Encoded images of "train", "val" or "test" in the source."""
        return self._splits[split]

    @cached_property
    def _splits(self) -> Mapping[str, Pictures]:
        table = is_table(self.source)
        found = self._rows() if table else {split: self.files(split) for split in SPLITS}
        counts = tuple(len(found[split]) for split in SPLITS)
        if not any(counts):
            raise DataError(
                f"data.source={self.source}: no images there, expected {', '.join(SUFFIXES)}, or "
                "parquet files with a column of images"
            )
        if self.official_counts not in (None, counts):
            warnings.warn(
                f"{self.source} gives {_listed(counts)} images for train / val / test, which are "
                f"not the official splits of {_listed(self.official_counts)}: likelihoods are not "
                "comparable with published ones",
                stacklevel=2,
            )
        return found

    def _rows(self) -> dict[str, Rows]:
        tables = load_tables(self.source)
        val = 0 if "val" in tables else self.val_fraction
        test = 0 if "test" in tables else self.test_fraction
        rows = {split: Rows(table, range(len(table))) for split, table in tables.items()}
        if len(tables) < len(SPLITS):
            splits = [split_of(name, val, test) for name in row_names(tables["train"])]
            for split in SPLITS:
                if split == "train" or split not in tables:
                    chosen = [row for row, its in enumerate(splits) if its == split]
                    rows[split] = Rows(tables["train"], chosen)
        return rows


def _listed(counts: tuple[int, ...]) -> str:
    return " / ".join(map(str, counts))
