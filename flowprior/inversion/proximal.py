"""Gradient and least-squares steps, for linear operators with Gaussian noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.descent import chosen
from flowprior.inversion.images import ImageRun, first_images
from flowprior.inversion.problem import Problem
from flowprior.linear_algebra import TINY, conjugate_gradients, square
from flowprior.physics.noise import SNR, Gaussian

POWER_ITERATIONS = 15, 100
"""Fewest and most. The largest of many eigenvalues takes some to stand out."""
STILL = 1e-3
"""Relative gain at which power iteration ends."""
CONJUGATE_ITERATIONS = 10
START_ITERATIONS = 30
DEVIATION = 0.5
"""Of pixels from grey, before anything is known of an image."""
MARGIN = 1.05
"""Power iteration finds the curvature from below."""


class NotQuadratic(ValueError):
    """The misfit is not quadratic: the operator is not linear, or the noise not Gaussian."""


class ProximalRun(ImageRun):
    """Base of runs that follow each step towards the data by a step of their own.

    Attributes:
        step_size: 1/L of each image, (B, 1, 1, 1); L is the largest curvature of its misfit,
            ‖A‖²/σ².

    Args:
        problem: the batch.
        who: name of the solver, for errors.

    Raises:
        ValueError: the noise is not known.
        NotQuadratic: the misfit is not quadratic.
    """

    def __init__(self, problem: Problem, who: str) -> None:
        check_quadratic(problem, who)
        self.problem = problem
        first = first_images(problem)[:1]
        self.rows_per_call = rows_per_call(self._gradient, first, problem.rows[:1])
        super().__init__(problem)
        self._at_zero = self.misfit_gradient(torch.zeros_like(self.x))
        largest = self._largest_curvature()
        largest = torch.where(largest > 0, largest, 1)  # an operator that sees nothing
        self.step_size = (1 / (MARGIN * largest)).expand(len(self.x)).view(-1, 1, 1, 1)

    def _largest_curvature(self) -> Tensor:
        """Largest curvature of each image's misfit, (B,), or (1,) where all have the same."""
        problem = self.problem
        if problem.forward.images is not None or not isinstance(problem.noise, Gaussian):
            return curvature(self.misfit_gradient, self._at_zero)
        # The data have no part in it: zeros do not let the batch in by rounding.
        one = ImageRun(replace(problem, y=torch.zeros_like(problem.y[:1])), 0 * self.x[:1])
        return curvature(one.misfit_gradient, one.misfit_gradient(one.x))

    def descended(self, x: Tensor) -> Tensor:
        """Images after a gradient step of the misfit from x (B, C, H, W)."""
        return x - self.step_size * self.misfit_gradient(x)

    def fitted(self, x: Tensor, weight: Tensor) -> Tensor:
        """Images z that minimise misfit(z) + ½·weight·‖z − x‖², by conjugate gradients.

        Args:
            x: images (B, C, H, W).
            weight: (B, 1, 1, 1), positive.
        """

        def bend(direction: Tensor) -> Tensor:
            return self.misfit_gradient(direction) - self._at_zero + weight * direction

        return x + conjugate_gradients(bend, -self.misfit_gradient(x), CONJUGATE_ITERATIONS)


