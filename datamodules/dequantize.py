"""Quantise images and fill each level with noise that depends on its key alone."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from math import prod
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import ndtri
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from datamodules.errors import ImageError
from flowprior.metrics import FLAT_NOISE_STD

Key = tuple[int, int]
"""(epoch, index): names one noisy version of one image."""

_MANTISSA_BITS = 24
_NOISE_BITS = 16
_HASHED_TOGETHER = 256


class ImageSource(ABC):
    """Images of one split; the same index always gives the same image.

    Attributes:
        overshoots: whether floating-point pixels may be outside of [0, 1], where they then stay.
            Such images cannot be quantised.
    """

    overshoots: ClassVar[bool] = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pixels(self, indices: Sequence[int]) -> Sequence[np.ndarray]:
        """One array (C, H, W) per index: uint8, or float32 in [0, 1], but for overshoot."""

    def __getitem__(self, index: int) -> Tensor:
        """One image, (C, H, W), float32, in [0, 1] but for overshoot."""
        (image,) = self.pixels([index])
        options = {"overshoots": self.overshoots}
        return torch.from_numpy(dequantize(image, None, None, (0.0, 1.0), **options))

    def digest(self) -> str:
        """Hash of everything that the images depend on; here of all their pixels."""
        hashed = blake2b(digest_size=16)
        for start in range(0, len(self), _HASHED_TOGETHER):
            for image in self.pixels(range(start, min(start + _HASHED_TOGETHER, len(self)))):
                hashed.update(f"{image.dtype}{image.shape}".encode())
                hashed.update(np.ascontiguousarray(image))
        return hashed.hexdigest()


@dataclass(eq=False)
class ArrayImages(ImageSource):
    """Images in memory, (N, C, H, W), uint8, or float32 in [0, 1]."""

    arrays: np.ndarray

    def __len__(self) -> int:
        return len(self.arrays)

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, C, H, W)."""
        return self.arrays[list(indices)]


