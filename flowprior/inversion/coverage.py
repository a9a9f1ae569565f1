"""Does the prior cover what was measured? A test of latents and residuals."""

from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.inversion.problem import Problem

UNLIKELY = 3.2905
"""Surprise that at most one image in 1000 exceeds: half of 0.001 for each of its two parts."""
FAR = 10.0
"""Surprise to warn of: descents with trained flows end beyond `UNLIKELY` for their own images too.

Chosen by docs/coverage_study.py; no false-alarm rate is derived for it.
"""


def surprise(z: Tensor, residual: Tensor, problem: Problem) -> Tensor:
    r"""How far latents and residuals are beyond those of images that the prior makes, (B,) float64.

    For a linear G(z), a linear operator, m data with normal noise and the most probable latent z of
    n numbers, ‖z‖² is at most a χ² variable of min(n, m) degrees of freedom, and the sum of squares
    of the residual one of m: both are sums of m independent χ² variables with weights of at most 1,
    those of ‖z‖² being s²/(s² + 1) for the singular values s of A·G in units of the noise. The
    larger of the two, each turned into a standard normal variable by its cube root, is above 3.29
    for at most one image in 1000 that the prior makes. For other priors and operators this is a
    rule of thumb. Where the data say little of most latents, the first bound is far away.

    References: Box, Sampling and Bayes' inference in scientific modelling (1980), for tests of a
    prior by its data; Wilson & Hilferty, The distribution of chi-square (1931), for the cube root.

    Args:
        z: latents (B, ...) that minimise misfit − log N(z; 0, I).
        residual: rms in units of the noise, (B,), as an `Estimate` has it.
        problem: what was measured; entries of y that are exactly 0 count as not observed.
    """
    check_types(surprise, locals())
    observed = (problem.y != 0).flatten(1).sum(1) * (2 if problem.y.is_complex() else 1)
    latent = _normal(z.flatten(1).double().square().sum(1), observed.clamp(max=z[0].numel()))
    return latent.maximum(_normal(residual.double().square() * observed, observed))


def _normal(square: Tensor, degrees: Tensor) -> Tensor:
    """χ² variables (B,) as standard normal ones, to about 1 % of a standard deviation."""
    width = 2 / (9 * degrees.clamp(min=1).double())
    ratios = (square / degrees.clamp(min=1)).tolist()
    # torch rounds powers of whole vectors otherwise than those of what is left over.
    roots = square.new_tensor([ratio ** (1 / 3) for ratio in ratios])
    return (roots - 1 + width) / width.sqrt()
