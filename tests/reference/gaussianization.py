"""Gaussianization layers in float64 NumPy and SciPy, one sample at a time.

Equations and algorithms are numbered as in Li and Denli, "Traversing within the Gaussian Typical
Set". Moments are population moments, except for the covariance in `whiten`.
"""

from math import factorial

import numpy as np
from numpy.polynomial.polynomial import polyval
from numpy.typing import NDArray
from scipy import linalg, optimize, special, stats

Array = NDArray[np.float64]


def gaussianize(
    x: Array,
    patch_size: int = 8,
    use_whiten: bool = True,
    rotation: str = "ica",
    ica_iterations: int = 10,
    use_yeo_johnson: bool = True,
    use_lambert: bool = True,
    temperature: float = 1.0,
    passes: int = 1,
) -> Array:
    """Map a latent image (C, H, W) to one that looks like a draw from N(0, temperature² I)."""
    x = np.asarray(x, dtype=np.float64)
    for number in range(passes):
        shift = -patch_size // 2 if number % 2 else 0
        rolled = np.roll(x, (shift, shift), axis=(1, 2))
        V = patches(rolled, patch_size)
        if use_whiten:
            V, _ = whiten(V)
        if rotation == "ica":
            V, _ = ica(V, ica_iterations)
        x = np.roll(unpatch(V, x.shape, patch_size), (-shift, -shift), axis=(1, 2))
    if use_yeo_johnson:
        x, _ = yeo_johnson(x)
    if use_lambert:
        x, _ = lambert_w_gaussianize(x)
    return standardize(x, temperature)


def patches(x: Array, size: int) -> Array:
    """Cut (C, H, W) into columns (C * size * size, N), the patches in row-major order."""
    _, height, width = x.shape
    corners = [(i, j) for i in range(0, height, size) for j in range(0, width, size)]
    return np.stack([x[:, i : i + size, j : j + size].ravel() for i, j in corners], axis=1)


def unpatch(V: Array, shape: tuple[int, int, int], size: int) -> Array:
    """Undo `patches`."""
    channels, height, width = shape
    x = np.empty(shape)
    corners = [(i, j) for i in range(0, height, size) for j in range(0, width, size)]
    for (i, j), column in zip(corners, V.T, strict=True):
        x[:, i : i + size, j : j + size] = column.reshape(channels, size, size)
    return x


def whiten(V: Array, eta: float = 1e-3) -> tuple[Array, Array]:
    """Return the whitened columns and C^{-1/2}, the limit of the iteration in eqs. 18-19."""
    dimension, count = V.shape
    V = V - V.mean(axis=1, keepdims=True)
    # Where C = V Vᵀ/(N-1) + ηI is singular but for η, its own eigenvalues may round below zero.
    U, singular, _ = linalg.svd(V, full_matrices=dimension > count)
    eigenvalues = np.full(dimension, eta)
    eigenvalues[: len(singular)] += singular**2 / (count - 1)
    root = (U / np.sqrt(eigenvalues)) @ U.T
    return root @ V, root


def ica(V: Array, iterations: int = 10, damping: float = 0.8) -> tuple[Array, Array]:
    """Return Wᵀ V and the rotation W of eq. 10 (Algorithm 1), its diagonal made positive."""
    W = np.eye(len(V))
    for _ in range(iterations):
        T = np.tanh(W.T @ V)
        slope = np.sum(1 - T**2, axis=1)
        P, _, Qt = linalg.svd((damping * V @ T.T - W @ np.diag(slope)) / V.shape[1])
        W = P @ Qt
    W = W * np.where(np.diag(W) < 0, -1.0, 1.0)
    return W.T @ V, W


def yeo_johnson(x: Array) -> tuple[Array, float]:
    """Return eq. 11 and its λ, the maximum of eq. 12 (Algorithm 2); without a maximum, (x, 1)."""
    if _is_constant(x):
        return x, 1.0
    reach = 300 / np.log1p(np.abs(x)).max()  # Beyond it the powers may overflow.
    lowest, highest = 1 - reach, 1 + reach
    if not score(lowest, x) > 0 > score(highest, x):
        return x, 1.0
    start = np.clip(stats.yeojohnson_normmax(x.ravel()), lowest, highest)
    low = high = start
    width = 1e-6 * (1 + abs(start))
    while not score(low, x) > 0 > score(high, x):
        low, high, width = max(start - width, lowest), min(start + width, highest), 4 * width
    lmbda = optimize.brentq(score, low, high, args=(x,), xtol=1e-300, rtol=1e-15)
    return yeo_johnson_transform(x, lmbda), lmbda


