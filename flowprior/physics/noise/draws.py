"""Random numbers that belong to an image: they depend on (seed, index of the image) alone.

So noise never depends on batch size, order, device or number of processes.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Indices = Sequence[int] | Tensor
Sample = Callable[[np.random.Generator, Tensor], np.ndarray]


def draw(like: Tensor, seed: int, indices: Indices, sample: Sample) -> Tensor:
    """Random tensor with the shape, dtype and device of `like`.

    Args:
        like: signals (B, ...), real floating point.
        seed: of the run, ≥ 0.
        indices: of the B images in the data set, integers ≥ 0.
        sample: from a generator of its own and row b of `like` to the numbers of that row.

    Raises:
        ValueError: `like`, `seed` or `indices` is not as described.
    """
    if not like.is_floating_point() or like.ndim < 2:
        raise ValueError(
            f"signals must be real floating point (B, ...), got {like.dtype} {tuple(like.shape)}"
        )
    if len(indices) != len(like):
        raise ValueError(f"indices must have one entry per image, {len(like)}, got {len(indices)}")
    rows = [
        torch.from_numpy(sample(_generator(seed, index), row))
        for row, index in zip(like.detach(), indices, strict=True)
    ]
    return torch.stack(rows).to(like) if rows else torch.zeros_like(like)


def standard_normal(like: Tensor, seed: int, indices: Indices) -> Tensor:
    """N(0, 1), the same numbers in every precision, to rounding; arguments as for `draw`."""
    return draw(like, seed, indices, lambda rng, row: rng.standard_normal(tuple(row.shape)))


def _generator(seed: int, index: int | Tensor) -> np.random.Generator:
    key = (int(seed), int(index))
    if key != (seed, index) or min(key) < 0:
        raise ValueError(f"seed and index must be integers of at least 0, got {seed} and {index}")
    # NumPy's generator, because torch's keeps 32 bits of its seed and images would share noise.
    return np.random.default_rng(key)
