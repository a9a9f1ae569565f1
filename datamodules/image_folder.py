"""Any folder of images, parquet files or hub set."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import check_split
from datamodules.dequantize import DataError, DequantizedImages, ImageSource
from datamodules.loading import ResumableLoader
from datamodules.pictures import TableModule
from datamodules.sources import ArrayImages, Files, image_names, split_of
from datamodules.streaming import Stream, StreamingLoader
from datamodules.tables import is_table, table_files

_HELD = 1024


class ImageFolder(TableModule):
    """Any images: a folder with its subfolders, parquet files, or a hub set.

    The hash of an image's name decides on its split, so images that are added change no other's.
    Splits that parquet files or a hub set have are kept.

    Args:
        source: a prepared folder, any folder of images or parquet files, or ``hub:owner/name``.
        image_size: H = W; smaller images are refused.
        channels: 1 for grey, 3 for RGB.
        val_fraction: about this part of the images is for validation.
        test_fraction: about this part is for testing.
        streaming: read parquet files from start to end instead of copying them to the disk;
            validation and test are then the first 1024 images of their splits.
        lanes: parts of a stream that are read side by side, a multiple of the number of processes
            times workers; with the seed it determines the order of the images.
        **options: of ``ImageDataModule``.
    """

    command_name = "folder"
    split_options = ("val_fraction", "test_fraction")

    def __init__(
        self,
        source: str,
        image_size: int = 64,
        channels: int = 3,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        streaming: bool = False,
        lanes: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(source, image_size, **options)
        if channels not in (1, 3):
            raise ValueError(f"data.channels={channels}: expected 1 or 3")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"data.val_fraction={val_fraction}, data.test_fraction={test_fraction}: expected "
                "0 or more each, less than 1 together"
            )
        self.channels = channels
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        if lanes < 1:
            raise ValueError(f"data.lanes={lanes}: expected at least 1")
        self.streaming = streaming
        self.lanes = lanes
        self._held: dict[str, ArrayImages] = {}

    def files(self, split: str) -> Files:
        """Image files of a split, sorted by name."""
        fractions = self.val_fraction, self.test_fraction
        names = [name for name in self._names if split_of(name, *fractions) == split]
        return Files(Path(self.source), names)

    @cached_property
    def _names(self) -> list[str]:
        return image_names(Path(self.source))

    def images(self, split: str) -> ImageSource:
        """Images of "train", "val" or "test", unquantised; of a stream, the first 1024."""
        if not self.streaming:
            return super().images(split)
        check_split(split)
        if split not in self._held:
            squares = self._stream(split).first(_HELD)
            self._held[split] = ArrayImages(np.array(squares, np.uint8))
        return self._held[split]

    def check(self, world_size: int) -> None:
        """Raise a ValueError unless the images are there and can be shared out."""
        if not self.streaming:
            return super().check(world_size)
        StreamingLoader(self._stream("train"), 0, world_size, self.num_workers)
        if not len(self.images("val")):
            raise ValueError("data: there are no validation images, expected at least 1")

    def resumable_loader(self) -> ResumableLoader | StreamingLoader:
        """Training batches, from the first epoch."""
        if not self.streaming:
            return super().resumable_loader()
        stream = self._stream("train")
        pin_memory = self._loader_options()["pin_memory"]
        return StreamingLoader(stream, *self._process(), self.num_workers, pin_memory=pin_memory)

    def _stream(self, split: str) -> Stream:
        self.check_source()
        if not is_table(self.source):
            raise DataError(
                f"data.streaming: {self.source} has no parquet files with images; expected them, "
                "or hub:..."
            )
        files = table_files(self.source)
        val = 0 if "val" in files else self.val_fraction
        test = 0 if "test" in files else self.test_fraction
        own = split if split in files else "train"
        return Stream(
            self.source,
            files[own],
            partial(_belongs, split, val, test) if own == "train" else bool,
            DequantizedImages(
                (), "train", self.n_bits, self.data_range, self.seed, self.horizontal_flips
            ),
            self.image_size,
            self.channels,
            self.batch_size,
            self.lanes,
        )


def _belongs(split: str, val_fraction: float, test_fraction: float, name: str) -> bool:
    return split_of(name, val_fraction, test_fraction) == split
