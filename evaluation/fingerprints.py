"""What results depend on, as JSON-like values that a later run compares."""

from __future__ import annotations

import hashlib
import inspect
import math
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
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


def data_fingerprint(data: ImageDataModule, split: str = "test") -> Any:
    """What tells the images of a split from any others: all of them, not the first ones."""
    if hasattr(data, "fingerprint"):
        return plain(data.fingerprint(split))
    found = hashlib.sha256()
    for _, x in data.batches(split, _BATCH, dequantized=False):
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

    An object becomes its class and its public attributes, with a digest of its code if it is a
    user's own; a torch module also has a digest of its weights.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [plain(item) for item in value]
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Tensor):
        return digest(value)
    return _plain_object(value)


def _plain_object(value: Any) -> dict[str, Any]:
    kind = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    code = code_digest(kind)
    found = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    if code:
        found["code"] = code
    if isinstance(value, nn.Module) and value.state_dict():
        found["weights"] = digest(*(p for item in value.state_dict().items() for p in item))
    if kind is value:
        return found
    attributes = getattr(value, "__dict__", {})
    own = {name: item for name, item in attributes.items() if not name.startswith("_")}
    inner = dict(value.named_children()) if isinstance(value, nn.Module) else {}
    return {**found, **{name: plain(item) for name, item in {**own, **inner}.items()}}
