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
    _check_rows(like)
    if not like.is_floating_point():
        raise ValueError(f"signals must be real floating point for this noise, got {like.dtype}")
    if len(indices) != len(like):
        raise ValueError(f"indices must have one entry per image, {len(like)}, got {len(indices)}")
    rows = [
        torch.from_numpy(sample(_generator(seed, index), row))
        for row, index in zip(like.detach(), indices, strict=True)
    ]
    return torch.stack(rows).to(like) if rows else torch.zeros_like(like)


def standard_normal(like: Tensor, seed: int, indices: Indices) -> Tensor:
    """N(0, 1), the same numbers in every precision, to rounding; arguments as for `draw`.

    `like` may be complex: N(0, 1) of either part, the real and the imaginary one.
    """
    if like.is_complex():
        _check_rows(like)
        return torch.view_as_complex(
            standard_normal(torch.view_as_real(like.resolve_conj()), seed, indices)
        )
    return draw(like, seed, indices, lambda rng, row: rng.standard_normal(tuple(row.shape)))


def _check_rows(like: Tensor) -> None:
    if like.ndim < 2:
        raise ValueError(
            f"signals must be (B, ...) of two dimensions or more, got {tuple(like.shape)}: one "
            "number for each image is (B, 1)"
        )


def _generator(seed: int, index: int | Tensor) -> np.random.Generator:
    key = (int(seed), int(index))
    if key != (seed, index) or min(key) < 0:
        raise ValueError(f"seed and index must be integers of at least 0, got {seed} and {index}")
    # NumPy's generator, because torch's keeps 32 bits of its seed and images would share noise.
    return np.random.default_rng(key)
