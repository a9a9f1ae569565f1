"""Whether the posteriors of a table are right, by simulation-based calibration."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evaluation.base import Result, labels_text
from evaluation.measures import Measure
from evaluation.table import Metric
from flowprior.checks import check_integer
from flowprior.inversion import Estimate, Problem
from flowprior.posterior import Calibration, calibrate, rank_figure
from flowprior.posterior.calibration import LEVELS, WHOLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALUES = {"mean": "mean", "projection_1": "projection 1", "projection_2": "projection 2"}
VALUES["whole"] = WHOLE
_SHOWN = (0.5, 0.9)


class Calibrated(Measure):
    """Ranks of truths among draws of their posteriors, and coverage of credible intervals.

    For data that are draws of the prior (`datamodules.PriorDraws`) and posteriors that are right,
    ranks are uniform, and p is above 0.05 but for one row in twenty. Rows without a posterior have
    no such columns.

    Args:
        draws: number of draws of each posterior, at least 9; with 99, levels are exact.
        seed: of the draws.
    """

    metrics = (
        Metric("p_value", "p, posterior is right", interval=False),
        *(Metric(f"rank_{key}", f"Rank, {name} (0.5)") for key, name in VALUES.items()),
        *(
            Metric(f"inside_{level:.1f}", f"Pixels in {level:.0%} intervals ({level:g})")
            for level in _SHOWN
        ),
    )

    def __init__(self, draws: int = 99, seed: int = 0) -> None:
        check_integer("draws", draws, least=9)
        check_integer("seed", seed, least=0)
        self.draws, self.seed = draws, seed

    def __call__(
        self, estimate: Estimate, problem: Problem, truth: Tensor | None
    ) -> Mapping[str, Tensor]:
        """See `Measure`."""
        if truth is None or estimate.posterior is None:
            return {}
        indices = problem.indices
        found = calibrate(estimate.posterior, truth, self.draws, seed=self.seed, indices=indices)
        ranks = {f"rank_{k}": found.ranks[n].double() / self.draws for k, n in VALUES.items()}
        inside = {f"inside_{level:.1f}": found.coverage[:, LEVELS.index(level)] for level in _SHOWN}
        return {**ranks, **inside}

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """The p of all images of a row, of at least 10."""
        known = self._calibration(results)
        if known is None or len(known.coverage) < 10:
            return super().derived(results)
        return [{"p_value": known.p_value} for _ in results]

    def figures(self, results: Sequence[Result]) -> Mapping[str, tuple["Figure", str]]:
        """Histograms of ranks, a row for each row of the table."""
        rows: dict[str, list[Result]] = {}
        for result in results:
            rows.setdefault(labels_text(result.cell.labels), []).append(result)
        found = {name: self._calibration(row) for name, row in rows.items()}
        found = {name: one for name, one in found.items() if one is not None}
        if not found:
            return {}
        caption = (
            "Ranks of the truths among draws of their posteriors. The grey band holds 95 % of the "
            "bins if the posteriors are right; high at both ends, or for the whole image at the "
            "right end, they are too narrow."
        )
        return {"ranks": (rank_figure(found), caption)}

    def _calibration(self, results: Sequence[Result]) -> Calibration | None:
        known = [result.metrics for result in results if "rank_whole" in result.metrics]
        rows = [row for row in known if math.isfinite(row["rank_whole"])]
        if not rows:
            return None
        ranks = {
            name: torch.tensor([round(row[f"rank_{key}"] * self.draws) for row in rows])
            for key, name in VALUES.items()
        }
        coverage = torch.tensor([[row[f"inside_{level:.1f}"] for level in _SHOWN] for row in rows])
        return Calibration(self.draws, ranks, coverage)
