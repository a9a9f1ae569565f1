"""Solvers over images, which need no prior."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.checks import check_noise, check_positive
from flowprior.inversion.descent import LBFGSRun, Values, chosen
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Solver
from flowprior.physics.checks import check_number
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
        weight: λ ≥ 0, in nats per unit of total variation; choose it on validation images.
        misfit: noise model to fit the data by; that of the data by default.
        smoothing: ε > 0.

    Raises:
        ValueError: names the option.
    """

    weight: float
    misfit: Noise | None = None
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)
        check_positive("smoothing", self.smoothing)
        check_noise("misfit", self.misfit)

    def begin(self, problem: Problem) -> LBFGSRun:
        """Start from the given images, or from grey ones."""
        v = nn.Parameter(first_images(problem).clamp(0.01, 0.99).logit().flatten(1))
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


def first_images(problem: Problem) -> Tensor:
    """Images (B, C, H, W) to start from: the given ones, or grey."""
    if problem.start is not None:
        return problem.start.to(problem.like)
    return problem.like.new_full((len(problem.y), *problem.image_shape), 0.5)


class ImageRun:
    """Base of runs over images: a subclass changes `x` in `step` and calls `measure`.

    Attributes:
        finite: rows whose images have stayed finite, (B,); the others keep the last finite ones.

    Args:
        problem: the batch.
        x: images (B, C, H, W) to start from, in [0, 1]; by default the given ones, or grey.
    """

    z = None

    def __init__(self, problem: Problem, x: Tensor | None = None) -> None:
        self.problem = problem
        self.x = first_images(problem) if x is None else x
        self._kept = self.x.clone()  # a subclass may change `x` in place
        self.finite = self.x.isfinite().flatten(1).all(1)
        self.values: Values = {}
        self.measure()

    @property
    def active(self) -> Tensor:
        """Rows that are finite: they move until the last iteration."""
        return self.finite

    @torch.no_grad()
    def measure(self) -> None:
        """Update the misfit, if the noise is known.

        Rows that are no longer finite go back to their last finite images.
        """
        self.finite = self.finite & self.x.isfinite().flatten(1).all(1)
        self.x = chosen(self.finite, self.x, self._kept)
        self._kept = self.x.clone()
        if self.problem.noise is not None:
            self.values = {"misfit": by_rows(self._misfit, self.x, self.problem.rows)}

    def misfit_gradient(self, x: Tensor) -> Tensor:
        """Gradient of the misfit at images x (B, C, H, W), of the same shape."""
        return by_rows(self._gradient, x, self.problem.rows)

    def _misfit(self, x: Tensor, rows: Tensor) -> Tensor:
        noise = self.problem.misfit(None, type(self).__name__)
        return noise.misfit(self.problem.forward(x, rows), self.problem.y[rows])

    def _gradient(self, x: Tensor, rows: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._misfit(x, rows).sum(), x)[0]

    def state_dict(self) -> dict[str, Any]:
        """Images, values and which rows are finite."""
        return {"x": self.x, "values": self.values, "finite": self.finite}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        self.x, self._kept = state["x"], state["x"].clone()
        self.values, self.finite = state["values"], state["finite"]


@dataclass(frozen=True)
class Reconstructor(Solver):
    """A reconstructor of deepinv, such as `deepinv.models.DeepImagePrior`.

    It is called as `model(y, physics)`, one image at a time and seeded for each, because in a batch
    its stopping rules and random numbers would mix the images. It takes one iteration.

    Args:
        model: called with data (1, ...) and the deepinv physics; it gives an image (1, C, H, W).
            Each image gets a fresh copy, so that the model may change itself.

    Raises:
        ValueError: the model is no module; later, if its image has another shape, or if the
            operator has parameters of its own for each image.
    """

    model: nn.Module
    differentiates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise ValueError(f"model must be a torch module, got {self.model!r}")

    def begin(self, problem: Problem) -> "ReconstructorRun":
        """Start from the given images or grey ones; the first iteration reconstructs."""
        if problem.forward.images is not None:
            raise ValueError("Reconstructor needs a physics that is alike for all images")
        return ReconstructorRun(self.model, problem)


class ReconstructorRun(ImageRun):
    """The batch of a `Reconstructor`."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        super().__init__(problem)
        self.model = model
        self.done = False

    @property
    def active(self) -> Tensor:
        """All finite rows, until they have been reconstructed."""
        return self.finite & (not self.done)

    def step(self) -> None:
        """Reconstruct every image by itself."""
        self.x = torch.cat([self._reconstructed(row) for row in range(len(self.x))])
        self.done = True
        self.measure()

    def _reconstructed(self, row: int) -> Tensor:
        problem = self.problem
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(_mixed(problem.seed, int(problem.indices[row])))
            model = copy.deepcopy(self.model)
            x = model(problem.y[row : row + 1], problem.forward.physics)
        if x.shape[1:] != self.x.shape[1:]:
            raise ValueError(
                f"model must give images {tuple(self.x.shape[1:])}, got {tuple(x.shape[1:])}"
            )
        return x.detach().to(self.x)

    def state_dict(self) -> dict[str, Any]:
        """Images, values and whether they are done."""
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        super().load_state_dict(state)
        self.done = state["done"]


def _mixed(seed: int, index: int) -> int:
    """One seed of 32 bits, which are all that torch's CPU generator looks at."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
