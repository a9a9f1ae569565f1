"""Conditions of flows: their shapes, and how the levels of a multi-scale flow see them."""

import torch.nn.functional as F
from torch import Tensor


def check_condition_shape(shape: object, image_size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of conditions: (K,), or (K, H, W) with the sides of the images.

    Raises:
        ValueError: it is another one.
    """
    sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
    positive = bool(sizes) and all(isinstance(n, int) and n >= 1 for n in sizes)
    if not positive or len(sizes) not in (1, 3) or (len(sizes) == 3 and sizes[1:] != image_size):
        height, width = image_size
        raise ValueError(
            f"condition_shape must be (K,), or (K, {height}, {width}) as the images, got {shape}"
        )
    return sizes


def condition_channels(shape: tuple[int, ...] | None, level: int) -> int:
    """Channels of what `at_levels` gives a level; 0 without a condition."""
    if shape is None:
        return 0
    return shape[0] if len(shape) == 1 else shape[0] * 4 ** (level + 1)


def at_levels(condition: Tensor, size: tuple[int, int], levels: int) -> list[Tensor]:
    """A condition (B, K) or (B, K, H, W) at the resolution of each level, finest first.

    Vectors become constant planes; images are squeezed 2×2 as the flow's own.
    """
    height, width = size
    if condition.ndim == 4:
        return [F.pixel_unshuffle(condition, 2 ** (level + 1)) for level in range(levels)]
    planes = condition[..., None, None]
    sides = [2 ** (level + 1) for level in range(levels)]
    return [planes.expand(-1, -1, height // side, width // side) for side in sides]
