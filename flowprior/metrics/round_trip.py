"""Whether a flow comes back to images that it was not trained on."""

import math
from typing import Protocol

import torch
from torch import Tensor

from flowprior.argument_types import check_types


class Bijection(Protocol):
    """What a round trip needs of a flow."""

    image_shape: tuple[int, int, int]
    data_range: tuple[float, float]
    like: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to latents and log-determinants."""

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents to images and log-determinants."""


def unusual_images(
    image_shape: tuple[int, int, int], count: int = 16, seed: int = 0
) -> dict[str, Tensor]:
    """Images by kind, (count, C, H, W) each, in [0, 1]: what few data sets are made of.

    Uniform noise; salt noise (white pixels on black, from 2 to 50 %); checkerboards with squares of
    1 to 8 pixels at different contrasts; constants from black to white; ramps at different angles.

    >>> {kind: tuple(x.shape) for kind, x in unusual_images((1, 8, 8), 4).items()}["ramps"]
    (4, 1, 8, 8)
    """
    check_types(unusual_images, locals())
    generator = torch.Generator().manual_seed(seed)
    steps = torch.linspace(0, 1, count)[:, None, None, None]
    channels, height, width = image_shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    squares = 2 ** (torch.arange(count) % 4)[:, None, None, None]
    board = ((rows // squares + columns // squares) % 2).float()
    angles = 2 * math.pi * (1 - 1 / count) * steps
    ramp = torch.cos(angles) * (rows / height - 0.5) + torch.sin(angles) * (columns / width - 0.5)
    noise = torch.rand(2, count, *image_shape, generator=generator)
    images = {
        "uniform noise": noise[0],
        "salt noise": (noise[1] < 0.02 + 0.48 * steps).float(),
        "checkerboards": 0.5 + (board - 0.5) * (1 - 0.8 * steps),
        "constants": steps,
        "ramps": 0.5 + 0.7 * ramp,
    }
    return {
        kind: values.expand(count, channels, height, width).clone()
        for kind, values in images.items()
    }


@torch.no_grad()
def worst_round_trip(flow: Bijection, images: Tensor) -> float:
    """Largest |x − G(G⁻¹(x))| over images (B, C, H, W) in [0, 1], in units of the data range.

    1e30 where it is not finite, so that every format can hold it.
    """
    check_types(worst_round_trip, locals())
    low, high = flow.data_range
    x = low + (high - low) * images.to(flow.like)
    back = flow.decode(flow.encode(x)[0])[0]
    worst = ((back - x).abs().max() / (high - low)).item()
    return worst if math.isfinite(worst) else 1e30


def unusual_round_trips(flow: Bijection) -> dict[str, float]:
    """The worst round trip of each kind of unusual images."""
    check_types(unusual_round_trips, locals())
    return {
        kind: worst_round_trip(flow, images)
        for kind, images in unusual_images(flow.image_shape).items()
    }
