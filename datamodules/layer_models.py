"""Synthetic layered subsurface models, generated when they are asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule, check_split
from datamodules.dequantize import ImageSource, random_stream
from datamodules.errors import require
from flowprior.argument_types import check_types

LAYER_VALUES = np.linspace(0.1, 0.9, 20)
"""Means of the layer values, equally probable."""
LAYER_STD = 0.01

MIN_SURFACES, MAX_SURFACES = 5, 12
COMMON_DIP = 25.0
OWN_DIP = 20.0
"""Degrees: the surfaces of one model dip together, each with a deviation of its own."""


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Uniform numbers for the geometry, and layer values; always as many as there can be."""
    uniform = rng.random(2 + 5 * MAX_SURFACES)
    mean = LAYER_VALUES[rng.integers(len(LAYER_VALUES), size=MAX_SURFACES + 1)]
    value = mean + LAYER_STD * rng.standard_normal(MAX_SURFACES + 1)
    return uniform, value.astype(np.float32)


def _surfaces(uniform: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Depth of the boundary above which each layer was laid down, oldest first.

    depth(x) = d + tan(dip) (x - 1/2) + a sin(2π (x / wavelength + phase)), in image widths and
    downwards, so that the geometry does not depend on the grid. The wavelength is log-uniform in
    0.5 to 4; a is at most a tenth of it and at most 0.15. A surface that a model lacks lies
    infinitely high, where it covers nothing.

    From (B, 2 + 5 K) numbers in [0, 1), K = ``MAX_SURFACES``, and (W,) columns in [0, 1], to
    (B, K, W).
    """
    number, common = np.moveaxis(uniform[:, :2, None, None], 1, 0)
    geometry = uniform[:, 2:].reshape(-1, 5, MAX_SURFACES, 1)
    jitter, own, amplitude, length, phase = np.moveaxis(geometry, 1, 0)
    count = MIN_SURFACES + np.floor(number * (MAX_SURFACES - MIN_SURFACES + 1))
    age = np.arange(MAX_SURFACES)[:, None]
    depth = np.where(age < count, 1 - (age + jitter) / count, -np.inf)
    slope = np.tan(np.deg2rad(COMMON_DIP * (2 * common - 1) + OWN_DIP * (2 * own - 1)))
    wavelength = 0.5 * 8**length
    height = amplitude * np.minimum(0.1 * wavelength, 0.15)
    fold = np.sin(2 * np.pi * (columns / wavelength + phase))
    return depth + slope * (columns - 0.5) + height * fold


def _fill(surfaces: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Give each point the value of the youngest layer whose surface is below it.

    From surfaces (B, K, N), oldest first, values (B, K + 1), that of the basement first, and depths
    of the points (N,), to (B, N, N), float32.
    """
    size = len(rows)
    uncut = np.maximum.accumulate(surfaces[:, ::-1], axis=1)
    edges = np.zeros((len(values), size, values.shape[1] + 1), dtype=np.intp)
    edges[..., 1:-1] = np.searchsorted(rows, uncut).swapaxes(1, 2)
    edges[..., -1] = size
    thickness = np.diff(edges)
    from_top = np.broadcast_to(values[:, None, ::-1], thickness.shape)
    columns = from_top.ravel().repeat(thickness.ravel()).reshape(-1, size, size)
    return np.ascontiguousarray(columns.swapaxes(1, 2))


class LayerModelImages(ImageSource):
    """Layer models of one split, size x size; a model depends on (seed, split, index) alone."""

    def __init__(
        self, size: int, num_images: int, split: str, seed: int = 0, fault_throw: float = 0.0
    ) -> None:
        self.size = size
        self.num_images = num_images
        self.name = f"layer_models/{split}"
        self.seed = seed
        self.fault_throw = fault_throw

    def __len__(self) -> int:
        return self.num_images

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, 1, size, size), float32."""
        return self.finer(indices, 1)

    def finer(self, indices: Sequence[int], factor: int) -> np.ndarray:
        """The same models with N = factor (size - 1) + 1 points a side, (B, 1, N, N), float32."""
        for index in indices:
            if not 0 <= index < self.num_images:
                raise IndexError(f"{self.name}: index {index}, expected 0 to {self.num_images - 1}")
        rngs = [random_stream(self.seed, self.name, index=index) for index in indices]
        uniform, value = (np.stack(rows) for rows in zip(*map(_draw, rngs), strict=True))
        steps = np.arange(factor * (self.size - 1) + 1) / factor
        positions = (steps + 0.5) / self.size  # of rows and columns alike, in image widths
        surfaces = _surfaces(uniform, positions)
        if self.fault_throw:
            surfaces += self._throws(indices, positions)[:, None]
        return _fill(surfaces, value, positions)[:, None]

    def _throws(self, indices: Sequence[int], columns: np.ndarray) -> np.ndarray:
        """How far each column is moved down, (B, W): one side of a fault, up or down."""
        name = f"{self.name}/faults"
        drawn = [random_stream(self.seed, name, index=index).random(2) for index in indices]
        place, side = np.array(drawn)[..., None].swapaxes(0, 1)
        moved = columns > 0.25 + 0.5 * place
        return self.fault_throw * np.where(side < 0.5, moved, -1.0 * moved)

    def digest(self) -> str:
        """The settings, as nothing else decides."""
        fault = f" {self.fault_throw}" if self.fault_throw else ""
        return f"{self.name} {self.size} {self.num_images} {self.seed}{fault}"


class LayerModels(ImageDataModule):
    """Layered subsurface models, one channel, in about [0.05, 0.95].

    Layers are bounded by sines of random wavelength, phase and dip. A surface cuts off all older
    ones where it runs below them (an unconformity), so that layers thin out in wedges. A layer's
    value is constant, N(a, 0.01²) with a one of 20 values equally spaced in [0.1, 0.9].

    After the layer models of "Gaussianization layers", appendix C; the distributions of the
    geometry are ours, because the paper does not give them. The likelihood of exactly constant
    layers is unbounded, so training a flow needs ``n_bits``.

    Args:
        image_size: H = W, at least 8; a model is the same at all sizes, sampled at the centres of
            other pixels.
        num_train: number of training models.
        num_val: number of validation models.
        num_test: number of test models.
        fault_throw: every model is cut by a vertical fault, somewhere in its middle half, on one
            side of which everything lies deeper, or higher, by this part of the model's width; 0
            for none. For truths that a flow has not seen.
        **options: of ``ImageDataModule``; ``seed`` is that of the models too.
    """

    channels = 1

    def __init__(
        self,
        image_size: int = 64,
        num_train: int = 16000,
        num_val: int = 4000,
        num_test: int = 2000,
        fault_throw: float = 0.0,
        **options: Any,
    ) -> None:
        check_types(LayerModels.__init__, locals(), "data.")
        super().__init__(image_size, **options)
        require(image_size >= 8, "image_size", image_size, "at least 8")
        require(0 <= fault_throw < 1, "fault_throw", fault_throw, "at least 0 and below 1")
        self.fault_throw = fault_throw
        self.num_images = {"train": num_train, "val": num_val, "test": num_test}
        for split, number in self.num_images.items():
            require(number >= 1, f"num_{split}", number, "at least 1")

    def images(self, split: str) -> LayerModelImages:
        """Models of "train", "val" or "test", unquantised."""
        check_split(split)
        count = self.num_images[split]
        return LayerModelImages(self.image_size, count, split, self.seed, self.fault_throw)

    def finer(self, indices: Sequence[int], factor: int, split: str = "test") -> Tensor:
        """Models on a finer grid, to simulate data on another grid than that of the inversion.

        Args:
            indices: of the models.
            factor: k, intervals of the finer grid in one of ``image_size``; at least 1.
            split: "train", "val" or "test".

        Returns:
            (B, 1, N, N), float32, unquantised, N = k (image_size - 1) + 1; ``[..., ::k, ::k]`` are
            the models of ``images(split)``.
        """
        if factor < 1:
            raise ValueError(f"factor={factor}: expected at least 1")
        return torch.from_numpy(self.images(split).finer(indices, factor))
