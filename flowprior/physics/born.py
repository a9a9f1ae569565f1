"""Seismic imaging: waves that a known medium's perturbations scatter, to first order."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from deepinv.physics import LinearPhysics, adjoint_function
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.checks import check_integer, check_number, check_positive
from flowprior.physics.grids import both_ways, places, refined, repeated, repeated_shape
from flowprior.physics.linear import AboutGrey
from flowprior.physics.survey import DELAY, ROUNDING, Survey

WATER = 1500.0
"""Velocity of sound in water, m/s."""


class LinearizedBorn(LinearPhysics):
    r"""Scattered waves at the receivers, to first order in a perturbation of the medium: y = J x.

    x is the perturbation of the squared slowness m = 1/c² in units of the background's,
    x = δm/m₀, and y = (∂u/∂m) δm with the waves u of `Survey`. Any unit of x will do, as y scales
    with it. Where images stand for perturbations of both signs, as those of priors in [0, 1] do,
    0.5 for none, take `AboutGrey` of it. `A_adjoint` is exact for the discrete waves
    (reverse-time migration). Neither it nor gradients keep wave fields of more than one call. An
    image with a pixel that is NaN or infinite gets NaN data and a zero gradient; the others of the
    batch are unaffected.

    Reference: Siahkoohi & Herrmann, Learning by example: fast reliability-aware seismic imaging
    with normalizing flows (2021).

    Args:
        survey: sources, receivers and grid.
        background: velocities c₀ in m/s on the grid, (H, W), from the survey's `slowest` to its
            `fastest`.
        fixed_rows: from the top, that do not scatter: x is taken for 0 there.
        repeat: x has H/repeat × W/repeat pixels; each is as many points of the grid, both ways.
    """

    def __init__(
        self, survey: Survey, background: Tensor, fixed_rows: int = 0, repeat: int = 1
    ) -> None:
        check_types(LinearizedBorn.__init__, locals())
        super().__init__()
        check_integer("fixed_rows", fixed_rows, least=0)
        check_integer("repeat", repeat, least=1)
        fine = refined(background[None, None], survey.refine)[0, 0]
        if fine.shape != survey.fine_shape or any(s % repeat for s in background.shape):
            raise ValueError(
                f"background has shape {tuple(background.shape)}, expected that of the survey's "
                f"grid, a multiple of repeat={repeat}"
            )
        least, most = survey.slowest / ROUNDING, survey.fastest * ROUNDING
        if not (fine.isfinite().all() and fine.min() >= least and fine.max() <= most):
            raise ValueError(
                f"background must be velocities from slowest={survey.slowest:g} to "
                f"fastest={survey.fastest:g} m/s of the survey, got {fine.min():g} to "
                f"{fine.max():g}"
            )
        self.survey, self.fixed_rows, self.repeat = survey, fixed_rows, repeat
        self.image_shape = (1, *(side // repeat for side in background.shape))
        self.register_buffer("background", fine)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Scattered waves (B, shots, receivers, samples) of images (B, 1, H, W)."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            sides = ", ".join(map(str, self.image_shape))
            raise ValueError(f"LinearizedBorn takes (B, {sides}), got {tuple(x.shape)}")
        valid = x.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)
        perturbation = self._perturbation(torch.where(valid, x, 0))
        found = self.survey.scattered(self.background.to(x), perturbation)
        return torch.where(valid, found, torch.nan)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Images (B, 1, H, W) of records (B, shots, receivers, samples)."""
        if y.ndim != 4 or tuple(y.shape[1:]) != self.survey.data_shape:
            sides = ", ".join(map(str, self.survey.data_shape))
            raise ValueError(f"LinearizedBorn.A_adjoint takes (B, {sides}), got {tuple(y.shape)}")
        found = self.survey.migrated(self.background.to(y), y)
        shape = (len(y), *self.image_shape)
        return adjoint_function(self._perturbation, shape, y.device, y.dtype)(found)

    def _perturbation(self, x: Tensor) -> Tensor:
        """δc = −½ c₀ x on the fine grid, (B, *fine_shape)."""
        grid = repeated(x, self.repeat)
        below = torch.arange(grid.shape[2], device=x.device) >= self.fixed_rows
        grid = torch.where(below[:, None], grid, 0)
        return -0.5 * self.background.to(x) * refined(grid, self.survey.refine).squeeze(1)


