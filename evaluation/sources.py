"""Where the data of an inversion come from: simulated from a data set, or measured."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules import ImageDataModule, Observations
from evaluation.experiment import Experiment
from evaluation.fingerprints import data_fingerprint, digest


class Source(ABC):
    """Data of a number of images, on the CPU."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of images."""

    @abstractmethod
    def fingerprint(self) -> list[Any]:
        """What tells it from other sources, JSON-like."""

    @abstractmethod
    def check(self, experiment: Experiment) -> None:
        """Raise ValueError if it cannot give the data of an experiment."""

    @abstractmethod
    def truth(self, images: Sequence[int]) -> Tensor | None:
        """The images (B, C, H, W) in [0, 1], if they are known."""

    @abstractmethod
    def observed(
        self, experiment: Experiment, images: Sequence[int], seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Data (B, ...), and the rms of their noise (B,) if it is known."""

    def start(self, images: Sequence[int]) -> Tensor | None:
        """Images (B, C, H, W) in [0, 1] to start from, if it has any."""
        return None


class Simulated(Source):
    """Test images of a data set, unquantised, under the operator and noise of an experiment."""

    def __init__(self, data: ImageDataModule, images: int | None) -> None:
        self.data = data
        self.images = images

    @property
    def count(self) -> int:
        """As many as there are, or as were asked for."""
        total = len(self.data.images("test"))
        return min(self.images or total, total)

    def fingerprint(self) -> list[Any]:
        """The test split of the data set."""
        return [data_fingerprint(self.data)]

    def check(self, experiment: Experiment) -> None:
        """All of them."""

    def truth(self, images: Sequence[int]) -> Tensor:
        """Test images."""
        x = next(self.data.batches("test", len(images), images, dequantized=False))[1]
        low, high = self.data.data_range
        return (x - low) / (high - low)

    def observed(
        self, experiment: Experiment, images: Sequence[int], seed: int
    ) -> tuple[Tensor, Tensor]:
        """A(x) and its noise."""
        physics = experiment.physics(self.data.image_shape)
        clean = physics.A(self.truth(images))
        y = experiment.noisy(clean, physics, seed, images)
        return y, rms(y - clean)


class Measured(Source):
    """A file of observations."""

    def __init__(self, path: Path) -> None:
        self.observations = Observations.load(path)
        self.data = None

    @property
    def count(self) -> int:
        """All of them."""
        return len(self.observations.y)

    def fingerprint(self) -> list[Any]:
        """All that the file holds."""
        found = self.observations
        parts = {"y": found.y, "truth": found.truth, "start": found.start}
        return [digest(*(p for n, t in parts.items() if t is not None for p in (n, t)))]

    def check(self, experiment: Experiment) -> None:
        """Noise and another true operator are for simulated data."""
        if experiment.sigma or experiment.assumed:
            raise ValueError("sigma and assumed are for simulated data, not for observations")

    def truth(self, images: Sequence[int]) -> Tensor | None:
        """Those of the file."""
        return self._rows(self.observations.truth, images)

    def start(self, images: Sequence[int]) -> Tensor | None:
        """Those of the file."""
        return self._rows(self.observations.start, images)

    def observed(
        self, experiment: Experiment, images: Sequence[int], seed: int
    ) -> tuple[Tensor, None]:
        """Those of the file."""
        return self.observations.y[list(images)], None

    def _rows(self, tensor: Tensor | None, images: Sequence[int]) -> Tensor | None:
        return None if tensor is None else tensor[list(images)]


def rms(residual: Tensor) -> Tensor:
    """Root mean square of (B, ...), which may be complex, (B,)."""
    return residual.abs().flatten(1).square().mean(1).sqrt()
