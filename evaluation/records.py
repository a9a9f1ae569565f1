"""One record per (cell, image), kept as it is measured, so that a killed sweep continues."""

import fcntl
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flowprior.io import named_error, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

Label = str | int | float | bool | None
Labels = Mapping[str, Label]

_HEADER = b'{"flowprior_records": 1'


@dataclass(frozen=True)
class Record:
    """What was measured on one image of one cell of a sweep.

    Args:
        labels: the cell, e.g. ``{"method": "glow", "noise": 0.1}``.
        image: index of the image, or number of the repeat where a cell is timed.
        metrics: finite or not; int stays int.
        part: tells measurements with the same labels apart (images and repeats).
    """

    labels: Labels
    image: int
    metrics: Mapping[str, float]
    part: str = ""

    @property
    def cell(self) -> tuple[str, str]:
        """The cell as something hashable."""
        return labels_key(self.labels), self.part

    @property
    def key(self) -> tuple[str, str, int]:
        """The cell and the image."""
        return *self.cell, self.image


def labels_key(labels: Labels) -> str:
    """Labels as one string, whatever the order they were written in."""
    return json.dumps(dict(labels), sort_keys=True)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file (of weights, say), for fingerprints."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: "str | Tensor") -> str:
    """SHA-256 of texts and tensors, for fingerprints."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            found.update(part.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class RecordStore:
    """Append-only file of JSON lines: a header with the fingerprint, then one record a line.

    JSON has no NaN: values that are not finite are the strings ``"nan"``, ``"inf"``, ``"-inf"``
    in the file and floats again when read. A last line without its newline is what a killed
    process left; it is cut off when the file is opened.

    Args:
        path: the file; made, with its folder, if it does not exist.
        fingerprint: all that decides the results (settings, hash of the weights), JSON-like.

    Raises:
        ValueError: the file holds results of another fingerprint, or a line is corrupt.
        BlockingIOError: another process has the file open.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._records: dict[tuple[str, str, int], Record] = {}
        self._done: dict[tuple[str, str], set[int]] = defaultdict(set)
        # Unbuffered: a failed write must leave nothing behind that a later one would flush.
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self._load(_plain(fingerprint))
        except BaseException:
            self.close()
            raise

    def append(self, records: Iterable[Record]) -> None:
        """Write records to the disk before returning; on an error, none of them.

        Raises:
            ValueError: a record for this (cell, image) exists.
            OSError: the disk is full.
        """
        lines = [_line(record) for record in records]
        new: dict[tuple[str, str, int], Record] = {}
        for record in map(_parse, lines):
            if record.key in self._records or record.key in new:
                raise ValueError(f"{self.path} already has image {record.image} of {record.cell}")
            new[record.key] = record
        self._write(b"".join(lines))
        for record in new.values():
            self._add(record)

    def done(self, labels: Labels, part: str = "") -> frozenset[int]:
        """Images of a cell that have a record."""
        return frozenset(self._done.get((labels_key(labels), part), ()))

    def get(self, labels: Labels, image: int, part: str = "") -> Record:
        """The record of one image of one cell; KeyError if there is none."""
        return self._records[labels_key(labels), part, image]

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

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

    def _load(self, fingerprint: dict[str, Any]) -> None:
        self._file.seek(0)
        whole, newline, torn = self._file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        # Before anything is cut off, be sure that this is a file of ours.
        start = lines[0] if lines else torn
        if start[: len(_HEADER)] != _HEADER[: len(start)]:
            raise ValueError(f"{self.path} is not a file of evaluation records")
        if lines:
            self._check_fingerprint(lines[0], fingerprint)
        for number, line in enumerate(lines[1:], start=2):
            self._add_line(number, line)
        if torn:
            self._file.truncate(len(whole) + len(newline))
        if not lines:
            self._write(_HEADER + f', "fingerprint": {json.dumps(fingerprint)}}}\n'.encode())
            sync_folder(self.path.parent)

    def _check_fingerprint(self, header: bytes, new: dict[str, Any]) -> None:
        try:
            old = json.loads(header)["fingerprint"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path}, line 1: corrupt header") from None
        changes = list(_differences(old, new))
        if changes:
            raise ValueError(
                f"{self.path} holds results of another setting: {'; '.join(changes)}. "
                "Choose another output folder, or delete that file to start again"
            )

    def _add_line(self, number: int, line: bytes) -> None:
        try:
            record = _parse(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{self.path}, line {number}: corrupt record") from None
        if record.key in self._records:
            raise ValueError(f"{self.path}, line {number}: second record of one image")
        self._add(record)

    def _add(self, record: Record) -> None:
        self._records[record.key] = record
        self._done[record.cell].add(record.image)

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


def _line(record: Record) -> bytes:
    metrics = {name: _number(value) for name, value in record.metrics.items()}
    content = {"labels": dict(record.labels), "image": int(record.image), "metrics": metrics}
    if record.part:
        content["part"] = record.part
    return json.dumps(_plain(content), allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> Record:
    content = json.loads(line)
    metrics = {
        name: float(value) if isinstance(value, str) else _number(value)
        for name, value in content["metrics"].items()
    }
    return Record(dict(content["labels"]), int(content["image"]), metrics, content.get("part", ""))


def _number(value: Any) -> float:
    """A Python number from one of NumPy's or PyTorch's."""
    return int(value) if isinstance(value, Integral) else float(value)


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: string keys, lists, no number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{name}.{key}" if name else key
            yield from _differences(old.get(key, "(absent)"), new.get(key, "(absent)"), inner)
    elif old != new:
        yield f"{name or 'fingerprint'} was {old}, is now {new}"
