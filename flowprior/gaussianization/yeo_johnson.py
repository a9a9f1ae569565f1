"""The Yeo–Johnson power transformation, which removes skewness."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowprior.argument_types import check_types
from flowprior.gaussianization import solving
from flowprior.gaussianization.solving import START_SAMPLES, all_done, settled, subsample
from flowprior.gaussianization.standardization import scale_and_constancy


def yeo_johnson(x: Tensor) -> Tensor:
    r"""Transform each row by the λ of greatest likelihood; λ is differentiated implicitly.

    x ≥ 0: ((1 + x)^λ − 1)/λ; x < 0: −((1 − x)^(2−λ) − 1)/(2 − λ); with their limits at λ = 0 and 2.
    λ maximises −½ log var(y) + (λ − 1) mean(sign(x) log(1 + |x|)), which is concave. A row that is
    constant to rounding, or so nearly constant that its maximum lies where the powers overflow, has
    λ = 1, the identity.

    Reference: Li & Denli, Gaussianization layers, eq. 11–12; Yeo & Johnson (2000).

    Args:
        x: (B, n).

    Returns:
        y, (B, n).

    Raises:
        ValueError: x is not (B, n).
    """
    check_types(yeo_johnson, {"x": x})
    if x.ndim != 2:
        raise ValueError(f"yeo_johnson: x must be (B, n), got {tuple(x.shape)}")
    return _Transform.apply(x, _Power.apply(x))


class _Power(torch.autograd.Function):
    """λ(x), where the derivative of the likelihood is 0: dλ/dx = −ℓ'_x / ℓ''."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        power, defined = _solve(x)
        ctx.save_for_backward(x, power, defined)
        return power

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, power, defined = ctx.saved_tensors
        plain_log, sign = _log_and_sign(x)
        log = _without_common_factor(plain_log, x)
        y, by_power, second = _derivatives(log, sign, power[:, None])
        y -= y.mean(1, keepdim=True)
        curvature = _score(log, sign, y, by_power, second)[1]
        slope = torch.exp(_exponent(sign, power[:, None]) * log - plain_log)
        variance = y.square().mean(1, keepdim=True)
        covariance = (y * by_power).mean(1, keepdim=True)
        # The derivative of the numerator cov(y, ∂y/∂λ), of var(y) and of the mean of the logs.
        turned = by_power - by_power.mean(1, keepdim=True) + y * (sign * log)
        by_x = (2 * covariance / variance**2 * y - turned / variance) * slope
        by_x += torch.exp(-plain_log)
        by_x *= (-grad / curvature / x.shape[1])[:, None]
        return torch.where((defined & _usable(curvature))[:, None], by_x, 0)


class _Transform(torch.autograd.Function):
    """y(x, λ)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, power: Tensor) -> Tensor:
        ctx.save_for_backward(x, power)
        log, sign = _log_and_sign(x)
        exponent = _exponent(sign, power[:, None])
        return sign * log * _expm1_ratio(exponent * log)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, power = ctx.saved_tensors
        log, sign = _log_and_sign(x)
        by_power = _derivatives(log, sign, power[:, None])[1]
        return grad * _slope(log, sign, power[:, None]), (grad * by_power).sum(1)


@torch.no_grad()
def _solve(x: Tensor) -> tuple[Tensor, Tensor]:
    """λ by Newton's method, which starts on a subsample of a long row; and if it is a maximum."""
    log, sign = _log_and_sign(x)
    reach = _reach(log)
    log = _without_common_factor(log, x)
    power = x.new_ones(len(x))
    iterations = solving.MAX_ITERATIONS
    if x.shape[1] >= 4 * START_SAMPLES:
        power = _newton(subsample(log), subsample(sign), power, reach, iterations)
        iterations = solving.ITERATIONS_AFTER_START
    power = _newton(log, sign, power, reach, iterations)
    # At the end of the bracket powers of 1 + |x| overflow before the likelihood has a maximum.
    defined = (power - 1).abs() < 0.999 * reach
    defined &= ~scale_and_constancy(x)[1][:, 0]
    return torch.where(defined, power, 1), defined


