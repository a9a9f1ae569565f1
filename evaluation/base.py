"""What an evaluation has to say about itself; `evaluation.runner.run` does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.arrays import ArrayStore
from evaluation.cells import Cell, Labels, Result
from evaluation.table import Metric, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Evaluation(ABC):
    """A sweep over cells. Build what is slow (models) in a `cached_property`.

    A finished run needs no model, and each process builds its own: cached properties are not
    pickled.

    Attributes:
        title: heading of the table and the report.
        metrics: every metric that `evaluate` or `derived` may return, the most important first.
        compare: labels whose values compete for the best number (see `Table`).
        parallel: whether several processes may measure at once; not where speed is measured.
    """

    title: str = "Evaluation"
    metrics: Sequence[Metric] = ()
    compare: Sequence[str] = ()
    parallel: bool = True

    def check(self) -> None:  # noqa: B027
        """Find every mistake that can be found before measuring; nothing is written yet.

        Raises:
            ValueError, UsageError: the message names the option and what was expected.
        """

    @abstractmethod
    def cells(self) -> Sequence[Cell]:
        """The sweep, in the order of the table's rows. Called once, after `check`."""

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

    def paper(self, labels: Labels, metric: str) -> float | None:
        """The published number for a row and the name of a metric."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }
