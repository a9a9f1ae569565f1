"""Images that a trained prior draws: truths of which everything is known."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flowprior
from datamodules.base import ImageDataModule, check_split
from datamodules.dequantize import ImageSource, random_stream
from datamodules.errors import require
from flowprior.identity import file_digest
from flowprior.inversion import batch_invariant
from flowprior.priors import Prior


class PriorDrawImages(ImageSource):
    """Draws of one split; a draw depends on (seed, split, index) alone."""

    overshoots = True
    """Draws that were clipped would be none of the prior."""

    def __init__(self, weights: Path, count: int, split: str, seed: int) -> None:
        self.weights, self.count, self.seed = weights, count, seed
        self.name = f"prior_draws/{split}"

    def __len__(self) -> int:
        return self.count

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, C, H, W), float32, in [0, 1] up to overshoot."""
        prior = _loaded(self.weights)
        with torch.no_grad(), batch_invariant():
            rows = [prior.to_unit_range(prior.generate(self._latent(i, prior))) for i in indices]
        return torch.cat(rows).float().numpy()

    def _latent(self, index: int, prior: Prior) -> torch.Tensor:
        rng = random_stream(self.seed, self.name, index=index)
        return torch.from_numpy(rng.standard_normal((1, *prior.latent.shape))).to(prior.like)

    def digest(self) -> str:
        """What every draw depends on: the weights, the split and the seed."""
        weights = file_digest(self.weights / "model.safetensors")
        return f"{self.name} {weights} {self.seed}"


class PriorDraws(ImageDataModule):
    """Draws of a prior, whose posteriors can be checked: see `evaluation.calibration.RankMeasure`.

    Args:
        weights: folder of exported weights.
        num_images: number of images in each split.
        seed: of the draws.
        batch_size: number of images per step, over all processes.

    Raises:
        ValueError: an option is out of its range, or the prior is not one of square images.
    """

    def __init__(
        self, weights: Path, num_images: int = 1000, seed: int = 0, batch_size: int = 64
    ) -> None:
        prior = _loaded(Path(weights))
        self.channels, size, width = prior.image_shape
        require(size == width, "weights", weights, "a prior of square images")
        require(num_images >= 1, "num_images", num_images, "at least 1")
        super().__init__(size, batch_size, None, prior.data_range, seed=seed)
        self.weights, self.num_images = Path(weights), num_images

    def fingerprint(self, split: str = "test") -> dict[str, Any]:
        """See ``ImageDataModule``; without the number of images, on which no draw depends."""
        found = super().fingerprint(split)
        return {name: value for name, value in found.items() if name != "images"}

    def images(self, split: str) -> PriorDrawImages:
        """Draws of "train", "val" or "test"."""
        check_split(split)
        return PriorDrawImages(self.weights, self.num_images, split, self.seed)


@cache
def _loaded(weights: Path) -> Prior:
    return flowprior.load(weights, "cpu")
