"""What the end of an inversion says about its quality: residuals, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowprior.inversion.convergence import STILL, fall
from flowprior.inversion.coverage import FAR, UNLIKELY, surprise
from flowprior.inversion.problem import Problem
from flowprior.inversion.warned import Warned

if TYPE_CHECKING:
    from flowprior.inversion.solving import Run

FITTED = 0.7, 1.3
"""Residuals, in units of the noise, below and above which the data are fitted too well or badly."""

UNFITTED = (
    "the prior does not explain the data, or it takes more iterations, a smaller weight of the "
    "prior (beta, weight), another penalty or another noise level"
)
"""What a residual above the noise may come from."""

FAR_BEYOND = 0.3
"""How far an image may go beyond [0, 1] without a warning."""


def residual_and_warnings(run: Run, problem: Problem) -> tuple[Tensor | None, tuple[Warned, ...]]:
    """The residual in units of the noise, and warnings."""
    warnings = []
    if not run.finite.all():
        reason = "became NaN or infinite and stopped there"
        warnings.append(Warned(reason, "not_finite", ~run.finite, joint=" "))
    warnings += _out_of_range(run)
    if problem.noise is None:
        return None, tuple(warnings)
    with torch.no_grad():
        residual = problem.residual(run.x)
    warnings += [*_too_high(run, residual), *_too_low(run, problem, residual)]
    return residual, tuple(warnings)


def _out_of_range(run: Run) -> Iterator[Warned]:
    beyond = overshoot(run.x)
    far = run.finite & (beyond > FAR_BEYOND)
    if far.any():
        low, high = run.x[far].min(), run.x[far].max()
        reason = (
            f"images go from {low:.2g} to {high:.2g}, far beyond [0, 1]: the prior does not "
            "constrain what the data leave open: give it more weight, or take another one; or the "
            "data are not in the units of images in [0, 1]"
        )
        yield Warned(reason, "out_of_range", far, beyond[far].max())


def overshoot(x: Tensor) -> Tensor:
    """How far images x (B, C, H, W) go beyond [0, 1], (B,); 0 within."""
    flat = x.detach().flatten(1)
    return torch.maximum(-flat.amin(1), flat.amax(1) - 1).clamp(min=0)


def _too_high(run: Run, residual: Tensor) -> Iterator[Warned]:
    high = residual > FITTED[1]
    stuck = torch.zeros_like(high)
    if hasattr(run, "ended") and run.z is not None:
        stuck = high & (run.ended >= 0)
    if stuck.any():
        size = residual[stuck].max()
        reason = (
            f"stopped by iteration {run.ended[stuck].max()}, where no descent was found, with a "
            f'residual up to {size:.3g} times the noise: try another start or optimizer="adam"; or '
            "the prior does not explain the data, or it takes a smaller weight of the prior (beta, "
            "weight) or another noise level"
        )
        yield Warned(reason, "stuck", stuck, size, joint=" ")
    high = high & ~stuck
    if high.any():
        size = residual[high].max()
        units = "; or data and operator are not in the units of images in [0, 1]"
        reason = (
            f"the residual is up to {size:.3g} times the noise: "
            + getattr(run, "unfitted", UNFITTED)
            + (units if size > 20 else "")
        )
        yield Warned(reason, "residual_high", high, size)


def _too_low(run: Run, problem: Problem, residual: Tensor) -> Iterator[Warned]:
    low = residual < FITTED[0]
    if not low.any():
        return
    # Right noise alone keeps any image that was not made from the data at about 1.
    shape = (len(residual), *problem.image_shape)
    grey = problem.residual(problem.like.new_full(shape, 0.5))
    any_image_fits = low & (grey < FITTED[0])
    if any_image_fits.any():
        size = grey[any_image_fits].min()
        reason = (
            f"a grey image has a residual of only {size:.2g} of the noise: the noise level is too "
            "large, or not in the units of y"
        )
        yield Warned(reason, "noise_too_large", any_image_fits, -size)
    low = low & ~any_image_fits
    if getattr(run, "averages", False):  # a mean of draws is nearer to the data than each of them
        return
    if low.any():
        size = residual[low].min()
        reason = (
            f"the residual is only {size:.2g} of the noise: the noise is fitted; take a larger "
            "weight of the prior (beta, weight) or another noise level; or the data are so few "
            "that a right image follows them as closely"
        )
        yield Warned(reason, "residual_low", low, -size)


def still_falling(run: Run, curves: Mapping[str, Tensor], residual: Tensor | None) -> Tensor:
    """Rows that were stopped too early; none where β, and so the loss, changed on the way."""
    if len(curves.get("loss", ())) < 2 or "beta" in curves:
        return torch.zeros_like(run.finite)
    still = run.active & run.finite & (fall(curves) > STILL)
    if residual is not None:  # more iterations would fit noise that is fitted even better
        still = still & (residual >= FITTED[0])
    return still


def unfinished(still: Tensor, curves: Mapping[str, Tensor]) -> Iterator[Warned]:
    """Rows that were stopped too early."""
    if still.any():
        size = fall(curves)[still].max()
        reason = (
            f"the loss still fell by up to {size:.3g} % in the last tenth of the iterations: it "
            "takes more of them"
        )
        yield Warned(reason, "falling", still, size)


def surprise_of(run: Run, problem: Problem, residual: Tensor | None) -> Tensor | None:
    """See `Estimate.surprise`; None where noise or run do not allow the test."""
    if residual is None or not (problem.noise.normal and getattr(run, "tests_prior", False)):
        return None
    return surprise(run.z, residual, problem)


def not_covered(found: Tensor | None, settled: Tensor) -> Iterator[Warned]:
    """Rows at their minimum whose data the prior does not explain."""
    if found is None:
        return
    far = settled & (found > FAR)
    if far.any():
        size = found[far].max()
        reason = (
            f"the surprise is up to {size:.3g}, which of a linear prior's own images one in 1000 "
            f"has above {UNLIKELY:.2g}: the prior does not cover what was measured, or operator or "
            "noise level are wrong"
        )
        yield Warned(reason, "surprise", far, size)
