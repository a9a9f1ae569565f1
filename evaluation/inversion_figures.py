"""Figures and TensorBoard pages of inversions, from what was kept of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from evaluation.arrays import file_names
from evaluation.base import Result, labels_text
from evaluation.inversion_arrays import DRAWS, is_finite
from evaluation.table import SECONDS, summarise
from flowprior.distribution_figures import qq_plot
from flowprior.figures import grey_range, image_grid
from flowprior.inversion.boards import margins, progress_grid, write_margin
from flowprior.inversion.fit_warnings import FAR_BEYOND
from flowprior.panels import curve_panels, point_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Shown = dict[str, tuple[Figure, str]]

MEASURES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "misfit": "Data misfit (nats)"}
CURVES = (
    *("loss", "objective", "misfit", "log_prior", "entropy", "beta", "acceptance", "step_size"),
    *("psnr", "ssim", "lpips"),
)
DIAGNOSTICS = ("radius", "skewness", "kurtosis", "patch_energy_spread")
Rows = Mapping[str, list[Result]]


def inversion_figures(results: Sequence[Result], shown: int) -> Shown:
    """Curves of all experiments; recovered images and latents of each."""
    found: Shown = {}
    experiments = _by_experiment([result for result in results if is_finite(result)])
    for name, title in MEASURES.items():
        panels = {label: _series(rows, name) for label, rows in experiments.items()}
        panels = {label: series for label, series in panels.items() if series}
        if panels:
            figure = curve_panels(panels, "Iteration", title, log_y=name == "misfit")
            band = " ± one standard deviation" if name != "misfit" else ""
            found[f"{name}_by_iteration"] = (figure, f"{title}: mean{band} over the images.")
    found |= _quality_by_seconds(experiments)
    for number, (label, rows) in enumerate(experiments.items(), 1):
        suffix = f"_{number}" if len(experiments) > 1 else ""
        kept = _pictured(rows, shown)
        if kept:
            found[f"recovered{suffix}"] = _comparison(label, kept)
            latents = _latents(kept)
            if latents:
                caption = f"Latents of these images against N(0, 1). {label}"
                found[f"latents{suffix}"] = qq_plot(latents), caption
    return found


def write_boards(results: Sequence[Result], folder: Path, shown: int) -> None:
    """One TensorBoard run for each row of the table, in place of those of an earlier call."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        if is_finite(result) and len(result.arrays["milestones"]) > 1:
            rows.setdefault(labels_text(result.cell.labels), []).append(result)
    for name, place in file_names(rows).items():
        _write_board([result.arrays for result in rows[name]], folder / place, shown)


def _write_board(kept: Sequence[Mapping[str, np.ndarray]], folder: Path, shown: int) -> None:
    from evaluation.report import board

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


def _grid_rows(
    pictured: Sequence[Mapping[str, np.ndarray]], iteration: int
) -> dict[str, torch.Tensor]:
    """Images of what there is, by name."""
    keys = {"truth": "truth", "observation": "y", "start": "x_0", "current": f"x_{iteration}"}
    return {
        name: torch.from_numpy(np.stack([item[key] for item in pictured]))
        for name, key in keys.items()
        if key in pictured[0]
    }


