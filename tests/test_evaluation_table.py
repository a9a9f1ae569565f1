import csv
import io
import json
import math
import random
from dataclasses import replace

import pytest
from rich.console import Console

from evaluation.layout import arrange
from evaluation.outputs import Picture
from evaluation.records import Record
from evaluation.report import Report, environment
from evaluation.table import Metric, Row, Stat, Table, aggregate, format_stat, summarise
from evaluation.writers import (
    latex_escape,
    print_table,
    to_csv,
    to_html,
    to_json,
    to_latex,
    to_markdown,
)
from flowprior.figures import curves, histogram, image_grid, png_bytes, qq_plot, save_png

PSNR = Metric("psnr", "PSNR", "dB", higher_is_better=True)
ERROR = Metric("error", higher_is_better=False)
STEPS = Metric("steps", "Steps")


def table(compare=("method",), rows=4):
    records = [
        Record({"method": method, "noise": noise}, i, {"psnr": base + i, "steps": 5 * i})
        for noise in (0.1, 0.2)
        for method, base in (("glow", 30.0), ("dip_2", 28.5))
        for i in range(3)
    ]
    paper = {("glow", "psnr"): 31.2}
    return aggregate(
        records[: 3 * rows],
        [PSNR, STEPS],
        lambda labels, metric: paper.get((labels["method"], metric)),
        compare,
    )


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (3.14159, 0.01273, "3.142 ± 0.013"),
        (27.316, 0.0996, "27.32 ± 0.10"),
        (103.44, 5.21, "103.4 ± 5.2"),
        (12345.678, 1234.5, "12346 ± 1234"),
        (-0.0004, 0.3, "0.00 ± 0.30"),
        (0.0, 0.0, "0 ± 0"),
        (12, None, "12"),
        (12, 0.0, "12 ± 0"),
        (44123456, None, "44123456"),
        (27.31649, None, "27.32"),
        (0.99996, None, "1.000"),
        (2.5e-7, None, "2.500e-7"),
        (1.2e-7, 3.4e-8, "(1.20 ± 0.34)e-7"),
        (2.5e8, 3e6, "(2.500 ± 0.030)e8"),
        (5e-324, 5e-324, "(4.9 ± 4.9)e-324"),
        (3.14159265, 1e-12, "3.141593 ± 1e-12"),
        (None, None, "–"),
    ],
)
def test_digits(mean, std, text):
    assert format_stat(Stat(mean, std, 3)) == text


def test_summary_of_known_values():
    assert summarise([1.0, 2.0, 4.5]) == Stat(2.5, math.sqrt(3.25), 3)
    assert summarise([7]) == Stat(7, None, 1)
    assert isinstance(summarise([1, 3]).mean, int)
    assert summarise([math.nan, 2.0, math.inf, 4.0], 3.5) == Stat(3.0, math.sqrt(2), 2, 3.5, 2)
    assert summarise([math.nan]) == Stat(None, None, 0, None, 1)
    assert summarise([1e308, 1e308]).mean == 1e308


def test_summary_does_not_depend_on_the_order():
    values = [random.Random(0).gauss(0, 10.0**i) for i in range(-8, 9)] * 3
    assert summarise(values) == summarise(sorted(values))


def test_json_has_exactly_the_promised_form():
    records = [Record({"m": "a"}, 0, {"psnr": 1.0}), Record({"m": "a"}, 1, {"psnr": math.nan})]
    rows = json.loads(to_json(aggregate(records, [PSNR, ERROR])))
    stat = {"mean": 1.0, "std": None, "n": 1, "paper": None, "excluded": 1}
    assert rows == {"rows": [{"labels": {"m": "a"}, "metrics": {"psnr": stat}}]}
    content = json.loads(to_json(table()))
    assert [row["labels"] for row in content["rows"]] == [
        {"method": m, "noise": n} for n in (0.1, 0.2) for m in ("glow", "dip_2")
    ]
    assert content["rows"][0]["metrics"] == {
        "psnr": {"mean": 31.0, "std": 1.0, "n": 3, "paper": 31.2},
        "steps": {"mean": 5, "std": 5.0, "n": 3, "paper": None},
    }


