"""What is kept of every image that was recovered."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evaluation.arrays import file_names, save_arrays
from evaluation.base import Result, labels_text
from flowprior.inversion import Estimate, Problem, Recording


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