class FISTARun(ProximalRun, ABC):
    """Minimise the misfit and a penalty with a proximal map, by FISTA with restarts.

    A subclass sets what its `penalty` needs before it calls this constructor, which measures.

    References: Beck & Teboulle, A fast iterative shrinkage-thresholding algorithm (2009);
    O'Donoghue & Candès, Adaptive restart for accelerated gradient schemes (2015).
    """

    def __init__(self, problem: Problem, who: str) -> None:
        super().__init__(problem, who)
        self.ahead = self.x.clone()
        self.momentum = torch.ones_like(self.values["misfit"])

    @abstractmethod
    def penalty(self, x: Tensor) -> Tensor:
        """The penalty of images x (B, C, H, W), (B,), in nats, float64."""

    @abstractmethod
    def shrunk(self, x: Tensor) -> Tensor:
        """The proximal map: z that minimise penalty(z) + ‖z − x‖²/(2·step_size)."""

    def step(self) -> None:
        """Make one step of FISTA, eq. 4.1–4.3; a row that turns uphill loses its momentum.

        A row whose loss would rise, which an inexact proximal map can cause, stays where it is.
        """
        last, loss = self.x, self.values["loss"]
        self.x = self.shrunk(self.descended(self.ahead))
        moved = self.x - last
        uphill = ((self.ahead - self.x) * moved).flatten(1).sum(1) > 0
        self.measure()
        worse = ~(self.values["loss"] <= loss)
        before = torch.where(uphill | worse, 1, self.momentum)
        self.momentum = (1 + (1 + 4 * before.square()).sqrt()) / 2
        pace = ((before - 1) / self.momentum).to(moved)
        self.ahead = self.x + pace.view(-1, 1, 1, 1) * moved
        if worse.any():
            self.x, self.ahead = (chosen(worse, last, x) for x in (self.x, self.ahead))
            self.measure()

    def measure(self) -> None:
        """Update misfit, log prior and loss."""
        super().measure()
        log_prior = -self.penalty(self.x)
        loss = self.values["misfit"] - log_prior
        self.values = {"loss": loss, **self.values, "log_prior": log_prior}

    def state_dict(self) -> dict[str, Any]:
        """Images, values and momentum."""
        return {**super().state_dict(), "ahead": self.ahead, "momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        super().load_state_dict(state)
        self.ahead, self.momentum = state["ahead"], state["momentum"]


def check_quadratic(problem: Problem, who: str) -> None:
    """Raise NotQuadratic unless the noise is Gaussian and A affine, whatever the data are."""
    noise = problem.misfit(None, who)
    if not isinstance(noise, Gaussian | SNR):
        raise NotQuadratic(
            f"{who} needs Gaussian noise, got {type(noise).__name__}; TotalVariation takes any"
        )
    probe = _random_images(problem.like.new_zeros(len(problem.y), *problem.image_shape))
    with torch.no_grad():
        at = [by_rows(problem.forward, x, problem.rows) for x in (0 * probe, probe, 2 * probe)]
    slope, excess = at[1] - at[0], at[2] - 2 * at[1] + at[0]
    if not (_size(excess) <= 1e-3 * _size(slope)).all():
        raise NotQuadratic(
            f"{who} needs a linear physics, which {problem.forward.name} is not; TotalVariation "
            "takes any"
        )


def linear_start(problem: Problem) -> Tensor:
    """The linear estimate from y: the minimiser of misfit(A(x), y) + ½‖(x − ½)/`DEVIATION`‖².

    Where the noise is weak this is A†y about grey, the image nearest to grey of those that fit the
    data best; where A hides something, noise is not amplified. By `START_ITERATIONS` conjugate
    gradients. A†y itself where the noise is not Gaussian; grey where A is not linear.
    """
    problem, weight = replace(problem, start=None), DEVIATION**-2
    grey = first_images(problem)
    if not isinstance(problem.noise, Gaussian | SNR):
        problem, weight = replace(problem, noise=Gaussian(1.0)), 0.0
    try:
        check_quadratic(problem, "linear_start")
    except NotQuadratic:
        return grey
    # Data of zeros: the differences of gradients would else be lost in rounding errors.
    run = ImageRun(replace(problem, y=torch.zeros_like(problem.y)), grey)
    at_zero = run.misfit_gradient(torch.zeros_like(grey))

    def bend(direction: Tensor) -> Tensor:
        return run.misfit_gradient(direction) - at_zero + weight * direction

    residual = -ImageRun(problem, grey).misfit_gradient(grey)
    accuracy = 100 * torch.finfo(grey.dtype).eps
    found = grey + conjugate_gradients(bend, residual, START_ITERATIONS, accuracy)
    return torch.where(found.isfinite().flatten(1).all(1).view(-1, 1, 1, 1), found, grey)


def curvature(gradient: Callable[[Tensor], Tensor], at_zero: Tensor) -> Tensor:
    """Largest curvature of a quadratic misfit, (B,), by power iteration.

    Args:
        gradient: of the misfit, at images (B, C, H, W).
        at_zero: its value at images of zeros.
    """
    slope = gradient(_random_images(at_zero)) - at_zero
    largest = square(slope).sqrt()
    found, moving = torch.zeros_like(largest), torch.ones_like(largest, dtype=torch.bool)
    fewest, most = POWER_ITERATIONS
    for iteration in range(1, most + 1):
        slope = gradient(slope / largest.clamp(min=TINY)) - at_zero
        largest = square(slope).sqrt()
        gain, found = largest - found, torch.where(moving, largest, found)
        moving = moving & ((gain > STILL * largest) | (iteration < fewest))
        if not moving.any():
            break
    return found.flatten()


def _random_images(like: Tensor) -> Tensor:
    """The same random image for all rows of `like` (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape[1:], generator=generator).to(like).expand_as(like)


def _size(data: Tensor) -> Tensor:
    """Norm of the data of each image, (B,)."""
    return data.abs().flatten(1).square().sum(1).sqrt()
