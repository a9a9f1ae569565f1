"""Travel-time tomography: first arrivals between sources and receivers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepinv.physics import Physics
from torch import Tensor

from flowprior.physics.travel_times import travel_times

Positions = Sequence[Sequence[int]] | Tensor


def linear_velocity(x: Tensor) -> Tensor:
    """1500 + 100 x, in m/s."""
    return 1500 + 100 * x


class EikonalTomography(Physics):
    r"""First-arrival travel times from every source to every receiver, in seconds.

    .. math:: |\nabla T| = 1 / c(x), \qquad T(x_s) = 0

    Differentiable once with respect to x. A model with a velocity that is not finite and positive
    gets NaN travel times and a zero gradient; the others of the batch are unaffected.

    Args:
        sources, receivers: (row, column) of every source or receiver, whole numbers, (n, 2).
        spacing: Metres between neighbouring grid points.
        velocity: From models (B, 1, H, W) to velocities (B, 1, H, W) in m/s.
        kwargs: Of `deepinv.physics.Physics`, such as `noise_model`.
    """

    def __init__(
        self,
        sources: Positions,
        receivers: Positions,
        spacing: float,
        velocity: Callable[[Tensor], Tensor] = linear_velocity,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (spacing > 0 and spacing < float("inf")):
            raise ValueError(f"spacing is {spacing}, expected a positive number of metres")
        self.register_buffer("sources", _positions("sources", sources))
        self.register_buffer("receivers", _positions("receivers", receivers))
        self.spacing = float(spacing)
        self.velocity = velocity

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Travel times (B, n_sources, n_receivers) of models (B, 1, H, W)."""
        times = self.travel_time_maps(x)
        rows, columns = self.receivers.to(x.device).unbind(1)
        return times[:, :, rows, columns]

    def travel_time_maps(self, x: Tensor) -> Tensor:
        """Travel times (B, n_sources, H, W) to every grid point."""
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, 1, H, W)")
        _check_inside("sources", self.sources, x.shape[2:])
        _check_inside("receivers", self.receivers, x.shape[2:])
        c = self.velocity(x)
        if c.shape != x.shape:
            raise ValueError(f"velocity(x) has shape {tuple(c.shape)}, expected {tuple(x.shape)}")
        if c.dtype not in (torch.float32, torch.float64):
            c = c.float()
        valid = (c.isfinite() & (c > 0)).flatten(1).all(1).view(-1, 1, 1, 1)
        slowness = self.spacing / torch.where(valid, c, 1.0)
        times = travel_times(slowness.squeeze(1), self.sources.to(x.device))
        return torch.where(valid, times, torch.nan)


def crosshole(
    image_shape: tuple[int, int, int],
    sources: int = 8,
    receivers: int | None = None,
    extent: float = 1280.0,
) -> EikonalTomography:
    """Sources in the left column of the grid and receivers in the right one, evenly spread.

    c = 1500 + 100 x m/s, as in Li & Denli, Gaussianization layers, section 4.2. The paper states
    neither the numbers nor the extent.

    Args:
        image_shape: (1, H, W).
        sources: their number, at most H.
        receivers: their number, at most H; H if None.
        extent: metres between the two columns.
    """
    channels, height, width = image_shape
    if channels != 1 or width < 2:
        raise ValueError(f"crosshole tomography needs models (1, H, W > 1), got {image_shape}")
    spots = {"sources": sources, "receivers": height if receivers is None else receivers}
    for name, count in spots.items():
        if not 1 <= count <= height:
            raise ValueError(f"{name} must be 1 to {height} in a grid of that height, got {count}")
    first, second = (
        [(row, column) for row in _spread(count, height)]
        for count, column in zip(spots.values(), (0, width - 1), strict=True)
    )
    return EikonalTomography(first, second, extent / (width - 1))


def _spread(count: int, length: int) -> list[int]:
    """Middles of equal parts of 0..length − 1."""
    return [int((i + 0.5) * length / count) for i in range(count)]


def _positions(name: str, positions: Positions) -> Tensor:
    found = torch.as_tensor(positions)
    if found.ndim != 2 or found.shape[1] != 2 or len(found) == 0:
        raise ValueError(f"{name} has shape {tuple(found.shape)}, expected (n, 2): (row, column)")
    if found.is_complex() or not torch.equal(found.long().to(found.dtype), found):
        raise ValueError(f"{name} must be whole numbers (row, column) on the grid")
    if int(found.min()) < 0:
        raise ValueError(f"{name} holds {int(found.min())}, expected no negative index")
    return found.long()


def _check_inside(name: str, positions: Tensor, shape: torch.Size) -> None:
    outside = (positions >= positions.new_tensor(shape)).any(1)
    if outside.any():
        where = tuple(positions[outside][0].tolist())
        raise ValueError(f"{name} holds {where}, outside of the grid of {tuple(shape)} points")
