"""Pairs whose posterior is known: a toy of two numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import check_split
from datamodules.dequantize import ImageSource, Key, random_stream
from datamodules.errors import require
from datamodules.pairs import PairDataModule
from flowprior.argument_types import check_types
from flowprior.checks import check_positive
from flowprior.physics import ScaledData


class RosenbrockImages(ImageSource):
    """Draws of the Rosenbrock density as images of two channels and one pixel."""

    def __init__(self, count: int, split: str, seed: int) -> None:
        self.count, self.name, self.seed = count, f"rosenbrock/{split}", seed

    def __len__(self) -> int:
        return self.count

    def draws(self, indices: Sequence[int]) -> np.ndarray:
        """Draws of N(0, 1), four for each pair: two of x, two of the noise of y."""
        streams = [random_stream(self.seed, self.name, index=index) for index in indices]
        return np.stack([stream.standard_normal(4) for stream in streams])

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, 2, 1, 1), float32, of any size."""
        first, second = self.draws(indices)[:, :2].T
        x = np.stack([first, first**2 + np.sqrt(0.5) * second], 1)
        return x[..., None, None].astype(np.float32)

    def __getitems__(self, keys: Sequence[Key]) -> Tensor:
        """Images by (epoch, index), as they are."""
        return torch.from_numpy(self.pixels([index for _, index in keys]))

    def digest(self) -> str:
        """The settings, as nothing else decides."""
        return f"{self.name} {self.count} {self.seed}"


class Rosenbrock(PairDataModule):
    """Two numbers x and noisy data y = x + n: a posterior that is bent and can be computed.

    x₁ ~ N(0, 1), x₂ | x₁ ~ N(x₁², ½), n ~ N(0, noise² I). Images have the shape (2, 1, 1), data
    (2,), and neither has a range.

    Reference: Siahkoohi et al., Preconditioned training of normalizing flows for variational
    inference in inverse problems (2021), section 3.

    Args:
        num_train: number of training pairs.
        num_val: number of validation pairs.
        num_test: number of test pairs.
        noise: standard deviation of n.
        batch_size: number of pairs per step, over all processes.
        num_workers: number of loading processes per training process.
        seed: of everything random.
    """

    channels = 2
    condition_shape = (2,)
    conditioning = ScaledData()

    def __init__(
        self,
        num_train: int = 5000,
        num_val: int = 1000,
        num_test: int = 1000,
        noise: float = 0.4,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        check_types(Rosenbrock.__init__, locals(), "data.")
        super().__init__(1, batch_size, None, (0.0, 1.0), num_workers, seed)
        check_positive("data.noise", noise)
        self.noise = noise
        self.num_images = {"train": num_train, "val": num_val, "test": num_test}
        for split, number in self.num_images.items():
            require(number >= 1, f"num_{split}", number, "at least 1")

    def images(self, split: str) -> RosenbrockImages:
        """The x of "train", "val" or "test"."""
        check_split(split)
        return RosenbrockImages(self.num_images[split], split, self.seed)

    def image_dataset(self, split: str, dequantized: bool = True) -> RosenbrockImages:
        """As they are: they have no range."""
        return self.images(split)

    def conditions(self, split: str, indices: Sequence[int]) -> Tensor:
        """Data y (B, 2)."""
        source = self.images(split)
        noise = self.noise * source.draws(indices)[:, 2:]
        return torch.from_numpy(source.pixels(indices)[..., 0, 0] + noise).float()

    def fingerprint(self, split: str = "test") -> dict[str, Any]:
        """See ``ImageDataModule``."""
        return {**super().fingerprint(split), "noise": self.noise}
