"""Quantise images and fill each level with uniform noise that depends on its key alone."""

from collections.abc import Sequence
from math import prod
from typing import Protocol
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

Key = tuple[int, int]
"""(epoch, index): names one noisy version of one image."""

_MANTISSA_BITS = 24
_NOISE_BITS = 16


class DataError(ValueError):
    """A data set that cannot be used, or not in this way; one line that says what was expected."""


class ImageError(DataError):
    """An image that cannot be used; the message names the data set, the image and what is wrong."""


class ImageSource(Protocol):
    """Images of one split: float32, (C, H, W), in [0, 1].

    A source may also offer ``__getitems__(indices)`` and return a list of images or a (B, C, H, W)
    tensor at once; and ``pixels(indices)``, the same images as arrays of uint8, times 255. It must
    be deterministic: the same index is the same image, always.
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
    return unit.mul_(high - low).add_(low).clamp_(max=_below(high, low))


def dequantize_bytes(
    pixels: np.ndarray,
    n_bits: int,
    noise: np.ndarray,
    data_range: tuple[float, float],
    out: np.ndarray,
) -> None:
    """The same as ``dequantize`` of pixels / 255 and noise / 2^16, several times faster.

    Args:
        pixels: any shape, uint8.
        n_bits: 1 to 8.
        noise: as pixels, uint16.
        data_range: (lower, upper).
        out: as pixels, float32; receives the result.
    """
    low, high = data_range
    np.multiply(pixels >> (8 - n_bits), np.float32(2**_NOISE_BITS), out=out)
    out += noise
    out *= np.float32(2.0 ** -(_NOISE_BITS + n_bits))
    if high - low != 1:
        out *= np.float32(high - low)
    out += np.float32(low)
    np.minimum(out, _below(high, low), out=out)


def _below(high: float, low: float) -> np.float32:
    return np.nextafter(np.float32(high), np.float32(low))


class DequantizedImages(Dataset):
    """Images of a source, dequantised; fetched by (epoch, index) and the same in every process.

    Args:
        source: images in [0, 1].
        name: the split, such as ``"train"``; splits get different noise, and errors name it.
        n_bits: 1 to 16, or None for the image itself.
        data_range: (lower, upper) of the result.
        seed: of the noise and the flips.
        horizontal_flips: mirror half of the images, others in each epoch.
    """

    def __init__(
        self,
        source: ImageSource,
        name: str,
        n_bits: int | None = 8,
        data_range: tuple[float, float] = (-0.5, 0.5),
        seed: int = 0,
        horizontal_flips: bool = False,
    ) -> None:
        self.source = source
        self.name = name
        self.n_bits = n_bits
        self.data_range = data_range
        self.seed = seed
        self.horizontal_flips = horizontal_flips

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
        if hasattr(self.source, "pixels"):
            return self.finish(self.source.pixels(indices), keys)
        images = self._fetch(indices)
        self._check(images, indices)
        return self._finish(images, keys)

    def finish(self, pixels: Sequence[np.ndarray], keys: Sequence[Key]) -> Tensor:
        """Flip and dequantise images (C, H, W), uint8, as their keys say.

        Returns:
            (B, C, H, W), float32, in ``data_range``.
        """
        if self.n_bits is None or self.n_bits > 8:
            return self._finish(torch.from_numpy(np.stack(pixels)).float().div_(255), keys)
        result = _empty((len(keys), *pixels[0].shape))
        for image, key, row in zip(pixels, keys, result.numpy(), strict=True):
            turned = np.ascontiguousarray(image[..., ::-1]) if self._flips(key) else image
            noise = self._noise(key, image.shape)
            dequantize_bytes(turned, self.n_bits, noise, self.data_range, row)
        return result

    def _finish(self, images: Tensor, keys: Sequence[Key]) -> Tensor:
        flips = torch.tensor([self._flips(key) for key in keys])
        if flips.any():
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
        noise = None
        if self.n_bits is not None:
            noise = np.stack([self._noise(key, images.shape[1:]) for key in keys])
            noise = torch.from_numpy(noise.astype(np.float32)).div_(2**_NOISE_BITS)
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

    def _flips(self, key: Key) -> bool:
        return self.horizontal_flips and self._stream("flip", key).random() < 0.5

    def _noise(self, key: Key, shape: Sequence[int]) -> np.ndarray:
        """Uniform uint16 of a shape."""
        size = prod(shape)
        words = self._stream("noise", key).bit_generator.random_raw(-(-size // 4))
        return words.view(np.uint16)[:size].reshape(shape)

    def _stream(self, purpose: str, key: Key) -> np.random.Generator:
        return random_stream(self.seed, f"{purpose}/{self.name}", *key)


def _empty(shape: tuple[int, ...]) -> Tensor:
    """In a loading process in memory shared with the main one, as torch's own collation does."""
    if get_worker_info() is None:
        return torch.empty(shape)
    storage = torch.UntypedStorage._new_shared(torch.float32.itemsize * prod(shape))
    return torch.empty(0).set_(storage, 0, shape)
