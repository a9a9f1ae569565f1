"""Whether the posteriors of a table are right, by simulation-based calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules import ImageDataModule, PriorDraws
from evaluation.base import Label, Result, labels_text
from evaluation.experiment import Experiment, Method
from evaluation.inversion import InversionEvaluation
from evaluation.measures import Measure
from evaluation.priors import PriorOfData
from evaluation.sources import path_or_prior
from evaluation.table import Metric, Table
from flowprior.checks import check_integer
from flowprior.inversion import Estimate, Posterior, Problem
from flowprior.posterior import Calibration, calibrate, rank_figure
from flowprior.posterior.calibration import LEVELS, WHOLE, check_draws
from flowprior.priors import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = {"mean": "mean", "projection_1": "projection 1", "projection_2": "projection 2"}
VALUES = {"whole": WHOLE, **_PARTS}
"""Names of ranks, by what metrics are called."""
_SHOWN = (0.5, 0.9)


class RankMeasure(Measure):
    """Ranks of truths among draws of their posteriors, and coverage of credible intervals.

    For data that are draws of the prior (`datamodules.PriorDraws`) and posteriors that are right,
    ranks are uniform, and p is below 0.05 now and then only. Rows without a posterior have no such
    columns.

    Args:
        draws: number of draws of each posterior, one less than a multiple of 20.
        seed: of the draws.
    """

    metrics = (
        Metric("p_value", "p of the test of ranks", interval=False),
        Metric("rank_whole", "Rank of the whole (0.5)"),
        *(Metric(f"inside_{level:.1f}", f"Pixels in {level:.0%} intervals") for level in _SHOWN),
        *(Metric(f"rank_{key}", f"Rank, {name} (0.5)") for key, name in _PARTS.items()),
    )

    def __init__(self, draws: int = 99, seed: int = 0) -> None:
        check_draws(draws)
        check_integer("seed", seed, least=0)
        self.draws, self.seed = draws, seed

    def __call__(
        self, estimate: Estimate, problem: Problem, truth: Tensor | None
    ) -> Mapping[str, Tensor]:
        """See `Measure`."""
        if truth is None or estimate.posterior is None:
            return {}
        columns = [*(f"rank_{k}" for k in VALUES), *(f"inside_{level:.1f}" for level in _SHOWN)]
        nan = torch.full((len(truth),), torch.nan, dtype=torch.float64)
        measured = {name: nan.clone() for name in columns}
        rows = estimate.finite.nonzero()[:, 0]
        if len(rows):
            posterior = _PosteriorOfRows(estimate.posterior, rows)
            indices = [problem.indices[row] for row in rows.tolist()]
            found = calibrate(posterior, truth[rows], self.draws, seed=self.seed, indices=indices)
            values = [found.ranks[name].double() / self.draws for name in VALUES.values()]
            values += [found.coverage[:, LEVELS.index(level)] for level in _SHOWN]
            for column, value in zip(measured.values(), values, strict=True):
                column[rows.cpu()] = value.cpu()
        return measured

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """The p of all images of a row, of at least 10."""
        known = self.calibration(results)
        if known is None or len(known.coverage) < 10:
            return super().derived(results)
        return [{"p_value": known.p_value} for _ in results]

    def calibration(self, results: Sequence[Result]) -> Calibration | None:
        """Ranks and coverage of the finite images of a row; None if there are none."""
        known = [result.metrics for result in results if "rank_whole" in result.metrics]
        rows = [row for row in known if math.isfinite(row["rank_whole"])]
        if not rows:
            return None
        ranks = {
            name: torch.tensor([round(row[f"rank_{key}"] * self.draws) for row in rows])
            for key, name in VALUES.items()
        }
        coverage = torch.tensor([[row[f"inside_{level:.1f}"] for level in _SHOWN] for row in rows])
        return Calibration(self.draws, ranks, coverage, _SHOWN)

    def notes(self, has_truth: bool) -> Sequence[str]:
        """What p is."""
        return [
            "p: of a χ² test that ranks are uniform, times the number of ranks tested; below 0.05 "
            "the posteriors are probably wrong, or the prior is, if it did not draw the truths."
        ]


@dataclass(frozen=True)
class _PosteriorOfRows:
    """The posterior of some images of a batch, such as those that have not failed."""

    posterior: Posterior
    rows: Tensor

    def sample(self, count: int, *, seed: int) -> Tensor:
        """Draws of these images."""
        return self.posterior.sample(count, seed=seed)[:, self.rows]


class CalibrationEvaluation(InversionEvaluation):
    """Whether posteriors are right: ranks of truths among draws of their posteriors.

    Truths are draws of the prior, or images of a data set. With these the ranks also show what the
    prior has not learned of the images. Nothing else of an image is compared with its truth, which
    may be outside [0, 1], as draws of a flow are.

    Args:
        prior: folder of exported weights, a prior, or what makes one of the training images of
            `data`, such as `evaluation.priors.FittedGaussian`: of the posteriors.
        methods: solvers with a posterior, by name.
        experiments: operators and noise.
        data: truths, from the first image of the test split; None draws them from the prior, which
            must not be conditional.
        images: number of truths, at least 10.
        draws: of each posterior, one less than a multiple of 20.
        iterations: maximum number, of methods that have none of their own.
        batch_size: number of images that a process inverts at once. It changes nothing else.
        seed: of draws of the prior, noise and starts.
        title: of the report.
        device: "auto" takes a GPU if there is one.
        only: labels of the rows to measure, as for `InversionEvaluation`.
    """

    tunable = compares = False

    def __init__(
        self,
        prior: Path | Prior | PriorOfData,
        methods: dict[str, Method],
        experiments: list[Experiment],
        data: ImageDataModule | None = None,
        images: int = 100,
        draws: int = 99,
        iterations: int = 1000,
        batch_size: int = 10,
        seed: int = 0,
        title: str = "Calibration of posteriors",
        device: str = "auto",
        only: dict[str, Label | list[Label]] | None = None,
    ) -> None:
        check_integer("images", images, least=10)
        if not isinstance(prior, PriorOfData):
            prior = path_or_prior(prior, "prior")
        elif data is None:
            raise ValueError(
                "prior: one that is made of training images needs data, also as truths"
            )
        self.ranks = RankMeasure(draws, seed)
        super().__init__(
            {"prior": prior},
            methods,
            experiments,
            PriorDraws(prior, images, seed) if data is None else data,
            images=images,
            seeds=(seed,),
            iterations=iterations,
            batch_size=batch_size,
            compare=(),
            measures=[self.ranks],
            title=title,
            device=device,
            only=only,
        )

    def check(self) -> None:
        """Every method must have a posterior when its iterations are over."""
        for name, method in self.methods.items():
            least, solver = method.solver.posterior_after, type(method.solver).__name__
            iterations = self.iterations if method.iterations is None else method.iterations
            if least is None:
                raise ValueError(
                    f"methods.{name}: {solver} has no posterior to draw from (its `posterior_after`"
                    " is None): take one of flowprior.posterior, such as Variational()"
                )
            if iterations < least:
                raise ValueError(
                    f"methods.{name}: {solver} has no posterior before iteration {least}, but "
                    f"takes only {iterations}: raise iterations"
                )
        if self.source.count < self.images:
            raise ValueError(
                f"data has {self.source.count} test images, fewer than images={self.images}"
            )
        super().check()

    def figures(
        self, table: Table, results: Sequence[Result]
    ) -> Mapping[str, tuple["Figure", str]]:
        """Histograms of ranks, a row for each row of the table."""
        rows: dict[str, list[Result]] = {}
        for result in results:
            rows.setdefault(labels_text(result.cell.labels), []).append(result)
        found = {name: self.ranks.calibration(row) for name, row in rows.items()}
        found = {name: one for name, one in found.items() if one is not None}
        caption = (
            "Ranks of the truths among draws of their posteriors. The grey band holds 95 % of the "
            "bins if the posteriors are right; high at both ends, or for the whole image at the "
            "right end, they are too narrow."
        )
        return {"ranks": (rank_figure(found), caption)} if found else {}
