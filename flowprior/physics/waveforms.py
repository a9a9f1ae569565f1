"""Full-waveform inversion: recorded waves in media of any velocity."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from deepinv.physics import Physics
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.checks import check_integer, check_positive
from flowprior.physics.grids import both_ways, places, refined, repeated, repeated_shape
from flowprior.physics.survey import DELAY, Survey

Geometry = Literal["crosshole", "surface"]
MARGIN = 0.25
"""How far beyond [0, 1] images may go on."""


class FullWaveform(Physics):
    r"""Acoustic waves at the receivers, in media given as images: (B, 1, H, W) → (B, n, R, T).

    c = slowest + (fastest − slowest)·x m/s for x in [0, 1]. Beyond, velocities level off smoothly
    within a quarter of the range, so that time steps stay stable whatever a prior makes. Waves are
    those of `Survey`, differentiable once with respect to x. An image with a pixel that is NaN or
    infinite gets NaN data and a zero gradient; the others of the batch are unaffected.

    Args:
        survey: sources, receivers and grid; its `fastest` at least `limits[1]`.
        slowest, fastest: velocities of 0 and 1 in m/s.
        lowpass: the highest frequency in Hz that is looked at, see `lowpassed`; all if None.
        repeat: x has H/repeat × W/repeat pixels; each is as many points of the grid, both ways.

    Attributes:
        limits: velocities of the darkest and the brightest images, in m/s.
    """

    def __init__(
        self,
        survey: Survey,
        slowest: float = 2000.0,
        fastest: float = 3000.0,
        lowpass: float | None = None,
        repeat: int = 1,
    ) -> None:
        check_types(FullWaveform.__init__, locals())
        super().__init__()
        self.limits = velocity_limits(slowest, fastest)
        if self.limits[1] > survey.fastest * (1 + 1e-9):
            raise ValueError(
                f"fastest={fastest:g} needs a survey with fastest={self.limits[1]:g} or more, for "
                f"images beyond 1, got {survey.fastest:g}"
            )
        check_integer("repeat", repeat, least=1)
        self.survey, self.slowest, self.fastest = survey, slowest, fastest
        self.lowpass, self.repeat = lowpass, repeat
        _check_lowpass(lowpass, survey)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Records (B, shots, receivers, samples) of images (B, 1, H, W)."""
        valid = x.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)
        c = self.velocity(torch.where(valid, x, 0))
        return self.lowpassed(torch.where(valid, self.survey.recorded(c), torch.nan))

    def velocity(self, x: Tensor) -> Tensor:
        """Velocities in m/s on the grid of the waves of images (B, 1, H, W)."""
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, 1, H, W)")
        grid = repeated(x, self.repeat)
        margin = (self.limits[1] - self.fastest) / (self.fastest - self.slowest)
        inside = grid.clamp(0, 1)
        bounded = inside + margin * torch.tanh((grid - inside) / margin)
        c = self.slowest + (self.fastest - self.slowest) * refined(bounded, self.survey.refine)
        if tuple(c.shape[2:]) != self.survey.fine_shape:
            sides = [(s - 1) // self.survey.refine + 1 for s in self.survey.fine_shape]
            expected = ", ".join(str(side // self.repeat) for side in sides)
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, 1, {expected})")
        return c.squeeze(1)

    def lowpassed(self, record: Tensor) -> Tensor:
        r"""The part of records (..., samples) up to the frequency `lowpass`, with fewer samples.

        It is the series of lowest frequencies of the discrete Fourier series, at as many points of
        time as it has numbers, times √(samples/fewer samples). So it is an orthogonal projection:
        white noise in the record is white noise here, with the same σ, and the misfit of data y
        that `lowpassed(y)` gives is that of y in this band.
        """
        if self.lowpass is None:
            return record
        highest = _highest(self.lowpass, self.survey)
        spectrum = torch.fft.rfft(record, norm="ortho")[..., : highest + 1]
        return torch.fft.irfft(spectrum, 2 * highest + 1, norm="ortho")

    def with_lowpass(self, lowpass: float | None) -> Self:
        """The same operator up to another frequency in Hz; None for all."""
        _check_lowpass(lowpass, self.survey)
        other = copy.copy(self)
        other.lowpass = lowpass
        return other


def full_waveform(
    image_shape: tuple[int, int, int],
    sources: int = 8,
    receivers: int | None = None,
    geometry: Geometry = "crosshole",
    slowest: float = 2000.0,
    fastest: float = 3000.0,
    spacing: float | Sequence[float] = 10.0,
    frequency: float = 20.0,
    lowpass: float | None = None,
    duration: float | None = None,
    interval: float | None = None,
    repeat: int = 1,
    refine: int = 1,
    stride: int = 1,
) -> FullWaveform:
    """Waves between two boreholes, or at the surface, in media of slowest to fastest m/s.

    Args:
        image_shape: (1, H, W).
        sources: number of sources, evenly spread over the left column, or the first row.
        receivers: number of receivers, evenly spread over the right column, or the first row; one
            at every second point if None.
        geometry: "crosshole", or "surface".
        slowest, fastest: velocities of 0 and 1 in m/s.
        spacing: metres between points of the grid, or those between rows and between columns.
        frequency: peak of the wavelet's spectrum, in Hz.
        lowpass: the highest frequency in Hz that is looked at (see `FullWaveform.lowpassed`).
        duration: of the record, in seconds; if None long enough for the longest straight way
            between the boreholes, or for a reflection from the middle of the last row to the
            corners.
        interval: seconds between samples, 1/(8·frequency) if None.
        repeat: points of the grid along a pixel.
        refine: waves are computed with so many times smaller a spacing (see `Survey`).
        stride: time steps between those that gradients sum over (see `Survey`).
    """
    check_types(full_waveform, locals())
    height, width = shape = repeated_shape(image_shape, repeat)
    check_positive("frequency", frequency)
    steps, limits = both_ways(spacing), velocity_limits(slowest, fastest)
    down, over = (height - 1) * steps[0], (width - 1) * steps[1]
    if geometry == "crosshole":
        first, second = places(sources, receivers, height)
        points = [(row, 0) for row in first], [(row, width - 1) for row in second]
        way = math.hypot(down, over)
    else:
        points = ([(0, c) for c in columns] for columns in places(sources, receivers, width))
        way = math.hypot(2 * down, over)
    if duration is None:
        duration = 2 * DELAY / frequency + way / slowest
    survey = Survey(
        shape,
        *points,
        spacing=steps,
        frequency=frequency,
        duration=duration,
        slowest=slowest,
        fastest=limits[1],
        interval=interval,
        refine=refine,
        stride=stride,
    )
    return FullWaveform(survey, slowest, fastest, lowpass, repeat)


def velocity_limits(slowest: float, fastest: float) -> tuple[float, float]:
    """Velocities that images beyond [0, 1] stay between, in m/s."""
    check_positive("slowest", slowest)
    check_positive("fastest", fastest)
    if fastest <= slowest:
        raise ValueError(f"fastest must be above slowest={slowest:g}, got {fastest:g}")
    margin = min(MARGIN * (fastest - slowest), slowest / 2)
    return slowest - margin, fastest + margin


def _highest(lowpass: float, survey: Survey) -> int:
    """Number of the highest frequency of the record's Fourier series up to `lowpass`."""
    return int(lowpass * survey.data_shape[2] * survey.interval * (1 + 1e-9))


def _check_lowpass(lowpass: float | None, survey: Survey) -> None:
    if lowpass is None:
        return
    check_positive("lowpass", lowpass)
    samples = survey.data_shape[2]
    lowest = 1 / (samples * survey.interval)
    if not 1 <= _highest(lowpass, survey) < (samples - 1) / 2:
        raise ValueError(
            f"lowpass must be between {lowest:.3g} and {(samples - 1) / 2 * lowest:.3g} Hz for "
            f"records of {samples} samples, got {lowpass:g}; leave it out for all frequencies"
        )
