"""Variational inference: a distribution of latents is fitted to the posterior of each image."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import (
    check_integer,
    check_no_effect,
    check_number,
    check_positive,
)
from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.descent import AdamRun, Values
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.solving import Solver
from flowprior.inversion.warned import Warned
from flowprior.physics.noise import Noise
from flowprior.posterior.base import LatentPosterior
from flowprior.posterior.families import Coupling, Family
from flowprior.posterior.laplace import (
    FEW,
    LARGEST,
    NORMAL_STEPS,
    SEARCHES,
    Coordinates,
    whitened,
)
from flowprior.posterior.likelihood import Likelihood, descended, log_normal, normal_draws, starts

STILL = 0.01
"""Nats for each latent that the objective may still fall by.

As far apart are normal distributions whose means differ by a seventh of a deviation in each latent,
or whose widths do by a tenth."""
_LEAST = 0.5
"""Nats that it may fall by in any case: those of a deviation in a single latent."""
_FEWEST = 10
"""Iterations without which nothing is known."""
_POWER = 8
_STEADY = 100
"""Iterations before the learning rate begins to fall."""
_MEANS = ("x", "parameters")
_STEP, _SAMPLE = 1, 2
"""What random numbers are for."""


@dataclass(frozen=True)
class Variational(Solver):
    r"""Fit a distribution of latents to the posterior of each image, to draw from.

    For z = u(t), t ~ N(0, I), it minimises by Adam, over the parameters of u,

    .. math:: E_t[\mathrm{misfit}(A(G(u(t))), y) - \log N(u(t); 0, I)
        - \beta \log|\det \partial u/\partial t|].

    The last term is the entropy of the distribution: with β = 1 this is the Kullback-Leibler
    divergence from the posterior, up to a constant, and with β = 0 the distribution shrinks to a
    point. Each image has parameters of its own, and random numbers of (seed, index, iteration).
    The posterior has the mean of the parameters over about the last ninth of the iterations. A
    distribution of the family that is no good copy of the posterior is often too narrow.

    References: Rezende & Mohamed, Variational inference with normalizing flows (2015); Kothari et
    al., Trumpets (2021), section 3.3, whose code has the sign of the last term reversed; Shamir &
    Zhang, Stochastic gradient descent for non-smooth optimization (2013), for the means.

    Args:
        family: distributions to choose from: `Coupling()`, `LowRank()` or `FullGaussian()`.
        beta: β ≥ 0.
        learning_rate: of Adam; iteration k has it divided by √(1 + k/100).
        draws: of t in each iteration, half of them the others with the sign changed; even.
        mean_draws: the estimated images are as accurate a mean of images as one of this many draws.
        whiten: fit z = c + S w by a distribution of w that starts as N(0, I), where N(c, S Sᵀ) is
            nearly the normal distribution of the least divergence: see `whitened`. It takes far
            fewer iterations where the data determine some latents much better than others. By
            default it does for latents of at most 512 numbers, where it takes little time; more
            than 1024 are refused.
        start_scale: standard deviation of z at the start, if not whitened.
        descent_iterations: at most, for the most probable latent, about which it starts: of
            Levenberg and Marquardt's method with 2·n images each (or the number of
            data, if that is below n/2) if whitened, otherwise of L-BFGS.
        searches: for the most probable latent, at most, if whitened: all but the first from draws
            of N(0, I), and only where the one before explains the data badly.
        normal_steps: towards the normal distribution N(c, S Sᵀ), with as many each.
        misfit: noise model to fit the data by; that of the data by default.

    Raises:
        ValueError: names the option.
    """

    family: Family = field(default_factory=Coupling)
    beta: float = 1.0
    learning_rate: float = 0.02
    draws: int = 16
    mean_draws: int = 128
    whiten: bool | None = None
    start_scale: float = 0.5
    descent_iterations: int = 30
    searches: int = SEARCHES
    normal_steps: int = NORMAL_STEPS
    misfit: Noise | None = None

    needs = ("generate",)
    posterior_after = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.family, Family):
            raise ValueError(f"family must be one such as Coupling(), got {self.family!r}")
        check_number("beta", self.beta, least=0)
        for name in ("learning_rate", "start_scale"):
            check_positive(name, getattr(self, name))
        check_integer("draws", self.draws, least=2)
        if self.draws % 2:
            raise ValueError(f"draws must be even, got {self.draws}")
        check_integer("mean_draws", self.mean_draws, least=self.draws)
        check_integer("searches", self.searches, least=1)
        for name in ("descent_iterations", "normal_steps"):
            check_integer(name, getattr(self, name), least=0)
        check_noise("misfit", self.misfit)
        if self.whiten:
            check_no_effect(self, "whiten=True", "start_scale")
        if self.whiten is False:
            check_no_effect(self, "whiten=False", "searches", "normal_steps")

    def start(self, problem: Problem, count: int = 1) -> Tensor:
        """Latents (B·count, n) to begin from; those of one image are adjacent."""
        return starts(problem, self.misfit, count)

    def begin(self, problem: Problem) -> "VariationalRun":
        """Find the most probable latents, and begin about them."""
        size = problem.prior.latent.size
        self.family.check(size)
        if self.whiten and size > LARGEST:
            raise ValueError(f"whiten=True takes latents of at most {LARGEST} numbers, got {size}")
        self.family.try_out(self.family.begin(problem.like.new_zeros(1, size), 1.0), size)
        noise = problem.misfit(self.misfit, type(self).__name__)
        if self.whiten or (self.whiten is None and size <= FEW):
            coordinates = self._whitened(problem, noise)
            parameters = self.family.begin(torch.zeros_like(coordinates.centre), 1.0)
            return VariationalRun(self, problem, parameters, coordinates)
        if problem.latents is None:
            problem = replace(problem, latents=self.start(problem))
        centre = descended(problem, self.misfit, 1, self.descent_iterations).detach()
        return VariationalRun(self, problem, self.family.begin(centre, self.start_scale))

    def _whitened(self, problem: Problem, noise: Noise) -> Coordinates:
        begun = self.start(problem) if problem.latents is None else problem.latents
        begun = begun.detach()[:, None]
        if problem.start is None and self.searches > 1:
            others = self.start(replace(problem, latents=None), self.searches)
            begun = torch.cat([begun, others.unflatten(0, (-1, self.searches))[:, 1:]], 1)
        return whitened(problem, noise, begun, self.descent_iterations, self.normal_steps)

    def terms(self, problem: Problem, coordinates: Coordinates | None) -> "VariationalTerms":
        """The objective of a batch."""
        return VariationalTerms(self, problem, coordinates)


class VariationalTerms:
    """The objective for given t, as a function of the parameters."""

    def __init__(
        self, solver: Variational, problem: Problem, coordinates: Coordinates | None
    ) -> None:
        self.solver, self.problem, self.coordinates = solver, problem, coordinates
        self.likelihood = Likelihood(problem, solver.misfit, type(solver).__name__)
        self.redraw(0)

    def redraw(self, iteration: int) -> None:
        """Take the t of an iteration."""
        half = self.solver.draws // 2
        t = normal_draws(self.problem, (iteration, _STEP), half)
        self.t = torch.cat([t, -t], 1)

    def latents(self, parameters: Tensor) -> None:
        """None: the run knows which rows they are of."""

    def __call__(self, parameters: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """Mean images and terms of parameters (k, P) of the images `rows`."""
        w = z = self.solver.family(parameters, self.t[rows])
        if self.coordinates is not None:
            z = self.coordinates.latents(w, rows)
        # The density depends on the parameters through z alone: what is left out has mean 0.
        entropy = -self.solver.family.log_prob(parameters.detach(), w)
        if self.coordinates is not None:
            entropy = entropy + self.coordinates.log_det(rows)
        x, terms = self.of_latents(z, entropy, rows)
        values = {name: term.mean(1) for name, term in terms.items()}
        loss = values["misfit"] - values["log_prior"] - self.solver.beta * values["entropy"]
        return x.mean(1), {"loss": loss, **values}

    def of_latents(self, z: Tensor, entropy: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """Images of latents z (k, m, n), and the terms (k, m), given −log of their density."""
        x, misfit = self.likelihood(z, rows)
        return x, {"misfit": misfit, "log_prior": log_normal(z), "entropy": entropy}


class VariationalRun:
    """The batch of a `Variational`.

    Its values are the objective, up to the constants of normal densities, and the terms of it:
    means over the draws of one iteration. Its latents are u(0).
    """

    averages = True

    def __init__(
        self,
        solver: Variational,
        problem: Problem,
        parameters: Tensor,
        coordinates: Coordinates | None = None,
    ) -> None:
        self.solver, self.problem, self.iteration = solver, problem, 0
        self.coordinates = coordinates
        self.terms = solver.terms(problem, coordinates)
        self.adam = AdamRun(self.terms, nn.Parameter(parameters), solver.learning_rate)
        self.optimizer = self.adam.optimizer
        self.x, self.parameters = self.adam.x, self.adam.v.detach().clone()
        self.objectives = [self.adam.values["loss"]]

    @property
    def z(self) -> Tensor:
        """Latents u(0), (B, *latent.shape)."""
        latent, parameters = self.problem.prior.latent, self.adam.v.detach()
        zero = parameters.new_zeros(len(parameters), 1, latent.size)
        made = made_by(self.solver.family, self.coordinates, parameters, zero)
        return latent.shaped(made[:, 0])

    @property
    def values(self) -> Values:
        """The objective and its terms."""
        values = dict(self.adam.values)
        return {"objective": values.pop("loss"), **values}

    @property
    def active(self) -> Tensor:
        """All finite rows."""
        return self.adam.active

    @property
    def finite(self) -> Tensor:
        """Rows whose objective has stayed finite."""
        return self.adam.finite

    def step(self) -> None:
        """Make one step of Adam with new draws."""
        self.iteration += 1
        self.terms.redraw(self.iteration)
        decay = (1 + self.iteration / _STEADY) ** -0.5
        self.optimizer.param_groups[0]["lr"] = self.solver.learning_rate * decay
        self.adam.step()
        self.objectives.append(self.adam.values["loss"])
        draws = self.solver.draws
        share = max(2 * draws / (draws + self.solver.mean_draws), 1 / (self.iteration + 1))
        self.x = self.x + share * (self.adam.x - self.x)
        # The mean over all iterations k with weights of about k^8.
        share = (_POWER + 1) / (self.iteration + _POWER)
        self.parameters = self.parameters + share * (self.adam.v.detach() - self.parameters)

    def posterior(self) -> "FittedPosterior":
        """What was fitted."""
        fitted = self.solver.family, self.parameters, self.coordinates
        return FittedPosterior(self.problem, *fitted)

    def warnings(self) -> Iterator[str]:
        """Rows whose objective rose, or is not known to have stopped falling."""
        if self.iteration < _FEWEST:
            reason = f"fewer than {_FEWEST} iterations do not tell whether the objective still fell"
            yield Warned(reason, "falling", self.finite)
            return
        latter = torch.stack(self.objectives[-(self.iteration // 2) :])
        least = max(_LEAST, STILL * self.problem.prior.latent.size)
        # All of them: the start is a single value, with the noise of one.
        risen = latter.amin(0) - self.objectives[0]
        rose = self.finite & (risen > least)
        if rose.any():
            reason = (
                f"the objective is up to {risen[rose].max():.3g} nats above its start: steps are "
                "too large, it takes a smaller learning_rate or more draws"
            )
            yield Warned(reason, "rose", rose, risen[rose].max())
        fallen, error = fall_of_noisy(latter)
        # A short run must not pass because its noise hides the fall.
        most = fallen + 2 * error
        still = self.finite & ~rose & (most > least)
        if still.any():
            worst = most.where(still, -torch.inf).argmax()
            reason = (
                f"the objective still fell by up to {most[worst]:.3g} nats ({fallen[worst]:.3g} ± "
                f"{error[worst]:.2g}) in the last half of the iterations: the distributions may "
                "not yet be the best of their family, it takes more iterations, or more draws if "
                "the error is large"
            )
            yield Warned(reason, "falling", still, most[worst])

    def state_dict(self) -> dict[str, Any]:
        """The state of Adam, and the means so far."""
        means = {name: getattr(self, name) for name in _MEANS}
        kept = {"iteration": self.iteration, "objectives": torch.stack(self.objectives)}
        return {**self.adam.state_dict(), **kept, "means": means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        self.iteration = state["iteration"]
        self.terms.redraw(self.iteration)
        self.adam.load_state_dict(state)
        self.objectives = list(state["objectives"])
        for name, mean in state["means"].items():
            setattr(self, name, mean)


def fall_of_noisy(curves: Tensor) -> tuple[Tensor, Tensor]:
    """How far lines through curves fall from end to end, and the standard errors of that, (B,).

    Args:
        curves: (N, B), whose noise is independent from one of N > 2 points to the next.
    """
    rows, count = curves.detach().double().T.contiguous(), len(curves)
    times = torch.arange(count, dtype=rows.dtype, device=rows.device) - (count - 1) / 2
    spread = times.square().sum()
    slopes = (rows * times).sum(1) / spread
    rest = rows - rows.mean(1, keepdim=True) - slopes[:, None] * times
    error = (rest.square().sum(1) / (count - 2) / spread).sqrt()
    return -slopes * (count - 1), error * (count - 1)


@torch.no_grad()
def made_by(
    family: Family, coordinates: Coordinates | None, parameters: Tensor, t: Tensor
) -> Tensor:
    """Latents (B, m, n) of t (B, m, n) by parameters (B, P)."""
    w = by_rows(family, parameters, t)
    if coordinates is None:
        return w
    return by_rows(coordinates.latents, w, torch.arange(len(w), device=w.device))


class FittedPosterior(LatentPosterior):
    """Distributions of a family, of latents or of coordinates.

    Attributes:
        family: what they are of.
        parameters: (B, P).
        coordinates: what the latents are made of; None if they are of the family themselves.
    """

    def __init__(
        self,
        problem: Problem,
        family: Family,
        parameters: Tensor,
        coordinates: Coordinates | None = None,
    ) -> None:
        super().__init__(problem)
        self.family, self.parameters, self.coordinates = family, parameters, coordinates

    def draw(self, count: int, problem: Problem) -> Tensor:
        """See `LatentPosterior.draw`."""
        t = normal_draws(problem, (0, _SAMPLE), count)
        return made_by(self.family, self.coordinates, self.parameters, t)
