"""Trained flows, with the data to measure them on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

import flowprior
from datamodules import ImageDataModule
from evaluation.base import Cell
from evaluation.features import Features
from evaluation.weights import found_weights
from flowprior.command_line import UsageError
from flowprior.flows import Flow
from flowprior.metrics import coded_bits_per_dim
from flowprior.weights import WeightsError, read_config


@dataclass(frozen=True)
class Trained:
    """A trained flow with the data to measure it on.

    Args:
        weights: folder that training exported.
        data: the data set; its test split is used, dequantised once with fixed noise.
        dimensions: number of pixels that bits per dimension count, where a border of known pixels
            surrounds the images; by default all.
        optional: leave the row out, and say so below the table, where there are no weights yet.
        features: by which its samples are compared with the test images.
    """

    weights: Path
    data: ImageDataModule
    dimensions: int | None = None
    optional: bool = False
    features: list[Features] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the folder of weights, or of the run that it is in."""
        folder = self.weights.resolve()
        return folder.parent.name if folder.name == "weights" else folder.name

    def bits_per_dim(self, log_prob: Tensor, x: Tensor) -> Tensor:
        """Bits per dimension (B,) of images x (B, C, H, W) of log density log_prob (B,) in nats."""
        data, pixels = self.data, x[0].numel()
        bits = coded_bits_per_dim(log_prob, x, data.n_bits, data.data_range, data.flat_noise)
        return bits * (pixels / (self.dimensions or pixels))

    @cached_property
    def hours(self) -> float | None:
        """Hours of training, if the card of the weights gives them."""
        return read_config(self.weights)["card"].get("training_hours")

    def load(self, device: str, option: str) -> Flow:
        """The flow, frozen.

        Args:
            device: where to put it.
            option: where the config has it, for errors.

        Raises:
            WeightsError: the weights are damaged.
            UsageError: its images are not of the data's shape and range, or have fewer pixels than
                `dimensions`.
        """
        flow = flowprior.load(self.weights, device)
        for name in ("image_shape", "data_range"):
            given, expected = getattr(flow, name), getattr(self.data, name)
            if tuple(given) != tuple(expected):
                raise UsageError(
                    f"{option}weights models images of {name} {given}, {option}data gives "
                    f"{expected}: they must be equal"
                )
        pixels = math.prod(flow.image_shape)
        if self.dimensions is not None and not 1 <= self.dimensions <= pixels:
            raise UsageError(
                f"{option}dimensions={self.dimensions}: expected 1 to {pixels}, the pixels of an "
                "image"
            )
        return flow


@dataclass(frozen=True)
class TrainedCell(Cell):
    """A row: one trained flow."""

    trained: Trained | None = None


def found_rows(others: Sequence[Trained], absent: Sequence[Trained]) -> dict[str, Trained]:
    """The others that are not absent, each by its place in the config, `others[0].`.

    Raises:
        WeightsError: there are no weights of one.
    """
    rows = {f"others[{place}].": other for place, other in enumerate(others)}
    return {
        option: replace(other, weights=found_weights(other.weights, f"{option}weights"))
        for option, other in rows.items()
        if other not in absent
    }


def has_weights(folder: Path) -> bool:
    """Whether there are weights in a folder, or in that beside evaluate.py."""
    try:
        found_weights(folder)
    except WeightsError:
        return False
    return True
