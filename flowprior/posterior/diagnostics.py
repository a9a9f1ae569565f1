"""Whether Markov chains have run for long enough."""

import math

import torch
from torch import Tensor

LEAST = 8
"""Draws of each chain without which nothing can be said."""


def r_hat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat of draws (N, chains, ...) of scalars, (...); near 1 if mixed.

    The larger one of that of the draws and of that of their distances from the median. NaN for
    fewer than 8 draws of each chain, or where all draws are equal.

    Reference: Vehtari et al., Rank-normalization, folding, and localization: an improved R-hat for
    assessing convergence of MCMC (2021), section 4.
    """
    if len(draws) < LEAST:
        return draws.new_full(draws.shape[2:], math.nan, dtype=torch.float64)
    return torch.stack([_split_r_hat(scores) for scores in _both_scores(draws)]).amax(0)


def effective_draws(draws: Tensor) -> Tensor:
    """Number of independent draws that tell as much as these (N, chains, ...) of scalars, (...).

    The bulk effective sample size, of rank-normalised split chains: the smaller one of that of the
    draws, for means, and of that of their distances from the median, for deviations. The sum of
    autocorrelations ends where those of two lags become negative (Geyer). NaN as for `r_hat`.

    Reference: Vehtari et al. (2021), eq. 10–13.
    """
    if len(draws) < LEAST:
        return draws.new_full(draws.shape[2:], math.nan, dtype=torch.float64)
    return torch.stack([_effective(scores) for scores in _both_scores(draws)]).amin(0)


def _effective(scores: Tensor) -> Tensor:
    count, chains = scores.shape[:2]
    within, total = _variances(scores)
    correlation = 1 - (within - _autocovariance(scores).mean(1)) / total
    correlation[0] = 1
    pairs = correlation[: count // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    kept = (pairs > 0).cumprod(0)
    time = 2 * (pairs.clamp(min=0).cummin(0).values * kept).sum(0) - 1
    return chains * count / time.clamp(min=1 / math.log10(chains * count))


def _both_scores(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Normal scores of split draws, and of their distances from the median."""
    halves = _split(draws.double())
    distances = (halves - halves.flatten(0, 1).median(0).values).abs()
    return _normal_scores(halves), _normal_scores(distances)


def _split(draws: Tensor) -> Tensor:
    """Chains cut into halves, (N // 2, 2 chains, ...)."""
    half = len(draws) // 2
    return torch.cat([draws[:half], draws[-half:]], 1)


def _normal_scores(draws: Tensor) -> Tensor:
    """Normal quantiles of the ranks among all chains (Vehtari et al., eq. 14)."""
    flat = draws.flatten(0, 1)
    ranks = flat.argsort(dim=0, stable=True).argsort(dim=0) + 1
    scores = torch.special.ndtri((ranks.double() - 0.375) / (len(flat) + 0.25))
    constant = (flat == flat[:1]).all(0)
    return scores.masked_fill(constant, math.nan).unflatten(0, draws.shape[:2])


def _variances(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Within chains, and of all as estimated from within and between them (eq. 1–3)."""
    count = len(draws)
    within = draws.var(0).mean(0)
    return within, (count - 1) / count * within + draws.mean(0).var(0)


def _split_r_hat(draws: Tensor) -> Tensor:
    within, total = _variances(draws)
    return (total / within).sqrt()


def _autocovariance(draws: Tensor) -> Tensor:
    """At lags 0 to N − 1, with divisor N, along the first axis."""
    count = len(draws)
    spectrum = torch.fft.rfft(draws - draws.mean(0), n=2 * count, dim=0)
    return torch.fft.irfft(spectrum.abs().square(), n=2 * count, dim=0)[:count] / count
