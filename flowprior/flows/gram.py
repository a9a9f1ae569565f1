"""Volumes of injective maps: ½ log det JᵀJ."""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

CHUNK = 16
"""Derivatives taken at once; they bound the memory."""
SAFETY = 0.9
POWER_ITERATIONS = 30


def half_log_det_gram(
    function: Callable[[Tensor], Tensor], w: Tensor, chunk: int = CHUNK
) -> Tensor:
    """½ log det JᵀJ of an injective function at each w, (B,), in nats: exact, and differentiable.

    d forward-mode derivatives give the Jacobian J (D, d) of each row, and float64 its Gram matrix.

    Args:
        function: maps (B, ...) with d entries each to (B, ...) with D ≥ d entries, row by row, by
            operations that have forward-mode derivatives.
        w: where, (B, ...).
        chunk: derivatives taken at once.
    """
    jacobian = jacobian_by_columns(function, w, chunk).double()
    return (0.5 * torch.linalg.slogdet(jacobian.mT @ jacobian)[1]).to(w.dtype)


def jacobian_by_columns(
    function: Callable[[Tensor], Tensor], w: Tensor, chunk: int = CHUNK
) -> Tensor:
    """The Jacobian of each row, (B, D, d), by d forward-mode derivatives."""
    _first_derivative()
    size = w[0].numel()
    directions = torch.eye(size, dtype=w.dtype, device=w.device)
    directions = directions.view(size, 1, *w.shape[1:]).expand(-1, *w.shape)

    def column(direction: Tensor) -> Tensor:
        return jvp(function, (w,), (direction,))[1].flatten(1)

    return vmap(column, chunk_size=chunk)(directions).permute(1, 2, 0)


@torch.no_grad()
def neumann_half_log_det_gram(
    function: Callable[[Tensor], Tensor],
    w: Tensor,
    *,
    terms: int = 10,
    probes: int = 1,
    seed: int = 0,
) -> Tensor:
    r"""The published estimate of ½ log det JᵀJ, (B,), in nats; biased, for comparison.

    .. math:: \log\det J^T J \approx -\sum_{k=1}^{n} \frac1k v^T (I - \alpha J^T J)^k v
        - d \log\alpha, \qquad v \sim N(0, I)

    α is 0.9 / λ_max, with λ_max of JᵀJ by power iteration. What the series leaves out is positive:
    an eigenvalue λ counts as at least exp(−(1 + ½ + … + 1/n)) λ_max / 0.9, so that the estimate is
    too large as soon as the condition number of JᵀJ is beyond about 10.

    Reference: Kothari et al., "Trumpets" (2021), section 3.3 and algorithm 2 (where
    MaxSingularValue(J) must be that of JᵀJ).

    Args:
        function: as for `half_log_det_gram`.
        w: where, (B, ...).
        terms: n of the series.
        probes: number of vectors v, whose mean is taken.
        seed: of the vectors.
    """
    _first_derivative()
    size = w[0].numel()
    _, pull = vjp(function, w)

    def gram(v: Tensor) -> Tensor:
        return pull(jvp(function, (w,), (v,))[1])[0]

    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Tensor:
        return torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)

    v = drawn()
    for _ in range(POWER_ITERATIONS):
        v = gram(v / _norm(v))
    alpha = SAFETY / _norm(v)
    total = torch.zeros(len(w), dtype=torch.float64, device=w.device)
    for _ in range(probes):
        probe = rest = drawn()
        for k in range(1, terms + 1):
            rest = rest - alpha * gram(rest)
            total -= (rest * probe).flatten(1).double().sum(1) / k
    log_alpha = alpha.flatten().double().log()
    return (0.5 * (total / probes - size * log_alpha)).to(w.dtype)


@cache
def _first_derivative() -> None:
    """Torch compiles its forward-mode rules at the first use, and warns of its own compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


def _norm(v: Tensor) -> Tensor:
    """Norm of each row, (B, 1, ..., 1)."""
    return v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
