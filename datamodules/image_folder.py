"""Any folder of images, tables or hub set."""

from pathlib import Path
from typing import Any

from datamodules.base import SPLITS
from datamodules.errors import notice
from datamodules.files import Files, folder_splits, image_names, split_of
from datamodules.pictures import TableModule


class ImageFolder(TableModule):
    """Any images: a folder with its subfolders, tables, or a hub set.

    Subfolders ``train/``, ``val/`` and ``test/`` are the splits, and so are those of tables. Images
    of a missing split are chosen from the training images by the hash of their names, so adding
    images does not move any other to another split.

    Args:
        source: a prepared folder, a folder of images or tables, or ``hub:owner/name``.
        image_size: H = W; smaller images are refused.
        channels: 1 for grey, 3 for RGB.
        val_fraction: about this part of the images is for validation.
        test_fraction: about this part is for testing.
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

    def files(self) -> dict[str, Files]:
        """Image files of each split, sorted by name."""
        folder = Path(self.source)
        names, others = image_names(folder)
        if others:
            kinds = ", ".join(f"{kind or 'no suffix'}: {n}" for kind, n in others.most_common(5))
            notice(f"{folder}: passed over files that are not named like images ({kinds})")
        own = folder_splits(names) or {"train": names}
        val = 0 if "val" in own else self.val_fraction
        test = 0 if "test" in own else self.test_fraction
        for name in own.pop("train"):
            own.setdefault(split_of(name, val, test), []).append(name)
        return {split: Files(folder, own.get(split, [])) for split in SPLITS}
