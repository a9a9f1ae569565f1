"""Any folder of images, tables or hub set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.base import SPLITS
from datamodules.decoding import Files, printable
from datamodules.errors import DataError, notice, require
from datamodules.pictures import SPLIT_NAMES, image_names, split_of
from datamodules.tables import TableModule
from flowprior.argument_types import check_types


class ImageFolder(TableModule):
    """Any images: a folder with its subfolders, tables, or a hub set.

    Subfolders ``train/``, ``val/`` and ``test/`` are the splits, and so are those of tables. Images
    of a missing split are chosen from the training images by the hash of their names, so adding
    images does not move any other to another split.

    Args:
        source: a prepared folder, a folder of images or tables, or ``hub:owner/name``.
        image_size: H = W; smaller images are refused.
        channels: 1 for grey, 3 for RGB.
        val_fraction: approximate fraction of the images for validation.
        test_fraction: approximate fraction for testing.
        **options: of ``TableModule``.
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
        check_types(ImageFolder.__init__, locals(), "data.")
        super().__init__(source, image_size, **options)
        require(channels in (1, 3), "channels", channels, "1 or 3")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"data.val_fraction={val_fraction}, data.test_fraction={test_fraction}: expected "
                "0 or more each, less than 1 together"
            )
        self.channels = channels
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction

    def files(self) -> dict[str, Files]:
        """Image files of each split, sorted by name."""
        folder = Path(self.source)
        names, others = image_names(folder)
        if others:
            kinds = ", ".join(f"{kind or 'no suffix'}: {n}" for kind, n in others.most_common(5))
            notice(f"{folder}: passed over files that are not named like images ({kinds})")
        own = _folder_splits(names) or {"train": names}
        val = 0 if "val" in own else self.val_fraction
        test = 0 if "test" in own else self.test_fraction
        for name in own.pop("train"):
            own.setdefault(split_of(name, val, test), []).append(name)
        return {split: Files(folder, own.get(split, [])) for split in SPLITS}


def _folder_splits(names: Sequence[str]) -> dict[str, list[str]] | None:
    """Paths by the split whose folder they are in; None if no folder is named val or test."""
    found: dict[str | None, list[str]] = {}
    for name in names:
        top = name.partition("/")[0].lower() if "/" in name else ""
        found.setdefault(SPLIT_NAMES.get(top), []).append(name)
    if not found.keys() & {"val", "test"}:
        return None
    outside = found.pop(None, [])
    if "train" not in found or outside:
        raise DataError(
            "data.source has subfolders named like splits, so it is expected to have images in "
            "train/, val/ and test/ only, and some in train/; found "
            f"{printable((outside or names)[0])}"
        )
    return found