def yeo_johnson_transform(x: Array, lmbda: float) -> Array:
    """Eq. 11 as ±w (e^{aw} - 1) / (aw), w = log(1 + |x|), a = λ for x ≥ 0 and 2 - λ for x < 0."""
    w = np.log1p(np.abs(x))
    return np.sign(x) * w * _mean_exponential(np.where(x >= 0, lmbda, 2 - lmbda) * w)


def score(lmbda: float, x: Array) -> float:
    """Derivative of the log-likelihood of eq. 12 by λ, over n; it falls strictly with λ."""
    w = np.log1p(np.abs(x))
    if x.min() >= 0 or x.max() < 0:
        # On one side of zero a common factor of 1 + |x| cancels in exact arithmetic only.
        w = w - w.min()
    t = np.where(x >= 0, lmbda, 2 - lmbda) * w
    sign = np.where(x >= 0, 1.0, -1.0)
    s = sign * w * _mean_exponential(t)
    slope = w**2 * _mean_exponential_slope(t)
    covariance = np.mean((s - s.mean()) * (slope - slope.mean()))
    return np.mean(sign * w) - covariance / s.var()


def _mean_exponential(t: Array) -> Array:
    """(e^t - 1) / t."""
    return np.where(t == 0, 1.0, np.expm1(t) / np.where(t == 0, 1.0, t))


def _mean_exponential_slope(t: Array) -> Array:
    """Derivative of (e^t - 1) / t."""
    large = np.where(np.abs(t) < 1, 1.0, t)
    small = np.where(np.abs(t) < 1, t, 0.0)
    series = polyval(small, [1 / (factorial(k) * (k + 2)) for k in range(20)])
    direct = (large * np.exp(large) - np.expm1(large)) / large**2
    return np.where(np.abs(t) < 1, series, direct)


def lambert_w(x: Array) -> Array:
    """W with W e^W = x, principal branch, x ≥ 0."""
    return special.lambertw(x).real


def heavy_tail_inverse(u: Array, delta: float) -> Array:
    """Eq. 27, sign(u) √(W(δu²)/δ), written as u e^{-W(δu²)/2}, which has no 0/0 at δ = 0."""
    return u * np.exp(-lambert_w(delta * u**2) / 2)


def lambert_w_gaussianize(
    x: Array, tolerance: float = 1e-13, iterations: int = 1000
) -> tuple[Array, tuple[float, float, float]]:
    """Return eq. 26 and the fixed point (μ, σ, δ) of Algorithm 3; identity if Kurt(x) ≤ 3."""
    mean, std = x.mean(), x.std()
    if _is_constant(x) or kurtosis(x) <= 3:
        return x, (mean, std, 0.0)
    # The fixed point moves with an affine map of x: found on s, it does not see the scale of x.
    s = (x - mean) / std
    mu, sigma, delta = 0.0, 1.0, 0.0
    for _ in range(iterations):
        u = (s - mu) / sigma
        previous = np.array([mu, sigma, delta])
        delta = tail_parameter(u)
        y = heavy_tail_inverse(u, delta) * sigma + mu
        mu, sigma = y.mean(), y.std()
        if np.abs(previous - [mu, sigma, delta]).max() < tolerance:
            y = heavy_tail_inverse((s - mu) / sigma, delta) * sigma + mu
            return y * std + mean, (mu * std + mean, sigma * std, delta)
    raise RuntimeError("The fixed point of Algorithm 3 has not converged.")


def tail_parameter(u: Array) -> float:
    """Return δ with Kurt(W_δ(u)) = 3, where eq. 28 has its minimum."""

    def excess(delta: float) -> float:
        return kurtosis(heavy_tail_inverse(u, delta)) - 3

    upper = 1.0
    while excess(upper) > 0:
        upper *= 4
        if upper > 1e12:
            raise ValueError("No δ brings the kurtosis down to 3.")
    return optimize.brentq(excess, 0, upper, xtol=1e-16, rtol=1e-15)


def kurtosis(x: Array) -> float:
    """Population kurtosis, 3 for a Gaussian."""
    centred = x - x.mean()
    return np.mean(centred**4) / np.mean(centred**2) ** 2


def standardize(x: Array, temperature: float = 1.0) -> Array:
    """Eq. 14; zeros for a constant x."""
    if _is_constant(x):
        return np.zeros_like(x)
    return temperature * (x - x.mean()) / x.std()


def _is_constant(x: Array) -> bool:
    # The standard deviation of equal numbers need not round to zero.
    return bool(x.max() == x.min())
