"""Figures and TensorBoard pages of inversions, from what was kept of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from callbacks.inversion_curves import margins, progress_grid, write_margin
from evaluation.arrays import file_names
from evaluation.cells import Labels, Result, labels_text
from evaluation.experiment import Experiment
from evaluation.methods import Method
from evaluation.outputs import board
from flowprior.figures import curve_panels, image_grid, qq_plot
from flowprior.inversion.solvers import CURVES as SOLVER_CURVES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Shown = Mapping[str, tuple[Figure, str]]

MEASURES = {"ssim": "SSIM", "lpips": "LPIPS", "psnr": "PSNR (dB)", "misfit": "Data misfit"}
CURVES = (*SOLVER_CURVES, "psnr", "ssim", "lpips")
DIAGNOSTICS = ("radius", "skewness", "kurtosis", "patch_energy_spread")
Kept = Mapping[str, np.ndarray]


def is_finite(result: Result) -> bool:
    """Whether the image was recovered at all."""
    return not any(map(math.isnan, result.metrics.values()))


def inversion_figures(
    experiments: Sequence[Experiment], results: Sequence[Result], shown: int
) -> Shown:
    """Curves of all experiments; recovered images and latents of each."""
    found: dict[str, tuple[Figure, str]] = {}
    for name, title in MEASURES.items():
        panels = {
            _title(experiment): _series(experiment, results, name) for experiment in experiments
        }
        panels = {title: series for title, series in panels.items() if series}
        if panels:
            figure = curve_panels(panels, "Iteration", title, log_y=name == "misfit")
            band = " ± one standard deviation" if name != "misfit" else ""
            found[f"{name}_by_iteration"] = (figure, f"{title}: mean{band} over the images.")
    for number, experiment in enumerate(experiments, 1):
        suffix = f"_{number}" if len(experiments) > 1 else ""
        kept = _pictures(experiment, results, shown)
        if kept:
            found[f"recovered{suffix}"] = _comparison(experiment, kept)
            latents = _latents(kept)
            if latents:
                caption = "Latents of these images against N(0, 1)"
                found[f"latents{suffix}"] = qq_plot(latents), f"{caption}. {_title(experiment)}"
    return found


def write_boards(results: Sequence[Result], folder: Path, shown: int) -> None:
    """One TensorBoard run for each row of the table, in place of those of an earlier call."""
    rows: dict[str, list[Kept]] = {}
    for result in results:
        if is_finite(result):
            rows.setdefault(labels_text(result.cell.labels), []).append(result.arrays)
    places = file_names(rows)
    for name, kept in rows.items():
        _write_board(kept, folder / places[name], shown)


def _write_board(kept: Sequence[Kept], folder: Path, shown: int) -> None:
    names = [name for name in CURVES if name in kept[0]]
    pictured = [item for item in kept if "x_0" in item][:shown]
    with board(folder) as writer:
        for name in names:
            values = torch.from_numpy(np.stack([item[name] for item in kept]))
            for iteration, column in enumerate(values.T):
                write_margin(writer, name, column, iteration)
        writer.add_custom_scalars(margins(names))
        for place, iteration in enumerate(kept[0]["milestones"].tolist()):
            for name in (name for name in DIAGNOSTICS if name in kept[0]):
                mean = np.mean([item[name][place] for item in kept])
                writer.add_scalar(f"latent/{name}", mean, iteration)
            if pictured:
                grid = progress_grid(_grid_rows(pictured, iteration))
                writer.add_figure("inversion/images", grid, iteration)


def _grid_rows(pictured: Sequence[Kept], iteration: int) -> dict[str, torch.Tensor]:
    """Images of what there is, by name."""
    keys = {"truth": "truth", "observation": "y", "start": "x_0", "current": f"x_{iteration}"}
    return {
        name: torch.from_numpy(np.stack([item[key] for item in pictured]))
        for name, key in keys.items()
        if key in pictured[0]
    }


def method_name(labels: Labels) -> str:
    """A method as figures call it.

    >>> method_name({"β": 0.001, "method": "flow"})
    'flow, β 0.001'
    """
    others = {name: value for name, value in labels.items() if name != "method"}
    first = [str(labels["method"])] if "method" in labels else []
    return ", ".join([*first, *([labels_text(others)] if others else [])])


def _title(experiment: Experiment) -> str:
    return labels_text(experiment.labels) or experiment.operator


def _of(experiment: Experiment, method: Method, results: Sequence[Result]) -> list[Result]:
    labels = {**experiment.labels, **method.labels}
    return [r for r in results if dict(r.cell.labels) == labels and is_finite(r)]


def _series(
    experiment: Experiment, results: Sequence[Result], name: str
) -> dict[str, tuple[np.ndarray, ...]]:
    series = {}
    for method in experiment.methods:
        kept = [result.arrays for result in _of(experiment, method, results)]
        if kept and name in kept[0]:
            values = np.stack([item[name] for item in kept])
            band = () if name == "misfit" else (values.std(0),)
            x = np.arange(values.shape[1])
            series[method_name(method.labels)] = (x, values.mean(0), *band)
    return series


def _pictures(
    experiment: Experiment, results: Sequence[Result], shown: int
) -> dict[str, list[Kept]]:
    """By method, what was kept of the first images that all recovered, with the first seed."""
    found: dict[str, dict[int, Kept]] = {}
    for method in experiment.methods:
        group = _of(experiment, method, results)
        group = [r for r in group if r.cell is group[0].cell and r.image < shown]
        kept = {result.image: result.arrays for result in group}
        kept = {image: item for image, item in kept.items() if "x_0" in item}
        if kept:  # a method may have failed on all of them
            found[method_name(method.labels)] = kept
    common = sorted(set.intersection(*map(set, found.values()))) if found else []
    return {name: [kept[i] for i in common] for name, kept in found.items()} if common else {}


def _comparison(experiment: Experiment, kept: Mapping[str, list[Kept]]) -> tuple[Figure, str]:
    """One row for each image: truth, data if they are images, start, and what methods found."""
    first = next(iter(kept.values()))
    columns = {}
    if "truth" in first[0]:
        columns["truth"] = [item["truth"] for item in first]
    if first[0]["y"].shape == first[0]["x"].shape:
        columns["data"] = [item["y"] for item in first]
    columns["start"] = [item["x_0"] for item in first]
    columns |= {name: [item["x"] for item in items] for name, items in kept.items()}
    images = np.stack([image for row in zip(*columns.values(), strict=True) for image in row])
    titles = [name.replace(", ", "\n") for name in columns]
    figure = image_grid(images, len(columns), titles, value_range=(0, 1), label="value")
    return figure, f"The first images, not selected. {_title(experiment)}"


def _latents(kept: Mapping[str, list[Kept]]) -> dict[str, np.ndarray]:
    found = {name: [item["z"] for item in items if "z" in item] for name, items in kept.items()}
    return {name: np.stack(latents) for name, latents in found.items() if latents}
