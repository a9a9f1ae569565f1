"""What is kept of every image that was recovered."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evaluation.arrays import file_names, save_arrays
from evaluation.base import Cell, Result, labels_text
from flowprior.inversion import Estimate, Problem, Recording
from flowprior.posterior.summaries import Moments, drawn

DRAWS = 32
"""Of a posterior, for pictures of its standard deviation."""
_DRAWS_AT_ONCE = 8


def kept_of_batch(
    cell: Cell,
    images: Sequence[int],
    problem: Problem,
    estimate: Estimate,
    recording: Recording,
    shown: int,
    every: bool,
) -> list[dict[str, Tensor]]:
    """Curves of the images of a batch, and pictures and latents of those to be shown.

    Pictures have the standard deviation too where there is a posterior.

    Args:
        cell: theirs.
        images: their indices.
        problem: what was solved.
        estimate: what was found.
        recording: the way there.
        shown: number of images in figures, from the first.
        every: keep what was recovered of every image.

    Raises:
        ValueError: draws of the posterior are not as many as asked for, or those of a row that has
            stayed finite are not finite.
    """
    settings = cell.settings
    given = settings["iterations"] and settings["start"] in ("smoothed_truth", "file")
    spread = None
    if min(images) < shown and estimate.posterior is not None:
        spread = _deviation(estimate)
    found = []
    for row, image in enumerate(images):
        kept = _curves(row, estimate, recording)
        if row < shown and image < shown:
            kept |= _pictures(row, problem, estimate, recording)
            kept |= {"start": problem.start[row]} if given else {}
            kept |= {} if spread is None else {"deviation": spread[row]}
        found.append(kept | ({"x": estimate.x[row]} if every else {}))
    return found


def _deviation(estimate: Estimate) -> Tensor:
    """Standard deviation of each pixel (B, C, H, W) of a posterior, which may fail as rows do."""
    moments = Moments()
    for seed in range(DRAWS // _DRAWS_AT_ONCE):
        moments.update(drawn(estimate.posterior, _DRAWS_AT_ONCE, seed, estimate.finite))
    return moments.deviation.float()


def _curves(row: int, estimate: Estimate, recording: Recording) -> dict[str, Tensor]:
    kept = {name: curve[:, row] for name, curve in recording.curves.items()}
    kept |= {name: values[:, row] for name, values in recording.diagnostics.items()}
    kept["milestones"] = torch.tensor(list(recording.snapshots))
    kept["finite"] = estimate.finite[row]
    return kept


def _pictures(
    row: int, problem: Problem, estimate: Estimate, recording: Recording
) -> dict[str, Tensor]:
    kept = {"x": estimate.x[row], "y": problem.y[row]}
    kept |= {} if recording.truth is None else {"truth": recording.truth[row]}
    kept |= {} if estimate.z is None else {"z": estimate.z[row]}
    return kept | {f"x_{k}": pictures[row] for k, pictures in recording.snapshots.items()}


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
