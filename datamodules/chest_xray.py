"""NIH ChestX-ray14: frontal chest X-rays."""

from pathlib import Path
from typing import Any

from datamodules.dequantize import DataError
from datamodules.pictures import PictureModule
from datamodules.sources import Files, split_of

LISTS = {"train": "train_val_list.txt", "val": "train_val_list.txt", "test": "test_list.txt"}


class ChestXray(PictureModule):
    """ChestX-ray14: 86524 X-rays for training and validation, 25596 for testing; one channel.

    The validation patients are chosen by the hash of their number, so no patient is on both sides.

    Args:
        source: a prepared folder, or one with ``images_001/images/`` to ``images_012/images/``,
            ``train_val_list.txt`` and ``test_list.txt``.
        image_size: H = W, at most 1024.
        val_fraction: of the patients of ``train_val_list.txt``.
        **options: of ``ImageDataModule``.
    """

    channels = 1
    command_name = "chest-xray"
    split_options = ("val_fraction",)

    def __init__(
        self, source: str, image_size: int = 128, val_fraction: float = 0.05, **options: Any
    ) -> None:
        super().__init__(source, image_size, **options)
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction={val_fraction}: expected more than 0, less than 1")
        self.val_fraction = val_fraction

    def pictures(self, split: str) -> Files:
        """Files of a split, in the order of its list.

        Raises:
            DataError: listed files are missing.
        """
        names = self.listed(LISTS[split]).read_text(errors="replace").split()
        if split != "test":
            names = [n for n in names if split_of(patient(n), self.val_fraction, 0) == split]
        folder = Path(self.source)
        where = {path.name: path for path in folder.glob("images_*/images/*.png")}
        missing = [name for name in names if name not in where]
        if missing:
            raise DataError(
                f"data.source={folder}: {len(missing)} of the {len(names)} images for {split} are "
                f"missing in images_*/images/, {missing[0]} first"
            )
        return Files(folder, [where[name].relative_to(folder).as_posix() for name in names])


def patient(name: str) -> str:
    """The patient of a file name.

    >>> patient("00000013_005.png")
    '00000013'
    """
    return name.partition("_")[0]
