"""A table as JSON, CSV, Markdown and LaTeX, and on the console."""

from __future__ import annotations

import json
import math
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from evaluation.base import label_text, labels_text
from evaluation.table import Metric, Row, Stat, Table

_NOTES = (
    "Means over images ± 95 % interval; n: number of images",
    "bold: better than the runner-up by more than the interval of their difference",
)
_IDEAL = re.compile(r" \(\d(\.\d)?\)$")
_UNBOUNDED, _NARROWEST = 10_000, 16  # characters
_MOST_DIGITS = 5
_SYMBOLS = {
    **{"–": "--", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "‖": r"$\|$", "√": r"$\surd$"},
    **{"|": "$|$", "<": "$<$", ">": "$>$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$"},
    **{"⁻": "$^-$", "¹": "$^1$", "²": r"$^2$", "³": r"$^3$", "°": r"$^\circ$"},
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$"},
}


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Args:
        caption: the labels that all rows share.
        header: one text per column.
        lines: one text per column in each.
        best: (line, column) of the values to be marked.
        labels: number of columns, from the first, that hold no measurements.
    """

    caption: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]]
    labels: int

    @property
    def footnote(self) -> str:
        """What the numbers are."""
        notes = list(_NOTES[: 2 if self.best else 1])
        names = [*self.header, *(line[0] for line in self.lines)]
        if any(map(_IDEAL.search, names)):
            notes.append("(1), (3) and the like after a name: the value of an ideal result")
        return "; ".join(notes) + "."


def arrange(table: Table) -> Grid:
    """Lay a table out: one row a line, or one metric a line if the only row has no name."""
    grid = _wide(table)
    alone = len(grid.lines) == 1 and not grid.labels
    return _transposed(grid) if alone and len(table.metrics) > 4 else grid


def _wide(table: Table) -> Grid:
    rows, best = table.rows, set()
    texts = {
        name: [label_text(row.labels.get(name)) for row in rows]
        for name in dict.fromkeys(name for row in rows for name in row.labels)
    }
    named = table.compare if len(rows) == 1 else ()  # a method alone is still one of several
    varying = {n: column for n, column in texts.items() if len(set(column)) > 1 or n in named}
    shared = {name: rows[0].labels.get(name) for name in texts if name not in varying}
    columns, usual = list(varying.items()), [_usual_n(row) for row in rows]
    for metric in table.metrics:
        best |= {(line, len(columns)) for line, r in enumerate(rows) if table.is_best(r, metric)}
        values = [_value(row, metric, n) for row, n in zip(rows, usual, strict=True)]
        columns.append((metric.heading, values))
        papers = [_paper(row, metric) for row in rows]
        if any(papers):
            columns.append((f"{metric.title or metric.name}, paper", papers))
    header, values = zip(*columns, ("n", list(map(str, usual))), strict=True)
    lines = [list(line) for line in zip(*values, strict=True)]
    return Grid(labels_text(shared), _distinct(header), lines, frozenset(best), len(varying))


def _transposed(grid: Grid) -> Grid:
    lines = list(zip(grid.header, *grid.lines, strict=True))
    return Grid(grid.caption, ["metric", "value"], lines, frozenset(), 1)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, numbered where one occurs again."""
    return [
        name if name not in names[:place] else f"{name} [{place + 1}]"
        for place, name in enumerate(names)
    ]


def _usual_n(row: Row) -> int:
    counts = Counter(stat.n for stat in row.stats.values() if stat.n)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def _value(row: Row, metric: Metric, usual_n: int) -> str:
    """The number, with its own n where that is not the one in the row's column."""
    stat = row.stats.get(metric.name)
    if stat is None:
        return "–"
    left_out = {"excluded": stat.n_excluded, "at infinity": stat.n_infinite}
    notes = [f"{count} {reason}" for reason, count in left_out.items() if count]
    number = getattr(stat, metric.statistic)
    if number is None:
        return ", ".join(notes) or metric.missing or "–"
    if notes or stat.n != usual_n:
        notes.insert(0, f"n = {stat.n}")
    if metric.statistic == "mean":
        text = format_interval(number, stat.ci95 if metric.interval else None)
    else:
        text = format_number(number)
    return f"{text} ({', '.join(notes)})" if notes else text


