import csv
import io
import json
import math
import random
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from docs.inversion_study import holm, p_value
from evaluation.base import Cell, Result
from evaluation.formats import (
    arrange,
    format_interval,
    format_number,
    print_table,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from evaluation.report import Picture, environment, report_html
from evaluation.table import Metric, Row, Stat, Table, aggregate, paired, summarise
from flowprior.distribution_figures import histogram, qq_plot
from flowprior.figures import image_grid, png_bytes

PSNR = Metric("psnr", "PSNR", "dB", higher_is_better=True)
ERROR = Metric("error", higher_is_better=False)
STEPS = Metric("steps", "Steps")


def result(labels, image, metrics, repeat=0):
    return Result(Cell(labels, [image], {}, repeat=repeat), image, metrics, {})


def table(compare=("method",), rows=4):
    results = [
        result({"method": method, "noise": noise}, i, {"psnr": base + i, "steps": 5 * i})
        for noise in (0.1, 0.2)
        for method, base in (("glow", 30.0), ("dip_2", 28.5))
        for i in range(3)
    ]
    paper = {("glow", "psnr"): 31.2}
    return aggregate(
        results[: 3 * rows],
        [PSNR, STEPS],
        lambda labels, metric: paper.get((labels["method"], metric)),
        compare,
    )


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (3.14159, 0.01273, "3.142 ± 0.013"),
        (27.316, 0.0996, "27.32 ± 0.10"),
        (103.44, 5.21, "103.4 ± 5.2"),
        (12345.678, 1234.5, "12346 ± 1234"),
        (-0.0004, 0.3, "0.00 ± 0.30"),
        (0.0, 0.0, "0"),
        (12, None, "12"),
        (12, 0.0, "12"),
        (44123456, None, "44123456"),
        (27.31649, None, "27.32"),
        (0.99996, None, "1.000"),
        (2.5e-7, None, "2.500e-7"),
        (1.2e-7, 3.4e-8, "(1.20 ± 0.34)e-7"),
        (2.5e8, 3e6, "(2.500 ± 0.030)e8"),
        (5e-324, 5e-324, "(4.9 ± 4.9)e-324"),
        (1.0, 3e-8, "1.000"),
        (3.14159265, 1e-12, "3.142"),
        (24.98765, 0.00321, "24.988 ± 0.003"),
        (math.inf, None, "∞"),
    ],
)
def test_digits(mean, half_width, text):
    assert format_interval(mean, half_width) == text


def test_number_without_interval():
    assert [format_number(value) for value in (0.5, 1234567.0, 7)] == ["0.5000", "1.235e6", "7"]


def of_images(values):
    return summarise(enumerate(values))


def test_summary_of_known_values():
    stat = of_images([1.0, 2.0, 4.5])
    assert (stat.mean, stat.median, stat.n) == (2.5, 2.0, 3)
    assert (stat.minimum, stat.maximum) == (1.0, 4.5)
    assert stat.std == pytest.approx(math.sqrt(3.25))
    low, high = scipy.stats.t.interval(0.95, 2, 2.5, scipy.stats.sem([1.0, 2.0, 4.5]))
    assert stat.ci95 == pytest.approx((high - low) / 2, rel=1e-12)
    assert of_images([7]) == Stat(7, None, None, 7, 7, 7, 1)
    assert isinstance(of_images([1, 3]).mean, int)
    assert of_images([1e308, 1e308]).mean == 1e308


def test_values_that_are_not_finite_are_counted_by_kind():
    stat = of_images([math.nan, 2.0, math.inf, 4.0, -math.inf])
    assert (stat.mean, stat.n, stat.n_excluded, stat.n_infinite) == (3.0, 2, 1, 2)
    assert of_images([math.nan]) == Stat(n_excluded=1)


