"""One record per (cell, image), kept as it is measured, so that a killed sweep continues."""

import fcntl
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Self

from evaluation.base import Cell, Labels
from flowprior.identity import identity
from flowprior.io import named_error, sync_folder
from flowprior.settings import changes

_FORMAT = "flowprior_records"
_VERSION = 3
_HEADER = f'{{"{_FORMAT}": {_VERSION}}}\n'.encode()
_ADVICE = "choose another output folder, or delete that file to start again"


class OtherSettings(ValueError):
    """There are results of a cell under other settings."""


class RecordStore:
    """Append-only file of JSON lines: a header, then a line for each cell and each of its images.

    A cell's line has its labels, repeat and settings, and stands before the first of its images.
    JSON has no NaN: values that are not finite are the strings ``"nan"``, ``"inf"``, ``"-inf"``
    in the file and floats again when read. A last line without its newline is what a killed
    process left; it is cut off when the file is opened. Cells that the file has besides those
    given are left alone.

    Args:
        path: the file; made, with its folder, if it does not exist.
        cells: those to be measured.

    Raises:
        OtherSettings: the file holds results of one of these cells under other settings.
        ValueError: it is of an earlier version, or has a corrupt line. It is not changed.
        BlockingIOError: another process has the file open.
    """

    def __init__(self, path: str | Path, cells: Sequence[Cell]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._settings: dict[str, Any] = {}
        self._labels: dict[str, Labels] = {}
        self._metrics: dict[str, dict[int, dict[str, float]]] = {}
        self._with_arrays: set[tuple[str, int]] = set()
        # Unbuffered: a failed write must leave nothing behind that a later one would flush.
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            end = self._load()
            self._check(cells)
            self._file.truncate(end)
            if not end:
                self._write(_HEADER)
                sync_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    def append(
        self,
        cell: Cell,
        measured: Mapping[int, Mapping[str, float]],
        with_arrays: Collection[int] = (),
    ) -> None:
        """Write metrics by image to the disk before returning; on an error, none of them.

        Args:
            cell: that was measured.
            measured: metrics by image.
            with_arrays: images of which arrays are kept as well.

        Raises:
            ValueError: one of the images has a record.
            OSError: the disk is full.
        """
        self.extend([(cell, measured, with_arrays)])

    def extend(
        self, many: Sequence[tuple[Cell, Mapping[int, Mapping[str, float]], Collection[int]]]
    ) -> None:
        """`append` each of them, all or none: a disk takes as long for one as for a hundred."""
        contents: list[dict[str, Any]] = []
        settings, images = dict(self._settings), set()
        for cell, measured, with_arrays in many:
            new = {(cell.key, image) for image in measured}
            again = self.done(cell).intersection(measured) or {i for _, i in new & images}
            if again:
                raise ValueError(f"{self.path} already has image {min(again)} of {cell}")
            images |= new
            found = identity(cell.settings)
            if settings.get(cell.key) != found:
                about = {"labels": dict(cell.labels), "repeat": cell.repeat, "settings": found}
                contents.append({"cell": cell.key, **about})
                settings[cell.key] = found
            for image, metrics in measured.items():
                numbers = {name: _number(value) for name, value in metrics.items()}
                about = {"image": image, "metrics": numbers, "arrays": image in with_arrays}
                contents.append({"cell": cell.key, **about})
        lines = [json.dumps(content, allow_nan=False) for content in contents]
        self._write("".join(f"{line}\n" for line in lines).encode())
        for line in lines:
            self._add(json.loads(line))

    def done(self, cell: Cell) -> frozenset[int]:
        """Images of a cell that have a record."""
        return frozenset(self._metrics.get(cell.key, ()))

    def metrics(self, cell: Cell, image: int) -> dict[str, float]:
        """What was measured on one image of one cell; KeyError if nothing was."""
        return self._metrics[cell.key][image]

    def has_arrays(self, cell: Cell, image: int) -> bool:
        """Whether arrays of an image that has a record were kept."""
        return (cell.key, image) in self._with_arrays

    def labels(self) -> list[Labels]:
        """Labels of the cells of which an image has a record."""
        return [self._labels[key] for key, images in self._metrics.items() if images]

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = "another process is evaluating into this file"
            raise BlockingIOError(error.errno, reason, str(self.path)) from None
        except OSError:
            pass  # Some network file systems have no locks.

    def _load(self) -> int:
        """Read all whole lines; returns where they end."""
        self._file.seek(0)
        whole, newline, torn = self._file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        self._check_header(lines[0] + newline if lines else torn)
        for number, line in enumerate(lines[1:], start=2):
            try:
                self._add(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{self.path}, line {number}: corrupt record") from None
        return len(whole) + len(newline)

    def _check_header(self, start: bytes) -> None:
        if start == _HEADER[: len(start)]:
            return
        if start.startswith(f'{{"{_FORMAT}": '.encode()):
            raise ValueError(f"{self.path} is of another version of flowprior: {_ADVICE}")
        raise ValueError(f"{self.path} is not a file of evaluation records")

    def _check(self, cells: Sequence[Cell]) -> None:
        changed = [
            (cell, found)
            for cell in cells
            if self._metrics.get(cell.key)
            and (found := changes(self._settings[cell.key], identity(cell.settings)))
        ]
        if changed:
            cell, found = changed[0]
            others = f" (and in {len(changed) - 1} other rows)" if len(changed) > 1 else ""
            raise OtherSettings(
                f"{self.path} holds results of {cell} under other settings: "
                f"{'; '.join(found[:5])}{others}. Give the row other labels, {_ADVICE}"
            )

    def _add(self, content: dict[str, Any]) -> None:
        key = content["cell"]
        if "settings" in content:
            self._settings[key], self._labels[key] = content["settings"], content["labels"]
            self._metrics.setdefault(key, {})
            return
        images, image = self._metrics[key], int(content["image"])
        if image in images:
            raise ValueError(f"second record of image {image}")
        if content["arrays"]:
            self._with_arrays.add((key, image))
        images[image] = {
            name: float(value) if isinstance(value, str) else _number(value)
            for name, value in content["metrics"].items()
        }

    def _write(self, data: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            self._file.truncate(end)
            if isinstance(error, OSError):
                raise named_error(error, self.path) from error
            raise


def measured_labels(path: Path) -> list[Labels]:
    """Labels of the cells that have records in a file; none if there is no file."""
    if not path.exists():
        return []
    with RecordStore(path, ()) as store:
        return store.labels()


def _number(value: Any) -> float | str:
    """A Python number from one of NumPy's or PyTorch's; text if it is not finite."""
    number = int(value) if isinstance(value, Integral) else float(value)
    return number if math.isfinite(number) else str(number)
