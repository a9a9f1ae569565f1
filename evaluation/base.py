"""What an evaluation has to say about itself, cell by cell; `evaluation.runner` does the rest."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowprior.own_code import code_digest, is_own

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evaluation.arrays import ArrayStore
    from evaluation.table import Metric, Table

_NOT_MEASURED = frozenset(
    {
        *("figures", "write", "notes", "paper", "published", "title", "compare", "derived"),
        *("check", "parallel", "tunable", "on_progress", "_abc_impl"),
    }
)
"""What of an evaluation records do not depend on."""
Label = str | int | float | bool | None
Labels = Mapping[str, Label]


@dataclass(frozen=True)
class Cell:
    """One setting of a sweep, measured on some images. An evaluation may add fields of its own.

    Args:
        labels: what tells it from other cells; becomes the row of the table.
        images: indices of the images.
        settings: everything its results depend on, JSON-like: the parsed config with its
            defaults, digests of data, weights and code. Not its images, batch size or device.
        batch_size: number of images in one call of `Evaluation.evaluate`.
        repeat: tells cells with equal labels apart, which share a row: another seed.

    Raises:
        ValueError: batch_size is below 1, or an image occurs twice.
    """

    labels: Labels
    images: Sequence[int]
    settings: Mapping[str, Any]
    batch_size: int = 1
    repeat: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if len(set(self.images)) < len(self.images):
            raise ValueError(f"an image occurs twice in the cell {labels_text(self.labels)}")

    @cached_property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for labels and repeat, in any order and run."""
        named = f"{labels_key(self.labels)} {self.repeat}"
        return hashlib.sha256(named.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        repeat = f", repeat {self.repeat}" if self.repeat else ""
        return (labels_text(self.labels) or "the only row") + repeat


@dataclass(frozen=True)
class Result:
    """What is known of one image of one cell.

    Args:
        cell: as `Evaluation.cells` gave it.
        image: index of the image.
        metrics: numbers, finite or not.
        arrays: what `Evaluation.evaluate` saved for this image; empty if it saved nothing.
    """

    cell: Cell
    image: int
    metrics: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]


def labels_key(labels: Labels) -> str:
    """Labels as one string, whatever the order they were written in."""
    return json.dumps(dict(labels), sort_keys=True)


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


def labels_text(labels: Labels) -> str:
    """Labels in one line: ``method glow, noise 0.1``."""
    return ", ".join(f"{name} {label_text(value)}" for name, value in labels.items())


@dataclass
class Published:
    """Numbers of a paper for the rows that have these labels.

    Args:
        labels: of the row, all or some of them.
        metrics: value by name of a metric.
    """

    labels: dict[str, Label]
    metrics: dict[str, float]

    def matches(self, labels: Labels) -> bool:
        """Whether it is about the row with these labels."""
        return self.labels.items() <= dict(labels).items()


class Evaluation(ABC):
    """A sweep over cells. Build what is slow (models) in a `cached_property`.

    Each process builds its own: cached properties are not pickled.

    Attributes:
        title: heading of the table and the report.
        metrics: every metric that `evaluate` or `derived` may return, the most important first.
        compare: labels whose values compete for the best number (see `Table`).
        parallel: whether several processes may measure at once; not where speed is measured.
        published: numbers of papers.
        on_progress: in the process that shows progress: `evaluate` may call it with the number of
            images of its batch that are done, which may be a fraction, such as 1.5.
        tunable: whether `evaluate.py --tune` can choose options; it takes an `InversionEvaluation`.
    """

    title: str = "Evaluation"
    metrics: Sequence[Metric] = ()
    compare: Sequence[str] = ()
    parallel: bool = True
    published: Sequence[Published] = ()
    tunable: bool = False
    on_progress: Callable[[float], None] | None = None

    def check(self) -> None:  # noqa: B027
        """Find every mistake that can be found before measuring; nothing is written yet.

        Raises:
            ValueError, UsageError: the message names the option and what was expected.
        """

    @abstractmethod
    def cells(self) -> Sequence[Cell]:
        """The sweep, in the order of the table's rows. Called after `check`."""

    @abstractmethod
    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Metrics of each of these images: Python numbers, so that a GPU's work is done and timed.

        Args:
            cell: one of `cells`.
            images: some of ``cell.images``, at most ``cell.batch_size``.
            arrays: where to save, as ``arrays.save(cell.key, image, {...})``, what `derived`,
                `figures` and `write` need and the metrics do not hold.
        """

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """Further metrics of each image of one cell, which take all of its images to find."""
        return [{} for _ in results]

    def figures(self, table: Table, results: Sequence[Result]) -> Mapping[str, tuple[Figure, str]]:
        """Figure and caption by name; nothing is measured again here."""
        return {}

    def write(self, results: Sequence[Result], output: Path) -> None:  # noqa: B027
        """Write files of its own, in place of those of an earlier call."""

    def notes(self, table: Table) -> Sequence[str]:
        """Sentences to stand below the table."""
        return ()

    def own_code(self) -> dict[str, str]:
        """For the settings of cells: a digest of a class of one's own, named "evaluation".

        There is none if it changes nothing of ours but how results are shown.
        """
        names: dict[bool, set[str]] = {True: set(), False: set()}
        for base in type(self).__mro__:
            names[is_own(base)] |= vars(base).keys()
        changed = (names[True] & names[False]) - _NOT_MEASURED
        measures = any(not name.startswith("__") or name == "__init__" for name in changed)
        return {"evaluation": code_digest(type(self))} if measures else {}

    def paper(self, labels: Labels, metric: str) -> float | None:
        """The published number for a row and the name of a metric."""
        known = (one.metrics for one in self.published if one.matches(labels))
        return next((values[metric] for values in known if metric in values), None)

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }
