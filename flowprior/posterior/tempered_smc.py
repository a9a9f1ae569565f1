"""Sequential Monte Carlo: draws of the prior become draws of the posterior."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer, check_number
from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.descent import Values, chosen
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.solving import Solver
from flowprior.inversion.warned import Warned
from flowprior.physics.noise import Noise
from flowprior.posterior.ensemble import START, STEP, Ensemble, KeptDraws, Point
from flowprior.posterior.hamiltonian import trajectory
from flowprior.posterior.likelihood import drawn, normal_draws

_FIRST, _GAIN = 0.3, 0.6
"""Step size of the first move, and how fast its logarithm follows the rate of acceptance."""
_HALVINGS = 50
MOVED = 0.3
"""Share of the way to independent draws below which moves at the last power are too short."""


@dataclass(frozen=True)
class TemperedSMC(Solver):
    r"""Lead draws of the prior to the posterior of each image, by rising powers of the likelihood.

    `particles` latents of each image begin as draws of N(0, I). Each iteration raises the power φ
    of the likelihood in

    .. math:: p_\varphi(z) \propto N(z; 0, I) \exp(-\varphi\,\mathrm{misfit}(A(G(z)), y)),

    as far as the weights of the particles allow; draws particles anew, with replacement, by these
    weights; and moves them by Hamiltonian Monte Carlo, which leaves :math:`p_\varphi` as it is. An
    image is done when φ is 1. No mode is searched for: where the posterior has several, each gets
    as many particles as its share, if the first draws come near it. Each image has powers, step
    sizes and scales of the latents of its own, which follow its particles.

    The estimated images are means of the particles. `posterior.log_evidence` is an estimate of
    log ∫ exp(−misfit) N(z; 0, I) dz, by which priors can be compared on the same data. Warnings
    name images whose φ is below 1, as it takes more iterations, and those whose particles hardly
    moved at the last power, so that many are near copies of each other.

    References: Del Moral, Doucet & Jasra, Sequential Monte Carlo samplers (2006); Jasra et al.,
    Inference for Lévy-driven stochastic volatility models via adaptive sequential Monte Carlo
    (2011), for the powers; Kitagawa, Monte Carlo filter and smoother (1996), for systematic
    resampling.

    Args:
        particles: of each image, at least 8.
        moves: trajectories of each particle at every power; longer ones take particles further.
        leapfrog: steps of a trajectory.
        share: of the particles, that remain effective from one power to the next; between 0 and 1.
        acceptance: rate of acceptance to reach, between 0 and 1.
        misfit: noise model to fit the data by; that of the data by default.

    Raises:
        ValueError: names the option.
    """

    particles: int = 64
    moves: int = 1
    leapfrog: int = 48
    share: float = 0.7
    acceptance: float = 0.7
    misfit: Noise | None = None

    needs: ClassVar[tuple[str, ...]] = ("generate",)
    posterior_after: ClassVar[int | None] = 1
    uses_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("particles", self.particles, least=8)
        for name in ("moves", "leapfrog"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("share", "acceptance"):
            check_number(name, getattr(self, name), least=0.1, most=0.99)
        check_noise("misfit", self.misfit)

    def start(self, problem: Problem) -> Tensor:
        """Draws of N(0, I), (B·particles, n); those of one image are adjacent."""
        return normal_draws(problem, (0, START), self.particles).flatten(0, 1)

    def begin(self, problem: Problem) -> "TemperedSMCRun":
        """Start from draws of the prior."""
        v = problem.latents
        # A Parameter is that of a LightningModule, which has the solver's own start.
        if v is not None and not isinstance(v, nn.Parameter):
            raise ValueError("TemperedSMC starts from draws of the prior: leave out the latents")
        return TemperedSMCRun(self, problem, self.start(problem) if v is None else v.detach())


class TemperedSMCRun(Ensemble):
    """The batch of a `TemperedSMC`."""

    STATE = ("power", "log_evidence", "step_size", "accepted", "moved")

    def __init__(self, solver: TemperedSMC, problem: Problem, v: Tensor) -> None:
        name = type(solver).__name__
        super().__init__(problem, solver.misfit, name, v, solver.particles)
        self.solver = solver
        misfit = self.point.misfit
        # A draw of the prior may be impossible, if others are not.
        self.finite = misfit.isfinite().any(1)
        self.power = torch.zeros_like(misfit[:, 0])
        self.log_evidence = torch.zeros_like(self.power)
        self.step_size = torch.full_like(self.power, _FIRST)
        self.accepted, self.moved = torch.ones_like(self.power), torch.ones_like(self.power)

    @property
    def active(self) -> Tensor:
        """Finite rows whose power is below 1."""
        return self.finite & (self.power < 1)

    @property
    def values(self) -> Values:
        """Means over the particles, the power, the evidence, and how well the particles move."""
        return {
            "misfit": self.point.misfit.mean(1),
            "log_prior": self.point.log_prior.mean(1),
            "power": self.power,
            "log_evidence": self.log_evidence,
            "acceptance": self.accepted,
            "moved": self.moved,
        }

    def step(self) -> None:
        """Raise the powers, and draw and move the particles of all active rows."""
        self.iteration += 1
        active = self.active
        random = self._random()
        self._reweight(active, random[0, :, 0, -1])
        begun = self.point.z
        scale = by_rows(_scales, begun)
        for normal, uniform in zip(*random.split([begun.shape[2], 2], 3), strict=True):
            self._move(active, scale, normal.to(begun), uniform)
        moved = by_rows(_share_moved, begun, self.point.z)
        self.moved = torch.where(active, moved, self.moved)
        self.x = chosen(active, self.point.x.mean(1), self.x)
        self.v.copy_(self.point.z.flatten(0, 1))

    def _reweight(self, active: Tensor, uniform: Tensor) -> None:
        """Raise the powers of active rows, and draw their particles anew."""
        now = self.power, self.point.misfit, uniform
        power, gain, places = by_rows(partial(_resampled, self.solver.share), *now)
        self.power = torch.where(active, power, self.power)
        self.log_evidence = torch.where(active, self.log_evidence + gain, self.log_evidence)
        rows = torch.arange(len(power), device=power.device)[:, None]
        self.point = Point(*(chosen(active, part[rows, places], part) for part in self.point))

    def _move(self, active: Tensor, scale: Tensor, velocity: Tensor, uniform: Tensor) -> None:
        """Make one trajectory of the particles of active rows, and learn the step size."""
        rows = active.nonzero()[:, 0]
        # Trajectories of one length would come back to where they began in some directions.
        step = self.step_size[:, None] * (0.4 + 0.8 * uniform[..., 0])
        everything = self.point.z, self.point.gradient, velocity, step.to(velocity), scale
        given = [part[rows] for part in (*everything, self.power, self.problem.rows)]
        move = partial(trajectory, self.at, self.solver.leapfrog)
        new, change = by_rows(move, *given, size=self.rows_per_call)
        old = Point(*(part[rows] for part in self.point))
        log_ratio = self._energy(old, rows) - self._energy(new, rows) - change
        probability = log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
        sound = new.gradient.isfinite().all(2)
        taken = old.taken((uniform[rows, :, 1] < probability) & sound, new)
        pairs = zip(self.point, taken, strict=True)
        self.point = Point(*(part.index_copy(0, rows, part_taken) for part, part_taken in pairs))
        self.accepted = self.accepted.index_copy(0, rows, probability.mean(1))
        pace = (_GAIN * (self.accepted - self.solver.acceptance)).exp()
        self.step_size = torch.where(active, self.step_size * pace, self.step_size)

    def _energy(self, point: Point, rows: Tensor) -> Tensor:
        return self.power[rows, None] * point.misfit - point.log_prior

    def _random(self) -> Tensor:
        """Random numbers (moves, B, particles, n + 2): normal ones, and two uniform ones."""
        solver, size = self.solver, self.point.z.shape[2]
        shape = solver.moves, solver.particles

        def draw(generator: torch.Generator) -> Tensor:
            normal = torch.randn(*shape, size, generator=generator, dtype=torch.float64)
            uniform = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
            return torch.cat([normal, uniform], 2)

        return drawn(self.problem, (self.iteration, STEP), draw).transpose(0, 1)

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
        particles: latents (B, particles, n).
        log_evidence: estimates of log ∫ exp(−misfit) N(z; 0, I) dz, nats, (B,) float64.
    """

    def __init__(self, problem: Problem, particles: Tensor, log_evidence: Tensor) -> None:
        super().__init__(problem, particles)
        self.particles, self.log_evidence = particles, log_evidence


