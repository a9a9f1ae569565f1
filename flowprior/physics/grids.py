"""Grids of models, and where sources and receivers are on them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flowprior.checks import check_integer, check_positive

Positions = Sequence[Sequence[int]] | Tensor


def spread(count: int, length: int) -> list[int]:
    """Middles of `count` equal parts of 0..length − 1.

    >>> spread(2, 8)
    [2, 6]
    """
    return [int((i + 0.5) * length / count) for i in range(count)]


def as_positions(name: str, positions: Positions) -> Tensor:
    """(row, column) of points, whole numbers of at least 0, (n, 2); a ValueError otherwise."""
    found = torch.as_tensor(positions)
    if found.ndim != 2 or found.shape[1] != 2 or len(found) == 0:
        raise ValueError(f"{name} has shape {tuple(found.shape)}, expected (n, 2): (row, column)")
    if found.is_complex() or not torch.equal(found.long().to(found.dtype), found):
        raise ValueError(f"{name} must be whole numbers (row, column) on the grid")
    if int(found.min()) < 0:
        raise ValueError(f"{name} holds {int(found.min())}, expected no negative index")
    return found.long()


def check_inside(name: str, positions: Tensor, shape: Sequence[int]) -> None:
    """Raise a ValueError unless all points (n, 2) are on a grid of this shape (H, W)."""
    outside = (positions >= positions.new_tensor(shape)).any(1)
    if outside.any():
        where = tuple(positions[outside][0].tolist())
        raise ValueError(f"{name} holds {where}, outside of the grid of {tuple(shape)} points")


def refined(x: Tensor, refine: int) -> Tensor:
    """Models (B, 1, H, W) on r(H − 1) + 1 by r(W − 1) + 1 points, bilinearly; r = `refine`."""
    if refine == 1:
        return x
    size = [refine * (side - 1) + 1 for side in x.shape[2:]]
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def repeated(x: Tensor, repeat: int) -> Tensor:
    """Every pixel of models (B, 1, H, W) as repeat × repeat points of a grid."""
    return x.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)


def repeated_shape(image_shape: tuple[int, int, int], repeat: int) -> tuple[int, int]:
    """Shape of the grid of images (1, H, W); a ValueError for others."""
    channels, *sides = image_shape
    if channels != 1 or min(sides) < 2:
        raise ValueError(f"waves need models (1, H > 1, W > 1), got {tuple(image_shape)}")
    check_integer("repeat", repeat, least=1)
    height, width = (repeat * side for side in sides)
    return height, width


def both_ways(spacing: float | Sequence[float]) -> tuple[float, float]:
    """Metres between rows and between columns; one number is both."""
    steps = list(spacing) if isinstance(spacing, list | tuple) else [spacing] * 2
    if len(steps) != 2:
        raise ValueError(f"spacing must be one number, or two for rows and columns, got {spacing}")
    for step in steps:
        check_positive("spacing", step)
    return float(steps[0]), float(steps[1])


def places(sources: int, receivers: int | None, length: int) -> tuple[list[int], list[int]]:
    """Sources and receivers evenly spread over a row or column; None: at every second point."""
    receivers = (length + 1) // 2 if receivers is None else receivers
    counts = {"sources": sources, "receivers": receivers}
    for name, count in counts.items():
        check_integer(name, count, least=1, most=length)
    first, second = (spread(count, length) for count in counts.values())
    return first, second
