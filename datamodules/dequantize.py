"""Quantise images and fill each level with uniform noise that depends on its key alone."""

from collections.abc import Sequence
from typing import Protocol
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Key = tuple[int, int]
"""(epoch, index): names one noisy version of one image."""

_MANTISSA_BITS = 24


class ImageError(ValueError):
    """An image that cannot be used; the message names the data set, the image and what is wrong."""


class ImageSource(Protocol):
    """Images of one split: float32, (C, H, W), in [0, 1].

    A source may also offer ``__getitems__(indices)`` and return a list of images or a (B, C, H, W)
    tensor at once. It must be deterministic: the same index is the same image, always.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


def random_stream(seed: int, name: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Random numbers that are a pure function of (seed, name, epoch, index).

    Philox is counter-based: seed and name are its key, epoch and index the upper words of its
    counter, so two streams never overlap and any process can open any of them directly.

    Args:
        seed: 0 to 2^64 - 1.
        name: what the numbers are for, such as ``"noise/train"``.
        epoch: 0 or more.
        index: 0 or more.
    """
    key = np.array([seed, crc32(name.encode())], dtype=np.uint64)
    counter = np.array([0, 0, epoch, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def quantize(x: Tensor, n_bits: int) -> Tensor:
    """Level floor(x 2^n), clamped to 2^n - 1; for x = byte / 255 and n <= 8 it is byte >> (8 - n).

    Args:
        x: any shape, in [0, 1].
        n_bits: 1 to 16.

    >>> quantize(torch.tensor([0.0, 200 / 255, 1.0]), n_bits=5)
    tensor([ 0., 25., 31.])
    """
    return (x * 2**n_bits).floor_().clamp_(max=2**n_bits - 1)


def dequantize(
    x: Tensor,
    n_bits: int | None,
    noise: Tensor | None = None,
    data_range: tuple[float, float] = (-0.5, 0.5),
) -> Tensor:
    """(level + noise) / 2^n, mapped from [0, 1) to ``data_range``.

    The noise is rounded down to the 24 bits that float32 holds below 1, so that the sum is exact
    and never reaches the next level, and the result never the upper end of the range.

    Args:
        x: any shape, float32, in [0, 1].
        n_bits: 1 to 16, or None for neither quantisation nor noise; x = 1 is then the upper end.
        noise: as x, in [0, 1); not used when ``n_bits`` is None.
        data_range: (lower, upper).
    """
    low, high = data_range
    if n_bits is None:
        return (x * (high - low)).add_(low).clamp_(low, high)
    fine = 2 ** (_MANTISSA_BITS - n_bits)
    unit = quantize(x, n_bits).mul_(fine).add_((noise * fine).floor_()).div_(2**_MANTISSA_BITS)
    below = float(np.nextafter(np.float32(high), np.float32(low)))
    return unit.mul_(high - low).add_(low).clamp_(max=below)


class DequantizedImages(Dataset):
    """Images of a source, dequantised; fetched by (epoch, index) and the same in every process.

    Args:
        source: images in [0, 1].
        name: the split, such as ``"train"``; splits get different noise, and errors name it.
        n_bits: 1 to 16, or None for the image itself.
        data_range: (lower, upper) of the result.
        seed: of the noise.
    """

    def __init__(
        self,
        source: ImageSource,
        name: str,
        n_bits: int | None = 8,
        data_range: tuple[float, float] = (-0.5, 0.5),
        seed: int = 0,
    ) -> None:
        self.source = source
        self.name = name
        self.n_bits = n_bits
        self.data_range = data_range
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Tensor:
        """One image, (C, H, W), float32, in ``data_range``."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> Tensor:
        """Images (B, C, H, W), float32, in ``data_range``.

        Raises:
            ImageError: an image is not floating point, or has a value that is not in [0, 1].
        """
        indices = [index for _, index in keys]
        images = self._fetch(indices)
        self._check(images, indices)
        noise = None if self.n_bits is None else self._noise(keys, images.shape)
        return dequantize(images.float(), self.n_bits, noise, self.data_range)

    def _fetch(self, indices: list[int]) -> Tensor:
        if hasattr(self.source, "__getitems__"):
            images = self.source.__getitems__(indices)
        else:
            images = [self.source[index] for index in indices]
        return (
            images if isinstance(images, Tensor) else torch.stack([*map(torch.as_tensor, images)])
        )

    def _check(self, images: Tensor, indices: list[int]) -> None:
        if not images.is_floating_point():
            raise ImageError(f"dataset {self.name!r}: images must be float32, not {images.dtype}")
        low, high = images.aminmax()
        if low >= 0 and high <= 1:  # false for NaN too
            return
        for index, image in zip(indices, images, strict=True):
            low, high = image.aminmax()
            if not (low >= 0 and high <= 1):
                raise ImageError(
                    f"dataset {self.name!r}, image {index}: values must be finite and in [0, 1], "
                    f"found {low:g} to {high:g}"
                )

    def _noise(self, keys: Sequence[Key], shape: torch.Size) -> Tensor:
        noise = np.empty(shape, dtype=np.float32)
        for row, (epoch, index) in zip(noise, keys, strict=True):
            stream = random_stream(self.seed, f"noise/{self.name}", epoch, index)
            stream.random(dtype=np.float32, out=row)
        return torch.from_numpy(noise)