def test_best_only_among_rivals():
    best = [(row.labels["method"], row.labels["noise"]) for row in best_rows(table())]
    assert best == [("glow", 0.1), ("glow", 0.2)]
    assert best_rows(table(compare=())) == []
    assert best_rows(table(rows=1)) == []
    assert [row.labels["noise"] for row in best_rows(table(rows=3))] == [0.1]
    assert best_rows(table(), STEPS) == []


@pytest.mark.parametrize("change", [{"n": 2}, {"excluded": 1}, {"mean": None}])
def test_no_best_where_the_images_differ(change):
    stats = [Stat(1.0, 0.1, 3), replace(Stat(2.0, 0.1, 3), **change)]
    rows = [Row({"method": i}, {"error": stat}) for i, stat in enumerate(stats)]
    assert best_rows(Table([ERROR], rows, ["method"]), ERROR) == []


def test_lowest_is_best_where_it_should():
    rows = [Row({"method": i}, {"error": Stat(float(i), 0.1, 3)}) for i in range(3)]
    assert best_rows(Table([ERROR], rows, ["method"]), ERROR) == rows[:1]


def best_rows(results, metric=PSNR):
    return [row for row in results.rows if results.is_best(row, metric)]


def test_markdown():
    lines = to_markdown(table()).splitlines()
    assert lines[:3] == [
        "| method | noise | PSNR (dB) ↑ | paper | Steps | n |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
        "| glow | 0.1 | **31.0 ± 1.0** | 31.2 | 5.0 ± 5.0 | 3 |",
    ]
    assert lines[3].startswith(r"| dip\_2 | 0.1 | 29.5 ± 1.0 |  |")


def test_markdown_keeps_its_columns_whatever_the_labels():
    records = [Record({"a|b": text}, 0, {"psnr": 1.0}) for text in ("x|y\nz", "<b>")]
    lines = to_markdown(aggregate(records, [PSNR])).splitlines()
    assert lines[0].startswith(r"| a\|b |")
    assert lines[2].startswith(r"| x\|y z |")
    assert lines[3].startswith(r"| \<b\> |")


def test_latex():
    lines = to_latex(table()).splitlines()
    assert r"\begin{tabular}{lrrrrr}" in lines
    line = r"glow & 0.1 & \textbf{31.0 $\pm$ 1.0} & 31.2 & 5.0 $\pm$ 5.0 & 3 \\"
    assert line in lines
    assert any(line.startswith(r"dip\_2 & 0.1 & 29.5") for line in lines)
    assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_latex_escapes_every_special_character():
    escaped = latex_escape("\\&%$#_{}~^<>\n")
    assert (
        escaped
        == (
            r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}"
            r"\textless{}\textgreater{} "
        ).rstrip()
    )
    assert latex_escape("σ² in [-1, 1], 1e-7, file-2") == (
        r"$\sigma$$^2$ in [$-$1, 1], 1$\times 10^{-7}$, file-2"
    )


def test_csv_is_tidy_and_in_full_precision():
    records = [Record({'a,"b"': "x,\ny"}, i, {"psnr": 1 / 3 + i}) for i in range(2)]
    rows = list(csv.DictReader(io.StringIO(to_csv(aggregate(records, [PSNR])))))
    assert len(rows) == 1
    assert rows[0]['a,"b"'] == "x,\ny"
    assert float(rows[0]["mean"]) == 1 / 3 + 0.5
    assert (rows[0]["unit"], rows[0]["n"], rows[0]["paper"]) == ("dB", "2", "")


def printed(results, width):
    console = Console(file=io.StringIO(), width=width)
    print_table(results, console, "Title [bold]")
    return console.file.getvalue()


def density(rows):
    metrics = [Metric(f"m{i}", f"A metric with number {i}") for i in range(12)]
    records = [
        Record({"flow": "glow", "t": t}, i, {m.name: i + 0.5 for m in metrics})
        for t in range(rows)
        for i in range(3)
    ]
    return aggregate(records, metrics, lambda labels, name: 1.25 if name == "m3" else None)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("width", [80, 120])
def test_many_metrics_of_few_rows_stand_below_each_other(rows, width):
    lines = [line.split() for line in printed(density(rows), width).splitlines()]
    values = [line for line in lines if "number" in line]
    assert len(values) == 12 * rows
    assert values[3][-5:] == ["1.5", "±", "1.0", "3", "1.25"]


