"""Posteriors of two numbers against the exact ones: python docs/rosenbrock.py WEIGHTS PICTURE.

WEIGHTS are those of `python train.py --config rosenbrock`: a flow that has learned p(x | y) for
y = x + 0.4 n. The first table compares it with the exact posterior of such data. Then the data are
y = A x + 0.4 n, for which it was not trained: variational inference that starts from it, and such
that does not, are compared by the forward solves that they take to come near the exact posterior.
At the end their means and covariances are compared with the exact ones, and so are Markov chains.
Exact is quadrature on a grid. KL is the Kullback-Leibler divergence in nats.
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import flowprior
from datamodules import Rosenbrock
from flowprior.inversion import Run, invert
from flowprior.latent import Latent, standard_normal_log_prob
from flowprior.posterior import PSGLD, Coupling, Langevin, Preconditioned, Variational
from flowprior.priors import Prior

NOISE = 0.4
TRUTH = torch.tensor([2.0, 4.0], dtype=torch.float64)
ROWS = 8
"""Noise draws; each is one image of a batch."""
NEAR = (0.1, 0.05)
FAMILY = Coupling(depth=6, hidden=16)
SIDES = torch.linspace(-4, 5, 451).double(), torch.linspace(-6, 16, 551).double()
RATE = 0.02
"""Of Adam; 0.05 was slower with the flow, without it and with the generator."""
CHECKS = (0, 2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250)
SHOWN = (0, 10, 50, 150, 250)
DRAWS = 16
MOMENTS = 16000
"""Draws that means and covariances are taken of."""


class Density(Prior):
    """The Rosenbrock density: x₁ = z₁, x₂ = z₁² + √½ z₂."""

    def __init__(self) -> None:
        super().__init__((2, 1, 1), Latent({"z": (2, 1, 1)}))
        self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64).sqrt())

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x, and log √½."""
        first, second = z[:, :1], z[:, 1:]
        x = torch.cat([first, first.square() + self.scale * second], 1)
        return x, self.scale.log().expand(len(z))

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior`."""
        return self.decode(z)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Of x (B, 2, 1, 1), nats."""
        first, second = x[:, :1], x[:, 1:]
        z = torch.cat([first, (second - first.square()) / self.scale], 1)
        return standard_normal_log_prob(z) - self.scale.log()


class Nothing(Density):
    """x = z: what a flow is before it has learned anything."""

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `Density`."""
        return z, z.new_zeros(len(z))


@dataclass(frozen=True)
class Exact:
    """The posterior of data y (B, 2) = matrix · x + noise on a grid (N, 2).

    Attributes:
        log_density: of each grid point, (B, N), normalised.
        log_evidence: (B,).
    """

    matrix: Tensor
    y: Tensor
    grid: Tensor
    log_density: Tensor
    log_evidence: Tensor

    @classmethod
    def of(cls, matrix: Tensor, y: Tensor) -> "Exact":
        """By quadrature."""
        grid, cell = torch.cartesian_prod(*SIDES), math.prod((s[1] - s[0]).item() for s in SIDES)
        joint = _log_joint(matrix, y, grid.expand(len(y), -1, -1))
        log_evidence = torch.logsumexp(joint, 1) + math.log(cell)
        return cls(matrix, y, grid, joint - log_evidence[:, None], log_evidence)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means (B, 2) and covariances (B, 2, 2)."""
        weights = torch.softmax(self.log_density, 1)
        mean = weights @ self.grid
        centred = self.grid - mean[:, None]
        return mean, torch.einsum("bn,bni,bnj->bij", weights, centred, centred)

    def deviation(self) -> Tensor:
        """Standard deviations (B, 2)."""
        return self.moments()[1].diagonal(dim1=1, dim2=2).sqrt()

    def errors_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rms error of the mean of draws x (m, B, 2), in deviations; relative one of covariances.

        (B,) each; of matrices in the Frobenius norm.
        """
        mean, covariance = self.moments()
        off = ((x.mean(0) - mean) / self.deviation()).square().mean(1).sqrt()
        centred = (x - x.mean(0)).transpose(0, 1)
        error = (centred.mT @ centred / len(x) - covariance).flatten(1).norm(dim=1)
        return off, error / covariance.flatten(1).norm(dim=1)

    def draws(self) -> Tensor:
        """From the grid, (m, B, 2)."""
        generator = torch.Generator().manual_seed(0)
        weights = torch.softmax(self.log_density, 1)
        chosen = torch.multinomial(weights, MOMENTS, replacement=True, generator=generator)
        return self.grid[chosen].transpose(0, 1)

    def divergence_of(self, x: Tensor, log_density: Tensor) -> Tensor:
        """KL from draws x (B, m, 2) of this log density (B, m) to the posterior, (B,)."""
        exact = _log_joint(self.matrix, self.y, x) - self.log_evidence[:, None]
        return (log_density - exact).mean(1)


def _log_joint(matrix: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Log p(x) p(y | x) of x (B, m, 2) and y (B, 2)."""
    prior = Density().log_prob(x.flatten(0, 1)[..., None, None]).view(x.shape[:2])
    residual = (x @ matrix.T - y[:, None]) / NOISE
    return prior - 0.5 * residual.square().sum(-1) - 2 * math.log(NOISE * math.sqrt(2 * math.pi))


@dataclass
class Watch:
    """Observes how near a run is to the exact posterior.

    Attributes:
        found: KL of each row (B,), by number of iterations.
        solves: forward solves of each row so far, (B,), by number of iterations.
        draws: of the posterior, (m, B, 2), by number of iterations.
    """

    exact: Exact
    found: dict[int, Tensor] = field(default_factory=dict)
    solves: dict[int, Tensor] = field(default_factory=dict)
    draws: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, iteration: int, run: Run) -> None:
        """Measure at `CHECKS`."""
        if iteration not in CHECKS:
            return
        posterior, problem = run.posterior(), run.terms.problem
        count = MOMENTS if iteration in (0, CHECKS[-1]) else 2000
        z = posterior.latents(count, seed=1).transpose(0, 1)
        x, log_det = _decoded(problem.prior, z, problem.condition)
        log_density = posterior.family.log_prob(posterior.parameters, z) - log_det
        self.found[iteration] = self.exact.divergence_of(x, log_density)
        self.solves[iteration] = problem.forward.calls.forward.double()
        self.draws[iteration] = x.transpose(0, 1)

    def solves_to(self, near: float) -> Tensor:
        """Forward solves until each row is that near for good, (B,); inf if it never is."""
        inside = torch.stack([self.found[check] <= near for check in CHECKS])
        stays = inside.flip(0).cummin(0).values.flip(0)
        solves = torch.stack([self.solves[check] for check in CHECKS])
        return solves.masked_fill(~stays, math.inf).min(0).values


def _decoded(prior: Prior, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draws (B, m, 2) and log-determinants (B, m) of latents (B, m, 2)."""
    given = () if condition is None else (condition.repeat_interleave(z.shape[1], 0),)
    with torch.no_grad():
        x, log_det = prior.decode(z.flatten(0, 1)[..., None, None], *given)
    return x.view_as(z), log_det.view(z.shape[:2])


def learned(flow: Prior, count: int = 100) -> None:
    """Print how near the flow is to the posteriors that it was trained for."""
    _, _, y = next(Rosenbrock().pairs("test", count))
    y = y.double()
    exact = Exact.of(torch.eye(2).double(), y)
    z = torch.randn(count, 4000, 2, generator=torch.Generator().manual_seed(0)).double()
    x, log_det = _decoded(flow, z, y)
    log_density = standard_normal_log_prob(z.flatten(0, 1)).view(z.shape[:2]) - log_det
    divergence = exact.divergence_of(x, log_density)
    each, relative = exact.errors_of(x.transpose(0, 1))
    off = each.square().mean().sqrt()
    print(f"learned: KL {divergence.mean():.3f} (median {divergence.median():.3f}), mean off by ")
    print(
        f"  {off:.3f} deviations, covariance by {100 * relative.mean():.0f} %, {count} test pairs"
    )


def problem() -> tuple[Tensor, Tensor]:
    """The operator A (2, 2), and data (B, 2) of the truth with different noise."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 2, generator=generator).double() + 3 * torch.eye(2).double()
    matrix = matrix / torch.linalg.matrix_norm(matrix, ord=2)
    noise = torch.randn(ROWS, 2, generator=generator).double()
    return matrix, TRUTH @ matrix.T + NOISE * noise


def fitted(flow: Prior, matrix: Tensor, exact: Exact, **options: object) -> Watch:
    """Run variational inference of all rows, and watch it."""
    watch = Watch(exact)
    own = {name: value for name, value in options.items() if name not in ("kind", "condition")}
    solver = options.get("kind", Preconditioned)(FAMILY, learning_rate=RATE, draws=DRAWS, **own)
    invert(
        flow,
        lambda x: x.flatten(1) @ matrix.T,
        exact.y,
        sigma=NOISE,
        solver=solver,
        iterations=CHECKS[-1],
        condition=options.get("condition", lambda y, _: y)(exact.y, matrix)
        if flow.conditional
        else None,
        observers=[watch],
    )
    return watch


def undone(y: Tensor, matrix: Tensor) -> Tensor:
    """A⁻¹ y, which is x with noise, as the data that the flow has learned from."""
    return torch.linalg.solve(matrix, y.T).T


METHODS = {
    "preconditioned, density of x": ("flow", {"density": Density()}),
    "preconditioned, given A⁻¹ y": ("flow", {"density": Density(), "condition": undone}),
    "from x = t, density of x": ("nothing", {"density": Density()}),
    "generator of x, most probable z": ("density", {"kind": Variational, "whiten": False}),
    "preconditioned, density of the flow": ("flow", {}),
    "preconditioned, that to the power 0.2": ("flow", {"tempering": 0.2}),
}


SAMPLERS = (
    ("Langevin, 1000 iterations", Langevin(), 1300),
    ("Langevin, 4000 iterations", Langevin(), 4300),
    ("PSGLD, step 0.08, 10 000 iterations", PSGLD(0.08, thin=2), 10300),
    ("PSGLD, step 0.02, 10 000 iterations", PSGLD(0.02, thin=2), 10300),
)
"""Chains that go on for so many iterations after the warm-up, with the exact generator."""


def compare(flow: Prior, picture: Path) -> None:
    """Print KL and forward solves of each method, and draw the distributions."""
    matrix, y = problem()
    exact = Exact.of(matrix, y)
    priors = {"flow": flow, "nothing": Nothing(), "density": Density()}
    watches = {}
    for name, (prior, options) in METHODS.items():
        frozen = priors[prior].eval().requires_grad_(False)
        watch = watches[name] = fitted(frozen, matrix, exact, **options)
        divergences = " ".join(f"{watch.found[k].median():.3f}" for k in SHOWN)
        solves = [watch.solves_to(near) for near in NEAR]
        counts = " ".join(f"{s.median():.0f} ({(s < math.inf).sum()})" for s in solves)
        print(f"{name}: KL {divergences}; solves {counts}", flush=True)
        total = watch.solves[CHECKS[-1]].median()
        print(f"  {errors(exact, watch.draws[CHECKS[-1]])}; {total:.0f} solves")
        if prior == "flow":
            print(f"  the flow as it is: {errors(exact, watch.draws[0])}")
    for name, sampler, iterations in SAMPLERS:
        found = invert(
            Density().eval().requires_grad_(False),
            lambda x: x.flatten(1) @ matrix.T,
            y,
            sigma=NOISE,
            solver=sampler,
            iterations=iterations,
        )
        x = found.posterior.sample(MOMENTS, seed=1).flatten(2)
        solves = found.calls.forward.double().mean()
        print(f"{name}: {errors(exact, x)}; {solves:.0f} solves", flush=True)
        print(f"  accepted {found.history['acceptance'][-1].mean():.3f}; {found.warnings}")
    print(f"exact draws: {errors(exact, exact.draws())}")
    draw(exact, watches, picture)


def errors(exact: Exact, x: Tensor) -> str:
    """Of means and covariances of draws (m, B, 2), and their width: medians, and ranges of rows."""
    off, relative = exact.errors_of(x)
    width = (x.std(0) / exact.deviation()).mean(1)
    return (
        f"mean off by {_range(off, 3)} deviations, covariance by {_range(100 * relative, 1)} %, "
        f"width {_range(width, 2)}"
    )


def _range(values: Tensor, digits: int) -> str:
    numbers = values.median(), values.min(), values.max()
    return "{} ({} to {})".format(*(f"{number:.{digits}f}" for number in numbers))


def draw(exact: Exact, watches: dict[str, Watch], path: Path, row: int = 0, at: int = 30) -> None:
    """The exact posterior of one row, and draws after some iterations."""
    shown = [name for name in watches if name.endswith(("A⁻¹ y", "from x = t, density of x"))]
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained", sharey=True)
    density = exact.log_density[row].exp().view(len(SIDES[0]), len(SIDES[1])).T
    titles = [
        "exact",
        "learned by the flow",
        *(f"{name.split(',')[0]}, {at} iterations" for name in shown),
    ]
    points = [None, watches[shown[0]].draws[0], *(watches[name].draws[at] for name in shown)]
    for axis, title, draws in zip(axes, titles, points, strict=True):
        axis.contour(*SIDES, density, levels=6, colors="tab:blue", linewidths=0.8)
        if draws is not None:
            axis.scatter(*draws[:600, row].T, s=3, color="tab:orange", alpha=0.6)
        axis.plot(*TRUTH, "k+", markersize=10)
        axis.set(title=title, xlim=(-1, 4), ylim=(-2, 9), xlabel="$x_1$")
    axes[0].set_ylabel("$x_2$")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    trained = flowprior.load(sys.argv[1]).double()
    learned(trained)
    compare(trained, Path(sys.argv[2]))
