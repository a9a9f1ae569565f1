"""Linear algebra of images (B, C, H, W), each row of a batch by itself."""

from collections.abc import Callable

import torch
from torch import Tensor

TINY = 1e-30
"""In place of 0 where something is divided by it."""
ROUNDING = 12**-0.5 / 256
"""Standard deviation of the rounding of 8-bit images in [0, 1]."""


def cosines(size: int) -> Tensor:
    """The orthonormal matrix of the discrete cosine transform (DCT-II), one row a frequency.

    >>> torch.allclose(cosines(4) @ cosines(4).mT, torch.eye(4, dtype=torch.float64))
    True
    """
    points = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    frequencies = torch.arange(size, dtype=torch.float64)[:, None]
    waves = torch.cos(torch.pi * frequencies * points) * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves


def conjugate_gradients(
    bend: Callable[[Tensor], Tensor], residual: Tensor, iterations: int, tolerance: float = 0.0
) -> Tensor:
    """Images z with bend(z) = residual, from z = 0 on: those of least norm, if there are several.

    Args:
        bend: linear, symmetric and positive, on images (B, C, H, W).
        residual: images (B, C, H, W).
        iterations: their number.
        tolerance: an image ends where its residual is at most this part of the first one; what is
            left may be rounding errors that `bend` does not see, along which steps have no length.
    """
    change, direction, size = torch.zeros_like(residual), residual, square(residual)
    enough = tolerance**2 * size
    for _ in range(iterations):
        bent = bend(direction)
        pace = size / dot(direction, bent).clamp(min=TINY)
        pace = torch.where(size > enough, pace, 0)
        change, residual = change + pace * direction, residual - pace * bent
        before, size = size, square(residual)
        direction = residual + size / before.clamp(min=TINY) * direction
    return change


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product of each image, (B, 1, 1, 1)."""
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)


def square(x: Tensor) -> Tensor:
    """Squared norm of each image, (B, 1, 1, 1)."""
    return dot(x, x)
