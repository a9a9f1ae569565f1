"""iFlow: gradient steps on images that a projection keeps in the range of the prior."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_no_effect, check_number, check_positive
from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.descent import AdamRun, Values
from flowprior.inversion.images import ImageRun
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.proximal import linear_start
from flowprior.inversion.solving import Solver
from flowprior.physics.noise import Noise
from flowprior.priors import Prior, require

GROWTH, SHRINKAGE = 1.5, 0.5
"""Of a step size, after a step that lowered the loss, and after one that did not."""
STILL = 1e-7
"""Rms of a step, in pixels of [0, 1], that single precision hardly sees: the image has ended."""


@dataclass(frozen=True)
class IFlow(Solver):
    r"""Minimise misfit(A(x), y) + β·R(x) over images x in the range of the prior, by projections.

    .. math:: R(x) = -\log N(z; 0, I) + \sum_k \tfrac12 \log\det J_k^T J_k

    sums over the layers of the generator, at the projection (`project_with_log_prob` of a prior).
    The paper takes R for an upper bound of −log p_X, which it is not in general: see `Trumpet`.
    In the shipped weights of digits it is off by a thousand nats and twice as steep as −log p_X.
    β = 0 is the paper's iFlow, which needs `project` alone; β > 0 is its iFlow-L, and β = 1 would
    be Bayes' rule if R were exact.

    - `through`: Adam on images x whose projections P(x) are fitted; gradients go through P. This
      is what the released code does, with 1000 iterations, a rate of 0.01, and Σr² + 0.01·R on
      images in [−1, 1], which is β = 0.005 with the misfit Gaussian(0.5).
    - otherwise: a gradient step from an image in the range, then P, as in algorithm 1. No
      derivative of P is needed for β = 0. A step that would not lower the loss is taken back and
      halved. Where P is not orthogonal to the range, it ends before the minimum.

    It starts from given images, or from A†y, regularised so that noise is not amplified
    (`linear_start`); from grey itself if A is not linear. Every image that it shows
    is a projection. With β = 0 all images of the range are as good: it is for data with little
    noise, and `MAP` for others.

    Reference: Kothari et al., "Trumpets: Injective flows for inference and inverse problems"
    (2021), algorithm 1 and eq. 6–7.

    Args:
        beta: β ≥ 0, per nat.
        through: gradients through the projection.
        misfit: noise model to fit the data by; that of the data by default.
        learning_rate: of Adam, on images in [−1, 1].
        tolerance: as for `MAP`, of Adam.

    Raises:
        ValueError: names the option; later, if the prior lacks a projection.
    """

    beta: float = 0.0
    through: bool = True
    misfit: Noise | None = None
    learning_rate: float = 0.01
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("beta", self.beta, least=0)
        check_positive("learning_rate", self.learning_rate)
        check_number("tolerance", self.tolerance, least=0, most=1)
        check_noise("misfit", self.misfit)
        if not self.through:
            check_no_effect(self, "through=False", "learning_rate", "tolerance")

    @property
    def needs(self) -> tuple[str, ...]:
        """`project`, with its log density for β > 0."""
        return ("project_with_log_prob",) if self.beta else ("project",)

    def check(self, prior: Prior | None, who: str = "") -> None:
        """See `Solver.check`."""
        remedy = "use beta=0" if hasattr(prior, "project") else ""
        require(prior, self.needs, f"{who}IFlow: beta={self.beta}", remedy)
        if prior.conditional:
            raise ValueError(f"{who}IFlow takes no conditional prior")

    def begin(self, problem: Problem) -> "AdamRun | ProjectedRun":
        """Start from the given images, or from the linear estimate."""
        if problem.latents is not None:
            raise ValueError("IFlow starts from images: give them as start, in place of latents")
        problem = replace(problem, noise=problem.misfit(self.misfit, "IFlow"))
        x = linear_start(problem) if problem.start is None else problem.start.to(problem.like)
        terms = RangeTerms(self.beta, problem)
        if not self.through:
            return ProjectedRun(terms, problem, x)
        v = nn.Parameter((2 * x - 1).flatten(1))
        return AdamRun(terms, v, self.learning_rate, self.tolerance)


class RangeTerms:
    """The objective of `IFlow` for a batch."""

    replayable = True

    def __init__(self, beta: float, problem: Problem) -> None:
        self.beta, self.problem, self.prior = beta, problem, problem.prior

    def latents(self, v: Tensor) -> None:
        """None: the unknowns are images."""

    def __call__(self, v: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """Projections of images v (k, n) in [−1, 1], in [0, 1], and their values."""
        x, log_prior = self.projected((v.unflatten(1, self.problem.image_shape) + 1) / 2)
        return x, self.values(x, log_prior, rows)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Projections of images x (k, C, H, W), and −R of them if it counts, (k,)."""
        prior, log_prior = self.prior, None
        x = prior.from_unit_range(x)
        if self.beta:
            found, log_prior = prior.project_with_log_prob(x)
        else:
            found = prior.project(x)
        if found.shape != x.shape:
            raise ValueError(
                f"prior: {type(prior).__name__}.{self._method} gives images {tuple(found.shape)} "
                f"of images {tuple(x.shape)}"
            )
        return prior.to_unit_range(found), log_prior

    def values(self, x: Tensor, log_prior: Tensor | None, rows: Tensor) -> Values:
        """Loss, misfit and log_prior of images x (k, C, H, W) in the range."""
        problem = self.problem
        misfit = problem.noise.misfit(problem.forward(x, rows), problem.y[rows])
        if log_prior is None:
            return {"loss": misfit, "misfit": misfit}
        log_prior = log_prior.double()
        return {"loss": misfit - self.beta * log_prior, "misfit": misfit, "log_prior": log_prior}

    @property
    def _method(self) -> str:
        return "project_with_log_prob" if self.beta else "project"


