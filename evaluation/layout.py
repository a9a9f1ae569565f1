"""The arrangement of a table in columns, the same for every format it is written in."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from evaluation.records import Label
from evaluation.table import Metric, Row, Stat, Table, format_stat


@dataclass(frozen=True)
class Entry:
    """Text of one place in a table, and a remark on it."""

    text: str
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Args:
        caption: the labels that all rows share.
        header: one text a column.
        numeric: whether a column holds numbers, one a column.
        groups: lines that belong together; a line has one entry a column.
    """

    caption: str
    header: Sequence[str]
    numeric: Sequence[bool]
    groups: Sequence[Sequence[Sequence[Entry]]]


def arrange(table: Table, transposed: bool | None = None) -> Grid:
    """Lay a table out: one row a line, or, transposed, one metric of one row a line.

    Args:
        table: the results.
        transposed: by default, what `is_transposed` says.
    """
    if transposed is None:
        transposed = is_transposed(table)
    return _transposed(table) if transposed else _wide(table)


def is_transposed(table: Table) -> bool:
    """Whether many metrics of few rows read better one below the other."""
    return len(table.rows) <= 2 and len(table.metrics) > 4


def _wide(table: Table) -> Grid:
    names = _varying(table)
    header, numeric = list(names), [_are_numbers(table, name) for name in names]
    lines = [[Entry(label_text(row.labels.get(name))) for name in names] for row in table.rows]
    for metric in table.metrics:
        has_paper = _has_paper(table, metric)
        header += [metric.heading, "paper"][: 1 + has_paper]
        for line, row in zip(lines, table.rows, strict=True):
            entries = [_value(table, row, metric, usual_n=_usual_n(row)), _paper(row, metric)]
            line += entries[: 1 + has_paper]
    for line, row in zip(lines, table.rows, strict=True):
        line.append(Entry(str(_usual_n(row))))
    header.append("n")
    numeric += [True] * (len(header) - len(names))
    return Grid(_caption(table), header, numeric, [lines])


def _transposed(table: Table) -> Grid:
    names = _varying(table)
    has_paper = any(_has_paper(table, metric) for metric in table.metrics)
    header = [*names, "metric", "mean ± std", "n", "paper"][: len(names) + 3 + has_paper]
    numeric = [False] * (len(names) + 1) + [True] * (2 + has_paper)
    groups = []
    for row in table.rows:
        lines = []
        for metric in (metric for metric in table.metrics if metric.name in row.stats):
            labels = [Entry("" if lines else label_text(row.labels.get(name))) for name in names]
            count = Entry(_count(row.stats[metric.name]))
            value = _value(table, row, metric)
            line = [*labels, Entry(metric.heading), value, count, _paper(row, metric)]
            lines.append(line[: len(header)])
        groups.append(lines)
    return Grid(_caption(table), header, numeric, groups)


def label_text(value: Label) -> str:
    """A label as a reader sees it.

    >>> label_text(0.1), label_text(True), label_text(None)
    ('0.1', 'yes', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def labels_text(labels: dict) -> str:
    """Labels in one line: ``method glow, noise 0.1``."""
    return ", ".join(f"{name} {label_text(value)}" for name, value in labels.items())


def _label_names(table: Table) -> list[str]:
    return list(dict.fromkeys(name for row in table.rows for name in row.labels))


def _varying(table: Table) -> list[str]:
    def values(name: str) -> set[str]:
        return {label_text(row.labels.get(name)) for row in table.rows}

    return [name for name in _label_names(table) if len(values(name)) > 1]


def _are_numbers(table: Table, name: str) -> bool:
    values = [row.labels.get(name) for row in table.rows]
    return all(isinstance(value, int | float | None) for value in values)


def _caption(table: Table) -> str:
    shared = set(_label_names(table)) - set(_varying(table))
    first = table.rows[0].labels if table.rows else {}
    return labels_text({name: value for name, value in first.items() if name in shared})


def _usual_n(row: Row) -> int:
    counts = Counter(stat.n for stat in row.stats.values() if stat.n or stat.excluded)
    return max(counts.items(), key=itemgetter(1, 0), default=(0,))[0]


def _value(table: Table, row: Row, metric: Metric, usual_n: int | None = None) -> Entry:
    """Mean ± std, with its own n where that is not the one that stands in the row's column."""
    stat = row.stats.get(metric.name)
    if stat is None:
        return Entry("–")
    if metric.missing and not stat.n and not stat.excluded:
        return Entry(metric.missing)
    own = usual_n is not None and (stat.n != usual_n or stat.excluded)
    note = f"(n={_count(stat)})" if own else ""
    return Entry(format_stat(stat), table.is_best(row, metric), note)


def _count(stat: Stat) -> str:
    return f"{stat.n}, {stat.excluded} not finite" if stat.excluded else str(stat.n)


def _has_paper(table: Table, metric: Metric) -> bool:
    stats = (row.stats.get(metric.name) for row in table.rows)
    return any(stat is not None and stat.paper is not None for stat in stats)


def _paper(row: Row, metric: Metric) -> Entry:
    stat = row.stats.get(metric.name)
    return Entry("" if stat is None or stat.paper is None else f"{stat.paper:.10g}")