def test_median_and_maximum_count_what_is_infinite():
    stat = of_images([math.nan, 2.0, math.inf, math.inf])
    assert (stat.mean, stat.median, stat.maximum) == (2.0, math.inf, math.inf)
    hopeless = of_images([math.inf, math.inf])
    assert (hopeless.mean, hopeless.n, hopeless.median, hopeless.maximum) == (
        None,
        0,
        math.inf,
        math.inf,
    )
    worst = Metric("error", "worst", statistic="maximum")
    results = [result({"m": 0}, i, {"error": e}) for i, e in enumerate((1.0, math.inf))]
    found = aggregate(results, [worst])
    assert arrange(found).lines == [["∞ (n = 1, 1 at infinity)", "1"]]
    assert json.loads(to_json(found))["rows"][0]["metrics"]["error"]["maximum"] == "inf"
    assert "inf" in to_csv(found)


def test_repeats_of_an_image_are_one_unit():
    values = {0: [1.0, 2.0, 3.0], 1: [4.0, 4.0, 4.0], 2: [6.0, 7.0, 8.0], 3: [9.0, 9.0, 9.0]}
    stat = summarise((image, value) for image, repeats in values.items() for value in repeats)
    units = [2.0, 4.0, 7.0, 9.0]
    assert (stat.n, stat.mean) == (4, 5.5)
    assert stat.std == statistics.stdev(units)
    expected = scipy.stats.t.ppf(0.975, 3) * scipy.stats.sem(units)
    assert stat.ci95 == pytest.approx(expected, rel=1e-12)


def test_one_failed_repeat_leaves_the_image_in():
    stat = summarise([(0, 1.0), (0, math.nan), (1, 3.0), (1, 3.0)])
    assert (stat.mean, stat.n, stat.n_excluded) == (2.0, 2, 1)


def test_summary_does_not_depend_on_the_order():
    values = [(i, random.Random(i).gauss(0, 10.0 ** (i % 17 - 8))) for i in range(51)]
    assert summarise(values) == summarise(sorted(values, key=lambda pair: pair[1]))


def test_comparison_is_paired_by_image():
    generator = np.random.default_rng(0)
    first = 20 + 5 * generator.standard_normal(12)
    second = first - 0.3 + 0.2 * generator.standard_normal(12)
    found = paired(of_images(first), summarise(reversed(list(enumerate(second)))))
    expected = scipy.stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx((low + high) / 2, rel=1e-9)
    assert found.ci95 == pytest.approx((high - low) / 2, rel=1e-9)
    assert p_value(found) == pytest.approx(expected.pvalue, rel=1e-9)
    # The images differ far more than the methods: unpaired intervals see nothing.
    assert of_images(first).ci95 > abs(found.mean)


def test_comparison_uses_the_common_images_only():
    found = paired(summarise([(0, 1.0), (1, 5.0), (7, 99.0)]), of_images([0.0, 2.0, -9.0]))
    assert (found.mean, found.n) == (2.0, 2)
    assert paired(summarise([(0, 1.0)]), summarise([(1, 1.0)])).n == 0


def test_comparison_of_one_image_claims_nothing():
    found = paired(of_images([1.0]), of_images([0.0]))
    assert (found.ci95, p_value(found)) == (None, 1.0)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made increasing.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_json_has_exactly_the_promised_form():
    results = [result({"m": "a"}, 0, {"psnr": 1.0}), result({"m": "a"}, 1, {"psnr": math.nan})]
    rows = json.loads(to_json(aggregate(results, [PSNR, ERROR])))
    stat = {
        "mean": 1.0,
        "std": None,
        "ci95": None,
        "median": 1.0,
        "minimum": 1.0,
        "maximum": 1.0,
        "n": 1,
        "n_excluded": 1,
        "n_infinite": 0,
        "paper": None,
    }
    assert rows == {"rows": [{"labels": {"m": "a"}, "metrics": {"psnr": stat}}], "notes": []}
    content = json.loads(to_json(table()))
    assert [row["labels"] for row in content["rows"]] == [
        {"method": m, "noise": n} for n in (0.1, 0.2) for m in ("glow", "dip_2")
    ]
    psnr = content["rows"][0]["metrics"]["psnr"]
    assert (psnr["mean"], psnr["std"], psnr["n"], psnr["paper"]) == (31.0, 1.0, 3, 31.2)


def test_best_only_among_rivals():
    best = [(row.labels["method"], row.labels["noise"]) for row in best_rows(table())]
    assert best == [("glow", 0.1), ("glow", 0.2)]
    assert best_rows(table(compare=())) == []
    assert best_rows(table(rows=1)) == []
    assert [row.labels["noise"] for row in best_rows(table(rows=3))] == [0.1]
    assert best_rows(table(), STEPS) == []


