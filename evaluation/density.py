"""How well a flow models a data set: likelihood, invertibility, typicality, speed, samples."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import flowprior
from datamodules import ImageDataModule
from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation, Result
from evaluation.sources import checked_device, found_weights, weights_fingerprint
from evaluation.table import Metric, Table
from flowprior.command_line import UsageError
from flowprior.figures import histogram, image_grid, qq_plot
from flowprior.flows import Flow, standard_normal_log_prob
from flowprior.identity import code_digest, identity
from flowprior.metrics import (
    bits_per_dim,
    flat_noise_log_density,
    largest_patch_correlation,
    typicality,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 32


class DensityEvaluation(Evaluation):
    """Test likelihood, reconstruction error, typicality of latents, speed and samples of a flow.

    Args:
        weights: folder that training exported.
        data: the data set; its test split is used, dequantised once with fixed noise.
        images: number of test images, from the first; null for all.
        batch_size: images per batch.
        device: "auto" takes a GPU if there is one.

    Raises:
        ValueError: an option is out of its range.
        WeightsError: there are no weights.
    """

    title = "Density"
    metrics = (
        Metric("bits_per_dim", "Bits per dimension", higher_is_better=False),
        Metric("bits_per_dim", "Bits per dimension, median", statistic="median"),
        Metric("bits_per_dim", "Bits per dimension, maximum", statistic="maximum"),
        Metric("nll", "Negative log-likelihood", "nats", higher_is_better=False),
        Metric(
            "reconstruction_error", "Worst round trip, max |x − G(G⁻¹(x))|", statistic="maximum"
        ),
        Metric("radius", "Latent radius ‖z‖/√n (1)"),
        Metric("skewness", "Latent skewness (0)"),
        Metric("kurtosis", "Latent kurtosis (3)"),
        Metric("patch_energy_spread", "Spread of patch energies (1)"),
        Metric("encoding_time", "Encoding", "ms/image", interval=False),
        Metric("decoding_time", "Decoding", "ms/image", interval=False),
    )
    parallel = False

    def __init__(
        self,
        weights: Path,
        data: ImageDataModule,
        images: int | None = None,
        batch_size: int = 64,
        device: str = "auto",
    ) -> None:
        for name, value in (("images", images), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.weights = found_weights(weights)
        self.data = data
        self.images = images
        self.batch_size = batch_size
        self.device = checked_device(device)

    def check(self) -> None:
        """The flow must fit the data."""
        _ = self.flow

    def cells(self) -> Sequence[Cell]:
        """One row."""
        folder = self.weights.resolve()
        labels = {
            "flow": type(self.flow).__name__,
            "weights": folder.parent.name if folder.name == "weights" else folder.name,
            "data": f"{type(self.data).__name__} {'×'.join(map(str, self.data.image_shape))}",
        }
        code = code_digest(type(self.data))
        settings = {
            "weights": weights_fingerprint(self.weights, self.flow),
            "data": identity(self.data.fingerprint()),
            **({"data_code": code} if code else {}),
        }
        images = range(len(self.data.images("test")))[: self.images]
        return [Cell(labels, images, settings, self.batch_size)]

    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Encode and decode images of the test split."""
        _, x = next(self.data.batches("test", len(images), images))
        with torch.no_grad():
            (z, log_det), encoding = self._timed(self.flow.encode, x.to(self.device))
            (back, _), decoding = self._timed(self.flow.decode, z)
        log_prob = standard_normal_log_prob(z) + log_det
        columns = {
            "bits_per_dim": self._bits_per_dim(x, log_prob.cpu()),
            "nll": -log_prob,
            "reconstruction_error": (back.cpu() - x).abs().flatten(1).amax(1),
            **typicality(z),
        }
        times = {"encoding_time": encoding, "decoding_time": decoding}
        self._keep(cell, images, x, z, arrays)
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return [{**dict(zip(columns, row, strict=True)), **times} for row in rows]

    def figures(
        self, table: Table, results: Sequence[Result]
    ) -> Mapping[str, tuple["Figure", str]]:
        """Samples beside test images, latents against the normal distribution, likelihoods."""
        shown = [result for result in results if "x" in result.arrays]
        name, data = (table.rows[0].labels[label] for label in ("weights", "data"))
        bits = [result.metrics["bits_per_dim"] for result in results]
        titles = [f"{result.metrics['bits_per_dim']:.2f} bits/dim" for result in shown]
        found = {
            "samples": (
                _grid([result.arrays["sample"] for result in shown]),
                f"Samples of {name} at temperature 1, not selected.",
            ),
            "test_images": (
                _grid([result.arrays["x"] for result in shown], titles),
                f"The first test images of {data}, with their bits per dimension.",
            ),
        }
        if np.isfinite(bits).any():
            found["latent_qq"] = _latents(shown, name)
            found["bits_per_dim"] = (
                histogram({f"{len(bits)} test images": bits}, 40, "Bits per dimension"),
                f"Likelihood of the test images of {data} under {name}.",
            )
        return found

    @cached_property
    def flow(self) -> Flow:
        """The trained flow, frozen and warm.

        Raises:
            WeightsError: the weights are damaged.
            UsageError: its images are not of the data's shape and range.
        """
        flow = flowprior.load(self.weights, self.device)
        for name in ("image_shape", "data_range"):
            given, expected = getattr(flow, name), getattr(self.data, name)
            if tuple(given) != tuple(expected):
                raise UsageError(
                    f"evaluation.weights models images of {name} {given}, evaluation.data gives "
                    f"{expected}: they must be equal"
                )
        with torch.no_grad():
            flow.encode(torch.zeros(1, *flow.image_shape, device=self.device))
        return flow

    def _bits_per_dim(self, x: Tensor, log_prob: Tensor) -> Tensor:
        n_bits, data_range = self.data.n_bits, self.data.data_range
        if self.data.flat_noise:
            log_prob = log_prob - flat_noise_log_density(x, n_bits, data_range)
        return bits_per_dim(log_prob, x[0].numel(), n_bits, data_range)

    def _keep(
        self, cell: Cell, images: Sequence[int], x: Tensor, z: Tensor, arrays: ArrayStore
    ) -> None:
        """What figures show of the first images, and a sample of the flow for each of them."""
        for image, pixels, latent in zip(images, x, z, strict=True):
            if image < SHOWN:
                generator = torch.Generator().manual_seed(image)
                with torch.no_grad():
                    (sample,) = self.flow.sample(1, generator=generator)
                kept = {"x": pixels, "sample": sample}
                kept = {name: self.flow.to_unit_range(value) for name, value in kept.items()}
                arrays.save(cell.key, image, {"z": latent, **kept})

    def _timed(self, call: Callable[[Tensor], Any], of: Tensor) -> tuple[Any, float]:
        """What a call gives, and its milliseconds per row."""
        _wait(self.device)
        start = time.perf_counter()
        found = call(of)
        _wait(self.device)
        return found, 1e3 * (time.perf_counter() - start) / len(of)


def _grid(images: Sequence[np.ndarray], titles: Sequence[str] = ()) -> "Figure":
    unit_range = np.stack(images).clip(0, 1)
    return image_grid(unit_range, titles=titles, value_range=(0, 1), label="value in [0, 1]")


def _latents(shown: Sequence[Result], name: str) -> tuple["Figure", str]:
    z = np.stack([result.arrays["z"] for result in shown])
    largest, independent = largest_patch_correlation(torch.from_numpy(z))
    return (
        qq_plot({f"latents of {len(shown)} test images": z}),
        f"All entries of the latents of these test images under {name}, against N(0, 1). Largest "
        f"correlation between two entries of a patch: {largest:.2f}; about {independent:.2f} for "
        "independent entries.",
    )


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
