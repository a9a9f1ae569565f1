"""First-arrival travel times by fast sweeping, and their derivative by the discrete adjoint.

|grad T| = s, T(source) = 0, by the first-order Godunov upwind scheme (Zhao, Math. Comp. 2005).
Solved for U = T + s / 2, s the slowness times the spacing, which makes the integral of s along an
axis a trapezoidal one. With a, b the smaller of the two U of the row and of the column neighbours,
each plus k s, U is the larger root of

    (U - a)^2 + (U - b)^2 = s^2    if |a - b| < s,    else  U = min(a, b) + s.

k <= 0 is the error which the upwind difference makes on the distance from the source, in units of
the spacing. So the scheme is exact around the source, where T is not smooth, as it is for the
factored eikonal equation (Fomel, Luo, Zhao, JCP 2009). It applies to neighbours nearer to the
source, where k > -0.3: U > min(a, b) - k s in any medium. Of the two neighbours in use the later
one may be later than U itself by up to -k s, and then weighs little: sweeps settle all the same,
but cells have no strict causal order.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowprior.extras import extra

# Next to the source U - s / 2 may fall below 0 where the medium is ten times slower than there.
LEAST_FRACTION = 0.05


def travel_times(slowness: Tensor, sources: Tensor) -> Tensor:
    """T (B, S, H, W), zero at its source, positive elsewhere, in the dtype of the slowness.

    Computed on the CPU in float64; a slowness on a GPU is copied there, and T back. Differentiable
    once.

    Args:
        slowness: positive slowness times spacing (B, H, W).
        sources: row and column of every source, whole numbers (S, 2).
    """
    known, sources = slowness.to("cpu", torch.float64), sources.cpu()
    u = CentredTimes.apply(known, sources)
    times = torch.maximum(u - known.unsqueeze(1) / 2, LEAST_FRACTION * u)
    at_source = torch.zeros(u.shape[1:], dtype=torch.bool)
    at_source[torch.arange(len(sources)), sources[:, 0], sources[:, 1]] = True
    return times.masked_fill(at_source, 0).to(slowness)


class CentredTimes(torch.autograd.Function):
    """U = T + s / 2 (B, S, H, W), see above."""

    @staticmethod
    def forward(slowness: Tensor, sources: Tensor) -> Tensor:
        """U from slowness times spacing (B, H, W) and sources (S, 2)."""
        return _sweeps().solve(slowness, sources)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the inputs and U."""
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient with respect to the slowness."""
        return _sweeps().solve_adjoint(*ctx.saved_tensors, gradient), None


def _sweeps() -> ModuleType:
    # Its compiler takes a second to import, and is an extra.
    with extra("tomography"):
        from flowprior.physics import sweeps
    return sweeps