def _paper(row: Row, metric: Metric) -> str:
    stat = row.stats.get(metric.name)
    has_none = stat is None or stat.paper is None or metric.statistic != "mean"
    return "" if has_none else f"{stat.paper:.10g}"


def to_json(table: Table, notes: Sequence[str] = ()) -> str:
    """``{"rows": [{"labels": {...}, "metrics": {name: {"mean", "ci95", ...}}}], "notes": [...]}``.

    Each metric has the numbers of `Stat`, but for those of its single images; infinite ones are
    the strings "inf" and "-inf". A row of whose images solvers warned has `warnings` too.
    """
    rows = [
        {"labels": dict(row.labels), "metrics": {n: _numbers(s) for n, s in row.stats.items()}}
        | ({"warnings": list(row.warnings)} if row.warnings else {})
        for row in table.rows
    ]
    return json.dumps({"rows": rows, "notes": list(notes)}, indent=1, allow_nan=False)


def _numbers(stat: Stat) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, float) and math.isinf(value) else value
        for key, value in vars(stat).items()
        if key != "by_image"
    }


def to_csv(table: Table) -> str:
    """One line for each row and metric, in full precision."""
    units = {metric.name: metric.unit for metric in table.metrics}
    lines = [
        {**row["labels"], "metric": name, "unit": units.get(name, ""), **numbers}
        for row in json.loads(to_json(table))["rows"]
        for name, numbers in row["metrics"].items()
    ]
    return pd.DataFrame(lines).to_csv(index=False)


def to_markdown(table: Table, notes: Sequence[str] = ()) -> str:
    """A table of GitHub's Markdown; the best of comparable values in bold; notes below it."""
    grid = arrange(table)
    header, *lines = [[_markdown(text) for text in line] for line in (grid.header, *grid.lines)]
    for number, column in grid.best:
        lines[number][column] = f"**{lines[number][column]}**"
    rule = [":---"] * grid.labels + ["---:"] * (len(header) - grid.labels)
    text = "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *lines))
    caption = f"{_markdown(grid.caption)}\n\n" if grid.caption else ""
    below = "\n\n".join([grid.footnote, *map(_markdown, notes)])
    return f"{caption}{text}\n{below}\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def to_latex(table: Table, notes: Sequence[str] = ()) -> str:
    r"""A ``tabular`` for the package booktabs; the best in bold; notes are comments above it."""
    grid = arrange(table)
    lines = [[" ".join(text.split()) for text in line] for line in (grid.header, *grid.lines)]
    frame = pd.DataFrame(lines[1:], columns=lines[0], dtype=object)
    bold = pd.DataFrame("", frame.index, frame.columns)
    for place in grid.best:
        bold.iloc[place] = "font-weight: bold"
    styler = frame.style.hide(axis="index").format(escape="latex")
    styler = styler.format_index(escape="latex", axis=1).apply(lambda _: bold, axis=None)
    columns = "l" * grid.labels + "r" * (len(grid.header) - grid.labels)
    tabular = styler.to_latex(hrules=True, convert_css=True, column_format=columns)
    caption = " ".join(grid.caption.split())
    comments = [
        r"\usepackage{booktabs}",
        caption,
        grid.footnote,
        *(" ".join(n.split()) for n in notes),
    ]
    heading = "".join(f"% {comment}\n" for comment in comments if comment)
    return heading + _latex_symbols(tabular)


