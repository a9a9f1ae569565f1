"""Pictures of calibrations."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from flowprior.figures import COLORS
from flowprior.panels import curve_panels
from flowprior.posterior.calibration import LEVELS, Calibration, binned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rank_figure(calibrations: Calibration | Mapping[str, Calibration]) -> Figure:
    """Histograms of ranks: a row for each calibration, by name, and a column for each value.

    A calibration alone is a row without a name. The grey band holds 95 % of the bins, each by
    itself, of uniform ranks.
    """
    from matplotlib.figure import Figure

    calibrations = _named(calibrations)
    names = list(next(iter(calibrations.values())).ranks)
    size = 2.3 * len(names), 1.9 * len(calibrations) + 0.3
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(calibrations), len(names), squeeze=False, sharex=True)
    for number, (row, (title, one)) in enumerate(zip(grid, calibrations.items(), strict=True)):
        for axis, name in zip(row, names, strict=True):
            _draw_ranks(axis, one, name, COLORS[number % len(COLORS)])
        row[0].set_ylabel("\n".join([*wrap(title, 22), "images"]), fontsize=8)
    for axis, name in zip(grid[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    for axis in grid[-1]:
        axis.set_xlabel("Rank of the truth / draws", fontsize=9)
    return figure


def _named(calibrations: Calibration | Mapping[str, Calibration]) -> Mapping[str, Calibration]:
    if not calibrations:
        raise ValueError("calibrations must hold at least one")
    return {"": calibrations} if isinstance(calibrations, Calibration) else calibrations


def _draw_ranks(axis: Axes, one: Calibration, name: str, colour: str) -> None:
    from scipy.stats import binom

    counts, expected = binned(one.ranks[name], one.draws)
    edges = np.linspace(0, 1, len(counts) + 1)
    count = int(counts.sum())
    low, high = (binom.ppf(p, count, expected / count) for p in (0.025, 0.975))
    axis.stairs(high, edges, baseline=low, fill=True, color="0.85")
    axis.stairs(counts, edges, color=colour, lw=1.6)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def coverage_figure(calibrations: Calibration | Mapping[str, Calibration]) -> Figure:
    """Share of the pixels in credible intervals against their level, with 95 % intervals."""
    named = _named(calibrations)
    series = {
        name or "found": (one.levels, *one.expected_coverage()) for name, one in named.items()
    }
    panels = {"Pixels": {"ideal": (LEVELS, LEVELS), **series}}
    return curve_panels(panels, "Level of the credible interval", "Share of pixels inside")