def _resampled(
    share: float, power: Tensor, misfit: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The next power (k,), what it adds to the log evidence, and which particles (k, m) to take."""
    misfit = misfit.nan_to_num(nan=torch.inf)
    count = misfit.shape[1]

    def weights(new: Tensor) -> Tensor:
        return -(new - power)[:, None] * misfit

    def effective(new: Tensor) -> Tensor:
        return 1 / weights(new).softmax(1).square().sum(1)

    # Impossible draws have no weight at any power above 0, and must not hold it there.
    enough = share * misfit.isfinite().sum(1)
    low, high = power, torch.ones_like(power)
    last = effective(high) >= enough
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        few = effective(middle) < enough
        low, high = torch.where(few, low, middle), torch.where(few, middle, high)
    new = torch.where(last, 1.0, high)
    log_weights = weights(new)
    gain = log_weights.logsumexp(1) - math.log(count)
    edges = log_weights.softmax(1).cumsum(1)
    places = (torch.arange(count, device=edges.device) + uniform[:, None]) / count
    return new, gain, torch.searchsorted(edges, places.to(edges)).clamp(max=count - 1)


def _scales(z: Tensor) -> Tensor:
    """Scale of each latent (k, n) of particles (k, m, n), drawn towards that of all."""
    variance = z.double().var(1)
    return ((variance + variance.mean(1, keepdim=True)) / 2).sqrt().to(z)


def _share_moved(before: Tensor, after: Tensor) -> Tensor:
    """Mean square of moves (k,), in those between independent draws: 0 is none, about 1 is all."""
    square = (after - before).double().square().mean((1, 2))
    return square / (2 * after.double().var(1).mean(1))
