"""Synthetic layered subsurface models, made when they are asked for."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule, check_split
from datamodules.dequantize import random_stream

MIN_SIZE = 8
LAYER_VALUES = np.linspace(0.1, 0.9, 20)
"""Means of the layer values, equally probable."""
LAYER_STD = 0.01

MIN_SURFACES, MAX_SURFACES = 5, 12
COMMON_DIP = 25.0
OWN_DIP = 20.0
"""Degrees: the surfaces of one model dip together, each with a deviation of its own."""


def layer_model(size: int, rng: np.random.Generator | int) -> Tensor:
    """One model: layers bounded by sines of random wavelength, phase and dip, each constant.

    A surface cuts off all older ones where it runs below them (an unconformity), so that layers
    thin out in wedges. A layer's value is N(a, 0.01²) with a one of 20 values equally spaced in
    [0.1, 0.9].

    After the layer models of "Gaussianization layers", appendix C; the distributions of the
    geometry are ours, because the paper does not give them.

    Args:
        size: H = W, at least 8. The same ``rng`` at another size gives the same model, sampled at
            the centres of another grid.
        rng: a generator or a seed.

    Returns:
        (1, size, size), float32, in about [0.05, 0.95].
    """
    if size < MIN_SIZE:
        raise ValueError(f"data.image_size={size}: expected at least {MIN_SIZE} for layer models")
    return _layer_models(size, [np.random.default_rng(rng)])[0]


def _layer_models(size: int, rngs: Sequence[np.random.Generator]) -> Tensor:
    """One model per generator, (B, 1, size, size)."""
    uniform, value = (np.stack(rows) for rows in zip(*map(_draw, rngs), strict=True))
    centres = (np.arange(size) + 0.5) / size
    return torch.from_numpy(_fill(_surfaces(uniform, centres), value, centres)[:, None])


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

    Args:
        uniform: (B, 2 + 5 K), in [0, 1).
        columns: (W,), in [0, 1].

    Returns:
        (B, K, W), K = ``MAX_SURFACES``.
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


def _fill(surfaces: np.ndarray, values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Each pixel takes the value of the youngest layer whose surface is below its centre.

    Args:
        surfaces: (B, K, W), oldest first.
        values: (B, K + 1), that of the basement first.
        centres: (H,), H = W.
    """
    size = len(centres)
    uncut = np.maximum.accumulate(surfaces[:, ::-1], axis=1)
    edges = np.zeros((len(values), size, values.shape[1] + 1), dtype=np.intp)
    edges[..., 1:-1] = np.searchsorted(centres, uncut).swapaxes(1, 2)
    edges[..., -1] = size
    thickness = np.diff(edges)
    from_top = np.broadcast_to(values[:, None, ::-1], thickness.shape)
    columns = from_top.ravel().repeat(thickness.ravel()).reshape(-1, size, size)
    return np.ascontiguousarray(columns.swapaxes(1, 2))


class LayerModelImages:
    """Layer models of one split; image ``index`` depends on (seed, split, index) alone.

    Args:
        size: H = W.
        num_images: length.
        split: ``"train"``, ``"val"`` or ``"test"``; their models are independent.
        seed: of the models.
    """

    def __init__(self, size: int, num_images: int, split: str, seed: int = 0) -> None:
        self.size = size
        self.num_images = num_images
        self.name = f"layer_models/{split}"
        self.seed = seed

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Tensor:
        """(1, size, size), float32, unquantised."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """(B, 1, size, size), float32, unquantised."""
        for index in indices:
            if not 0 <= index < self.num_images:
                raise IndexError(f"{self.name}: index {index}, expected 0 to {self.num_images - 1}")
        return _layer_models(
            self.size, [random_stream(self.seed, self.name, index=index) for index in indices]
        )


class LayerModels(ImageDataModule):
    """Layered subsurface models, single channel.

    Args:
        image_size: H = W, at least 8.
        num_train: training models.
        num_val: validation models.
        num_test: test models.
        batch_size: images per step over all processes.
        n_bits: as in ``ImageDataModule``; a layer is exactly constant, so a likelihood needs it.
        data_range: (lower, upper) of the batches.
        num_workers: loading processes per process.
        pin_memory: page-locked batches; ignored where there is no CUDA.
        seed: of models, order and noise.
    """

    channels = 1

    def __init__(
        self,
        image_size: int = 64,
        num_train: int = 16000,
        num_val: int = 4000,
        num_test: int = 2000,
        batch_size: int = 64,
        n_bits: int | None = 8,
        data_range: tuple[float, float] = (-0.5, 0.5),
        num_workers: int = 0,
        pin_memory: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size, batch_size, n_bits, data_range, num_workers, pin_memory, seed)
        if image_size < MIN_SIZE:
            raise ValueError(f"data.image_size={image_size}: expected at least {MIN_SIZE}")
        self.num_images = {"train": num_train, "val": num_val, "test": num_test}
        for split, number in self.num_images.items():
            if number < 1:
                raise ValueError(f"data.num_{split}={number}: expected at least 1")

    def images(self, split: str) -> LayerModelImages:
        """Models of "train", "val" or "test", unquantised."""
        check_split(split)
        return LayerModelImages(self.image_size, self.num_images[split], split, self.seed)
