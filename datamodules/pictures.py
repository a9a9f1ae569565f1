"""Data modules of pictures: which there are, and which split each belongs to."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

from datamodules.base import SPLITS, ImageDataModule, check_split
from datamodules.decoding import DecodedPictures, Pictures
from datamodules.dequantize import ImageSource
from datamodules.errors import DataError, notice
from datamodules.prepared_pictures import PreparedImages, read_pictures_info

FORMAT = 2
"""Raised when the same source would give other pixels or splits than before."""
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)
SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
"""Names of folders and of table splits, in lower case, and the split that each means."""


class PictureModule(ImageDataModule):
    """Pictures of a prepared set, or decoded each time they are asked for.

    Args:
        source: folder that ``python -m datamodules.prepare`` has made, or the images' own.
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
        """Encoded images of "train", "val" and "test"; a DataError if the source lacks some."""

    def images(self, split: str) -> ImageSource:
        """Images of a split, unquantised; a DataError says how to get them if they are missing."""
        check_split(split)
        self.check_source()
        info = read_pictures_info(Path(self.source))
        if info is None:
            return DecodedPictures(self.pictures[split], self.image_size, self.channels)
        if not info["finished"]:
            raise DataError(
                f"data.source={self.source} is not finished: run the same prepare command again"
            )
        for name, value in self.settings.items():
            if info.get(name) != value:
                raise DataError(
                    f"data.source={self.source} was prepared with {name}={info.get(name)}, "
                    f"expected {value}: change the option, or prepare another folder"
                )
        return PreparedImages(Path(self.source), split, info)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a prepared set depends on, except for its source."""
        names = ("image_size", "channels", *self.split_options)
        options = {name: getattr(self, name) for name in names}
        return {"format": FORMAT, "set": self.command_name} | options

    def check_source(self) -> None:
        """Raise a DataError if there is no such source."""
        if not Path(self.source).is_dir():
            raise DataError(
                f"data.source={self.source}: no such folder; get the images as docs/data.md says, "
                f"then python -m datamodules.prepare {self.command_name} --source <their folder> "
                f"--output {self.source} --image-size {self.image_size}"
            )

    @cached_property
    def pictures(self) -> Mapping[str, Pictures]:
        """What ``find`` has found; tells the user if the splits are not the official ones."""
        self.check_source()
        found = self.find()
        counts = tuple(len(found[split]) for split in SPLITS)
        if not any(counts):
            raise DataError(
                f"data.source={self.source}: no images there, expected {', '.join(SUFFIXES)}, or "
                "tables with a column of images"
            )
        splits, official = "train / val / test", self.official_counts
        if official and len(official) == 2:
            splits, counts = "train and val / test", (counts[0] + counts[1], counts[2])
        if official not in (None, counts):
            here, there = (" / ".join(map(str, numbers)) for numbers in (counts, official))
            notice(
                f"{self.source} has {here} images for {splits}, which are not the official splits "
                f"of {there}: likelihoods cannot be compared with published ones"
            )
        return found

    def listed(self, name: str) -> Path:
        """A file or folder that belongs to the set; a DataError if the source lacks it."""
        path = Path(self.source) / name
        if not path.exists():
            raise DataError(f"data.source={self.source}: {name} is missing there (docs/data.md)")
        return path


def split_of(name: str, val_fraction: float, test_fraction: float) -> str:
    """The split of a name, by its hash: names that are added or removed change no other's."""
    position = int(digest(os.fsencode(name)), 16) / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def digest(data: bytes) -> str:
    """Hash, 16 hexadecimal digits."""
    return blake2b(data, digest_size=8).hexdigest()


def image_names(folder: Path) -> tuple[list[str], Counter[str]]:
    """Sorted relative paths of the image files below a folder, and how often other suffixes occur.

    Hidden files and folders are passed over, links to folders elsewhere are followed. A DataError
    names a subfolder that cannot be read.
    """
    names, others = [], Counter()
    for path in _visible_files(folder, set()):
        if path.suffix.lower() in SUFFIXES:
            names.append(path.relative_to(folder).as_posix())
        else:
            others[path.suffix] += 1
    return sorted(names), others


def _visible_files(folder: Path, walked: set[Path]) -> Iterator[Path]:
    """Files below a folder; ``walked`` are the folders that links have led to before."""
    walked.add(folder.resolve())
    links = []
    for path, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [Path(path, name) for name in folders if Path(path, name).is_symlink()]
        yield from (Path(path, name) for name in files if not name.startswith("."))
    for link in sorted(links):
        target = link.resolve()
        if not any(a.is_relative_to(b) for w in walked for a, b in ((target, w), (w, target))):
            yield from _visible_files(link, walked)


def _unreadable(error: OSError) -> None:
    raise DataError(f"data.source: {error.filename} cannot be read ({error.strerror})") from error