def _latex_symbols(text: str) -> str:
    r"""Escaped LaTeX with Greek letters, minus signs and powers of ten as LaTeX sets them.

    >>> _latex_symbols("β (-1.2 ± 0.3)e-7")
    '$\\beta$ ($-$1.2 $\\pm$ 0.3)$\\times 10^{-7}$'
    """
    text = re.sub(r"(?<![\w)\]])-(?=\d)", "$-$", text)
    text = re.sub(r"(?<=[\d)])e(-?\d+)\b", r"$\\times 10^{\1}$", text)
    return "".join(_SYMBOLS.get(letter) or _greek(letter) for letter in text)


def _greek(letter: str) -> str:
    name = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(letter, ""))
    if not name:
        return letter
    command = name[2].replace("LAMDA", "LAMBDA").lower()
    return rf"${chr(92)}{command if name[1] == 'SMALL' else command.capitalize()}$"


def print_table(table: Table, console: Console, title: str = "") -> None:
    """Print one table; where the console is too narrow, the first metrics and where the rest is."""
    shown, grid = len(table.metrics), arrange(table)
    unbounded = console.options.update(width=_UNBOUNDED)
    while (
        shown > 1 and console.measure(_rich_table(grid), options=unbounded).minimum > console.width
    ):
        shown -= 1
        grid = _wide(replace(table, metrics=table.metrics[:shown]))
    heading = " – ".join(filter(None, (title, grid.caption)))
    console.print(heading, style="bold", markup=False, highlight=False)
    console.print(_rich_table(grid))
    console.print(grid.footnote, markup=False, highlight=False)
    if shown < len(table.metrics):
        rest = ", ".join(metric.heading for metric in table.metrics[shown:])
        console.print(f"Further columns in the files: {rest}.", markup=False, highlight=False)


def _rich_table(grid: Grid) -> RichTable:
    drawn = RichTable(box=box.SIMPLE)
    for column, name in enumerate(grid.header):
        numeric = column >= grid.labels
        longest = max((len(line[column]) for line in grid.lines), default=0)
        drawn.add_column(
            # A heading is no reason for a column wider than its numbers.
            Text(textwrap.fill(name, max(8, longest), break_long_words=False)),
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="fold",
            min_width=longest if numeric else min(longest, _NARROWEST),
        )
    for number, line in enumerate(grid.lines):
        bold = ["bold" if (number, column) in grid.best else "" for column in range(len(line))]
        drawn.add_row(*map(Text, line, bold))
    return drawn


def format_interval(mean: float, half_width: float | None) -> str:
    """A mean ± half the width of its interval; alone where the interval is too small to show.

    >>> format_interval(3.14159, 0.01273), format_interval(1.2e-7, 3.4e-8)
    ('3.142 ± 0.013', '(1.20 ± 0.34)e-7')
    >>> format_interval(1.0, 3e-8), format_interval(12, None)
    ('1.000', '12')
    """
    if not half_width:
        return format_number(mean)
    size = max(abs(mean), half_width)
    exponent = 0 if 1e-3 <= size < 1e6 else _exponent(size, 1)
    decimals = 1 - _exponent(half_width, 1) + exponent
    most = _MOST_DIGITS - 1 - _exponent(size, _MOST_DIGITS - 1) + exponent
    decimals = max(0, min(decimals, most))
    number, error = (Decimal(value).scaleb(-exponent) for value in (mean, half_width))
    shown = f"{error:.{decimals}f}"
    if not float(shown):
        return format_number(mean)
    text = f"{number:z.{decimals}f} ± {shown}"
    return f"({text})e{exponent}" if exponent else text


def format_number(value: float, digits: int = 4) -> str:
    """An integer as it is, anything else with some significant digits, infinity as ∞.

    >>> format_number(44123456), format_number(0.5), format_number(1234567.0)
    ('44123456', '0.5000', '1.235e6')
    """
    if isinstance(value, int) or value == 0:
        return str(int(value))
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, digits - 1 - _exponent(value, digits - 1))}f}"


def _exponent(value: float, decimals: int) -> int:
    """Decimal exponent after rounding, so that 0.0996 with two digits counts as 0.10."""
    return int(f"{value:.{decimals}e}".split("e")[1])
