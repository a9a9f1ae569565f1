"""The posterior that a conditional flow has learned from pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Solver
from flowprior.posterior.base import LatentPosterior
from flowprior.posterior.likelihood import normal_draws
from flowprior.posterior.summaries import chunks
from flowprior.priors import Prior

_SAMPLE = 3
"""What random numbers are for."""
_DRAWS_AT_ONCE = 32


@dataclass(frozen=True)
class Amortised(Solver):
    """Draw from p(x | y) as a conditional flow has learned it: x = T(z; y), z ~ N(0, I).

    Training on pairs has paid for it beforehand: there are no iterations, the noise is not used,
    and the operator only to make the condition. It is right for pairs such as those of the
    training, with the same operator and the same noise; otherwise see `Preconditioned`.

    Reference: Siahkoohi et al., Preconditioned training of normalizing flows for variational
    inference in inverse problems (2021), section 2.

    Args:
        mean_draws: the estimated images are the mean of this many draws.

    Raises:
        ValueError: names the option.
    """

    mean_draws: int = 128

    needs = ("generate",)
    differentiates = False
    posterior_after = 0
    uses_start = False
    takes_latents = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("mean_draws", self.mean_draws, least=1)

    def check(self, prior: Prior | None, who: str = "") -> None:
        """See `Solver.check`; the prior must be conditional."""
        super().check(prior, who)
        if not prior.conditional:
            raise ValueError(
                f"{who}Amortised needs a conditional prior, such as ConditionalHint, got "
                f"{type(prior).__name__}: for others use Variational or Langevin"
            )

    def start(self, problem: Problem) -> Tensor:
        """Latents (B, n) in the middle."""
        return problem.like.new_zeros(len(problem.y), problem.prior.latent.size)

    def begin(self, problem: Problem) -> "AmortisedRun":
        """Draw for the mean."""
        return AmortisedRun(self, problem)


class AmortisedRun:
    """The batch of an `Amortised`, done from the start. No latent is its result."""

    averages = True
    unfitted = (
        "the flow was trained on data of another kind, or has not learned enough; or the data "
        "leave much open, and the mean lies between its draws"
    )

    def __init__(self, solver: Amortised, problem: Problem) -> None:
        self.problem = problem
        parts = chunks(self.posterior(), solver.mean_draws, problem.seed, _DRAWS_AT_ONCE)
        total = sum(draws.double().sum(0) for draws in parts)
        self.x = (total / solver.mean_draws).to(problem.like)
        self.z = None
        self.finite = self.x.isfinite().flatten(1).all(1)
        self.active = torch.zeros_like(self.finite)
        self.values: dict[str, Tensor] = {}

    def step(self) -> None:
        """Do nothing."""

    def posterior(self) -> "ConditionalDraws":
        """What to draw from."""
        return ConditionalDraws(self.problem)

    def warnings(self) -> Iterator[str]:
        """None of its own."""
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """Images and which rows are finite."""
        return {"x": self.x, "finite": self.finite}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        self.x, self.finite = state["x"], state["finite"]


class ConditionalDraws(LatentPosterior):
    """z ~ N(0, I): all is in the conditional prior."""

    def draw(self, count: int, problem: Problem) -> Tensor:
        """See `LatentPosterior.draw`."""
        return normal_draws(problem, (0, _SAMPLE), count)
