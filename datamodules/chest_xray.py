"""NIH ChestX-ray14: frontal chest X-rays."""

from pathlib import Path
from typing import Any

from datamodules.decoding import Files
from datamodules.errors import DataError, require
from datamodules.pictures import PictureModule, split_of
from flowprior.argument_types import check_types

TRAIN_VAL, TEST = "train_val_list.txt", "test_list.txt"


class ChestXray(PictureModule):
    """ChestX-ray14: 86524 X-rays for training and validation, 25596 for testing; one channel.

    The validation patients are chosen by the hash of their number: no patient is in two splits.

    Args:
        source: a prepared folder, or one with ``images_001/images/`` to ``images_012/images/``,
            ``train_val_list.txt`` and ``test_list.txt``.
        image_size: H = W, at most 1024.
        val_fraction: fraction of the patients of ``train_val_list.txt`` for validation.
        **options: of ``ImageDataModule``.
    """

    channels = 1
    command_name = "chest-xray"
    split_options = ("val_fraction",)
    official_counts = (86524, 25596)

    def __init__(
        self, source: str, image_size: int = 128, val_fraction: float = 0.05, **options: Any
    ) -> None:
        check_types(ChestXray.__init__, locals(), "data.")
        super().__init__(source, image_size, **options)
        between = "more than 0, less than 1"
        require(0 < val_fraction < 1, "val_fraction", val_fraction, between)
        self.val_fraction = val_fraction

    def find(self) -> dict[str, Files]:
        """Files of each split, in the order of their list.

        Raises:
            DataError: listed files are missing, or a patient is in both lists.
        """
        own, test = (
            self.listed(name).read_text(errors="replace").split() for name in (TRAIN_VAL, TEST)
        )
        both = {patient(name) for name in own} & {patient(name) for name in test}
        if both:
            raise DataError(
                f"data.source={self.source}: {len(both)} patients are in both {TRAIN_VAL} and "
                f"{TEST}, {min(both)} first"
            )
        names: dict[str, list[str]] = {"train": [], "val": [], "test": test}
        for name in own:
            names[split_of(patient(name), self.val_fraction, 0)].append(name)
        folder = Path(self.source)
        paths = (path.relative_to(folder) for path in folder.glob("images_*/images/*.png"))
        where = {path.name: path.as_posix() for path in paths}
        missing = [name for name in (*own, *test) if name not in where]
        if missing:
            raise DataError(
                f"data.source={folder}: {len(missing)} of the {len(own) + len(test)} listed images "
                f"are missing in images_*/images/, {missing[0]} first"
            )
        return {split: Files(folder, [where[name] for name in its]) for split, its in names.items()}


def patient(name: str) -> str:
    """The patient of a file name.

    >>> patient("00000013_005.png")
    '00000013'
    """
    return name.partition("_")[0]
