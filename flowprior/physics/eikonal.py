"""Travel-time tomography: first arrivals between sources and receivers."""

from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import Physics
from torch import Tensor

from flowprior.checks import check_integer, check_positive
from flowprior.physics.grids import Positions, as_positions, check_inside, refined, spread
from flowprior.physics.travel_times import travel_times


def linear_velocity(x: Tensor) -> Tensor:
    """1500 + 100 x, in m/s."""
    return 1500 + 100 * x


class EikonalTomography(Physics):
    r"""First-arrival travel times from every source to every receiver, in seconds.

    .. math:: |\nabla T| = 1 / c(x), \qquad T(x_s) = 0

    Differentiable once with respect to x. A model with a velocity that is not finite and positive
    gets NaN travel times and a zero gradient; the others of the batch are unaffected.

    Data that are made and inverted on one grid share its discretisation error (the inverse crime).
    With refine = r, x is interpolated bilinearly onto a grid with r times smaller spacing, on which
    the times between the same points are computed; data made with refine=4, say, and inverted with
    refine=1 differ by the error of the coarse grid.

    Args:
        sources, receivers: (row, column) of every source or receiver, whole numbers, (n, 2).
        spacing: metres between neighbouring grid points of x.
        velocity: from models (B, 1, H, W) to velocities (B, 1, H, W) in m/s.
        refine: r ≥ 1; the fine grid has r(H − 1) + 1 by r(W − 1) + 1 points.
    """

    def __init__(
        self,
        sources: Positions,
        receivers: Positions,
        spacing: float,
        velocity: Callable[[Tensor], Tensor] = linear_velocity,
        refine: int = 1,
    ) -> None:
        super().__init__()
        check_positive("spacing", spacing)
        check_integer("refine", refine, least=1)
        self.register_buffer("sources", as_positions("sources", sources))
        self.register_buffer("receivers", as_positions("receivers", receivers))
        self.spacing = float(spacing)
        self.velocity = velocity
        self.refine = refine

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Travel times (B, n_sources, n_receivers) of models (B, 1, H, W)."""
        times = self.travel_time_maps(x)
        rows, columns = self.receivers.to(x.device).unbind(1)
        return times[:, :, rows, columns]

    def travel_time_maps(self, x: Tensor) -> Tensor:
        """Travel times (B, n_sources, H, W) to every grid point of x."""
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, 1, H, W)")
        check_inside("sources", self.sources, x.shape[2:])
        check_inside("receivers", self.receivers, x.shape[2:])
        fine = refined(x, self.refine)
        c = self.velocity(fine)
        if c.shape != fine.shape:
            raise ValueError(
                f"velocity(x) has shape {tuple(c.shape)}, expected {tuple(fine.shape)}"
            )
        if c.dtype not in (torch.float32, torch.float64):
            c = c.float()
        valid = (c.isfinite() & (c > 0)).flatten(1).all(1).view(-1, 1, 1, 1)
        slowness = self.spacing / self.refine / torch.where(valid, c, 1.0)
        times = travel_times(slowness.squeeze(1), self.sources * self.refine)
        return torch.where(valid, times[..., :: self.refine, :: self.refine], torch.nan)


def crosshole(
    image_shape: tuple[int, int, int],
    sources: int = 8,
    receivers: int | None = None,
    extent: float = 1280.0,
    refine: int = 1,
) -> EikonalTomography:
    """Sources in the left column of the grid and receivers in the right one, evenly spread.

    c = 1500 + 100 x m/s, as in Li & Denli, Gaussianization layers, section 4.2. The paper states
    neither the numbers nor the extent.

    Args:
        image_shape: (1, H, W).
        sources: number of sources, at most H.
        receivers: number of receivers, at most H; H if None.
        extent: metres between the two columns, > 0.
        refine: computes on a grid with this many times smaller spacing, see `EikonalTomography`.
    """
    channels, height, width = image_shape
    if channels != 1 or width < 2:
        raise ValueError(f"crosshole tomography needs models (1, H, W > 1), got {image_shape}")
    counts = {"sources": sources, "receivers": height if receivers is None else receivers}
    for name, count in counts.items():
        check_integer(name, count, least=1, most=height)
    check_positive("extent", extent)
    first, second = (
        [(row, column) for row in spread(count, height)]
        for count, column in zip(counts.values(), (0, width - 1), strict=True)
    )
    return EikonalTomography(first, second, extent / (width - 1), refine=refine)
