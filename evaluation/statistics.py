"""Means over images, their intervals, and comparisons paired by image."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

LEVEL = 0.95


@dataclass(frozen=True)
class Stat:
    """A metric over the images of one row. Several values of one image count as their mean.

    Args:
        mean: over the images, of finite values; None if there are none.
        std: sample standard deviation over the images (n - 1 in the denominator).
        ci95: half the width of the 95 % t-interval of the mean over the images; None for n < 2.
        median: over the images, infinite values included.
        maximum: over the images, infinite values included.
        n: number of images with a finite value.
        n_excluded: number of values that are NaN.
        n_infinite: number of values that are infinite, as the PSNR of a perfect image.
        paper: the published number, None if there is none.
        by_image: mean of the finite values of each image.
    """

    mean: float | None = None
    std: float | None = None
    ci95: float | None = None
    median: float | None = None
    maximum: float | None = None
    n: int = 0
    n_excluded: int = 0
    n_infinite: int = 0
    paper: float | None = None
    by_image: Mapping[int, float] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Comparison:
    """The first of two rows minus the second one, over the images that both have.

    Args:
        mean: of the difference.
        ci95: half the width of its 95 % t-interval; None for n < 2.
        p: of the two-sided paired t-test; 1 for n < 2.
        n: number of images.
        p_holm: p, corrected for all comparisons of one call.
    """

    mean: float
    ci95: float | None
    p: float
    n: int
    p_holm: float = math.nan

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.ci95 is not None and abs(self.mean) > self.ci95


def summarise(measured: Iterable[tuple[int, float]], paper: float | None = None) -> Stat:
    """Statistics over images of (image, value) pairs; an image may have several values.

    >>> stat = summarise([(0, 1.0), (0, 3.0), (1, 4.0), (2, float("nan"))])
    >>> stat.mean, stat.n, stat.n_excluded, round(stat.ci95, 3)
    (3.0, 2, 1, 12.706)
    """
    values = list(measured)
    means = _by_image((image, value) for image, value in values if math.isfinite(value))
    units = list(means.values())
    known = _by_image((image, value) for image, value in values if not math.isnan(value)).values()
    counts = {
        "n": len(units),
        "n_excluded": sum(math.isnan(value) for _, value in values),
        "n_infinite": sum(math.isinf(value) for _, value in values),
    }
    if known:
        counts |= {"median": statistics.median(known), "maximum": max(known)}
    if not units:
        return Stat(**counts, paper=paper)
    std = float(statistics.stdev(units)) if len(units) > 1 else None
    return Stat(
        mean=statistics.mean(units),
        std=std,
        ci95=_half_width(std, len(units)),
        **counts,
        paper=paper,
        by_image=means,
    )


def _by_image(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Mean of the values of each image."""
    repeats: dict[int, list[float]] = defaultdict(list)
    for image, value in values:
        repeats[image].append(value)
    # The statistics module sums exactly: the order of the records does not change the result.
    return {image: statistics.mean(repeats[image]) for image in sorted(repeats)}


def compare(pairs: Sequence[tuple[Stat, Stat]]) -> list[Comparison]:
    """Paired differences of rows, with p-values corrected by Holm's method over all of them.

    Args:
        pairs: statistics of one metric in two rows each.

    Raises:
        ValueError: two rows have no image in common.
    """
    found = [_paired(first.by_image, second.by_image) for first, second in pairs]
    corrected = holm([comparison.p for comparison in found])
    return [Comparison(c.mean, c.ci95, c.p, c.n, p) for c, p in zip(found, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that keep the family-wise error rate.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _paired(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison:
    from scipy.special import stdtr

    differences = [first[image] - second[image] for image in sorted(first.keys() & second.keys())]
    if not differences:
        raise ValueError("the rows have no image in common")
    mean, n = statistics.mean(differences), len(differences)
    if n < 2:
        return Comparison(mean, None, 1.0, n)
    std = float(statistics.stdev(differences))
    if std == 0:
        return Comparison(mean, 0.0, 1.0 if mean == 0 else 0.0, n)
    t = abs(mean) / (std / math.sqrt(n))
    return Comparison(mean, _half_width(std, n), float(2 * stdtr(n - 1, -t)), n)


def _half_width(std: float | None, n: int) -> float | None:
    from scipy.special import stdtrit

    return None if std is None else float(stdtrit(n - 1, (1 + LEVEL) / 2)) * std / math.sqrt(n)