class ProjectedRun(ImageRun):
    """The batch of an `IFlow` by projected gradients.

    Attributes:
        step_size: of each image, (B,).
    """

    def __init__(self, terms: RangeTerms, problem: Problem, x: Tensor) -> None:
        self.terms = terms
        self.size = rows_per_call(self._evaluated, x[:1], problem.rows[:1])
        x, values, gradient = self._evaluate(x, problem.rows)
        super().__init__(problem, x)
        self.values, self.gradient = values, gradient
        self.finite = self.finite & values["loss"].isfinite()
        steepness = gradient.flatten(1).square().sum(1, dtype=torch.float64)
        # Polyak's step to a loss of 0, which is as long as a first step should ever be.
        length = values["loss"].abs() / steepness
        self.step_size = torch.where(steepness > 0, length, 0)

    @property
    def active(self) -> Tensor:
        """Finite rows that can still be seen to move."""
        rms = self.gradient.flatten(1).square().mean(1, dtype=torch.float64).sqrt()
        return self.finite & (self.step_size * rms > STILL)

    def step(self) -> None:
        """Try a step of every active row, and keep it where it lowers the loss."""
        rows = self.active.nonzero()[:, 0]
        pace = self.step_size[rows]
        moved = self.x[rows] - pace.to(self.x).view(-1, 1, 1, 1) * self.gradient[rows]
        x, values, gradient = self._evaluate(moved, rows)
        better = gradient.isfinite().flatten(1).all(1) & (
            values["loss"] < self.values["loss"][rows]
        )
        pace = torch.where(better, GROWTH, SHRINKAGE) * pace
        self.step_size = self.step_size.index_copy(0, rows, pace)
        rows = rows[better]
        self.x = self.x.index_copy(0, rows, x[better])
        self.gradient = self.gradient.index_copy(0, rows, gradient[better])
        self.values = {
            name: self.values[name].index_copy(0, rows, value[better])
            for name, value in values.items()
        }

    def _evaluate(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Values, Tensor]:
        return by_rows(self._evaluated, x, rows, size=self.size)

    def _evaluated(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Values, Tensor]:
        """Projections of images x (k, C, H, W), their values, and the gradient of their loss."""
        with torch.no_grad():
            x = self.terms.projected(x)[0]
        return x, *self._with_gradient(x, rows)

    def _with_gradient(self, x: Tensor, rows: Tensor) -> tuple[Values, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            log_prior = self.terms.projected(x)[1] if self.terms.beta else None
            values = self.terms.values(x, log_prior, rows)
            (gradient,) = torch.autograd.grad(values["loss"].sum(), x)
        return {name: value.detach() for name, value in values.items()}, gradient

    def state_dict(self) -> dict[str, Any]:
        """Images, values and step sizes."""
        return {**super().state_dict(), "step_size": self.step_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state; the gradients are computed again."""
        super().load_state_dict(state)
        self.step_size = state["step_size"]
        rows = self.problem.rows
        self.gradient = by_rows(self._with_gradient, self.x, rows, size=self.size)[1]
