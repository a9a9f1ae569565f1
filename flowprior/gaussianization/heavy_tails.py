"""The Lambert W × Gaussian transformation, which removes heavy tails."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowprior.argument_types import check_types
from flowprior.gaussianization import solving
from flowprior.gaussianization.lambert_w import lambert_w
from flowprior.gaussianization.solving import START_SAMPLES, all_done, settled, subsample
from flowprior.gaussianization.standardization import moments


def lambert_w_gaussianize(x: Tensor) -> Tensor:
    r"""Squash the tails of each row so that its kurtosis is 3; differentiated implicitly.

    y = σ W_δ((x − μ)/σ) + μ, W_δ(u) = sign(u) √(W(δu²)/δ), where μ and σ are mean and standard
    deviation of y and δ ≥ 0 gives y the kurtosis 3 (IGMM, Goerg 2015). Rows of kurtosis 3 or less
    have δ = 0, the identity, which the transformation approaches continuously. So do constant
    rows, and those for which no solution is found: a few clusters of nearly equal numbers, most of
    them on one side.

    Reference: Li & Denli, Gaussianization layers, eq. 26–28, algorithm 3.

    Args:
        x: (B, n).

    Returns:
        y, (B, n).

    Raises:
        ValueError: x is not (B, n).
    """
    check_types(lambert_w_gaussianize, {"x": x})
    if x.ndim != 2:
        raise ValueError(f"lambert_w_gaussianize: x must be (B, n), got {tuple(x.shape)}")
    mean, std = moments(x)
    w, mu = _Squash.apply((x - mean) / std)
    scale = torch.where(std.isinf(), 0, std)
    return mean + scale * (w + mu[:, None])


class _Squash(torch.autograd.Function):
    """Standardised u ↦ (w, μ), w = g(u − μ; a), g(d; a) = sign(d) √(W(a d²)/a).

    With a = δ/σ² two equations are left of IGMM's three: E w = 0, and kurtosis E w⁴/(E w²)² = 3.
    As W = a g², all derivatives follow from w: ∂g/∂d = e^(−W/2)/(1 + W), ∂g/∂a = −g³/(2 (1 + W)).
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        mu, tail = _solve(u)
        w = _squashed(u - mu[:, None], tail)
        solved = _is_solution(w)
        w = torch.where(solved[:, None], w, u)
        mu, tail = (torch.where(solved, value, 0) for value in (mu, tail))
        ctx.save_for_backward(w, tail)
        return w, mu

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mu: Tensor) -> Tensor:
        w, tail = ctx.saved_tensors
        n = w.shape[1]
        by_d, by_a = _slopes(w, tail)
        kurtosis, variance, jacobian = _equations(w, by_d, by_a)[1:]
        to_mu = grad_mu - (grad * by_d).sum(1)
        to_tail = (grad * by_a).sum(1)
        first, second = _solve_2x2(jacobian.mT, to_mu, to_tail)
        heavy = tail > 0
        first, second = (torch.where(heavy, value, 0)[:, None] / n for value in (first, second))
        kurtosis, variance = kurtosis[:, None], variance[:, None]
        by_kurtosis = 4 * w * (w.square() / variance - kurtosis) / variance
        by_kurtosis = torch.where(heavy[:, None], by_kurtosis, 0)
        return by_d * (grad - first - second * by_kurtosis)


@torch.no_grad()
def _solve(u: Tensor) -> tuple[Tensor, Tensor]:
    """μ and a by Newton's method, which starts on a subsample of a long row."""
    kurtosis = u.square().square().mean(1)
    heavy = kurtosis > 3
    # Goerg's first estimate: the Taylor expansion of the kurtosis in δ.
    delta = ((66 * kurtosis.clamp_min(3) - 162).sqrt() - 6) / 66
    delta = delta.clamp(1e-4, 0.4)
    mu, tail = torch.zeros_like(delta), delta / (1 - 2 * delta) ** 1.5
    iterations = solving.MAX_ITERATIONS
    if u.shape[1] >= 4 * START_SAMPLES:
        mu, tail = _newton(subsample(u), mu, tail, heavy, iterations)
        iterations = solving.ITERATIONS_AFTER_START
    mu, tail = _newton(u, mu, tail, heavy, iterations)
    return torch.where(heavy, mu, 0), torch.where(heavy, tail, 0)


def _newton(
    u: Tensor, mu: Tensor, tail: Tensor, heavy: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    moving = heavy
    for _ in range(iterations):
        w = _squashed(u - mu[:, None], tail)
        mean, kurtosis, _, jacobian = _equations(w, *_slopes(w, tail))
        change_tail = _solve_2x2(jacobian, -mean, 3 - kurtosis)[1]
        # Far from the root the equations are strongly curved in a, and a must stay positive.
        proposed = torch.minimum(torch.maximum(tail + change_tail, tail / 4), 4 * tail)
        change_tail = torch.where(moving, proposed - tail, 0).nan_to_num(0)
        change_mu = -(mean + jacobian[:, 0, 1] * change_tail) / jacobian[:, 0, 0]
        change_mu = torch.where(moving, change_mu, 0).nan_to_num(0).clamp(-0.5, 0.5)
        mu, tail = mu + change_mu, tail + change_tail
        moving = moving & ~settled(torch.maximum(change_mu.abs(), change_tail.abs()), tail)
        if all_done(moving):
            break
    return mu, tail


def _squashed(d: Tensor, tail: Tensor) -> Tensor:
    """g(d; a) = d exp(−W(a d²)/2)."""
    return d * torch.exp(-0.5 * lambert_w(tail[:, None] * d.square()))


def _is_solution(w: Tensor) -> Tensor:
    """Whether each row has mean 0 and kurtosis 3, to well above rounding errors, (B,)."""
    square = w.square()
    variance = square.mean(1)
    kurtosis = square.square().mean(1) / variance.square()
    tolerance = torch.finfo(w.dtype).eps ** 0.5
    centred = w.mean(1).abs() <= tolerance * variance.sqrt()
    return centred & ((kurtosis - 3).abs() <= 3 * tolerance)


def _slopes(w: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """∂g/∂d and ∂g/∂a where g = w."""
    square = w.square()
    lambert = tail[:, None] * square
    share = 1 / (1 + lambert)
    return torch.exp(-0.5 * lambert) * share, -0.5 * w * square * share


def _equations(w: Tensor, by_d: Tensor, by_a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E w, kurtosis and E w² of each row, (B,); and the Jacobian of the first two, (B, 2, 2)."""
    square, variance, mean = w.square(), w.square().mean(1), w.mean(1)
    kurtosis = square.square().mean(1) / variance.square()
    # d E w⁴/(E w²)² = E 4 w (w²/V − K) dw / V
    weight = 4 * w * (square / variance[:, None] - kurtosis[:, None])
    of_mean = torch.stack([-by_d.mean(1), by_a.mean(1)], 1)
    of_kurtosis = torch.stack([-(weight * by_d).mean(1), (weight * by_a).mean(1)], 1)
    jacobian = torch.stack([of_mean, of_kurtosis / variance[:, None]], 1)
    return mean, kurtosis, variance, jacobian


def _solve_2x2(matrix: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Cramer's rule for matrices (B, 2, 2) and right-hand sides (first, second)."""
    (a, b), (c, d) = (row.unbind(1) for row in matrix.unbind(1))
    determinant = a * d - b * c
    return (d * first - b * second) / determinant, (a * second - c * first) / determinant
