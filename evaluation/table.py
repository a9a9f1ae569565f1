"""From results to a table: statistics of each metric in each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.cells import Labels, Result, labels_key
from evaluation.statistics import Stat, compare, summarise

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
    statistic: Literal["mean", "median", "maximum"] = "mean"
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
class Row:
    """One line of results: what was evaluated, and a `Stat` for each quantity measured there."""

    labels: Labels
    stats: Mapping[str, Stat]


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
        if len(entries) < 2 or not _comparable([stat for _, stat in entries]):
            return False
        entries.sort(key=lambda entry: entry[1].mean, reverse=metric.higher_is_better)
        (name, best), *others = entries
        runner_up = next((stat for other, stat in others if other != name), others[0][1])
        return row.stats[metric.name] is best and compare([(best, runner_up)])[0].significant

    def _setting(self, row: Row) -> dict:
        return {name: value for name, value in row.labels.items() if name not in self.compare}


def _comparable(stats: Sequence[Stat]) -> bool:
    same = all(stat.by_image.keys() == stats[0].by_image.keys() for stat in stats)
    return same and all(stat.n and not stat.n_excluded and not stat.n_infinite for stat in stats)


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
    return Row(labels, stats)