def _by_experiment(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Results by experiment and by method, each as figures call it: "flow, β 0.001"."""
    found: dict[str, dict[str, list[Result]]] = {}
    operators = {result.cell.experiment.operator for result in results}
    short = {name: name.rpartition(".")[2] for name in operators}
    distinct = len(set(short.values())) == len(short)
    for result in results:
        shared, operator = result.cell.experiment.labels, result.cell.experiment.operator
        title = labels_text(shared) or (short[operator] if distinct else operator)
        own = {name: v for name, v in result.cell.labels.items() if name not in shared}
        method = [str(own.pop("method"))] if "method" in own else []
        name = ", ".join(filter(None, [*method, labels_text(own)]))
        found.setdefault(title, {}).setdefault(name, []).append(result)
    return found


def _quality_by_seconds(experiments: Mapping[str, Rows]) -> Shown:
    """PSNR of each method against its time, where there are methods to compare."""
    panels = {label: _points(rows) for label, rows in experiments.items()}
    panels = {label: points for label, points in panels.items() if len(points) > 1}
    if not panels:
        return {}
    caption = "PSNR and time per image: means, with the 95 % interval of the PSNR over the images."
    figure = point_panels(panels, "Seconds per image", MEASURES["psnr"])
    return {"psnr_by_seconds": (figure, caption)}


def _points(rows: Rows) -> dict[str, tuple[float | None, float, float]]:
    """Seconds, PSNR and its interval by method; the data have no seconds."""
    points = {}
    for label, results in rows.items():
        quality, seconds = (
            summarise((result.image, result.metrics.get(name, math.nan)) for result in results)
            for name in ("psnr", SECONDS.name)
        )
        if quality.mean is not None and seconds.mean:
            is_method = results[0].cell.labels.get("method") != "data"
            points[label] = (
                seconds.mean if is_method else None,
                quality.mean,
                quality.ci95 or 0.0,
            )
    return points


def _series(rows: Rows, name: str) -> dict[str, tuple[np.ndarray, ...]]:
    series = {}
    for label, results in rows.items():
        if name in results[0].arrays and len(results[0].arrays[name]) > 1:
            values = np.stack([result.arrays[name] for result in results])
            band = () if name == "misfit" else (values.std(0),)
            series[label] = (np.arange(values.shape[1]), values.mean(0), *band)
    return series


def _pictured(rows: Rows, shown: int) -> dict[str, list[Result]]:
    """By method, the results of the first images that all recovered, with the first seed."""
    found: dict[str, dict[int, Result]] = {}
    for label, results in rows.items():
        kept = {
            result.image: result
            for result in results
            if result.cell.repeat == results[0].cell.repeat
            and result.image < shown
            and "x_0" in result.arrays
        }
        if kept:  # a method may have failed on all of them
            found[label] = kept
    common = sorted(set.intersection(*map(set, found.values()))) if found else []
    return {name: [kept[i] for i in common] for name, kept in found.items()} if common else {}


def _comparison(title: str, kept: Rows) -> tuple[Figure, str]:
    """One row for each image: truth, data, start, and what each method found, with its PSNR.

    Standard deviations of posteriors stand beside their means.
    """
    first = next(iter(kept.values()))
    columns: dict[str, list[tuple[np.ndarray, str]]] = {}
    if "truth" in first[0].arrays:
        columns["truth"] = [(result.arrays["truth"], "") for result in first]
    elif _data_are_images(first[0]):  # without a truth the table has no row of the data
        columns["data"] = [(result.arrays["y"], "") for result in first]
    for results in kept.values():
        if "start" in results[0].arrays:  # the same for all methods that start there
            heading = f"start:\n{results[0].cell.settings['start'].replace('_', ' ')}"
            scores = [_psnr(result, "start_psnr") for result in results]
            columns[heading] = [
                (result.arrays["start"], s) for result, s in zip(results, scores, strict=True)
            ]
    spreads = []
    for name, results in kept.items():
        heading = name.replace(", ", "\n")
        columns[heading] = [(result.arrays["x"], _score(result)) for result in results]
        if all("deviation" in result.arrays for result in results):
            spreads.append(len(columns))
            columns[f"{heading}\ndeviation"] = [_spread(result) for result in results]
    tiles = [tile for row in zip(*columns.values(), strict=True) for tile in row]
    images, scores = zip(*tiles, strict=True)
    headed = [f"{name}\n{score}" for name, score in zip(columns, scores, strict=False)]
    titles = [*headed, *scores[len(columns) :]]
    known = "truth" if "truth" in first[0].arrays else "x"
    shown = first if known == "truth" else [one for results in kept.values() for one in results]
    greys = grey_range(np.stack([result.arrays[known] for result in shown]))
    options = {"label": "value in [0, 1]", "spreads": spreads}
    figure = image_grid(np.stack(images), len(columns), titles, greys, **options)
    told = ["PSNR"] if "psnr" in first[0].metrics else []
    told += ["the range of those far beyond [0, 1]"] if _any_beyond(kept) else []
    above = f"; above each {' and '.join(told)}" if told else ""
    of_spreads = f" Standard deviations are of {DRAWS} draws, their mean above each."
    return figure, (
        f"The first images, not selected{above}.{of_spreads if spreads else ''} {title}"
    )


def _spread(result: Result) -> tuple[np.ndarray, str]:
    deviation = result.arrays["deviation"]
    return deviation, f"mean {deviation.mean():.2g}"


def _data_are_images(result: Result) -> bool:
    y, x = result.arrays["y"], result.arrays["x"]
    return y.shape == x.shape and not np.iscomplexobj(y)


def _score(result: Result) -> str:
    """PSNR, and the range of an image that is far beyond [0, 1], where it is drawn cut off."""
    x = result.arrays["x"]
    ends = f"{x.min():.1f} to {x.max():.1f}".replace("-", "−") if _is_beyond(result) else ""
    return "\n".join(filter(None, [_psnr(result), ends]))


def _psnr(result: Result, name: str = "psnr") -> str:
    return f"{result.metrics[name]:.1f} dB" if name in result.metrics else ""


def _is_beyond(result: Result) -> bool:
    is_method = result.cell.labels.get("method") != "data"
    return is_method and result.metrics.get("overshoot", 0.0) > FAR_BEYOND


def _any_beyond(kept: Rows) -> bool:
    return any(_is_beyond(result) for results in kept.values() for result in results)


def _latents(kept: Rows) -> dict[str, np.ndarray]:
    found = {
        name: [result.arrays["z"] for result in results if "z" in result.arrays]
        for name, results in kept.items()
    }
    return {name: np.stack(latents) for name, latents in found.items() if latents}