@pytest.mark.parametrize(
    "other",
    [[(0, 2.0), (1, 2.1)], [(0, 2.0), (1, 2.1), (3, 2.2)], [(0, 2.0), (1, 2), (2, math.nan)]],
)
def test_no_best_where_the_images_differ(other):
    stats = [of_images([1.0, 1.1, 1.2]), summarise(other)]
    rows = [Row({"method": i}, {"error": stat}) for i, stat in enumerate(stats)]
    assert best_rows(Table([ERROR], rows, ["method"]), ERROR) == []


@pytest.mark.parametrize(("noise", "bold"), [(0.01, True), (1.0, False)])
def test_best_must_beat_its_runner_up_by_more_than_the_interval(noise, bold):
    values = [[1.0, 2.0, 3.0], [1.5 + noise, 2.5 - noise, 3.5], [9.0, 9.0, 9.0]]
    rows = [Row({"method": i}, {"error": of_images(v)}) for i, v in enumerate(values)]
    found = best_rows(Table([ERROR], rows, ["method"]), ERROR)
    assert found == (rows[:1] if bold else [])


def test_method_is_not_its_own_runner_up():
    values = {"fixed": [1.0, 2.0, 3.0], "chosen": [1.5, 1.5, 3.0], "other": [8.0, 9.0, 9.5]}
    names = {"fixed": ("flow", "a"), "chosen": ("flow", "b"), "other": ("rival", None)}
    rows = [
        Row(dict(zip(("method", "weights"), names[name], strict=True)), {"error": of_images(v)})
        for name, v in values.items()
    ]
    compared = ["method", "weights"]
    assert best_rows(Table([ERROR], rows, compared), ERROR) == rows[:1]
    assert best_rows(Table([ERROR], rows[:2], compared), ERROR) == []
    far = [rows[0], Row({"method": "flow", "weights": "c"}, rows[2].stats)]
    assert best_rows(Table([ERROR], far, compared), ERROR) == far[:1]


def test_no_best_of_a_metric_that_is_not_ranked():
    unranked = replace(PSNR, ranked=False)
    assert best_rows(table(), unranked) == []


def best_rows(results, metric=PSNR):
    return [row for row in results.rows if results.is_best(row, metric)]


def test_markdown():
    lines = to_markdown(table()).splitlines()
    assert lines[:3] == [
        "| method | noise | PSNR (dB) ↑ | PSNR, paper | Steps | n |",
        "| :--- | :--- | ---: | ---: | ---: | ---: |",
        "| glow | 0.1 | **31.0 ± 2.5** | 31.2 | 5 ± 12 | 3 |",
    ]
    assert lines[3].startswith(r"| dip\_2 | 0.1 | 29.5 ± 2.5 |  |")
    assert "95 % interval" in lines[-1]
    assert "bold" in lines[-1]


def test_markdown_keeps_its_columns_whatever_the_labels():
    results = [result({"a|b": text}, 0, {"psnr": 1.0}) for text in ("x|y\nz", "<b>")]
    lines = to_markdown(aggregate(results, [PSNR])).splitlines()
    assert lines[0].startswith(r"| a\|b |")
    assert lines[2].startswith(r"| x\|y z |")
    assert lines[3].startswith(r"| \<b\> |")


def test_latex():
    lines = to_latex(table()).splitlines()
    assert r"\begin{tabular}{llrrrr}" in lines
    line = r"glow & 0.1 & \bfseries 31.0 $\pm$ 2.5 & 31.2 & 5 $\pm$ 12 & 3 \\"
    assert line in lines
    assert any(line.startswith(r"dip\_2 & 0.1 & 29.5") for line in lines)
    assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_latex_escapes_every_special_character():
    label = "\\&%$#_{}~^<>"
    results = [result({label: text}, 0, {"psnr": -2.5e-7}) for text in (label, "λβ² in [-1, 1] Σ")]
    lines = to_latex(aggregate(results, [PSNR])).splitlines()
    escaped = r"\textbackslash \&\%\$\#\_\{\}\textasciitilde \textasciicircum $<$$>$"
    assert rf"{escaped} & PSNR (dB) $\uparrow$ & n \\" in lines
    value = r"$-$2.500$\times 10^{-7}$"
    assert rf"$\lambda$$\beta$$^2$ in [$-$1, 1] $\Sigma$ & {value} & 1 \\" in lines


