"""Arrays kept beside the records, so that a finished run can be redrawn and a batch shared."""

import itertools
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.base import Result, labels_text
from flowprior.figures import to_numpy
from flowprior.identity import digest
from flowprior.inversion import Estimate, Problem, Recording
from flowprior.io import atomic_path


def file_names(names: Iterable[str]) -> dict[str, str]:
    """File names of all names, numbered where two would be one.

    Anything but letters, digits, ``_`` and ``-`` becomes ``-``.

    >>> list(file_names(["flow", "SNR 10 dB/glow", "flow+"]).values())
    ['flow', 'SNR-10-dB-glow', 'flow-2']
    """
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w-]+", "-", name).strip("-")[:150] or "unnamed"
        candidates = (f"{plain}-{number}" for number in itertools.count(2))
        taken = {other.casefold() for other in found.values()}
        found[name] = next(
            c for c in itertools.chain([plain], candidates) if c.casefold() not in taken
        )
    return found


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays or tensors to an ``.npz`` file, all of them or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez(temporary, **{key: to_numpy(array) for key, array in arrays.items()})


class ArrayStore:
    """Arrays of images, one ``.npz`` file for each group and image: ``<group>/<image>.npz``.

    The group is `Cell.key`, or what else tells a set of images from others, without ``/``. Save
    inside `Evaluation.evaluate`: records are written after it returns, so an image that has a
    record has its arrays too.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, group: str, image: int, arrays: Mapping[str, Any]) -> None:
        """Keep arrays or tensors of an image, in place of those that it had before."""
        save_arrays(self._path(group, image), arrays)

    def has(self, group: str, image: int) -> bool:
        """Whether arrays of an image are kept."""
        return self._path(group, image).exists()

    def load(self, group: str, image: int) -> dict[str, np.ndarray]:
        """The arrays of an image; ValueError if they are missing or damaged."""
        path = self._path(group, image)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path}, which belongs to a record, is missing or damaged: remove "
                f"{self.folder.parent} to measure anew"
            ) from error

    def _path(self, group: str, image: int) -> Path:
        return self.folder / group / f"{image}.npz"


class Cache:
    """Tensors of these images by name, looked up or else computed and kept in an `ArrayStore`.

    What does not depend on the data need not be computed for each noise level. The time that it
    took to compute counts in every recording that uses it.
    """

    def __init__(
        self, arrays: ArrayStore, images: Sequence[int], prior: str, recording: Recording
    ) -> None:
        self.arrays, self.images, self.prior = arrays, images, prior
        self.recording = recording

    def __call__(self, name: str, of: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Rows (B, ...) that follow from the name, the prior and the rows `of` (B, ...)."""
        start = time.perf_counter()
        groups = [f"kept-{digest(name, self.prior, row)[:16]}" for row in of]
        places = list(zip(groups, self.images, strict=True))
        if not all(self.arrays.has(*place) for place in places):
            began = time.perf_counter()
            computed = compute().cpu()  # once a GPU is done
            seconds = torch.tensor((time.perf_counter() - began) / len(of))
            for place, row in zip(places, computed, strict=True):
                self.arrays.save(*place, {"row": row, "seconds": seconds})
        kept = [self.arrays.load(*place) for place in places]
        rows = torch.stack([torch.from_numpy(item["row"]) for item in kept]).to(of.device)
        elapsed = time.perf_counter() - start
        self.recording.seconds += sum(float(item["seconds"]) for item in kept) - elapsed
        return rows


def kept_of_row(
    row: int,
    recording: Recording,
    estimate: Estimate,
    problem: Problem,
    truth: Tensor | None,
    with_pictures: bool,
) -> dict[str, Tensor]:
    """Curves of one row of a batch and, if it is to be shown, its pictures and latents."""
    kept = {name: curve[:, row] for name, curve in recording.curves.items()}
    kept |= {name: values[:, row] for name, values in recording.diagnostics.items()}
    kept["milestones"] = torch.tensor(list(recording.snapshots))
    kept["finite"] = estimate.finite[row]
    if with_pictures:
        kept |= {"x": estimate.x[row], "y": problem.y[row]}
        kept |= {} if truth is None else {"truth": truth[row]}
        kept |= {} if estimate.z is None else {"z": estimate.z[row]}
        kept |= {f"x_{k}": pictures[row] for k, pictures in recording.snapshots.items()}
    return kept


def is_finite(result: Result) -> bool:
    """Whether the solver's estimate of the image stayed finite."""
    return bool(result.arrays["finite"])


def write_recovered(results: Sequence[Result], folder: Path) -> None:
    """Recovered images (n, C, H, W) of each row of the table, as .npz."""
    cells: dict[str, list[Result]] = {}
    for result in results:
        repeat = f" {result.cell.repeat}" if result.cell.repeat else ""
        cells.setdefault(labels_text(result.cell.labels) + repeat, []).append(result)
    for name, place in file_names(cells).items():
        images = [torch.from_numpy(result.arrays["x"]) for result in cells[name]]
        save_arrays(folder / f"{place}.npz", {"x": torch.stack(images)})
