"""Paired differences between methods of an evaluation: python docs/inversion_study.py RUN METHOD.

For every row of the run's table that has the METHOD's labels but for the method: the mean
difference to METHOD over all images and seeds, its 95 % interval, and the mean of each seed.
"""

import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

METRICS = ("ssim", "psnr")
Rows = dict[tuple, dict[tuple[str, int], dict[str, float]]]


def read(run: Path) -> Rows:
    """Metrics by labels, and by seed and image."""
    found: Rows = defaultdict(dict)
    for line in (run / "records.jsonl").read_text().splitlines()[1:]:
        record = json.loads(line)
        labels = tuple(record["labels"].items())
        found[labels][record["part"], record["image"]] = record["metrics"]
    return found


def differences(row: dict, reference: dict, metric: str) -> dict[str, list[float]]:
    """Row less reference, image by image, by seed."""
    found = defaultdict(list)
    for (seed, image), metrics in row.items():
        if (seed, image) in reference and metric in metrics:
            found[seed].append(metrics[metric] - reference[seed, image][metric])
    return found


def line(found: dict[str, list[float]]) -> str:
    """Mean with its 95 % interval, and the means of the seeds."""
    values = [value for of_seed in found.values() for value in of_seed]
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    seeds = " ".join(f"{statistics.mean(of_seed):+.3f}" for of_seed in found.values())
    return f"{statistics.mean(values):+.3f} ± {half:.3f}, seeds {seeds}, n {len(values)}"


def main(run: Path, method: str) -> None:
    """Print the differences of every row to the row of the method beside it."""
    rows = read(run)
    by_labels = {frozenset(labels): row for labels, row in rows.items()}
    for labels, row in rows.items():
        reference = frozenset({**dict(labels), "method": method}.items())
        if frozenset(labels) == reference or reference not in by_labels:
            continue
        print(", ".join(f"{name} {value}" for name, value in labels))
        for metric in METRICS:
            print(f"  {metric}: {line(differences(row, by_labels[reference], metric))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