def test_csv_is_tidy_and_in_full_precision():
    results = [result({'a,"b"': "x,\ny"}, i, {"psnr": 1 / 3 + i}) for i in range(2)]
    rows = list(csv.DictReader(io.StringIO(to_csv(aggregate(results, [PSNR])))))
    assert len(rows) == 1
    assert rows[0]['a,"b"'] == "x,\ny"
    assert float(rows[0]["mean"]) == 1 / 3 + 0.5
    assert (rows[0]["unit"], rows[0]["n"], rows[0]["paper"]) == ("dB", "2", "")


def printed(results, width):
    console = Console(file=io.StringIO(), width=width)
    print_table(results, console, "Title [bold]")
    return console.file.getvalue()


def many(labels, compare=()):
    """A table of many metrics."""
    metrics = [Metric(f"m{i}", f"A metric with number {i}") for i in range(12)]
    values = {m.name: 1.5 for m in metrics}
    results = [
        result(row, i, {n: v + i for n, v in values.items()}) for row in labels for i in (0, 1)
    ]
    return aggregate(results, metrics, lambda _, name: {"m3": 1.25}.get(name), compare)


@pytest.mark.parametrize("width", [80, 120])
def test_many_metrics_of_one_row_stand_below_each_other(width):
    lines = printed(many([{"flow": "glow"}]), width).splitlines()
    values = [line.split() for line in lines if "number 3" in line]
    assert values[0][-3:] == ["2.0", "±", "6.4"]
    assert values[1][-2:] == ["paper", "1.25"]
    assert len([line for line in lines if "A metric" in line]) == 13


@pytest.mark.parametrize("methods", [["total variation"], ["total variation", "flow"]])
def test_methods_are_rows(methods):
    labels = [{"noise": 0.2, "method": method} for method in methods]
    grid = arrange(many(labels, ("method", "prior")))
    assert (grid.caption, grid.header[0], grid.labels) == ("noise 0.2", "method", 1)
    assert [line[0] for line in grid.lines] == methods


def wide(methods, metrics=8):
    metrics = [Metric(f"m{i}", f"Metric {i}", "unit") for i in range(metrics)]
    results = [
        result({"method": f"method{j}"}, i, {m.name: 1e-7 * (i + 3.5) for m in metrics})
        for j in range(methods)
        for i in range(3)
    ]
    return aggregate(results, metrics)


@pytest.mark.parametrize("width", [80, 120])
def test_narrow_console_shows_one_table_and_says_what_is_missing(width):
    text = printed(wide(4), width)
    assert text.startswith("Title [bold]")
    assert text.count("method0") == 1
    shown = text.count("(4.5 ± 2.5)e-7") // 4
    assert 2 <= shown < 8
    missing = text[text.index("Further columns") :]
    assert [f"Metric {i}" in missing for i in range(8)] == [i >= shown for i in range(8)]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_narrow_console_cuts_no_number_off():
    headings = ["PSNR", "SSIM", "Residual/noise (1)", "PSNR, best iteration", "Similarity, best"]
    metrics = [Metric(f"m{i}", heading, "unit") for i, heading in enumerate(headings)]
    results = [
        result({"method": name}, i, {m.name: 0.291 + 0.1 * i for m in metrics})
        for name in ("total variation", "flow", "flow + layers")
        for i in range(3)
    ]
    for width in range(60, 130, 5):
        lines = printed(aggregate(results, metrics), width).splitlines()
        assert max(map(len, lines)) <= width
        row = next(line for line in lines if "flow + layers" in line)
        assert row.count("0.39 ± 0.25") == row.count("±") >= 1


def test_wide_console_shows_all():
    text = printed(wide(4), 300)
    assert text.count("(4.5 ± 2.5)e-7") == 32
    assert "Further columns" not in text


