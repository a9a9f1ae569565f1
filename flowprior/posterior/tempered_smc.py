"""Sequential Monte Carlo: draws of the prior become draws of the posterior."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer, check_number
from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.descent import Values, chosen
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.solving import Solver
from flowprior.inversion.warned import Warned
from flowprior.physics.noise import Noise
from flowprior.posterior.adaptation import square_root
from flowprior.posterior.ensemble import RESAMPLE, START, STEP, Ensemble, KeptDraws, Point
from flowprior.posterior.hamiltonian import hamiltonian_move, velocities
from flowprior.posterior.likelihood import drawn, normal_draws

_FIRST, _GAIN = 0.3, 0.6
"""Step size of the first move, and how fast its logarithm follows the rate of acceptance.

It follows the last rate alone: the density changes with every power, so that there is no one step
size to converge to, as `StepSizes` does."""
_HALVINGS = 100
"""Of the interval of powers: the first power may be as small as the misfits are large."""
POSSIBLE = 0.25
"""Share of the draws of the prior with a finite misfit below which there are too few of them."""
MOVED = 0.3
"""Share of the way to independent draws below which moves at the last power are too short."""


@dataclass(frozen=True)
class TemperedSMC(Solver):
    r"""Lead draws of the prior to the posterior of each image, by rising powers of the likelihood.

    `particles` latents of each image begin as draws of N(0, I). Each iteration raises the power φ
    of the likelihood in

    .. math:: p_\varphi(z) \propto N(z; 0, I) \exp(-\varphi\,\mathrm{misfit}(A(G(z)), y))

    until the effective sample size of the particles' weights falls to a share of their number,
    resamples the particles by these weights, and moves them by Hamiltonian Monte Carlo, which
    leaves :math:`p_\varphi` as it is. An image is done when φ is 1. No mode is searched for: where
    the posterior has several, each gets as many particles as its share, if draws of the prior come
    near it. Each image has powers, step sizes and scales of the latents of its own, which follow
    its particles.

    The estimated images are means of the particles. `posterior.log_evidence` is an estimate of
    log ∫ exp(−misfit) N(z; 0, I) dz, by which priors can be compared on the same data. Warnings
    name images whose φ is below 1, as it takes more iterations, and those whose particles hardly
    moved at the last power, so that many are near copies of each other.

    References: Del Moral, Doucet & Jasra, Sequential Monte Carlo samplers (2006), section 3.3.2
    with MCMC kernels; Jasra et al., Inference for Lévy-driven stochastic volatility models via
    adaptive sequential Monte Carlo (2011), for the powers; Kitagawa, Monte Carlo filter and
    smoother for non-Gaussian nonlinear state space models (1996), for systematic resampling.

    Args:
        particles: of each image, at least 8.
        moves: trajectories of each particle at every power.
        leapfrog: steps of a trajectory; one that is twice as long takes particles further than two.
        effective_share: effective sample size at which to resample, as a share of the particles;
            from 0.1 to 0.99.
        acceptance: rate of acceptance to reach, from 0.1 to 0.99.
        misfit: noise model to fit the data by; that of the data by default.

    Raises:
        ValueError: names the option.
    """

    particles: int = 64
    moves: int = 1
    leapfrog: int = 48
    effective_share: float = 0.7
    acceptance: float = 0.7
    misfit: Noise | None = None

    needs: ClassVar[tuple[str, ...]] = ("generate",)
    posterior_after: ClassVar[int | None] = 1
    uses_start: ClassVar[bool] = False
    takes_latents: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("particles", self.particles, least=8)
        for name in ("moves", "leapfrog"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("effective_share", "acceptance"):
            check_number(name, getattr(self, name), least=0.1, most=0.99)
        check_noise("misfit", self.misfit)

    def start(self, problem: Problem) -> Tensor:
        """Draws of N(0, I), (B·particles, n); those of one image are adjacent."""
        return normal_draws(problem, (0, START), self.particles).flatten(0, 1)

    def begin(self, problem: Problem) -> "TemperedSMCRun":
        """Start from draws of the prior, which a module's latents become."""
        v = self.start(problem)
        if problem.latents is not None:
            v = problem.latents.detach().copy_(v)
        return TemperedSMCRun(self, problem, v)


