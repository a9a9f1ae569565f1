"""From results to a table: means over images, their intervals, comparisons paired by image."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scipy.special import stdtrit

from evaluation.base import Labels, Result, labels_key
from evaluation.solver_notes import told

PaperValue = Callable[[Labels, str], float | None]


@dataclass(frozen=True)
class Metric:
    """How a measured quantity is shown.

    Args:
        name: its key in the records. Several metrics may show one quantity.
        title: what a reader sees; the name if empty.
        unit: shown in parentheses after the title.
        higher_is_better: None where neither direction is better.
        missing: shown in its column if no record has it, such as "n/a"; without it, no column.
        statistic: what is shown of the quantity over the images.
        interval: whether the mean has an interval; not where the images of a batch share a value.
        ranked: whether the best is marked; not where the truth was needed to find the value.
    """

    name: str
    title: str = ""
    unit: str = ""
    higher_is_better: bool | None = None
    missing: str = ""
    statistic: Literal["mean", "median", "minimum", "maximum"] = "mean"
    interval: bool = True
    ranked: bool = True

    @property
    def heading(self) -> str:
        """Title, unit and an arrow that points to better."""
        arrow = {True: "↑", False: "↓", None: ""}[self.higher_is_better]
        unit = f"({self.unit})" if self.unit else ""
        return " ".join(filter(None, (self.title or self.name, unit, arrow)))


# No direction: a sweep that continued on another machine has times that do not compare.
SECONDS = Metric("seconds_per_image", "Time per image", "s", interval=False)


@dataclass(frozen=True)
class Stat:
    """A metric over the images of one row. Several values of one image count as their mean.

    Args:
        mean: over the images, of finite values; None if there are none.
        std: sample standard deviation over the images (n - 1 in the denominator).
        ci95: half the width of the 95 % t-interval of the mean over the images; None for n < 2.
        median: over the images, infinite values included.
        minimum: over the images, infinite values included.
        maximum: over the images, infinite values included.
        n: number of images with a finite value.
        n_excluded: number of values that are NaN.
        n_infinite: number of values that are infinite, as the PSNR of a perfect image.
        paper: the published number, None if there is none.
        by_image: mean of the finite values of each image.
    """

    mean: float | None = None
    std: float | None = None
    ci95: float | None = None
    median: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    n: int = 0
    n_excluded: int = 0
    n_infinite: int = 0
    paper: float | None = None
    by_image: Mapping[int, float] = field(default_factory=dict, repr=False, compare=False)


def summarise(measured: Iterable[tuple[int, float]], paper: float | None = None) -> Stat:
    """Statistics over images of (image, value) pairs; an image may have several values.

    >>> stat = summarise([(0, 1.0), (0, 3.0), (1, 4.0), (2, float("nan"))])
    >>> stat.mean, stat.n, stat.n_excluded, round(stat.ci95, 3)
    (3.0, 2, 1, 12.706)
    """
    values = list(measured)
    means = _by_image((image, value) for image, value in values if math.isfinite(value))
    units = list(means.values())
    known = _by_image((image, value) for image, value in values if not math.isnan(value)).values()
    std = float(statistics.stdev(units)) if len(units) > 1 else None
    return Stat(
        mean=statistics.mean(units) if units else None,
        std=std,
        ci95=_half_width(std, len(units)),
        median=statistics.median(known) if known else None,
        minimum=min(known, default=None),
        maximum=max(known, default=None),
        n=len(units),
        n_excluded=sum(math.isnan(value) for _, value in values),
        n_infinite=sum(math.isinf(value) for _, value in values),
        paper=paper,
        by_image=means,
    )


def _by_image(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Mean of the values of each image."""
    repeats: dict[int, list[float]] = defaultdict(list)
    for image, value in values:
        repeats[image].append(value)
    # The statistics module sums exactly: the order of the records does not change the result.
    return {image: statistics.mean(repeats[image]) for image in sorted(repeats)}


def paired(first: Stat, second: Stat) -> Stat:
    """Statistics of the first less the second, over the images that both have."""
    both = first.by_image.keys() & second.by_image.keys()
    return summarise((image, first.by_image[image] - second.by_image[image]) for image in both)


def _half_width(std: float | None, n: int) -> float | None:
    return None if std is None else float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)


@dataclass(frozen=True)
class Row:
    """One line of results.

    Args:
        labels: what was evaluated.
        stats: a `Stat` for each quantity measured there.
        warnings: what solvers said of its images.
    """

    labels: Labels
    stats: Mapping[str, Stat]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Rows of results.

    Args:
        metrics: those measured in at least one row, in the order shown.
        rows: in the order shown.
        compare: names of the labels whose values compete (``("method",)``). The best value is
            marked among rows that agree in all other labels; with no name, nowhere. Rows that
            agree in the first name, such as one method with several weights, are one competitor
            if there are others.
    """

    metrics: Sequence[Metric]
    rows: Sequence[Row]
    compare: Sequence[str] = ()

    def is_best(self, row: Row, metric: Metric) -> bool:
        """Whether the row beats its runner-up by more than the interval of their difference.

        The difference is paired by image; all rivals must have been measured on the same images.
        """
        is_ranked = metric.ranked and metric.statistic == "mean" and self.compare
        if metric.higher_is_better is None or not is_ranked:
            return False
        entries = [
            (r.labels.get(self.compare[0]), r.stats.get(metric.name, Stat()))
            for r in self.rows
            if self._setting(r) == self._setting(row)
        ]
        images = {frozenset(stat.by_image) for _, stat in entries}
        is_partial = any(not s.n or s.n_excluded or s.n_infinite for _, s in entries)
        if len(entries) < 2 or len(images) > 1 or is_partial:
            return False
        entries.sort(key=lambda entry: entry[1].mean, reverse=metric.higher_is_better)
        (name, best), *others = entries
        runner_up = next((stat for other, stat in others if other != name), others[0][1])
        difference = paired(best, runner_up)
        is_clear = difference.ci95 is not None and abs(difference.mean) > difference.ci95
        return row.stats[metric.name] is best and is_clear

    def _setting(self, row: Row) -> dict:
        return {name: value for name, value in row.labels.items() if name not in self.compare}


def aggregate(
    results: Iterable[Result],
    metrics: Sequence[Metric],
    paper: PaperValue = lambda labels, metric: None,
    compare: Sequence[str] = (),
) -> Table:
    """Gather results that share their labels into rows, in the order in which they come.

    Args:
        results: of any number of cells; those that differ only in their repeat share a row.
        metrics: those to show; one that no result has is left out unless it says what is missing.
        paper: the published number for labels and the name of a metric, or None.
        compare: as in `Table`.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(labels_key(result.cell.labels), []).append(result)
    rows = [_row(group, metrics, paper) for group in groups.values()]
    shown = [metric for metric in metrics if any(metric.name in row.stats for row in rows)]
    return Table(shown, rows, tuple(compare))


def _row(results: list[Result], metrics: Sequence[Metric], paper: PaperValue) -> Row:
    labels = results[0].cell.labels
    stats = {}
    for metric in metrics:
        values = [(r.image, r.metrics[metric.name]) for r in results if metric.name in r.metrics]
        if values or metric.missing:
            stats[metric.name] = summarise(values, paper(labels, metric.name))
    return Row(labels, stats, told(results))