def test_own_count_stands_beside_a_value_that_differs():
    results = [
        result({"m": m}, i, {"psnr": (1.5, math.nan)[i + m == 0], "error": 2.5, "steps": 1})
        for m in range(3)
        for i in range(4)
    ]
    results += [result({"m": 3}, i, {"psnr": math.inf if i else 9, "error": 2.5}) for i in range(4)]
    grid = arrange(aggregate(results, [PSNR, ERROR, STEPS]))
    assert grid.header[-1] == "n"
    assert grid.lines[0] == ["0", "1.500 (n = 3, 1 excluded)", "2.500", "1", "4"]
    assert grid.lines[1] == ["1", "1.500", "2.500", "1", "4"]
    assert grid.lines[3] == ["3", "9 (n = 1, 3 at infinity)", "2.500", "–", "4"]


def test_nothing_finite_is_said():
    results = [result({"m": 0}, i, {"psnr": math.nan, "error": math.inf}) for i in range(2)]
    metrics = [PSNR, ERROR, Metric("lpips", missing="n/a")]
    assert arrange(aggregate(results, metrics)).lines == [
        ["2 excluded", "2 at infinity", "n/a", "0"]
    ]


def test_median_and_maximum_stand_beside_the_mean():
    metrics = [
        Metric("bits"),
        Metric("bits", "median", statistic="median"),
        Metric("bits", "maximum", statistic="maximum"),
        Metric("time", interval=False),
    ]
    results = [result({"m": 0}, i, {"bits": b, "time": b}) for i, b in enumerate((1.0, 2.0, 99.0))]
    grid = arrange(aggregate(results, metrics))
    assert grid.lines == [["34 ± 140", "2.000", "99.00", "34.00", "3"]]


def test_columns_of_one_name_stay_apart():
    results = [result({"n": n}, i, {"psnr": 1.0}) for n in "ab" for i in range(2)]
    found = aggregate(results, [PSNR, PSNR])
    assert arrange(found).header == ["n", "PSNR (dB) ↑", "PSNR (dB) ↑ [3]", "n [4]"]
    assert "PSNR (dB) ↑ [3]" in report_html("t", found, [], "", {})


def test_report_escapes_and_needs_no_network():
    evil = '<script>alert("x")</script>'
    metric = Metric("psnr", evil, evil)
    results = [result({evil: evil + m, "x": evil}, i, {"psnr": 1.0}) for m in "ab" for i in (0, 1)]
    figure = png_bytes(histogram({"a": [0, 1]}, 2, ""))
    facts = environment(1.0, 2.0) | {evil: evil}
    found = aggregate(results, [metric])
    page = report_html(evil, found, [Picture(evil, evil, figure)], evil, facts)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10
    assert "src=" in page
    assert page.count("src=") == page.count('src="data:image/png;base64,')
    assert "http" not in page
    assert "prefers-color-scheme" in page


def test_html_marks_the_best_and_scrolls_in_its_box():
    page = report_html("t", table(), [], "", {})
    assert re.search(r"\.best {[^}]*font-weight: bold", page)
    assert re.findall(r'best">([^<]*)<', page) == ["31.0 ± 2.5"] * 2
    assert re.search(r'<div class="scroll"><table.*</table>\s*</div>', page, re.DOTALL)
    assert re.search(r"\.scroll {[^}]*overflow-x: auto", page)
    assert re.search(r"\.scroll {[^}]*right / \S+ 100% no-repeat local,[^}]*no-repeat scroll", page)


@pytest.mark.parametrize("ideal", [("Kurtosis (3)", "Radius (1)"), ("Rank (0.5)", "Rank")])
@pytest.mark.parametrize("methods", [["flow"], ["flow", "tv"]])
def test_ideal_values_are_explained(methods, ideal):
    metrics = [Metric(f"m{i}", name) for i, name in enumerate((*ideal, *"abc"))]
    results = [result({"m": m}, i, {"m0": 3.0, "m1": 1.0}) for m in methods for i in range(2)]
    found = aggregate(results, metrics)
    sentence = "(1), (3) and the like after a name: the value of an ideal result"
    assert sentence in printed(found, 200)
    assert sentence in report_html("t", found, [], "", {})
    assert "ideal" not in printed(table(), 200)


