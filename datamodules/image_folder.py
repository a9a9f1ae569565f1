"""Any folder of images, parquet files or hub set."""

from pathlib import Path
from typing import Any

from datamodules.pictures import TableModule
from datamodules.sources import Files, image_names, split_of


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

    def files(self, split: str) -> Files:
        """Image files of a split, sorted by name."""
        folder = Path(self.source)
        fractions = self.val_fraction, self.test_fraction
        names = [name for name in image_names(folder) if split_of(name, *fractions) == split]
        return Files(folder, names)
