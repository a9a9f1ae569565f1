"""A table as JSON, CSV, Markdown, LaTeX, HTML and on the console."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from evaluation.layout import Entry, Grid, arrange, is_transposed
from evaluation.table import Metric, Row, Stat, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

_GREEK = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "varepsilon",
    "ζ": "zeta",
    "η": "eta",
    "θ": "theta",
    "κ": "kappa",
    "λ": "lambda",
    "μ": "mu",
    "ν": "nu",
    "ξ": "xi",
    "π": "pi",
    "ρ": "rho",
    "σ": "sigma",
    "τ": "tau",
    "φ": "varphi",
    "χ": "chi",
    "ψ": "psi",
    "ω": "omega",
    "Δ": "Delta",
    "Σ": "Sigma",
    "Ω": "Omega",
}
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "‖": r"$\|$",
    "²": r"$^2$",
    "³": r"$^3$",
    "°": r"$^\circ$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    **{letter: rf"$\{name}$" for letter, name in _GREEK.items()},
}


def to_json(table: Table) -> str:
    """``{"rows": [{"labels": {...}, "metrics": {name: {"mean", "std", "n", "paper"}}}]}``.

    ``"excluded"``, the number of values that are not finite, is there when it is above 0.
    """
    return json.dumps({"rows": [_json_row(row) for row in table.rows]}, indent=1, allow_nan=False)


def _json_row(row: Row) -> dict:
    metrics = {name: _json_stat(stat) for name, stat in row.stats.items()}
    return {"labels": dict(row.labels), "metrics": metrics}


def _json_stat(stat: Stat) -> dict:
    numbers = {"mean": stat.mean, "std": stat.std, "n": stat.n, "paper": stat.paper}
    return numbers | ({"excluded": stat.excluded} if stat.excluded else {})


def to_csv(table: Table) -> str:
    """One line for each metric of each row, numbers in full; what is missing is empty."""
    names = list(dict.fromkeys(name for row in table.rows for name in row.labels))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "metric", "unit", "mean", "std", "n", "excluded", "paper"])
    units = {metric.name: metric.unit for metric in table.metrics}
    for row in table.rows:
        labels = [row.labels.get(name) for name in names]
        for name, s in row.stats.items():
            writer.writerow([*labels, name, units[name], s.mean, s.std, s.n, s.excluded, s.paper])
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """A pipe table; the best of comparable values in bold."""
    grid = arrange(table)
    lines = [
        _markdown_line([_markdown(text) for text in grid.header]),
        _markdown_line(["---:" if numeric else ":---" for numeric in grid.numeric]),
    ]
    for line in (line for group in grid.groups for line in group):
        lines.append(_markdown_line([_markdown_entry(entry) for entry in line]))
    caption = f"{_markdown(grid.caption)}\n\n" if grid.caption else ""
    return caption + "\n".join(lines) + "\n"


def _markdown_line(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _markdown_entry(entry: Entry) -> str:
    text = _markdown(entry.text)
    return " ".join(filter(None, (f"**{text}**" if entry.best else text, _markdown(entry.note))))


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def to_latex(table: Table) -> str:
    r"""A ``tabular`` for the package booktabs; the best of comparable values in bold."""
    grid = arrange(table)
    columns = "".join("r" if numeric else "l" for numeric in grid.numeric)
    groups = ["\n".join(_latex_line(line) for line in group) for group in grid.groups]
    lines = [
        r"% \usepackage{booktabs}",
        *([f"% {' '.join(grid.caption.split())}"] if grid.caption else []),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_line([Entry(text) for text in grid.header]),
        r"\midrule",
        "\n\\midrule\n".join(groups),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_line(entries: list[Entry]) -> str:
    return " & ".join(_latex_entry(entry) for entry in entries) + r" \\"


def _latex_entry(entry: Entry) -> str:
    text = latex_escape(entry.text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    return " ".join(filter(None, (text, latex_escape(entry.note))))


def latex_escape(text: str) -> str:
    r"""Text that LaTeX sets as it reads; minus signs and powers of ten as such.

    >>> latex_escape("50% of (1.2 ± 0.3)e-7")
    '50\\% of (1.2 $\\pm$ 0.3)$\\times 10^{-7}$'
    """
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    escaped = re.sub(r"(?<![\w)])-(?=\d)", "$-$", escaped)
    return re.sub(r"(?<=[\d)])e(-?\d+)\b", r"$\\times 10^{\1}$", escaped)


def to_html(table: Table) -> str:
    """A ``<table>`` with everything escaped; the best of comparable values in bold."""
    grid = arrange(table)
    caption = f"<caption>{html.escape(grid.caption)}</caption>" if grid.caption else ""
    header = _html_line([Entry(text) for text in grid.header], grid, "th")
    bodies = [
        f"<tbody>{''.join(_html_line(line, grid, 'td') for line in group)}</tbody>"
        for group in grid.groups
    ]
    return f"<table>{caption}<thead>{header}</thead>{''.join(bodies)}</table>"


def _html_line(entries: list[Entry], grid: Grid, tag: str) -> str:
    places = []
    for entry, numeric in zip(entries, grid.numeric, strict=True):
        text = html.escape(entry.text)
        text = f"<strong>{text}</strong>" if entry.best else text
        text += f"<br><small>{html.escape(entry.note)}</small>" if entry.note else ""
        places.append(f"<{tag}{' class=number' * numeric}>{text}</{tag}>")
    return f"<tr>{''.join(places)}</tr>"


def print_table(table: Table, console: Console, title: str = "") -> None:
    """Print a table; one that is too wide for the console in parts, with some metrics each."""
    for part in _parts(table, console):
        console.print(_rich_table(arrange(part), title))
        title = ""


def _parts(table: Table, console: Console) -> list[Table]:
    unbounded = console.options.update(width=10_000)

    def fits(metrics: list[Metric]) -> bool:
        drawn = _rich_table(arrange(replace(table, metrics=metrics), transposed=False), "")
        return console.measure(drawn, options=unbounded).maximum <= console.width

    if is_transposed(table):
        return [table]
    parts: list[list[Metric]] = []
    for metric in table.metrics:
        if parts and fits([*parts[-1], metric]):
            parts[-1].append(metric)
        else:
            parts.append([metric])
    return [replace(table, metrics=metrics) for metrics in parts]


def _rich_table(grid: Grid, title: str) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    heading = " – ".join(filter(None, (title, grid.caption)))
    drawn = RichTable(
        title=Text(heading, style="bold") if heading else None, title_justify="left", box=box.SIMPLE
    )
    lines = [line for group in grid.groups for line in group]
    for column, (text, numeric) in enumerate(zip(grid.header, grid.numeric, strict=True)):
        # A heading is no reason for a column wider than its numbers.
        width = max([8, *(len(line[column].text) for line in lines)])
        heading = Text(textwrap.fill(text, width, break_long_words=False))
        justify = "right" if numeric else "left"
        drawn.add_column(heading, justify=justify, no_wrap=numeric, overflow="fold")
    for group in grid.groups:
        for line in group:
            drawn.add_row(*(_rich_entry(entry) for entry in line))
        drawn.add_section()
    return drawn


def _rich_entry(entry: Entry) -> Text:
    from rich.text import Text

    return Text.assemble(
        (entry.text, "bold" if entry.best else ""), f"\n{entry.note}" if entry.note else ""
    )
