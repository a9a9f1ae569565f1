"""What is kept of every image that was recovered, and what batches share."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from evaluation.arrays import ArrayStore, file_names, save_arrays
from evaluation.base import Result, labels_text
from flowprior.identity import digest
from flowprior.inversion import Estimate, Problem, Recording


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
