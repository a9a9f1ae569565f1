"""Solvers over images, which need no prior."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.descent import LBFGSRun, Values, check_number
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Solver
from flowprior.physics.noise import Noise


@dataclass(frozen=True)
class TotalVariation(Solver):
    r"""Minimise misfit(A(x), y) + λ TV(x) over x in (0, 1), by L-BFGS in v = log(x/(1 − x)).

    .. math:: \mathrm{TV}(x) = \sum_{c,i,j} \sqrt{|\nabla x_{cij}|^2 + \varepsilon^2} - \varepsilon

    with forward differences and no variation across the border: isotropic, rounded off at ε. It
    starts from the given images, clamped to [0.01, 0.99] since v is infinite at 0 and 1, or from
    grey.

    Reference: Rudin, Osher & Fatemi, Nonlinear total variation based noise removal (1992).

    Args:
        weight: λ ≥ 0, in nats per unit of total variation. About 1/σ times the contrast's inverse
            for noise of standard deviation σ: tune it on validation images.
        misfit: noise model to fit the data by; that of the data by default.
        smoothing: ε > 0.

    Raises:
        ValueError: names the option.
    """

    weight: float
    misfit: Noise | None = None
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        check_number("weight", self.weight, lambda weight: weight >= 0, "finite and at least 0")
        check_number("smoothing", self.smoothing, lambda epsilon: epsilon > 0, "positive")

    def begin(self, problem: Problem) -> LBFGSRun:
        """Start from the given images, or from grey ones."""
        shape = (len(problem.y), *problem.image_shape)
        start = problem.start
        start = problem.like.new_full(shape, 0.5) if start is None else start.to(problem.like)
        v = nn.Parameter(start.clamp(0.01, 0.99).logit().flatten(1))
        return LBFGSRun(VariationTerms(self, problem), v)


class VariationTerms:
    """The objective of `TotalVariation` for a batch, as a function of v; the log prior is −λ TV."""

    def __init__(self, solver: TotalVariation, problem: Problem) -> None:
        self.problem, self.solver = problem, solver
        self.noise = problem.misfit(solver.misfit, type(solver).__name__)

    def latents(self, v: Tensor) -> None:
        """None: no prior is involved."""

    def __call__(self, v: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """Images and loss, misfit and log_prior of unknowns v (k, n) of the images `rows`."""
        x = v.sigmoid().unflatten(1, self.problem.image_shape)
        misfit = self.noise.misfit(self.problem.forward(x, rows), self.problem.y[rows])
        log_prior = -self.solver.weight * total_variation(x, self.solver.smoothing)
        return x, {"loss": misfit - log_prior, "misfit": misfit, "log_prior": log_prior}


def total_variation(x: Tensor, smoothing: float = 1e-3) -> Tensor:
    """Smoothed isotropic total variation of images (B, C, H, W), (B,), float64."""
    down = torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
    right = torch.nn.functional.pad(x.diff(dim=3), (0, 1))
    length = (down.square() + right.square() + smoothing**2).sqrt() - smoothing
    return length.flatten(1).sum(1, dtype=torch.float64)


class ImageRun:
    """What runs over images share; a subclass changes `x` in `step` and calls `measure`.

    Args:
        problem: the batch.
        x: images (B, C, H, W) to start from, in [0, 1]; by default the given ones, or grey.
    """

    z = None

    def __init__(self, problem: Problem, x: Tensor | None = None) -> None:
        self.problem = problem
        if x is None:
            shape = (len(problem.y), *problem.image_shape)
            grey = problem.like.new_full(shape, 0.5)
            x = grey if problem.start is None else problem.start.to(grey)
        self.x = x
        self.values: Values = {}
        self.measure()

    @property
    def finite(self) -> Tensor:
        """Rows whose images are finite."""
        return self.x.isfinite().flatten(1).all(1)

    @property
    def active(self) -> Tensor:
        """The same: they move until the last iteration."""
        return self.finite

    @torch.no_grad()
    def measure(self) -> None:
        """Note the misfit of the images as they are, if the noise is known."""
        if self.problem.noise is not None:
            self.values = {"misfit": by_rows(self._misfit, self.x, self.problem.rows)}

    def misfit_gradient(self) -> Tensor:
        """Gradient of the misfit at the images as they are, (B, C, H, W)."""
        return by_rows(self._gradient, self.x, self.problem.rows)

    def _misfit(self, x: Tensor, rows: Tensor) -> Tensor:
        noise = self.problem.misfit(None, type(self).__name__)
        return noise.misfit(self.problem.forward(x, rows), self.problem.y[rows])

    def _gradient(self, x: Tensor, rows: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._misfit(x, rows).sum(), x)[0]

    def state_dict(self) -> dict[str, Any]:
        """Images and values."""
        return {"x": self.x, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.x, self.values = state["x"], state["values"]


@dataclass(frozen=True)
class Reconstructor(Solver):
    """A deepinv reconstructor, such as `deepinv.models.TVDenoiser` plugged in, or a deep image prior.

    Called as `model(y, physics)`, one image at a time and seeded for each, because in a batch its
    stopping rules and random numbers would mix the images. It takes one iteration.

    Args:
        model: called with data (1, ...) and the deepinv physics; it gives an image (1, C, H, W).
            A model that changes itself is used in a fresh copy for each image.
    """

    model: nn.Module

    def begin(self, problem: Problem) -> "ReconstructorRun":
        """Start from grey images; the first iteration reconstructs."""
        return ReconstructorRun(self.model, problem)


class ReconstructorRun(ImageRun):
    """The batch of a `Reconstructor`."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        super().__init__(problem)
        self.model = model
        self.done = False

    @property
    def active(self) -> Tensor:
        """All rows, until they are reconstructed."""
        return self.finite & (not self.done)

    def step(self) -> None:
        """Reconstruct every image by itself."""
        self.x = torch.cat([self._reconstructed(row) for row in range(len(self.x))])
        self.done = True
        self.measure()

    def _reconstructed(self, row: int) -> Tensor:
        import copy

        problem = self.problem
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed((problem.seed << 32) + int(problem.indices[row]))
            model = copy.deepcopy(self.model)
            x = model(problem.y[row : row + 1], problem.forward.physics)
        return x.detach().to(self.x)

    def state_dict(self) -> dict[str, Any]:
        """Images, values and whether they are done."""
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        super().load_state_dict(state)
        self.done = state["done"]
