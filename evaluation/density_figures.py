"""Figures of an evaluation of flows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from evaluation.base import Labels, Result
from flowprior.distribution_figures import qq_plot
from flowprior.figures import image_grid, image_rows
from flowprior.metrics import largest_patch_correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BESIDE = 8
"""Images shown beside their projections."""
_ROWS = {"x": "test images", "projection": "projections"}
_MEANING = {
    "bits_per_dim": "bits per dimension",
    "relative_error": "relative reconstruction errors",
}


def figures_of(labels: Labels, shown: Sequence[Result]) -> dict[str, tuple["Figure", str]]:
    """Samples, test images and latents of one flow."""
    name, data = labels["weights"], labels["data"]
    titles = [_title(result) for result in shown]
    found = {
        "samples": (
            _grid([result.arrays["sample"] for result in shown]),
            f"Samples of {name} at temperature 1, not selected.",
        ),
        "test_images": (
            _grid([result.arrays["x"] for result in shown], titles),
            f"The first test images of {data}, with their {_MEANING[_measure(shown)]}.",
        ),
    }
    if "projection" in shown[0].arrays:
        rows = {key: [result.arrays[key] for result in shown[:BESIDE]] for key in _ROWS}
        rows = {_ROWS[key]: np.stack(images) for key, images in rows.items()}
        rows["|error|"] = np.abs(rows["projections"] - rows["test images"])
        caption = f"Test images, and those of the range of {name} that stand for them."
        found["projections"] = (image_rows(rows, "value in [0, 1]"), caption)
    if any(np.isfinite(result.arrays["z"]).all() for result in shown):
        found["latent_qq"] = _latents(shown, name)
    return found


def _measure(shown: Sequence[Result]) -> str:
    return next(name for name in _MEANING if name in shown[0].metrics)


def _title(result: Result) -> str:
    name = _measure([result])
    value = result.metrics[name]
    return f"{value:.2f} bits/dim" if name == "bits_per_dim" else f"error {value:.3f}"


def _grid(images: Sequence[np.ndarray], titles: Sequence[str] = ()) -> "Figure":
    unit_range = np.stack(images).clip(0, 1)
    return image_grid(unit_range, titles=titles, value_range=(0, 1), label="value in [0, 1]")


def _latents(shown: Sequence[Result], name: str) -> tuple["Figure", str]:
    z = np.stack([result.arrays["z"] for result in shown])
    largest, independent = largest_patch_correlation(torch.from_numpy(z))
    return (
        qq_plot({f"latents of {len(shown)} test images": z}),
        f"All entries of the latents of these test images under {name}, against N(0, 1). Largest "
        f"correlation between two entries of a patch: {largest:.2f}; about {independent:.2f} for "
        "independent entries.",
    )
