"""What the data modules of pictures share: the source, or a prepared set that stands for it."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datamodules.base import SPLITS, ImageDataModule, check_split
from datamodules.decoding import DecodedPictures
from datamodules.dequantize import ImageSource
from datamodules.errors import DataError, notice
from datamodules.files import SUFFIXES, Files, Pictures
from datamodules.shards import PreparedImages, check_info, read_info
from datamodules.tables import HUB, is_table, table_splits

FORMAT = 2
"""Raised when the same source would give other pixels or splits than before."""


class PictureModule(ImageDataModule):
    """Pictures of a prepared set, or decoded each time they are asked for.

    Args:
        source: folder that ``python -m datamodules.prepare`` has made, or the images' own; where
            the subclass reads tables also ``hub:owner/name``.
        image_size: H = W; larger images are cropped to their central square and scaled down.
        **options: of ``ImageDataModule``.
    """

    max_bits = 8
    command_name: ClassVar[str]
    """Of the set in ``python -m datamodules.prepare``."""
    split_options: ClassVar[tuple[str, ...]] = ()
    """Options that decide which images a split has."""
    official_counts: ClassVar[tuple[int, ...] | None] = None
    """Of train, val, test; or of train and val together, test."""

    def __init__(self, source: str, image_size: int, **options: Any) -> None:
        super().__init__(image_size, **options)
        self.source = source

    @abstractmethod
    def find(self) -> Mapping[str, Pictures]:
        """Encoded images of "train", "val" and "test" in the source."""

    def pictures(self, split: str) -> Pictures:
        """Encoded images of "train", "val" or "test" in the source.

        Raises:
            DataError: the source lacks something.
        """
        return self._found[split]

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
        """Everything that a prepared set depends on, except for its source."""
        names = ("image_size", "channels", *self.split_options)
        options = {name: getattr(self, name) for name in names}
        return {"format": FORMAT, "set": self.command_name} | options

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

    @cached_property
    def _found(self) -> Mapping[str, Pictures]:
        self.check_source()
        found = self.find()
        counts = tuple(len(found[split]) for split in SPLITS)
        if not any(counts):
            raise DataError(
                f"data.source={self.source}: no images there, expected {', '.join(SUFFIXES)}, or "
                "tables with a column of images"
            )
        if self.official_counts is not None:
            self._compare(counts, self.official_counts)
        return found

    def _compare(self, counts: tuple[int, ...], official: tuple[int, ...]) -> None:
        """Tell the user if the splits are not the official ones."""
        splits = "train / val / test"
        if len(official) == 2:
            splits, counts = "train and val / test", (counts[0] + counts[1], counts[2])
        if counts != official:
            notice(
                f"{self.source} has {_listed(counts)} images for {splits}, which are not the "
                f"official splits of {_listed(official)}: likelihoods cannot be compared with "
                "published ones"
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
    """Pictures that may also come as tables: parquet files or a Hugging Face hub set.

    Args:
        source: as for ``PictureModule``, or a folder of tables, or ``hub:owner/name``.
        image_size: H = W.
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
        if not is_table(self.source):
            return self.files()
        return table_splits(self.source, self.column, self.val_fraction, self.test_fraction)


def _listed(counts: tuple[int, ...]) -> str:
    return " / ".join(map(str, counts))