@pytest.mark.parametrize("width", [80, 120])
def test_wide_tables_are_split_and_nothing_is_cut(width):
    metrics = [Metric(f"m{i}", f"Metric {i}", "unit") for i in range(8)]
    records = [
        Record({"method": f"method{j}"}, i, {m.name: 1e-7 * (i + 3.5) for m in metrics})
        for j in range(4)
        for i in range(3)
    ]
    text = printed(aggregate(records, metrics), width)
    assert text.startswith("Title [bold]")
    assert text.count("(4.5 ± 1.0)e-7") == 32
    assert "…" not in text
    assert 1 < text.count("method0") < 5
    assert max(map(len, text.splitlines())) <= width


def test_own_count_stands_beside_a_value_that_differs():
    records = [
        Record({"m": m}, i, {"psnr": math.nan if i + m == 0 else 1.5, "error": 2.5, "steps": 1})
        for m in range(3)
        for i in range(4)
    ]
    grid = arrange(aggregate(records, [PSNR, ERROR, STEPS]))
    assert grid.header[-1] == "n"
    first, second, _ = grid.groups[0]
    assert [entry.text for entry in first] == ["0", "1.500 ± 0", "2.500 ± 0", "1 ± 0", "4"]
    assert [entry.note for entry in first] == ["", "(n=3, 1 not finite)", "", "", ""]
    assert not any(entry.note for entry in second)


def test_report_escapes_and_needs_no_network():
    evil = '<script>alert("x")</script>'
    metric = Metric("psnr", evil, evil)
    results = aggregate([Record({evil: evil}, i, {"psnr": 1.0}) for i in range(2)], [metric])
    figure = png_bytes(curves({"a": ([0, 1], [1, 2])}))
    facts = environment(1.0, 2.0) | {evil: evil}
    page = Report(evil, results, [Picture(evil, evil, figure)], evil, facts).html()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10
    assert "src=" in page
    assert page.count("src=") == page.count('src="data:image/png;base64,')
    assert "http" not in page
    assert "prefers-color-scheme" in page


def test_html_marks_the_best():
    assert "<strong>31.0 ± 1.0</strong>" in to_html(table())


@pytest.mark.parametrize("shape", [(5, 3, 8, 6), (3, 1, 8, 6), (1, 8, 6)])
def test_image_grid_takes_what_it_says(shape):
    import numpy as np

    images = np.random.default_rng(0).random(shape)
    images[0].flat[0] = np.nan
    figure = image_grid(images, columns=2, titles=["a", "b"], row_titles=["r"], label="km/s")
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == len(images)
    assert any(axis.get_ylabel() == "km/s" for axis in figure.axes) == (shape[1] != 3)
    assert png_bytes(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(5, 2, 8, 8), (8, 8), (0, 3, 8, 8)])
def test_image_grid_refuses_other_shapes(shape):
    import numpy as np

    with pytest.raises(ValueError, match="images must be"):
        image_grid(np.zeros(shape))


def test_qq_plot_puts_normal_quantiles_on_the_diagonal():
    import numpy as np
    from scipy.special import ndtri

    n = 20000
    sample = ndtri((np.arange(n) + 0.5) / n)
    figure = qq_plot({"exact": np.append(np.random.default_rng(0).permutation(sample), np.nan)})
    x, y = next(line for line in figure.axes[0].lines if line.get_label() == "exact").get_data()
    np.testing.assert_allclose(x, y, atol=1e-12)
    assert 100 < len(x) <= 300
    assert x[0] == sample[0]
    assert x[-1] == sample[-1]
    for tiny in ([0.3], [0.3, 0.3]):
        assert png_bytes(qq_plot({"tiny": tiny}))
    with pytest.raises(ValueError, match="'empty' has no finite value"):
        qq_plot({"empty": [np.nan]})


def test_histogram_and_file(tmp_path):
    figure = histogram({"a": [0.0, 1.0, 1.0, math.inf], "b": [2.0]}, bins=4, with_normal=True)
    save_png(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["a", "b", "N(0, 1)"]
