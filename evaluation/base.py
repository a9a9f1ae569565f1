"""What an evaluation has to say about itself; `evaluation.runner.run` does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.arrays import ArrayStore
from evaluation.records import Labels, Record
from evaluation.table import Metric, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One setting of a sweep, measured on some images.

    Args:
        labels: what tells it from other cells; becomes the row of the table.
        images: indices of the images, or numbers of the repeats where the cell is timed.
        batch_size: number of images in one call of `Evaluation.evaluate`.
        part: tells cells with equal labels apart, which share a row: measurements that are not
            per image, such as ``"sampling"``, or repeats with other seeds.
        timed: whether the time per image is noted.
    """

    labels: Labels
    images: Sequence[int]
    batch_size: int = 1
    part: str = ""
    timed: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


class Evaluation(ABC):
    """A sweep over cells. Build what is slow (models, data) lazily: a finished run needs none.

    Attributes:
        title: heading of the table and the report.
        metrics: every metric that `evaluate` may return, in the order shown.
        compare: labels whose values compete for the best number (see `Table`).
        shareable: whether several processes may measure at once; not where speed is measured.
        progress: to be called by `evaluate` with the share of its work that is done, if it takes
            more than some seconds.
    """

    title: str = "Evaluation"
    metrics: Sequence[Metric] = ()
    compare: Sequence[str] = ()
    shareable: bool = False
    progress: Callable[[float], None] = staticmethod(lambda share: None)

    @abstractmethod
    def fingerprint(self) -> Mapping[str, Any]:
        """All that decides the results: settings, `file_digest` of weights. JSON-like.

        Leave out what does not (batch size, device), and the number of images where more may be
        added later.
        """

    @abstractmethod
    def cells(self) -> Sequence[Cell]:
        """The sweep, in the order of the table's rows."""

    @abstractmethod
    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Metrics of each of these images: Python numbers, so that a GPU's work is done and timed.

        Args:
            cell: one of `cells`.
            images: some of ``cell.images``, at most ``cell.batch_size``.
            arrays: where to keep what `figures` needs and the metrics do not hold.
        """

    def derived(self, records: Sequence[Record], arrays: ArrayStore) -> Sequence[Record]:
        """The records of one cell as tables show them, with metrics that need all of its images."""
        return records

    def figures(
        self, table: Table, records: Sequence[Record], arrays: ArrayStore
    ) -> Mapping[str, tuple[Figure, str]]:
        """Figure and caption by name, from what was kept: nothing is measured again here."""
        return {}

    def write(  # noqa: B027
        self, records: Sequence[Record], arrays: ArrayStore, output: Path
    ) -> None:
        """Write files of its own, from what was kept, in place of those of an earlier call."""

    def notes(self) -> Sequence[str]:
        """Sentences to stand below the table."""
        return ()

    def use_device(self, process: int) -> None:  # noqa: B027
        """Compute on the GPU for the process of this number, if it is to compute on GPUs."""

    def paper(self, labels: Labels, metric: str) -> float | None:
        """The published number for a row and the name of a metric."""
        return None