class TemperedSMCRun(Ensemble):
    """The batch of a `TemperedSMC`."""

    STATE = ("power", "log_evidence", "step_size", "accepted", "moved", "possible")

    def __init__(self, solver: TemperedSMC, problem: Problem, v: Tensor) -> None:
        super().__init__(problem, solver.misfit, type(solver).__name__, v, solver.particles)
        self.solver = solver
        # A draw of the prior may be impossible, if others are not.
        possible = self.point.misfit.isfinite()
        self.finite, self.possible = possible.any(1), possible.sum(1)
        shape = (*possible.shape, *[1] * (self.point.x.ndim - 2))
        images = torch.where(possible.view(shape), self.point.x, torch.nan)
        self.x = images.nanmean(1)
        self.power = torch.zeros_like(self.point.misfit[:, 0])
        self.log_evidence = torch.zeros_like(self.power)
        self.step_size = torch.full_like(self.power, _FIRST)
        self.accepted, self.moved = torch.ones_like(self.power), torch.ones_like(self.power)

    @property
    def active(self) -> Tensor:
        """Finite rows whose power is below 1."""
        return self.finite & (self.power < 1)

    @property
    def values(self) -> Values:
        """Means over the possible particles, the power, the evidence, and how particles move."""
        misfit = self.point.misfit
        return {
            "misfit": torch.where(misfit.isfinite(), misfit, torch.nan).nanmean(1),
            "log_prior": self.point.log_prior.mean(1),
            "power": self.power,
            "log_evidence": self.log_evidence,
            "acceptance": self.accepted,
            "moved": self.moved,
        }

    def step(self) -> None:
        """Raise the powers, and resample and move the particles of all active rows."""
        self.iteration += 1
        active = self.active
        if not active.any():
            return
        self._resample(active)
        begun = self.point.z
        scale = square_root(begun[None], dense=False)
        for move in range(self.solver.moves):
            self._move(active.nonzero()[:, 0], scale, move)
        moved = by_rows(_share_moved, begun, self.point.z)
        self.moved = torch.where(active, moved, self.moved)
        self.x = chosen(active, self.point.x.mean(1), self.x)
        self.v.copy_(self.point.z.flatten(0, 1))

    def _resample(self, active: Tensor) -> None:
        """Raise the powers of active rows, and resample their particles."""
        count = self.solver.particles

        def draw(generator: torch.Generator) -> Tensor:
            uniform = torch.rand(1, generator=generator, dtype=torch.float64)
            return torch.cat([uniform, torch.randperm(count, generator=generator)])

        uniform, order = drawn(self.problem, (self.iteration, RESAMPLE), draw).split([1, count], 1)
        now = self.power, self.point.misfit, uniform[:, 0]
        power, gain, places = by_rows(partial(_resampled, self.solver.effective_share), *now)
        places = places.gather(1, order.long())  # so that each place has a draw like any other
        self.power = torch.where(active, power, self.power)
        self.log_evidence = torch.where(active, self.log_evidence + gain, self.log_evidence)
        rows = torch.arange(len(power), device=power.device)[:, None]
        self.point = Point(*(chosen(active, part[rows, places], part) for part in self.point))

    def _move(self, rows: Tensor, scale: Tensor, move: int) -> None:
        """Make one trajectory of the particles of some rows, and learn the step sizes."""
        solver, problem = self.solver, self.problem
        stage = self.iteration, STEP, move
        normal, uniform = velocities(problem, stage, solver.particles)
        old = Point(*(part[rows] for part in self.point))
        given = [part[rows] for part in (self.step_size, scale, self.power, problem.rows)]
        random = normal[rows], uniform[rows]
        options = {"size": self.rows_per_call}
        new, probability = hamiltonian_move(
            self.at, solver.leapfrog, old, random, *given, **options
        )
        pairs = zip(self.point, new, strict=True)
        self.point = Point(*(part.index_copy(0, rows, new_part) for part, new_part in pairs))
        accepted = probability.mean(1)
        self.accepted = self.accepted.index_copy(0, rows, accepted)
        factor = (_GAIN * (accepted - solver.acceptance)).exp()
        self.step_size = self.step_size.index_copy(0, rows, self.step_size[rows] * factor)

    def posterior(self) -> "ParticlePosterior | None":
        """The particles, after the first iteration."""
        if not self.iteration:
            return None
        return ParticlePosterior(self.problem, self.point.z, self.log_evidence)

    def warnings(self) -> Iterator[str]:
        """Rows that are not done, and those whose particles hardly move."""
        short = self.active
        if short.any():
            power = self.power[short].min()
            reason = (
                f"after {self.iteration} iterations the likelihood has a power of {power:.3g}, not "
                "1: draws are not those of the posterior; it takes more iterations"
            )
            yield Warned(reason, "power_below_1", short, -power)
        few = self.finite & (self.possible < POSSIBLE * self.solver.particles)
        if few.any():
            count = self.possible[few].min()
            reason = (
                f"only {count} of {self.solver.particles} draws of the prior had a finite misfit, "
                "and all particles come from these: take more particles"
            )
            yield Warned(reason, "few_possible", few, -count)
        stuck = self.finite & ~short & (self.moved < MOVED)
        if stuck.any():
            share = self.moved[stuck].min()
            reason = (
                f"the particles moved {100 * share:.0f} % of the way to independent draws at the "
                f"last power, less than {100 * MOVED:.0f} %: many are near copies of each other, "
                "and deviations too small; take more moves or leapfrog steps"
            )
            yield Warned(reason, "hardly_moved", stuck, -share)


