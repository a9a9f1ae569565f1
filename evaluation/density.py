"""How well a flow models a data set: likelihood, invertibility, typicality, speed, samples."""

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import flowprior
from datamodules import ImageDataModule
from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation
from evaluation.device import checked_device
from evaluation.records import Record, file_digest
from evaluation.table import Metric, Table
from evaluation.weights import found_weights
from flowprior.command_line import UsageError
from flowprior.figures import histogram, image_grid, qq_plot
from flowprior.flows import Flow, standard_normal_log_prob
from flowprior.metrics import bits_per_dim, largest_patch_correlation, typicality

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
        temperatures: of the samples shown.
        repeats: batches over which the speed of sampling and encoding is measured.
        device: "auto" takes a GPU if there is one.
    """

    title = "Density"
    metrics = (
        Metric("bits_per_dim", "Bits per dimension", higher_is_better=False),
        Metric("nll", "Negative log-likelihood", "nats", higher_is_better=False),
        Metric("reconstruction_error", "max |x − decode(encode(x))|", higher_is_better=False),
        Metric("radius", "Latent radius ‖z‖/√n (1)"),
        Metric("skewness", "Latent skewness (0)"),
        Metric("kurtosis", "Latent kurtosis (3)"),
        Metric("patch_energy_spread", "Spread of patch energies (1)"),
        Metric("patch_correlation", "Largest patch correlation"),
        Metric("independent_correlation", "… of independent entries"),
        Metric("encoding_rate", "Encoding", "images/s", higher_is_better=True),
        Metric("sampling_rate", "Sampling", "images/s", higher_is_better=True),
    )

    def __init__(
        self,
        weights: Path,
        data: ImageDataModule,
        images: int | None = None,
        batch_size: int = 64,
        temperatures: tuple[float, ...] = (0.7, 1.0),
        repeats: int = 5,
        device: str = "auto",
    ) -> None:
        for name, value in (("images", images), ("batch_size", batch_size), ("repeats", repeats)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.weights = found_weights(weights)
        self.data = data
        self.images = images
        self.batch_size = batch_size
        self.temperatures = temperatures
        self.repeats = repeats
        self.device = checked_device(device)

    def fingerprint(self) -> Mapping[str, Any]:
        """The weights and the test images."""
        first = next(self.data.batches("test", 1))[1]
        return {
            "weights": file_digest(self.weights / "model.safetensors"),
            "data": type(self.data).__name__,
            "n_bits": self.data.n_bits,
            "seed": self.data.seed,
            "first_image": [float(first.mean()), float(first.std())],
            "temperatures": list(self.temperatures),
        }

    def cells(self) -> Sequence[Cell]:
        """One row: the test images, the speed, the samples."""
        labels = {
            "flow": type(self.flow).__name__,
            "weights": self.weights.parent.name or self.weights.name,
            "data": f"{type(self.data).__name__} {'×'.join(map(str, self.data.image_shape))}",
        }
        total = len(self.data.images("test"))
        count = min(self.images or total, total)
        return [
            Cell(labels, range(count), self.batch_size),
            Cell(labels, range(min(count, 256)), min(count, 256), part="patches", timed=False),
            Cell(labels, range(self.repeats), part="speed", timed=False),
        ]

    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Measure images of the test split, or repeats of the speed measurement."""
        if cell.part == "speed":
            return [self._speed(repeat, arrays) for repeat in images]
        _, x = next(self.data.batches("test", len(images), images))
        with torch.no_grad():
            z, log_det = self.flow.encode(x.to(self.device))
            if cell.part == "patches":
                return _patch_correlation(z, len(images))
            back = self.flow.decode(z)[0].cpu()
        log_prob = standard_normal_log_prob(z) + log_det
        for image, latent, pixels in zip(images, z, x, strict=True):
            if image < SHOWN:
                arrays.save(f"test-{image}", {"z": latent, "x": self.flow.to_unit_range(pixels)})
        bits = bits_per_dim(log_prob, x[0].numel(), self.data.n_bits, self.data.data_range)
        columns = {
            "bits_per_dim": bits,
            "nll": -log_prob,
            "reconstruction_error": (back - x).abs().flatten(1).amax(1),
            **typicality(z),
        }
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def figures(
        self, table: Table, records: Sequence[Record], arrays: ArrayStore
    ) -> Mapping[str, tuple["Figure", str]]:
        """Samples beside test images, latents against the normal distribution, likelihoods."""
        kept = [arrays.load(f"test-{i}") for i in range(SHOWN) if f"test-{i}" in arrays]
        shown: dict[str, tuple[Figure, str]] = {}
        for temperature in self.temperatures:
            samples = arrays.load(_samples_name(temperature))["x"].clip(0, 1)
            figure = image_grid(samples, value_range=(0, 1), label="value")
            shown[f"samples_temperature_{temperature:g}"] = (
                figure,
                f"Samples of the flow at temperature {temperature:g}, not selected.",
            )
        truth = torch.stack([torch.from_numpy(item["x"]) for item in kept])
        figure = image_grid(truth, value_range=(0, 1), label="value")
        shown["test_images"] = (figure, "The first test images, for comparison.")
        latents = torch.stack([torch.from_numpy(item["z"]) for item in kept])
        shown["latent_qq"] = (
            qq_plot({f"latents of {len(kept)} test images": latents}),
            "All latent entries of these test images against N(0, 1).",
        )
        bits = [r.metrics["bits_per_dim"] for r in records if not r.part]
        shown["bits_per_dim"] = (
            histogram({"test images": bits}, bins=40, x_label="Bits per dimension"),
            "Likelihood over the test images.",
        )
        return shown

    @cached_property
    def flow(self) -> Flow:
        """The trained flow."""
        flow = flowprior.load(self.weights, self.device)
        if flow.image_shape != self.data.image_shape:
            raise UsageError(
                f"evaluation.weights models images of shape {flow.image_shape}, evaluation.data "
                f"gives {self.data.image_shape}"
            )
        return flow

    def _speed(self, repeat: int, arrays: ArrayStore) -> dict[str, float]:
        if repeat == 0:
            self._keep_samples(arrays)  # warms up too
        _, x = next(self.data.batches("test", self.batch_size, None))
        x = x.to(self.device)
        with torch.no_grad():
            encoding = self._timed(lambda: self.flow.encode(x))
            sampling = self._timed(lambda: self.flow.sample(self.batch_size))
        return {"encoding_rate": len(x) / encoding, "sampling_rate": self.batch_size / sampling}

    def _keep_samples(self, arrays: ArrayStore) -> None:
        for temperature in self.temperatures:
            generator = torch.Generator().manual_seed(0)
            x = self.flow.sample(SHOWN, temperature, generator=generator)
            arrays.save(_samples_name(temperature), {"x": self.flow.to_unit_range(x)})

    def _timed(self, call: Any) -> float:
        _wait(self.device)
        start = time.perf_counter()
        call()
        _wait(self.device)
        return time.perf_counter() - start


def _patch_correlation(z: Tensor, count: int) -> list[dict[str, float]]:
    """One measurement of all images together, noted with the first."""
    largest, expected = largest_patch_correlation(z)
    values = {"patch_correlation": float(largest), "independent_correlation": float(expected)}
    return [values, *({} for _ in range(count - 1))]


def _samples_name(temperature: float) -> str:
    return f"samples-{str(temperature).replace('.', '_')}"


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
