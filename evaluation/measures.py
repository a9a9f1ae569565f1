"""Columns of a table of inversions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evaluation.base import Result, labels_text
from evaluation.experiment import check_names
from evaluation.inversion_arrays import is_finite
from evaluation.table import SECONDS, Metric, Row, Table
from flowprior.inversion import Estimate, Problem, by_rows
from flowprior.inversion.convergence import STILL, fall
from flowprior.inversion.fit_warnings import FAR_BEYOND, FITTED, overshoot
from flowprior.inversion.recording import similarity
from flowprior.metrics import lpips, psnr, snr, snr_shifted, typicality

MORE_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False}


class Measure(ABC):
    """Columns of one's own: what to measure of each image that was recovered.

    Attributes:
        metrics: its columns.
    """

    metrics: Sequence[Metric] = ()

    @abstractmethod
    def __call__(
        self, estimate: Estimate, problem: Problem, truth: Tensor | None
    ) -> Mapping[str, Tensor]:
        """Values (B,) by name of a metric.

        Args:
            estimate: what was recovered.
            problem: from what.
            truth: images (B, C, H, W) in [0, 1], if they are known.
        """

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """Values of each image of one row that take all of its images to find."""
        return [{} for _ in results]

    def notes(self, has_truth: bool) -> Sequence[str]:
        """Sentences to stand below the table."""
        return ()


class Similarity(Measure):
    """PSNR, SSIM, LPIPS, residual, overshoot, β and how typical the latents are: in every table."""

    metrics = (
        Metric("psnr", "PSNR", "dB", higher_is_better=True),
        Metric("ssim", "SSIM", higher_is_better=True),
        Metric("lpips", "LPIPS", higher_is_better=False, missing="n/a"),
        Metric("residual", "Residual/noise (1)"),
        Metric("residual_rms", "Residual, rms"),
        Metric("overshoot", "Overshoot of [0, 1] (0)"),
        Metric("surprise", "Surprise (below 3.3)"),
        Metric("beta", "β chosen"),
        Metric("falling", "Loss, fall in the last tenth", "%"),
        Metric("best_psnr", "PSNR, best iteration", "dB", True, ranked=False),
        Metric("best_ssim", "SSIM, best iteration", higher_is_better=True, ranked=False),
        Metric("best_lpips", "LPIPS, best iteration", "", False, "n/a", ranked=False),
        Metric("start_psnr", "PSNR, start", "dB", True, ranked=False),
        Metric("start_ssim", "SSIM, start", higher_is_better=True, ranked=False),
        Metric("radius", "Latent radius ‖z‖/√n"),
        Metric("kurtosis", "Latent kurtosis (3)"),
        Metric("patch_energy_spread", "Spread of patch energies (1)"),
    )

    def __call__(
        self, estimate: Estimate, problem: Problem, truth: Tensor | None
    ) -> Mapping[str, Tensor]:
        """See `Measure`."""
        found = {} if truth is None else by_rows(similarity, estimate.x, truth)
        if estimate.residual is not None:
            found["residual"] = estimate.residual
        else:
            with torch.no_grad():
                residual = by_rows(problem.forward, estimate.x, problem.rows) - problem.y
            found["residual_rms"] = residual.abs().flatten(1).square().mean(1).sqrt()
        found["overshoot"] = overshoot(estimate.x)
        if estimate.surprise is not None:
            found["surprise"] = estimate.surprise
        if "beta" in estimate.history:
            found["beta"] = estimate.history["beta"][-1]
        if estimate.z is not None:
            found |= by_rows(typicality, estimate.z)
            del found["skewness"]
        return found

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """Similarity at the start and at the iteration with the best mean; fall of the loss."""
        finite = [is_finite(result) for result in results]
        columns = [
            {"falling": _fall(result.arrays) if ok else math.nan}
            if len(result.arrays.get("loss", ())) > 1
            else {}
            for result, ok in zip(results, finite, strict=True)
        ]
        for name, more_is_better in MORE_IS_BETTER.items():
            if not any(finite) or any(name not in result.arrays for result in results):
                continue
            found = torch.stack([torch.from_numpy(result.arrays[name]) for result in results])
            mean = found[finite].mean(0)
            places = {"best": int(mean.argmax() if more_is_better else mean.argmin())}
            if found.shape[1] > 1 and name != "lpips":
                places["start"] = 0
            for what, at in places.items():
                for row, value in enumerate(found[:, at].tolist()):
                    columns[row][f"{what}_{name}"] = value if finite[row] else math.nan
        return columns

    def notes(self, has_truth: bool) -> Sequence[str]:
        """What columns of the start are, and how to get LPIPS where it is missing."""
        if not has_truth:
            return []
        start = "Start: the image that each method starts from, before its first iteration."
        probe = torch.zeros(1, 1, 16, 16)
        if lpips(probe, probe) is not None:
            return [start]
        return [
            start,
            "LPIPS is n/a: its network is not on this machine. With access to the internet, "
            "python -c \"import lpips; lpips.LPIPS(net='alex')\" downloads it once; then measure "
            "into a new folder.",
        ]


def _fall(arrays: Mapping[str, np.ndarray]) -> float:
    """`fall` of the curves (iterations + 1,) of one image, in percent."""
    curves = {name: arrays[name] for name in ("loss", "misfit", "scale") if name in arrays}
    return fall({name: torch.from_numpy(curve)[:, None] for name, curve in curves.items()}).item()


class PrintedPSNR(Measure):
    """PSNR in the convention of Table 1 of Chavez (2022): (PSNR + 48.13 dB)/2.

    There the root of the squared error was taken twice, on the scale of 8 bits. The published
    numbers compare with this column; `psnr` is the true one.
    """

    metrics = (Metric("printed_psnr", "PSNR, as printed", "dB", True, ranked=False),)

    def __call__(
        self, estimate: Estimate, problem: Problem, truth: Tensor | None
    ) -> Mapping[str, Tensor]:
        """See `Measure`."""
        if truth is None:
            return {}
        return {"printed_psnr": (by_rows(psnr, estimate.x, truth) + 20 * math.log10(255)) / 2}


class SignalToNoise(Measure):
    """Signal-to-noise ratios of images in [−1, 1] and shifted to [0, 2].

    Table 3 of Kothari et al. (2021) does not say which; its numbers fit the second.
    """

    metrics = (
        Metric("snr", "SNR on [−1, 1]", "dB", higher_is_better=True),
        Metric("snr_shifted", "SNR on [0, 2]", "dB", higher_is_better=True),
    )

    def __call__(
        self, estimate: Estimate, problem: Problem, truth: Tensor | None
    ) -> Mapping[str, Tensor]:
        """See `Measure`."""
        if truth is None:
            return {}
        ratios = {"snr": snr, "snr_shifted": snr_shifted}
        return {name: by_rows(ratio, estimate.x, truth) for name, ratio in ratios.items()}


class OperatorCalls(Measure):
    """How often operator and adjoint were applied, in every table that compares images.

    This is the cost where they are PDE solves, and it depends on no machine. Operators that a
    solver takes apart itself (networks of `Reconstructor`) are not seen.
    """

    metrics = (
        Metric("forward_calls", "Operator calls", higher_is_better=False, ranked=False),
        Metric("adjoint_calls", "Adjoint calls", higher_is_better=False, ranked=False),
    )

    def __call__(
        self, estimate: Estimate, problem: Problem, truth: Tensor | None
    ) -> Mapping[str, Tensor]:
        """See `Measure`."""
        calls = estimate.calls
        return {
            "forward_calls": calls.forward.double(),
            "adjoint_calls": calls.adjoint.double(),
        }


BUILT_IN = (Similarity, OperatorCalls)
"""Measures of every table that compares images; records without their columns stay valid."""


def fit_notes(table: Table) -> list[str]:
    """Which methods had not converged, fit the data worse than the noise allows, or the noise."""
    means = _means(table, "residual")
    high = [f"{name} ({mean:.3g})" for name, mean in means if mean is not None and mean > FITTED[1]]
    low = [f"{name} ({mean:.2g})" for name, mean in means if mean is not None and mean < FITTED[0]]
    unfinished = [
        f"{name} ({mean:.2g} %)"
        for name, mean in _means(table, "falling")
        if mean is not None and mean > STILL
    ]
    found = []
    if unfinished:
        found.append(
            f"Not converged, the loss still fell in the last tenth of the iterations: "
            f"{_first(unfinished)}. More iterations may change these rows."
        )
    if high:
        found.append(
            f"Residuals larger than the noise: {_first(high)}. The prior does not explain the "
            "data, or data and noise are not in the units of the operator (images in [0, 1]), or "
            "more iterations or a smaller weight of the prior are needed; or a mean of draws lies "
            "between images that fit."
        )
    if low:
        found.append(
            f"Residuals smaller than the noise: {_first(low)}. It is fitted; or the data are so "
            "few that right images follow them as closely."
        )
    beyond = [text for row in table.rows if (text := _beyond_range(row))]
    if beyond:
        found.append(
            f"Images far beyond [0, 1]: {_first(beyond)}. The prior does not constrain what the "
            "data leave open: give it a larger weight (beta, weight) or take another one; or data "
            "and noise are not in the units of the operator."
        )
    worse = [text for row in table.rows if (text := _worse_than_start(row))]
    if worse:
        found.append(f"Images that ended with a lower PSNR than their start: {_first(worse)}.")
    return found


def _beyond_range(row: Row) -> str | None:
    """The row, and how many of its images leave [0, 1] and by how much at most, if any do."""
    if "overshoot" not in row.stats or row.labels.get("method") == "data":
        return None
    every = row.stats["overshoot"].by_image.values()
    far = [size for size in every if size > FAR_BEYOND]
    if not far:
        return None
    return f"{labels_text(row.labels)} ({len(far)} of {len(every)}, by up to {max(far):.2g})"


def _worse_than_start(row: Row) -> str | None:
    """The row, and how many of its images are worse than what they started from, if any are."""
    if not {"psnr", "start_psnr"} <= row.stats.keys():
        return None
    after, before = row.stats["psnr"].by_image, row.stats["start_psnr"].by_image
    both = after.keys() & before.keys()
    worse = sum(after[image] < before[image] for image in both)
    return f"{labels_text(row.labels)} ({worse} of {len(both)})" if worse else None


def _means(table: Table, metric: str) -> list[tuple[str, float | None]]:
    """Name of each row of a method that has this metric, and its mean."""
    return [
        (labels_text(row.labels), row.stats[metric].mean)
        for row in table.rows
        if metric in row.stats and row.labels.get("method") != "data"
    ]


def _first(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return "; ".join(names[:most]) + (f"; and in {more} more rows" if more > 0 else "")


def measured(
    measures: Sequence[Measure], estimate: Estimate, problem: Problem, truth: Tensor | None
) -> list[dict[str, float]]:
    """All columns of each image; NaN for one that did not stay finite.

    Raises:
        ValueError: a measure returned a column that its `metrics` do not list, or of another shape.
    """
    finite = estimate.finite.tolist()
    rows: list[dict[str, float]] = [{} for _ in finite]
    for measure in measures:
        found = measure(estimate, problem, truth)
        _check_columns(measure, found, len(rows))
        for name, column in found.items():
            for row, value, has_value in zip(rows, column.tolist(), finite, strict=True):
                row[name] = value if has_value else math.nan
    return rows


def check_distinct(measures: Sequence[Measure], built_in: Sequence[type[Measure]] = ()) -> None:
    """Raise ValueError if two measures have a metric of one name, or a built-in one is given."""
    kinds = [type(measure) for measure in measures]
    again = [kind.__name__ for kind in built_in if kinds.count(kind) > 1]
    if again:
        raise ValueError(f"measures: {', '.join(again)}: every table has it, leave it out")
    owners = {SECONDS.name: "every table"}
    for measure in measures:
        owner = type(measure).__name__
        for name in {metric.name for metric in measure.metrics}:
            if name in owners:
                raise ValueError(
                    f"measures: {owner} has a metric named {name!r}, as {owners[name]} has: "
                    "every metric needs a name of its own"
                )
            owners[name] = owner


def _check_columns(measure: Measure, found: Mapping[str, Tensor], count: int) -> None:
    who = f"measures: {type(measure).__name__} returned"
    names = sorted({metric.name for metric in measure.metrics})
    check_names(found, names, f"{who} a metric")
    for name, values in found.items():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != (count,):
            raise ValueError(f"{who} {name} of shape {shape}, expected {(count,)}: one per image")


def derived(measure: Measure, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
    """The further columns of a measure.

    Raises:
        ValueError: they are not those of its `metrics`, or not of every image.
    """
    rows, name = measure.derived(results), type(measure).__name__
    if len(rows) != len(results):
        raise ValueError(f"{name}.derived gave {len(rows)} rows for {len(results)} images")
    unknown = {column for row in rows for column in row} - {m.name for m in measure.metrics}
    if unknown:
        raise ValueError(f"{name}.derived gave {', '.join(sorted(unknown))}, not in its metrics")
    return rows
