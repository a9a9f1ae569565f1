"""Curves and pictures of inversions, as TensorBoard shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowprior.figures import image_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


def write_margin(writer: SummaryWriter, name: str, values: Tensor, step: int) -> None:
    """Mean, and mean ± standard deviation, of the values of all images; none for no image."""
    if len(values):
        mean, deviation = values.double().mean(), values.double().std(correction=0)
        writer.add_scalar(f"inversion/{name}", mean, step)
        writer.add_scalar(f"inversion_spread/{name}_low", mean - deviation, step)
        writer.add_scalar(f"inversion_spread/{name}_high", mean + deviation, step)


def margins(names: Mapping[str, Any]) -> dict[str, dict[str, list]]:
    """Layout of TensorBoard's custom scalars: each mean with its band."""
    charts = {
        name: [
            "Margin",
            [f"inversion/{name}", *(f"inversion_spread/{name}_{end}" for end in ("low", "high"))],
        ]
        for name in names
    }
    return {"mean ± standard deviation over the images": charts}


def progress_grid(rows: Mapping[str, Tensor]) -> Figure:
    """Rows of images (n, C, H, W) in [0, 1], "truth" and "current" among them, and their error.

    Data that are no images of the same size, or complex, are left out.
    """
    shape = rows["current"].shape
    shown = {
        name: images.detach().cpu().float()
        for name, images in rows.items()
        if images.shape == shape and not images.is_complex()
    }
    if "truth" in shown:
        shown["|error|"] = (shown["current"] - shown["truth"]).abs()
    return image_rows(shown, label="value")
