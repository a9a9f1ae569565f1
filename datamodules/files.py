"""Image files of a folder: which there are, and which split each belongs to."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from datamodules.errors import DataError

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


class Pictures(ABC):
    """Encoded images of one split, in a fixed order."""

    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def data(self, index: int) -> Path | bytes:
        """A file, or the bytes of one."""

    @abstractmethod
    def stamps(self) -> Iterator[str]:
        """Texts that change when the images do, found without reading these."""


class Files(Pictures):
    """Image files of a folder.

    Args:
        folder: where they are.
        names: paths relative to it.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names

    def data(self, index: int) -> Path:
        """The file of a name."""
        return self.folder / self.names[index]

    def stamps(self) -> Iterator[str]:
        """Name, size and time of change of each file."""
        return (stamp(self.folder / name, name) for name in self.names)


def stamp(path: Path, name: str) -> str:
    """A name with the size and the time of change of its file, if it is there."""
    try:
        status = path.stat()
    except OSError:
        return name
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def image_names(folder: Path) -> tuple[list[str], Counter[str]]:
    """Sorted paths of the image files of a folder and its subfolders, relative to it.

    Hidden files and folders are passed over, links to folders elsewhere are followed.

    Returns:
        The paths, and how many other files there are with each suffix.

    Raises:
        DataError: a subfolder cannot be read.
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


def folder_splits(names: Sequence[str]) -> dict[str, list[str]] | None:
    """Paths by the split whose folder (``train/``, ``val/``, ``test/``) they are in.

    Returns:
        None if the folders are not named like splits.

    Raises:
        DataError: there are images outside of these folders, or none in ``train/``.
    """
    found: dict[str | None, list[str]] = {}
    for name in names:
        top = name.partition("/")[0].lower() if "/" in name else ""
        found.setdefault(SPLIT_NAMES.get(top), []).append(name)
    if not found.keys() & {"val", "test"}:
        return None
    outside = found.pop(None, [])
    if "train" not in found or outside:
        example = outside[0] if outside else names[0]
        raise DataError(
            "data.source has subfolders named like splits, so it is expected to have images in "
            f"train/, val/ and test/ only, and some in train/; found {printable(example)}"
        )
    return found


def split_of(name: str, val_fraction: float, test_fraction: float) -> str:
    """The split of a name, by its hash: names that are added or removed change no other's."""
    position = int(digest(os.fsencode(name)), 16) / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def printable(name: str) -> str:
    """The name of a file, which need not be UTF-8, as text."""
    return name.encode(errors="backslashreplace").decode()


def digest(data: bytes) -> str:
    """Hash, 16 hexadecimal digits."""
    return blake2b(data, digest_size=8).hexdigest()
