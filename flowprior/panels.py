"""Figures of several panels that share scales and a legend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowprior.figures import COLORS, DASHES, MARKERS, style_axis, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Draw = Callable[[Axes, int, Sequence[Any]], Any]

_PANELS_IN_A_ROW = 3


def curve_panels(
    panels: Mapping[str, Mapping[str, Sequence[Any]]],
    x_label: str,
    y_label: str,
    log_y: bool = False,
) -> Figure:
    """Panels of lines with a common scale and legend; a name has one colour in all of them.

    Args:
        panels: title of each panel to its series: name to (x, y) or (x, y, band), where the band
            reaches from y - band to y + band.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        log_y: logarithmic y axis.
    """
    alpha = 0.15 if max(map(len, panels.values())) <= 3 else 0.07

    def draw(axis: Axes, number: int, series: Sequence[Any]) -> Any:
        x, y, *band = map(to_numpy, series)
        colour, dashes, marker = _style(number)
        shown = marker if len(x) <= 20 else ""
        (line,) = axis.plot(x, y, marker=shown, color=colour, ls=dashes, lw=1.6, ms=5)
        if band:
            axis.fill_between(x, y - band[0], y + band[0], color=colour, alpha=alpha, lw=0)
        return line

    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    y_axis = {"yscale": "log"} if log_y else {}
    return _panels(panels, draw, names, (x_label, y_label), y_axis)


def point_panels(
    panels: Mapping[str, Mapping[str, tuple[float | None, float, float]]],
    x_label: str,
    y_label: str,
) -> Figure:
    """Panels of named points with a common scale, logarithmic in x, and a common legend.

    Args:
        panels: title of each panel to its points: name to (x, y, half the length of its bar). With
            None in the place of x it is a level, drawn as a black line; it takes no colour, so that
            the others have those of `curve_panels`.
        x_label: what x > 0 is, with its unit.
        y_label: what y is, with its unit.
    """

    def draw(axis: Axes, number: int, point: Sequence[Any]) -> Any:
        x, y, bar = point
        if x is None:
            return axis.axhline(y, color="black", lw=1.2, ls="--")
        colour, _, marker = _style(number)
        return axis.errorbar(x, y, bar, fmt=marker, color=colour, ms=6, elinewidth=1.2)

    every = [named for points in panels.values() for named in points.items()]
    names = dict.fromkeys(name for name, (x, *_) in every if x is not None)
    names |= dict.fromkeys(name for name, _ in every)  # levels come last
    places = [x for _, (x, *_) in every if x is not None] or [1.0]
    low, high = min(places), max(places)
    x_axis = {"xscale": "log", "xlim": (low / 2, high * 2)}
    return _panels(panels, draw, list(names), (x_label, y_label), x_axis)


def _style(number: int) -> tuple[Any, Any, str]:
    """Colour, dashes and marker; more names than colours differ in the others."""
    turn = number + number // len(COLORS)
    dashes, marker = DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)]
    return COLORS[number % len(COLORS)], dashes, marker


def _panels(
    panels: Mapping[str, Mapping[str, Any]],
    draw: Draw,
    names: Sequence[str],
    labels: tuple[str, str],
    axis_options: Mapping[str, Any],
) -> Figure:
    from matplotlib.figure import Figure

    columns = min(_PANELS_IN_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    width = max(3.6 * columns, 6.0)
    per_line = max(1, int(width / (0.6 + 0.08 * max(map(len, names)))))
    height = 2.9 * rows + 0.24 * -(-len(names) // per_line)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    drawn = {}
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        style_axis(axis)
        axis.set_title(title, fontsize=11, loc="left")
        # Before anything is drawn: Matplotlib may give a single place an axis of no length.
        axis.set(**axis_options)
        drawn |= {name: draw(axis, names.index(name), one) for name, one in series.items()}
    for axis in axes[len(panels) :]:
        axis.remove()
    _label_panels(axes[: len(panels)], columns, *labels)
    place = {"loc": "outside lower left", "ncols": per_line, "frameon": False, "fontsize": 9}
    figure.legend([drawn[name] for name in names], names, **place)
    return figure


def _label_panels(axes: Sequence[Axes], columns: int, x_label: str, y_label: str) -> None:
    """Label the y axes of the first column, and the x axis of the last panel of each column."""
    for axis in axes[::columns]:
        axis.set_ylabel(y_label)
    for axis in axes[-columns:]:
        axis.set_xlabel(x_label)
        axis.tick_params(labelbottom=True)