@pytest.mark.parametrize("shape", [(5, 3, 8, 6), (3, 1, 8, 6), (1, 8, 6)])
def test_image_grid_takes_what_it_says(shape):
    images = np.random.default_rng(0).random(shape)
    images[0].flat[0] = np.nan
    figure = image_grid(images, columns=2, titles=["a", "b"], label="km/s")
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == len(images)
    assert any(axis.get_ylabel() == "km/s" for axis in figure.axes) == (shape[1] != 3)
    assert png_bytes(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("channels", [1, 3])
def test_standard_deviations_have_colours_of_their_own(channels):
    images = np.random.default_rng(0).random((6, channels, 8, 6))
    images[1::3] *= 0.1
    figure = image_grid(images, columns=3, value_range=(0, 1), label="value", spreads=[1])
    drawn = [axis.images[0] for axis in figure.axes if axis.images]
    assert [picture.get_cmap().name == "viridis" for picture in drawn] == 2 * [False, True, False]
    spread = images[1::3].mean(1)
    np.testing.assert_allclose(drawn[1].get_array(), spread[0])
    assert drawn[1].get_clim() == drawn[4].get_clim() == (0, np.quantile(spread, 0.995))
    assert drawn[0].get_clim() == (0, 1)
    labels = {axis.get_ylabel() for axis in figure.axes} - {""}
    assert labels == {"standard deviation"} | ({"value"} if channels == 1 else set())


def test_many_columns_with_titles_go_on_below():
    images = np.random.default_rng(0).random((2 * 13, 1, 8, 6))
    titles = [f"method {number}" for number in range(13)]
    drawn = [a for a in image_grid(images, 13, titles, spreads=[12]).axes if a.images]
    assert len(drawn) == 26
    lefts, tops = (
        sorted({round(p, 6) for a in drawn for p in [pick(a.get_position())]})
        for pick in (lambda box: box.x0, lambda box: -box.y1)
    )
    assert (len(tops), len(lefts)) == (4, 7)
    for number, image in enumerate(images):
        row, column = divmod(number, 13)
        shown = image[0] if column < 12 else image.mean(0)
        (axis,) = [a for a in drawn if np.array_equal(a.images[0].get_array(), shown)]
        box = axis.get_position()
        assert box.x0 == pytest.approx(lefts[column % 7], abs=1e-5)
        assert -box.y1 == pytest.approx(tops[row + 2 * (column // 7)], abs=1e-5)
        assert axis.get_title().replace("\n", " ") == (titles[column] if row == 0 else "")
        assert (axis.images[0].get_cmap().name == "viridis") == (column == 12)
    untitled = [a.get_position().x0 for a in image_grid(images, columns=13).axes if a.images]
    assert len({round(left, 6) for left in untitled}) == 13


def test_image_grid_draws_other_numbers_of_channels_side_by_side():
    images = np.random.default_rng(0).random((3, 2, 8, 6))
    figure = image_grid(images)
    drawn = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    np.testing.assert_array_equal(drawn[1], np.concatenate(images[1], axis=1))
    assert len(drawn) == len(images)


@pytest.mark.parametrize("shape", [(5, 0, 8, 8), (8, 8), (0, 3, 8, 8)])
def test_image_grid_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="images"):
        image_grid(np.zeros(shape))


def test_qq_plot_puts_normal_quantiles_on_the_diagonal():
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
    with pytest.raises(ValueError, match="empty"):
        qq_plot({"empty": [np.nan]})


def test_histogram_leaves_out_what_is_not_finite():
    figure = histogram({"a": [0.0, 1.0, 1.0, math.inf], "b": [2.0]}, 4, "Misfit (s²)")
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["a", "b"]
    assert figure.axes[0].get_xlim()[1] < 3
    assert figure.axes[0].get_xlabel() == "Misfit (s²)"
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_notes_stand_in_every_format_that_has_room_for_them():
    notes = ["Not converged: a_b (0.7 %)."]
    assert json.loads(to_json(table(), notes))["notes"] == notes
    assert to_markdown(table(), notes).endswith("Not converged: a\\_b (0.7 %).\n")
    assert "\n% Not converged: a_b (0.7 %).\n" in to_latex(table(), notes)
