"""Total variation: images of constant pieces."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_number, check_positive
from flowprior.inversion.descent import LBFGSRun, Values
from flowprior.inversion.images import first_images
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.proximal import FISTARun, NotQuadratic
from flowprior.inversion.solving import Solver
from flowprior.physics.noise import Noise

DUAL_STEPS = 10
"""Steps towards the proximal map in each iteration; they go on where those before ended."""


@dataclass(frozen=True)
class TotalVariation(Solver):
    r"""Minimise misfit(A(x), y) + λ TV(x) over x in [0, 1].

    .. math:: \mathrm{TV}(x) = \sum_{c,i,j} |\nabla x_{cij}|

    with forward differences and no variation across the border: isotropic. With a linear operator
    and Gaussian noise by FISTA. Otherwise by L-BFGS in v = log(x/(1 − x)), where the variation is
    rounded off, √(|∇x|² + ε²) − ε, and images to start from are clamped to [0.01, 0.99]. It starts
    from the given images, or from grey.

    References: Rudin, Osher & Fatemi, Nonlinear total variation based noise removal (1992); Beck &
    Teboulle, Fast gradient-based algorithms for constrained total variation image denoising and
    deblurring problems (2009).

    Args:
        weight: λ ≥ 0, in nats per unit of total variation; choose it on validation images.
        misfit: noise model to fit the data by; that of the data by default.
        smoothing: ε > 0, for L-BFGS.

    Raises:
        ValueError: names the option.
    """

    weight: float
    misfit: Noise | None = None
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("weight", self.weight, least=0)
        check_positive("smoothing", self.smoothing)
        check_noise("misfit", self.misfit)

    def begin(self, problem: Problem) -> "VariationRun | LBFGSRun":
        """Start from the given images, or from grey ones."""
        problem = replace(problem, noise=problem.misfit(self.misfit, type(self).__name__))
        try:
            return VariationRun(self.weight, problem)
        except NotQuadratic:
            v = nn.Parameter(first_images(problem).clamp(0.01, 0.99).logit().flatten(1))
            return LBFGSRun(VariationTerms(self, problem), v)


class VariationRun(FISTARun):
    """The batch of a `TotalVariation` with a quadratic misfit.

    The proximal map, min ½‖z − x‖² + γ TV(z) over z in [0, 1], is z = clamp(x − γ Dᵀp), where D are
    the forward differences and p, with |p| ≤ 1 in each pixel, solves the dual problem: Beck &
    Teboulle (2009), eq. 4.9, by their algorithm FGP.
    """

    def __init__(self, weight: float, problem: Problem) -> None:
        self.weight = weight
        super().__init__(problem, "TotalVariation")
        self.dual = differences(torch.zeros_like(self.x))

    def penalty(self, x: Tensor) -> Tensor:
        """λ TV of images x (B, C, H, W)."""
        return self.weight * total_variation(x, 0.0)

    def shrunk(self, x: Tensor) -> Tensor:
        """Some steps of FGP, from the dual variables of the last iteration."""
        scale = self.weight * self.step_size
        if not self.weight:
            return x.clamp(0, 1)
        dual, ahead, pace = self.dual, self.dual, 1.0
        for _ in range(DUAL_STEPS):
            z = (x - scale * adjoint_differences(ahead)).clamp_(0, 1)
            uphill = differences(z).div_(8 * scale).add_(ahead)
            moved = uphill.div_(uphill.square().sum(0).sqrt_().clamp_(min=1))
            before, pace = pace, (1 + (1 + 4 * pace * pace) ** 0.5) / 2
            ahead = torch.lerp(dual, moved, 1 + (before - 1) / pace)
            dual = moved
        self.dual = dual
        return (x - scale * adjoint_differences(dual)).clamp_(0, 1)

    def state_dict(self) -> dict[str, Any]:
        """Images, values, momentum and dual variables."""
        return {**super().state_dict(), "dual": self.dual}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        super().load_state_dict(state)
        self.dual = state["dual"]


class VariationTerms:
    """The smoothed objective of `TotalVariation` as a function of v; the log prior is −λ TV."""

    replayable = True

    def __init__(self, solver: TotalVariation, problem: Problem) -> None:
        self.problem, self.solver = problem, solver

    def latents(self, v: Tensor) -> None:
        """None: no prior is involved."""

    def __call__(self, v: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """Images and loss, misfit and log_prior of unknowns v (k, n) of the images `rows`."""
        x = v.sigmoid().unflatten(1, self.problem.image_shape)
        y = self.problem.y[rows]
        misfit = self.problem.noise.misfit(self.problem.forward(x, rows), y)
        log_prior = -self.solver.weight * total_variation(x, self.solver.smoothing)
        return x, {"loss": misfit - log_prior, "misfit": misfit, "log_prior": log_prior}


def total_variation(x: Tensor, smoothing: float = 1e-3) -> Tensor:
    """Isotropic total variation of images (B, C, H, W), (B,), float64; smoothed if that is > 0."""
    down, right = differences(x)
    length = (down.square() + right.square() + smoothing**2).sqrt() - smoothing
    return length.flatten(1).sum(1, dtype=torch.float64)


def differences(x: Tensor) -> Tensor:
    """D x: to the pixel below and to the right, 0 at the border: (2, B, C, H, W)."""
    down = torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
    right = torch.nn.functional.pad(x.diff(dim=3), (0, 1))
    return torch.stack([down, right])


def adjoint_differences(p: Tensor) -> Tensor:
    """Dᵀ p, images (B, C, H, W); p (2, B, C, H, W) is 0 at the border, as `differences` are."""
    down, right = p
    images = -down - right
    images[..., 1:, :] += down[..., :-1, :]
    images[..., 1:] += right[..., :-1]
    return images