def linearized_born(
    image_shape: tuple[int, int, int],
    sources: int = 8,
    receivers: int | None = None,
    spacing: float | Sequence[float] = 10.0,
    top: float = 2500.0,
    bottom: float = 4500.0,
    water_depth: float = 40.0,
    frequency: float = 25.0,
    duration: float | None = None,
    interval: float | None = None,
    simultaneous: int | None = None,
    seed: int = 0,
    repeat: int = 1,
    refine: int = 1,
    grey: float = 0.0,
) -> LinearizedBorn | AboutGrey:
    """Reflections at the surface, from below water, in a background that gets faster with depth.

    Siahkoohi & Herrmann have images of 256², spacing=[12.5, 20.0], 102 sources, 204 receivers,
    water_depth=125, top=2500, bottom=4500, duration=2 and frequency=30, which needs refine=2.

    Args:
        image_shape: (1, H, W).
        sources: number of sources, evenly spread over the first row.
        receivers: number of receivers, evenly spread over the first row; one at every second point
            if None.
        spacing: metres between points of the grid, or those between rows and between columns.
        top, bottom: velocity in m/s under the water, and in the last row; linear in between.
        water_depth: metres of water, at 1500 m/s, in which nothing scatters; 0 for none.
        frequency: peak of the wavelet's spectrum, in Hz.
        duration: of the record, in seconds; if None long enough for a reflection from the middle of
            the last row to the corners.
        interval: seconds between samples, 1/(8·frequency) if None.
        simultaneous: number n of shots with all sources at once, each with a random weight
            ~ N(0, 1/n), so that ‖y‖² is that of single shots on average; single shots if None.
        seed: of the weights, ≥ 0; without `simultaneous` there are none, so leave it out.
        repeat: points of the grid along a pixel.
        refine: waves are computed with so many times smaller a spacing (see `Survey`).
        grey: value of images that scatters nothing, 0.5 for those of priors in [0, 1]; if it is not
            0, the operator is an `AboutGrey`.

    Raises:
        ValueError: names the option.
    """
    check_types(linearized_born, locals())
    check_number("grey", grey)
    height, width = shape = repeated_shape(image_shape, repeat)
    steps = both_ways(spacing)
    check_positive("frequency", frequency)
    background, wet = _background(shape, steps[0], top, bottom, water_depth)
    if duration is None:
        way = 2 * math.hypot((height - 1) * steps[0], (width - 1) * steps[1] / 2)
        duration = 2 * DELAY / frequency + way * float((1 / background[:, 0]).mean())
    survey = Survey(
        shape,
        *([(0, column) for column in columns] for columns in places(sources, receivers, width)),
        spacing=steps,
        frequency=frequency,
        duration=duration,
        slowest=float(background.min()),
        fastest=float(background.max()),
        interval=interval,
        refine=refine,
        weights=_weights(simultaneous, sources, seed),
    )
    born = LinearizedBorn(survey, background, wet, repeat)
    return AboutGrey(born, grey) if grey else born


def _background(
    shape: tuple[int, int], spacing: float, top: float, bottom: float, water_depth: float
) -> tuple[Tensor, int]:
    """Velocities (H, W), float64, and the number of rows in water."""
    check_positive("top", top)
    check_positive("bottom", bottom)
    check_number("water_depth", water_depth, least=0)
    height, width = shape
    wet = round(water_depth / spacing)
    if wet >= height - 1:
        raise ValueError(
            f"water_depth={water_depth:g} leaves nothing below, of {(height - 1) * spacing:g} m"
        )
    rock = torch.linspace(top, bottom, height - wet, dtype=torch.float64)
    column = torch.cat([torch.full((wet,), WATER, dtype=torch.float64), rock])
    return column[:, None].expand(-1, width).clone(), wet


def _weights(simultaneous: int | None, sources: int, seed: int) -> Tensor | None:
    """Weights ~ N(0, 1/n) of simultaneous sources, (n, sources)."""
    check_integer("seed", seed, least=0)
    if simultaneous is None:
        if seed:
            raise ValueError(f"seed={seed} has no effect without simultaneous: leave it out")
        return None
    check_integer("simultaneous", simultaneous, least=1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(simultaneous, sources, generator=generator, dtype=torch.float64)
    return drawn / simultaneous**0.5