def random_stream(seed: int, name: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Random numbers that are a pure function of (seed, name, epoch, index).

    Philox is counter-based: seed (0 to 2^64 - 1) and name (such as ``"noise/train"``) are its key,
    epoch and index (0 or more) the upper words of its counter. So two streams never overlap, and
    any process can open any of them directly.
    """
    key = np.array([seed, crc32(name.encode())], dtype=np.uint64)
    counter = np.array([0, 0, epoch, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def quantize(pixels: np.ndarray, n_bits: int) -> np.ndarray:
    """Levels 0 to 2^n - 1: the upper n bits of a byte (n <= 8), or floor(x 2^n) of x in [0, 1].

    >>> quantize(np.array([0, 200, 255], dtype=np.uint8), n_bits=5)
    array([ 0, 25, 31], dtype=uint8)
    """
    if pixels.dtype == np.uint8:
        return pixels >> (8 - n_bits)
    return np.minimum(np.floor(pixels * np.float32(2**n_bits)), 2**n_bits - 1)


def dequantize(
    pixels: np.ndarray,
    n_bits: int | None,
    noise: np.ndarray | None,
    data_range: tuple[float, float] = (-0.5, 0.5),
    out: np.ndarray | None = None,
    overshoots: bool = False,
) -> np.ndarray:
    """(level + noise / 2^16) / 2^n, mapped from [0, 1) to ``data_range``.

    The noise is rounded down to the 24 bits that float32 holds below 1. So the sum is exact and
    never reaches the next level, and the result stays below the upper end of the range.

    Args:
        pixels: any shape; uint8, or floating point in [0, 1].
        n_bits: 1 to 16 (to 8 for uint8), or None for neither quantisation nor noise; the largest
            value then gives the upper end of the range.
        noise: uint16, of the same shape; None without ``n_bits``.
        data_range: (lower, upper).
        out: float32, of the same shape, for the result, which is returned.
        overshoots: whether pixels outside of [0, 1] stay outside, which takes no ``n_bits``.
    """
    low, high = np.float32(data_range[0]), np.float32(data_range[1])
    out = np.empty(pixels.shape, np.float32) if out is None else out
    if n_bits is None:
        np.divide(pixels, np.float32(255 if pixels.dtype == np.uint8 else 1), out=out)
        top = high
    else:
        fine = min(_NOISE_BITS, _MANTISSA_BITS - n_bits)
        np.multiply(quantize(pixels, n_bits), np.float32(2**fine), out=out)
        out += noise >> (_NOISE_BITS - fine)
        out *= np.float32(2.0 ** -(fine + n_bits))
        top = np.nextafter(high, low)
    width = data_range[1] - data_range[0]
    if width != 1:
        out *= np.float32(width)
    out += low
    return out if overshoots else np.minimum(out, top, out=out)


def flat_areas(levels: np.ndarray) -> np.ndarray:
    """Where a pixel of levels (C, H, W) equals all its neighbours, diagonal ones too."""
    padded = np.pad(levels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = sliding_window_view(padded, (3, 3), axis=(1, 2))
    return (around == levels[..., None, None]).all((-2, -1))


@cache
def _normal_noise() -> np.ndarray:
    """Uint16 by uniform uint16: quantiles of the normal noise that is cut off at the level."""
    inside = math.erf(3 / math.sqrt(2))
    uniform = (np.arange(2**_NOISE_BITS) + 0.5) / 2**_NOISE_BITS
    u = 0.5 + FLAT_NOISE_STD * ndtri(0.5 + inside * (uniform - 0.5))
    return (u * 2**_NOISE_BITS).astype(np.uint16)


@dataclass(eq=False)
class DequantizedImages(Dataset):
    """Images of a source, dequantised; fetched by (epoch, index) and the same in every process.

    The name is that of the split: splits get different noise, and errors name it. The options are
    those of ``ImageDataModule``; for ``flat_noise`` see `flowprior.metrics.flat_noise_log_density`.
    """

    source: ImageSource
    name: str
    n_bits: int | None = 8
    data_range: tuple[float, float] = (-0.5, 0.5)
    seed: int = 0
    horizontal_flips: bool = False
    flat_noise: bool = False

    def __len__(self) -> int:
        return len(self.source)

    @property
    def changes(self) -> bool:
        """Whether an image can differ from epoch to epoch, by noise or by flips."""
        return self.n_bits is not None or self.horizontal_flips

    def __getitem__(self, key: Key) -> Tensor:
        """One image, (C, H, W), float32, in ``data_range``."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> Tensor:
        """Images (B, C, H, W), float32, in ``data_range``.

        Raises:
            ImageError: an image is neither uint8 nor floating point in [0, 1], or of finite values
                where the source may overshoot.
        """
        images = self.source.pixels([index for _, index in keys])
        result = _empty((len(keys), *images[0].shape))
        for image, key, row in zip(images, keys, result.numpy(), strict=True):
            self._check(image, key[1])
            if self._flips(key):
                image = np.ascontiguousarray(image[..., ::-1])
            noise = None if self.n_bits is None else self._noise(key, image)
            overshoots = self.source.overshoots
            dequantize(image, self.n_bits, noise, self.data_range, row, overshoots)
        return result

    def _check(self, image: np.ndarray, index: int) -> None:
        name = f"dataset {self.name!r}, image {index}"
        if image.dtype == np.uint8:
            if (self.n_bits or 0) > 8:
                raise ImageError(f"{name}: n_bits={self.n_bits}, expected at most 8 for 8 bits")
        elif image.dtype.kind != "f":
            raise ImageError(f"{name}: expected uint8 or float32, got {image.dtype}")
        elif self.source.overshoots and self.n_bits is not None:
            raise ImageError(f"{name}: n_bits={self.n_bits}, expected null for such images")
        elif not self._within(image):
            found = f"{image.min():g} to {image.max():g}"
            limits = "" if self.source.overshoots else " in [0, 1]"
            raise ImageError(f"{name}: expected finite values{limits}, got {found}")

    def _within(self, image: np.ndarray) -> bool:
        if self.source.overshoots:
            return bool(np.isfinite(image).all())
        return bool(image.min() >= 0 and image.max() <= 1)  # false for NaN too

    def _flips(self, key: Key) -> bool:
        return self.horizontal_flips and self._stream("flip", key).random() < 0.5

    def _noise(self, key: Key, image: np.ndarray) -> np.ndarray:
        """Uint16 of the image's shape, uniform or, in flat areas, normal."""
        words = self._stream("noise", key).bit_generator.random_raw(-(-image.size // 4))
        noise = words.view(np.uint16)[: image.size].reshape(image.shape)
        if not self.flat_noise:
            return noise
        return np.where(flat_areas(quantize(image, self.n_bits)), _normal_noise()[noise], noise)

    def _stream(self, purpose: str, key: Key) -> np.random.Generator:
        return random_stream(self.seed, f"{purpose}/{self.name}", *key)


def _empty(shape: tuple[int, ...]) -> Tensor:
    """Uninitialised; in a loading process in memory shared with the main one, as torch does."""
    if get_worker_info() is None:
        return torch.empty(shape)
    storage = torch.UntypedStorage._new_shared(torch.float32.itemsize * prod(shape))
    return torch.empty(0).set_(storage, 0, shape)
