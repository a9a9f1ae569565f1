"""Images that a trained prior draws: truths of which everything is known."""

import copy
import json
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
from flowprior.argument_types import check_types
from flowprior.identity import file_digest, identity
from flowprior.inversion import batch_invariant
from flowprior.priors import Prior


class PriorDrawImages(ImageSource):
    """Draws of one split; a draw depends on (seed, split, index) alone."""

    overshoots = True
    """Draws that were clipped would be none of the prior."""

    def __init__(self, prior: Path | Prior, count: int, split: str, seed: int) -> None:
        self.prior, self.count, self.seed = prior, count, seed
        self.name = f"prior_draws/{split}"

    def __len__(self) -> int:
        return self.count

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, C, H, W), float32, in [0, 1] up to overshoot."""
        prior = _loaded(self.prior)
        with torch.no_grad(), batch_invariant():
            rows = [prior.to_unit_range(prior.generate(self._latent(i, prior))) for i in indices]
        return torch.cat(rows).float().numpy()

    def _latent(self, index: int, prior: Prior) -> torch.Tensor:
        rng = random_stream(self.seed, self.name, index=index)
        return torch.from_numpy(rng.standard_normal((1, *prior.latent.shape))).to(prior.like)

    def digest(self) -> str:
        """What every draw depends on: the prior, the split and the seed."""
        if isinstance(self.prior, Prior):
            known = json.dumps(identity(self.prior), sort_keys=True)
        else:
            known = file_digest(self.prior / "model.safetensors")
        return f"{self.name} {known} {self.seed}"


class PriorDraws(ImageDataModule):
    """Draws of a prior, whose posteriors can be checked: see `evaluation.calibration.RankMeasure`.

    Args:
        prior: folder of exported weights, or a prior that is not conditional.
        num_images: number of images in each split.
        seed: of the draws.
        batch_size: number of images per step, over all processes.

    Raises:
        ValueError: an option is out of its range, or the prior is conditional.
    """

    def __init__(
        self, prior: Path | Prior, num_images: int = 1000, seed: int = 0, batch_size: int = 64
    ) -> None:
        # Whoever has the prior may move it to another device.
        check_types(PriorDraws.__init__, locals(), "data.")
        own = isinstance(prior, Prior)
        self.prior = copy.deepcopy(prior).cpu().eval() if own else Path(prior)
        loaded = _loaded(self.prior)
        named = type(prior).__name__ if own else prior
        require(
            not loaded.conditional,
            "prior",
            named,
            "one that is not conditional; or give images as data",
        )
        require(num_images >= 1, "num_images", num_images, "at least 1")
        self._shape = loaded.image_shape
        self.channels, height, _ = self._shape
        super().__init__(height, batch_size, None, loaded.data_range, seed=seed)
        self.num_images = num_images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), that of the prior."""
        return self._shape

    def fingerprint(self, split: str = "test") -> dict[str, Any]:
        """See ``ImageDataModule``; without the number of images, on which no draw depends."""
        found = super().fingerprint(split)
        return {name: value for name, value in found.items() if name != "images"}

    def images(self, split: str) -> PriorDrawImages:
        """Draws of "train", "val" or "test"."""
        check_split(split)
        return PriorDrawImages(self.prior, self.num_images, split, self.seed)


def _loaded(prior: Path | Prior) -> Prior:
    return prior if isinstance(prior, Prior) else _from(prior)


@cache
def _from(weights: Path) -> Prior:
    return flowprior.load(weights, "cpu")
