"""Paired differences between methods of a table: python docs/inversion_study.py RUN METHOD.

For every row of RUN that differs from a row of METHOD in nothing but the method: the mean
difference, paired by image, its 95 % interval over the images, and the p-value of a paired t-test,
corrected by Holm's method for all comparisons printed for the metric.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from evaluation.base import labels_text
from evaluation.table import Stat, compare, summarise

METRICS = ("psnr", "ssim")
Labels = frozenset[tuple[str, object]]
Values = dict[str, list[tuple[int, float]]]


def read(run: Path) -> dict[Labels, Values]:
    """(image, value) by metric, of each row."""
    cells: dict[str, Labels] = {}
    rows: dict[Labels, Values] = defaultdict(lambda: defaultdict(list))
    for line in (run / "records.jsonl").read_text().splitlines()[1:]:
        content = json.loads(line)
        if "labels" in content:
            cells[content["cell"]] = frozenset(content["labels"].items())
            continue
        for name, value in content["metrics"].items():
            rows[cells[content["cell"]]][name].append((content["image"], float(value)))
    return rows


def reference(labels: Labels, method: str) -> Labels:
    """The labels of the row of another method."""
    return frozenset({**dict(labels), "method": method}.items())


def main(run: Path, method: str) -> None:
    """Print the differences of every row to the row of the method beside it."""
    rows = read(run)
    pairs = [labels for labels in rows if reference(labels, method) in rows.keys() - {labels}]
    for metric in METRICS:
        stats: list[tuple[Stat, Stat]] = [
            (summarise(rows[labels][metric]), summarise(rows[reference(labels, method)][metric]))
            for labels in pairs
        ]
        print(f"{metric}, less {method}:")
        for labels, found in zip(pairs, compare(stats), strict=True):
            name = labels_text(dict(sorted(labels, key=lambda label: label[0] == "method")))
            interval = "?" if found.ci95 is None else f"{found.ci95:.3f}"
            print(f"  {name}: {found.mean:+.3f} ± {interval}, p {found.p_holm:.2g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
