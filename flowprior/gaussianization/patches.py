"""Latents as matrices of patches."""

import torch
import torch.nn.functional as F
from torch import Tensor


def to_patches(x: Tensor, size: int) -> Tensor:
    r"""Cut latents into non-overlapping patches, one per column.

    Images (B, C, H, W) give (B, C·size², N), entries ordered (C, row, column) and patches row by
    row; vectors (B, n) give (B, size, n/size), a patch being `size` entries in a row.
    """
    _check(x.shape, size)
    if x.ndim == 2:
        return x.unflatten(1, (-1, size)).mT
    return F.unfold(x, size, stride=size)


def from_patches(patches: Tensor, shape: torch.Size, size: int) -> Tensor:
    """Inverse of `to_patches` for latents of this shape."""
    if len(shape) == 2:
        return patches.mT.reshape(shape)
    return F.fold(patches, shape[2:], size, stride=size)


def _check(shape: torch.Size, size: int) -> None:
    if len(shape) not in (2, 4):
        raise ValueError(f"a latent must be (B, C, H, W) or (B, n), got {tuple(shape)}")
    sides = shape[1:] if len(shape) == 2 else shape[2:]
    if any(side % size for side in sides):
        raise ValueError(
            f"patch_size={size} must divide the sides of the latent, got {tuple(shape[1:])}"
        )
