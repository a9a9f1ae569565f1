"""From records to a table: mean, standard deviation and count of each metric in each row."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from evaluation.records import Labels, Record, labels_key

PaperValue = Callable[[Labels, str], float | None]


@dataclass(frozen=True)
class Metric:
    """How a measured quantity is shown.

    Args:
        name: its key in the records.
        title: what a reader sees; the name if empty.
        unit: shown in parentheses after the title.
        higher_is_better: None where neither direction is better.
        missing: shown in its column if no record has it, such as "n/a"; without it, no column.
    """

    name: str
    title: str = ""
    unit: str = ""
    higher_is_better: bool | None = None
    missing: str = ""

    @property
    def heading(self) -> str:
        """Title, unit and an arrow that points to better."""
        arrow = {True: "↑", False: "↓", None: ""}[self.higher_is_better]
        unit = f"({self.unit})" if self.unit else ""
        return " ".join(filter(None, (self.title or self.name, unit, arrow)))


# No direction: a sweep that continued on another machine has times that do not compare.
SECONDS = Metric("seconds_per_image", "Time per image", "s")


@dataclass(frozen=True)
class Stat:
    """A metric over the images of one row.

    Args:
        mean: of the finite values; None if there are none.
        std: sample standard deviation (n - 1 in the denominator); None for n < 2.
        n: number of finite values.
        paper: the published number, None if there is none.
        excluded: number of values that are NaN or infinite.
    """

    mean: float | None
    std: float | None
    n: int
    paper: float | None = None
    excluded: int = 0


@dataclass(frozen=True)
class Row:
    """One line of results: what was evaluated, and a `Stat` for each metric measured there."""

    labels: Labels
    stats: Mapping[str, Stat]


@dataclass(frozen=True)
class Table:
    """Rows of results.

    Args:
        metrics: those measured in at least one row, in the order shown.
        rows: in the order shown.
        compare: names of the labels whose values compete (``("method",)``). The best value is
            marked among rows that agree in all other labels; with no name, nowhere.
    """

    metrics: Sequence[Metric]
    rows: Sequence[Row]
    compare: Sequence[str] = ()

    def is_best(self, row: Row, metric: Metric) -> bool:
        """Whether the row is best among its rivals, all measured on the same number of images."""
        if metric.higher_is_better is None or not self.compare:
            return False
        rivals = [r for r in self.rows if self._setting(r) == self._setting(row)]
        stats = [r.stats.get(metric.name) for r in rivals]
        measured = [s for s in stats if s and s.mean is not None and not s.excluded]
        same_n = len({stat.n for stat in measured}) == 1
        if len(rivals) < 2 or len(measured) < len(rivals) or not same_n:
            return False
        best = (max if metric.higher_is_better else min)(stat.mean for stat in measured)
        return row.stats[metric.name].mean == best

    def _setting(self, row: Row) -> dict:
        return {name: value for name, value in row.labels.items() if name not in self.compare}


def aggregate(
    records: Iterable[Record],
    metrics: Sequence[Metric],
    paper: PaperValue = lambda labels, metric: None,
    compare: Sequence[str] = (),
) -> Table:
    """Gather records that share their labels into rows, in the order in which they come.

    Args:
        records: of any number of cells; those that differ only in their part share a row.
        metrics: those to show; one that no record has is left out unless it says what is missing.
        paper: the published number for labels and the name of a metric, or None.
        compare: as in `Table`.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(labels_key(record.labels), []).append(record)
    rows = [_row(group, metrics, paper) for group in groups.values()]
    shown = [metric for metric in metrics if any(metric.name in row.stats for row in rows)]
    return Table(shown, rows, tuple(compare))


def _row(records: list[Record], metrics: Sequence[Metric], paper: PaperValue) -> Row:
    labels = records[0].labels
    stats = {}
    for metric in metrics:
        values = [r.metrics[metric.name] for r in records if metric.name in r.metrics]
        if values or metric.missing:
            stats[metric.name] = summarise(values, paper(labels, metric.name))
    return Row(labels, stats)


def summarise(values: Sequence[float], paper: float | None = None) -> Stat:
    """Mean and sample standard deviation of the finite values.

    >>> summarise([1, 3, float("nan")])
    Stat(mean=2, std=1.4142135623730951, n=2, paper=None, excluded=1)
    """
    finite = [value for value in values if math.isfinite(value)]
    # The statistics module sums exactly: the order of the records does not change the result.
    mean = statistics.mean(finite) if finite else None
    std = float(statistics.stdev(finite)) if len(finite) > 1 else None
    return Stat(mean, std, len(finite), paper, len(values) - len(finite))


def format_stat(stat: Stat) -> str:
    """Mean ± standard deviation, with the digits that the standard deviation warrants.

    >>> format_stat(Stat(3.14159, 0.01273, 10))
    '3.142 ± 0.013'
    >>> format_stat(Stat(1.2e-7, 3.4e-8, 10))
    '(1.20 ± 0.34)e-7'
    >>> format_stat(Stat(12, None, 1)), format_stat(Stat(0.123456, None, 1))
    ('12', '0.1235')
    """
    mean, std = stat.mean, stat.std
    if mean is None:
        return "–"
    if not std:
        return format_number(mean) + (" ± 0" if std == 0 else "")
    if std < 1e-6 * abs(mean):
        return f"{format_number(float(mean), 7)} ± {_exponential(std, 0)}"
    size = max(abs(mean), std)
    exponent = 0 if 1e-3 <= size < 1e6 else _exponent(size, 1)
    decimals = max(0, 1 - _exponent(std, 1) + exponent)
    mean, std = (Decimal(value).scaleb(-exponent) for value in (mean, std))
    text = f"{mean:z.{decimals}f} ± {std:.{decimals}f}"
    return f"({text})e{exponent}" if exponent else text


def format_number(value: float, digits: int = 4) -> str:
    """An integer as it is, anything else with some significant digits.

    >>> format_number(44123456), format_number(0.5), format_number(1234567.0)
    ('44123456', '0.5000', '1.235e6')
    """
    if isinstance(value, int) or value == 0:
        return str(int(value))
    if not 1e-3 <= abs(value) < 1e6:
        return _exponential(value, digits - 1)
    return f"{value:.{max(0, digits - 1 - _exponent(value, digits - 1))}f}"


def _exponential(value: float, decimals: int) -> str:
    mantissa, exponent = f"{value:.{decimals}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _exponent(value: float, decimals: int) -> int:
    """Decimal exponent after rounding, so that 0.0996 with two digits counts as 0.10."""
    return int(f"{value:.{decimals}e}".split("e")[1])