def _newton(log: Tensor, sign: Tensor, power: Tensor, reach: Tensor, iterations: int) -> Tensor:
    low, high = 1 - reach, 1 + reach
    moving = torch.ones_like(power, dtype=torch.bool)
    for _ in range(iterations):
        y, first, second = _derivatives(log, sign, power[:, None])
        y -= y.mean(1, keepdim=True)
        score, curvature = _score(log, sign, y, first, second)
        usable = _usable(curvature)
        # Where the likelihood is not concave to rounding, the row stays as it is.
        low = torch.where(usable & (score <= 0), low, power)
        high = torch.where(usable & (score > 0), high, power)
        step = power - score / curvature
        inside = (step > low) & (step < high)
        # At the root the step is 0 and leaves the open bracket by a rounding error.
        close = (step - power).abs() <= 4 * torch.finfo(power.dtype).eps * (1 + power.abs())
        middle = (low + high) / 2
        proposed = torch.where(inside, step, torch.where(close, power, middle))
        change = torch.where(usable & moving, proposed - power, 0)
        power = power + change
        moving = moving & ~settled(change, power)
        if all_done(moving):
            break
    return power


def _reach(log: Tensor) -> Tensor:
    """Largest |λ − 1| for which exp(2 κ log(1 + |x|)) is finite, κ = λ or 2 − λ."""
    largest = log.amax(1).clamp_min(torch.finfo(log.dtype).tiny)
    reach = 0.45 * math.log(torch.finfo(log.dtype).max) / largest - 1
    return reach.clamp(0, 1 / torch.finfo(log.dtype).eps)


def _without_common_factor(log: Tensor, x: Tensor) -> Tensor:
    """Subtract from log(1 + |x|) its minimum, where all x of a row have one sign.

    A common factor of 1 + |x| then cancels in the likelihood, but in exact arithmetic only.
    """
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    return log - torch.where((low >= 0) | (high < 0), log.amin(1, keepdim=True), 0)


def _score(
    log: Tensor, sign: Tensor, y: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """First and second derivative of the log-likelihood per entry by λ, (B,) each; y centred."""
    first_centered = first - first.mean(1, keepdim=True)
    variance = y.square().mean(1)
    covariance = (y * first).mean(1)
    change = first_centered.square().mean(1) + (y * second).mean(1)
    score = (sign * log).mean(1) - covariance / variance
    return score, 2 * (covariance / variance).square() - change / variance


def _usable(curvature: Tensor) -> Tensor:
    return (curvature < 0) & curvature.isfinite()


def _log_and_sign(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.log1p(x.abs()), torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def _exponent(sign: Tensor, power: Tensor) -> Tensor:
    """κ = λ for x ≥ 0 and 2 − λ for x < 0."""
    return 1 + sign * (power - 1)


def _slope(log: Tensor, sign: Tensor, power: Tensor) -> Tensor:
    """∂y/∂x = (1 + |x|)^(κ − 1)."""
    return torch.exp(sign * (power - 1) * log)


def _derivatives(log: Tensor, sign: Tensor, power: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y = sign·φ(κ), φ(κ) = (e^(κ log) − 1)/κ, and its first and second derivative by λ."""
    t = _exponent(sign, power) * log
    ratio = _expm1_ratio(t)
    first, second = _expm1_ratio_derivatives(t, ratio)
    square = log * log
    return sign * log * ratio, square * first, sign * log * square * second


def _expm1_ratio(t: Tensor) -> Tensor:
    """(e^t − 1)/t."""
    small = t.abs() < torch.finfo(t.dtype).tiny
    return torch.where(small, 1, torch.expm1(t) / t)


def _expm1_ratio_derivatives(t: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of f(t) = (e^t − 1)/t: f' = (e^t − f)/t and f'' = (e^t − 2f')/t."""
    # (f − 1)/t loses digits near 0, where its Taylor series has few terms.
    near = t.abs() < (1e-2 if t.dtype == torch.float64 else 0.2)
    series = 1 / 5040 * t + 1 / 720
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2):
        series = series * t + coefficient
    first = ratio - torch.where(near, series, (ratio - 1) / t)
    near_series = 1 / 168 * t + 1 / 36
    for coefficient in (1 / 10, 1 / 4, 1 / 3):
        near_series = near_series * t + coefficient
    second = torch.where(near, near_series, (1 + t * ratio - 2 * first) / t)
    return first, second
