"""What results depend on, as JSON-like values that a later run compares."""

from __future__ import annotations

import hashlib
import inspect
import math
import sysconfig
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules import ImageDataModule

_OURS = {"flowprior", "evaluation", "datamodules", "callbacks", "lightning_modules"}
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_BATCH = 64


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file (of weights, say)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: str | Tensor) -> str:
    """SHA-256 of texts and tensors."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            found.update(part.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def data_fingerprint(data: ImageDataModule) -> Any:
    """What tells the test split from any other: of all its images, not of the first ones."""
    if hasattr(data, "fingerprint"):
        return plain(data.fingerprint(split="test"))
    found = hashlib.sha256()
    for _, x in data.batches("test", _BATCH, dequantized=False):
        found.update(x.contiguous().numpy().tobytes())
    return {
        "class": type(data).__name__,
        "n_bits": data.n_bits,
        "data_range": list(data.data_range),
        "seed": data.seed,
        "digest": found.hexdigest(),
    }


def code_digest(kind: type) -> str | None:
    """SHA-256 of the file that defines a class of a user's own; None for ours and libraries'."""
    if kind.__module__.partition(".")[0] in _OURS:
        return None
    path = inspect.getsourcefile(kind)
    if path is None or path.startswith(_LIBRARIES):
        return None
    return file_digest(path)


def plain(value: Any) -> Any:
    """The value as JSON gives it back: string keys, lists, no number that is not finite.

    A dataclass becomes its class and its fields, with a digest of its code if it is a user's own.

    Raises:
        TypeError: the value has no such form, so it could not be told from another.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return _plain_dataclass(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no part of a fingerprint: {value!r}")


def _plain_dataclass(value: Any) -> dict[str, Any]:
    kind = type(value)
    code = code_digest(kind)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        **({"code": code} if code else {}),
        **{field.name: plain(getattr(value, field.name)) for field in fields(value)},
    }