class ParticlePosterior(KeptDraws):
    """Particles as draws.

    Attributes:
        log_evidence: estimates of log ∫ exp(−misfit) N(z; 0, I) dz, nats, (B,) float64.
    """

    def __init__(self, problem: Problem, particles: Tensor, log_evidence: Tensor) -> None:
        super().__init__(problem, particles)
        self.log_evidence = log_evidence

    @property
    def particles(self) -> Tensor:
        """Latents (B, particles, n)."""
        return self.kept


def _resampled(
    share: float, power: Tensor, misfit: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The next power (k,), what it adds to the log evidence, and which particles (k, m) to take.

    The estimate of the evidence is multiplied by the mean weight of the particles.
    """
    misfit = torch.where(misfit.isnan(), torch.inf, misfit)
    count = misfit.shape[1]

    def log_weights(new: Tensor) -> Tensor:
        return -(new - power)[:, None] * misfit

    def effective(new: Tensor) -> Tensor:
        return 1 / log_weights(new).softmax(1).square().sum(1)

    # Impossible draws have no weight at any power above 0, however small.
    enough = share * misfit.isfinite().sum(1)
    low, high = power, torch.ones_like(power)
    last = effective(high) >= enough
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        few = effective(middle) < enough
        low, high = torch.where(few, low, middle), torch.where(few, middle, high)
    new = torch.where(last, 1.0, high)
    gain = log_weights(new).logsumexp(1) - math.log(count)
    edges = log_weights(new).softmax(1).cumsum(1)
    places = (torch.arange(count, device=edges.device) + uniform[:, None]) / count
    return new, gain, torch.searchsorted(edges, places.to(edges)).clamp(max=count - 1)


def _share_moved(before: Tensor, after: Tensor) -> Tensor:
    """Mean squared distance moved, by that between independent draws, (k,): 0 is none, 1 is all.

    0 if all particles are the same.
    """
    square = (after - before).double().square().mean((1, 2))
    return (square / (2 * after.double().var(1).mean(1))).nan_to_num(nan=0.0)
