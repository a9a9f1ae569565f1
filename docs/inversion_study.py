"""Paired differences between rows of a table: python docs/inversion_study.py RUN NAME=VALUE ...

`--first N` leaves out the images before number N, as those by which a problem was chosen.

NAME=VALUE are labels of the row to compare with, such as "method=latent norm" or "prior=free". For
every row of RUN that differs from one of these in nothing but those labels: the mean difference,
paired by image, its 95 % interval over the images, and the p-value of a paired t-test, corrected by
Holm's method for all comparisons printed for the metric.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scipy.special import stdtr

from evaluation.base import labels_text
from evaluation.table import Stat, paired, summarise

METRICS = ("psnr", "ssim")
Labels = tuple[tuple[str, object], ...]
Values = dict[str, list[tuple[int, float]]]


def records_of(run: Path) -> Path:
    """The records of a run, given its folder, or a file of published ones."""
    path = run / "records.jsonl" if run.is_dir() else run
    if not path.is_file():
        sys.exit(
            f"there are no records {path}: run the table first, or give a file of docs/results"
        )
    return path


def read(run: Path, first: int = 0) -> dict[Labels, Values]:
    """(image, value) by metric, of each row, from the image of that number on."""
    cells: dict[str, Labels] = {}
    rows: dict[Labels, Values] = defaultdict(lambda: defaultdict(list))
    for line in records_of(run).read_text().splitlines()[1:]:
        content = json.loads(line)
        if "labels" in content:
            cells[content["cell"]] = tuple(content["labels"].items())
            continue
        for name, value in content["metrics"].items() if content["image"] >= first else ():
            rows[cells[content["cell"]]][name].append((content["image"], float(value)))
    return rows


def reference(labels: Labels, given: dict[str, str]) -> Labels:
    """The labels of the row to compare with; of labels that the row lacks there is none."""
    known = dict(labels)
    if not given.keys() <= known.keys():
        return labels
    return tuple({**known, **given}.items())


def p_value(difference: Stat) -> float:
    """Of the two-sided t-test that the mean is 0; 1 for one image."""
    if not difference.std:  # one image, or the same difference in all
        return 0.0 if difference.n > 1 and difference.mean else 1.0
    t = abs(difference.mean) / difference.std * math.sqrt(difference.n)
    return float(2 * stdtr(difference.n - 1, -t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that keep the family-wise error rate."""
    corrected, largest, count = {}, 0.0, len(p_values)
    for rank, place in enumerate(sorted(range(count), key=p_values.__getitem__)):
        corrected[place] = largest = max(largest, min(1.0, (count - rank) * p_values[place]))
    return [corrected[place] for place in range(count)]


def main(run: Path, given: dict[str, str], first: int = 0) -> None:
    """Print the differences of every row to the row beside it that has the given labels."""
    rows = read(run, first)
    pairs = [labels for labels in rows if reference(labels, given) in rows.keys() - {labels}]
    for metric in METRICS:
        stats = {labels: summarise(values[metric]) for labels, values in rows.items()}
        differences = [paired(stats[row], stats[reference(row, given)]) for row in pairs]
        corrected = holm([p_value(difference) for difference in differences])
        print(f"{metric}, less {labels_text(given)}, Holm over {len(pairs)} comparisons:")
        for labels, found, p in zip(pairs, differences, corrected, strict=True):
            name = labels_text(dict(sorted(labels, key=lambda label: label[0] in given)))
            interval = "?" if found.ci95 is None else f"{found.ci95:.3f}"
            print(f"  {name}: {found.mean:+.3f} ± {interval}, p {p:.2g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("labels", nargs="+", metavar="NAME=VALUE")
    parser.add_argument("--first", type=int, default=0, help="number of the first image")
    arguments = parser.parse_args()
    given = dict(label.split("=", 1) for label in arguments.labels)
    main(arguments.run, given, arguments.first)
