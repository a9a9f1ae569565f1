"""Pairs of images and data of them, for flows of images given data."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule, check_split
from datamodules.dequantize import ImageSource, Key, random_stream
from datamodules.errors import require
from flowprior.argument_types import check_types
from flowprior.checks import check_positive
from flowprior.identity import identity
from flowprior.physics import Noise, make_operator


@dataclass(eq=False)
class PairedImages(Dataset):
    """Images of a split and data of them, by (epoch, index).

    Attributes:
        images: gives images (B, C, H, W) for keys.
        module: makes the data.
        split: "train", "val" or "test".
    """

    images: Dataset
    module: "PairDataModule"
    split: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def changes(self) -> bool:
        """Whether an image can differ from epoch to epoch."""
        return getattr(self.images, "changes", False)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """One pair."""
        x, y = self.__getitems__([key])
        return x[0], y[0]

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in the data range, and data (B, ...) of them."""
        indices = [index for _, index in keys]
        return self.images.__getitems__(keys), self.module.conditions(self.split, indices)


class PairDataModule(ImageDataModule):
    """Batches (x, y): images x (B, C, H, W) and data y (B, ...) of them, both float32.

    A pair depends on (seed, split, index); the noise of y is the same in each epoch.
    """

    @property
    @abstractmethod
    def condition_shape(self) -> tuple[int, ...]:
        """That of y."""

    @abstractmethod
    def conditions(self, split: str, indices: Sequence[int]) -> Tensor:
        """Data y (B, ...), float32."""

    def dataset(self, split: str, dequantized: bool = True) -> PairedImages:
        """Pairs of a split by (epoch, index)."""
        return PairedImages(self.image_dataset(split, dequantized), self, split)

    def image_dataset(self, split: str, dequantized: bool = True) -> Dataset:
        """The images of the pairs."""
        return super().dataset(split, dequantized)

    def batches(
        self,
        split: str,
        batch_size: int,
        indices: Sequence[int] | None = None,
        dequantized: bool = True,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """See ``ImageDataModule``: the images alone."""
        for part, x, _ in self.pairs(split, batch_size, indices, dequantized):
            yield part, x

    def pairs(
        self,
        split: str,
        batch_size: int,
        indices: Sequence[int] | None = None,
        dequantized: bool = True,
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(indices, images, data); arguments as for ``batches``."""
        for part, (x, y) in super().batches(split, batch_size, indices, dequantized):
            yield part, x, y


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


class SimulatedPairs(PairDataModule):
    """Images of another data module, and data that an operator makes of them.

    Args:
        images: where the images come from, with all options of batches. Data are made of the
            images before they are quantised.
        operator: a name of `flowprior.physics.OPERATORS`, or an import path.
        noise: of the data.
        options: of the operator.

    Raises:
        ValueError: the images are flipped, or the operator does not take them, or gives complex
            data.
    """

    def __init__(
        self,
        images: ImageDataModule,
        operator: str,
        noise: Noise,
        options: dict[str, Any] | None = None,
    ) -> None:
        check_types(SimulatedPairs.__init__, locals(), "data.")
        flips = images.horizontal_flips
        require(not flips, "images.horizontal_flips", flips, "false: data do not flip along")
        self.channels = images.channels
        super().__init__(
            images.image_size,
            images.batch_size,
            images.n_bits,
            images.data_range,
            images.num_workers,
            images.seed,
            flat_noise=images.flat_noise,
        )
        self.source, self.noise = images, noise
        self.named_operator = {"operator": operator, "options": options or {}}
        self.physics = make_operator(operator, self.image_shape, **(options or {}))
        grey = self._clean(torch.full((1, *self.image_shape), 0.5))
        require(not grey.is_complex(), "operator", operator, "one that gives real data")
        self._shape = tuple(grey.shape[1:])

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """That of the operator's data."""
        return self._shape

    def images(self, split: str) -> ImageSource:
        """Images of "train", "val" or "test", unquantised."""
        return self.source.images(split)

    def conditions(self, split: str, indices: Sequence[int]) -> Tensor:
        """Data y (B, ...); noise of each split is of its own."""
        source = self.images(split)
        clean = self._clean(torch.stack([source[index] for index in indices]))
        seed = int(random_stream(self.seed, f"data noise/{split}").integers(2**31))
        return self.noise.add(clean, seed=seed, indices=indices)

    @torch.no_grad()
    def _clean(self, x: Tensor) -> Tensor:
        return torch.cat([self.physics.A(row) for row in x.split(1)])

    def fingerprint(self, split: str = "test") -> dict[str, Any]:
        """See ``ImageDataModule``."""
        made = {**self.named_operator, "noise": identity(self.noise)}
        return {**super().fingerprint(split), "data": made}
