"""Figures of how samples are distributed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowprior.figures import COLORS, DASHES, MARKERS, style_axis, to_numpy

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTILES = 300


def qq_plot(samples: Mapping[str, Any]) -> Figure:
    """Quantiles of samples against those of the standard normal distribution.

    The grey band holds 95 % of the quantiles, each by itself, of as many independent normal draws
    as each sample has, if all have equally many. Values that are not finite are left out.

    Args:
        samples: name to values, of any shape; at most 300 quantiles of each are shown.

    Raises:
        ValueError: a sample has no finite value.
    """
    figure, axis = _axes(5.2, 5.0)
    values = {name: _finite(name, sample) for name, sample in samples.items()}
    counts = {len(sample) for sample in values.values()}
    if len(counts) == 1:
        _qq_band(axis, *counts)
    for i, (name, sample) in enumerate(values.items()):
        x, ranks = _normal_quantiles(len(sample))
        colour, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        axis.plot(x, sample[ranks - 1], marker, color=colour, label=name, ms=3.5, mew=0)
    axis.axline((0, 0), slope=1, color="black", lw=1, zorder=3)
    axis.set(xlabel="Quantile of N(0, 1)", ylabel="Quantile of the sample")
    axis.set_box_aspect(1)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _normal_quantiles(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected quantiles, evenly spaced, and the ranks in 1..n of the samples beside them."""
    import numpy as np
    from scipy.special import ndtr, ndtri

    end = ndtri(1 - 0.5 / n)
    ranks = np.unique(np.round(ndtr(np.linspace(-end, end, _QUANTILES)) * n + 0.5).astype(int))
    ranks = ranks[(ranks >= 1) & (ranks <= n)]
    return ndtri((ranks - 0.5) / n), ranks


def _qq_band(axis: Axes, n: int) -> None:
    from scipy.special import betaincinv, ndtri

    x, ranks = _normal_quantiles(n)
    low, high = (ndtri(betaincinv(ranks, n + 1 - ranks, p)) for p in (0.025, 0.975))
    axis.fill_between(x, low, high, color="0.85", lw=0, label=f"95 % of N(0, 1), n = {n}")


def histogram(samples: Mapping[str, Any], bins: int, x_label: str) -> Figure:
    """Densities of samples over common bins.

    Args:
        samples: name to values, of any shape; those that are not finite are left out.
        bins: number of bins.
        x_label: what the values are, with their unit.

    Raises:
        ValueError: a sample has no finite value.
    """
    import numpy as np

    figure, axis = _axes(6.4, 4.0)
    values = {name: _finite(name, sample) for name, sample in samples.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    for i, (name, sample) in enumerate(values.items()):
        density = np.histogram(sample, edges, density=True)[0]
        colour, dashes = COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]
        axis.stairs(density, edges, fill=True, color=colour, alpha=0.15)
        axis.stairs(density, edges, color=colour, ls=dashes, lw=1.6, label=name)
    axis.set(xlabel=x_label, ylabel="Density")
    axis.legend(frameon=False, fontsize=9)
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    style_axis(axis)
    return figure, axis


def _finite(name: str, sample: Any) -> np.ndarray:
    import numpy as np

    values = to_numpy(sample).astype("float64").ravel()
    values = np.sort(values[np.isfinite(values)])
    if not len(values):
        raise ValueError(f"the sample {name!r} has no finite value")
    return values
