"""What a posterior says of each pixel and of each frequency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.checks import check_integer
from flowprior.figures import image_panels
from flowprior.inversion.solving import Posterior
from flowprior.inversion.warned import named_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Summary:
    """Summaries of draws of images, (B, C, H, W) each.

    Args:
        mean: of each pixel.
        deviation: standard deviation of each pixel.
        absolute_deviation: mean of |x − mean| of each pixel.
        fourier_deviation: √E|F − E F|² of each frequency of the orthonormal Fourier transform F,
            the zero frequency in the middle (at H // 2, W // 2). What the data leave open lights
            up, such as the cone of directions that limited-angle tomography misses.
    """

    mean: Tensor
    deviation: Tensor
    absolute_deviation: Tensor
    fourier_deviation: Tensor

    def figure(self, image: int = 0, truth: Tensor | None = None) -> Figure:
        """All four of one image of the batch, and the truth (B, C, H, W) if it is given.

        Images have colours from 0 to 1, deviations, and the error of the mean beside them, from 0
        to the largest of them.
        """
        images = {} if truth is None else {"truth": truth}
        images |= {"mean": self.mean}
        errors = {} if truth is None else {"|mean − truth|": (self.mean - truth).abs()}
        others = [field.name for field in fields(self) if field.name != "mean"]
        errors |= {name.replace("_", " "): getattr(self, name) for name in others}
        # Deviations are no colours.
        errors = {name: one[image].mean(0, keepdim=True) for name, one in errors.items()}
        *pixels, fourier = ((name, one.max().item()) for name, one in errors.items())
        most = max(largest for _, largest in pixels)
        ranges = {name: (0.0, 1.0) for name in images}
        ranges |= {name: (0.0, most) for name, _ in pixels} | {fourier[0]: (0.0, fourier[1])}
        return image_panels({n: one[image] for n, one in images.items()} | errors, ranges)


def summarise(posterior: Posterior, count: int = 256, *, seed: int = 0, chunk: int = 32) -> Summary:
    """Summarise `count` draws, `chunk` of them at a time, so that memory does not grow with count.

    The chunks are drawn twice, the second time for the absolute deviation, which takes the mean.

    Args:
        posterior: as an `Estimate` has it.
        count: number of draws, at least 2.
        seed: of the draws.
        chunk: number of draws at once.

    Raises:
        ValueError: an argument is wrong, or draws are not as many as asked for or not finite.
    """
    check_types(summarise, locals())
    check_integer("count", count, least=2)
    check_integer("seed", seed, least=0)
    check_integer("chunk", chunk, least=1)
    pixels, frequencies = Moments(), Moments()
    for draws in chunks(posterior, count, seed, chunk):
        dtype = draws.dtype
        pixels.update(draws)
        frequencies.update(_transformed(draws))
    mean, total = pixels.mean, torch.zeros_like(pixels.mean)
    for draws in chunks(posterior, count, seed, chunk):
        total += (draws - mean).abs().sum(0)
    found = mean, pixels.deviation, total / count, frequencies.deviation
    return Summary(*(values.to(dtype) for values in found))


def chunks(posterior: Posterior, count: int, seed: int, chunk: int) -> Iterator[Tensor]:
    """Draws (k, B, C, H, W) in chunks of at most `chunk`, `count` in all.

    Raises:
        ValueError: the posterior gives another number of draws, or some are not finite.
    """
    for number, start in enumerate(range(0, count, chunk)):
        own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        asked = min(chunk, count - start)
        yield drawn(posterior, asked, own)


def drawn(posterior: Posterior, count: int, seed: int, rows: Tensor | None = None) -> Tensor:
    """Draws (count, B, C, H, W), those of `rows` (B,) finite, or all without it.

    Raises:
        ValueError: the posterior gives another number of draws, or some are not finite.
    """
    draws = posterior.sample(count, seed=seed)
    if draws.ndim != 5 or len(draws) != count:
        raise ValueError(f"posterior must give {count} draws of images, got {(*draws.shape,)}")
    wrong = (~draws.isfinite()).transpose(0, 1).flatten(1).any(1)
    if rows is not None:
        wrong &= rows.to(wrong.device)
    if wrong.any():
        raise ValueError(f"posterior: draws of {named_rows(wrong)} are not finite")
    return draws


def _transformed(draws: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.fft2(draws.double(), norm="ortho"), dim=(-2, -1))


class Moments:
    """Mean and standard deviation of draws that come in chunks, by Chan's form of Welford's update.

    Attributes:
        count: number of draws so far.
        mean: of each entry, float64 or complex.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, draws: Tensor) -> None:
        """Take draws (k, ...) into account."""
        draws = draws if draws.is_complex() else draws.double()
        new, mean = len(draws), draws.mean(0)
        squares = (draws - mean).abs().square().sum(0)
        if self.mean is None:
            self.count, self.mean, self._squares = new, mean, squares
            return
        total, step = self.count + new, mean - self.mean
        self.mean = self.mean + step * (new / total)
        self._squares += squares + step.abs().square() * (self.count * new / total)
        self.count = total

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each entry, with divisor count − 1."""
        return (self._squares / (self.count - 1)).sqrt()
