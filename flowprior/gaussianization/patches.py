"""Latents as matrices of patches."""

import torch
from torch import Tensor


def to_patches(x: Tensor, size: int) -> Tensor:
    r"""Cut latents into non-overlapping patches, one per column.

    Images (B, C, H, W) give (B, C·size², N), entries ordered (C, row, column) and patches row by
    row; vectors (B, n) give (B, size, n/size), a patch being `size` entries in a row.
    """
    _check(x.shape, size)
    if x.ndim == 2:
        return x.unflatten(1, (-1, size)).mT
    batch, channels, height, width = x.shape
    grid = x.reshape(batch, channels, height // size, size, width // size, size)
    return grid.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels * size**2, -1)


def from_patches(patches: Tensor, shape: torch.Size, size: int) -> Tensor:
    """Inverse of `to_patches` for latents of this shape."""
    if len(shape) == 2:
        return patches.mT.reshape(shape)
    batch, channels, height, width = shape
    grid = patches.reshape(batch, channels, size, size, height // size, width // size)
    return grid.permute(0, 1, 4, 2, 5, 3).reshape(shape)


def _check(shape: torch.Size, size: int) -> None:
    if len(shape) not in (2, 4):
        raise ValueError(f"a latent must be (B, C, H, W) or (B, n), got {tuple(shape)}")
    sides = shape[1:] if len(shape) == 2 else shape[2:]
    if any(side % size for side in sides):
        raise ValueError(
            f"patch_size={size} must divide the sides of the latent, got {tuple(shape[1:])}"
        )
