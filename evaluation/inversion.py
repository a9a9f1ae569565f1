"""How well images are recovered: any operators × any methods, on a data set or on measured data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from datamodules import ImageDataModule
from evaluation.arrays import ArrayStore, file_names, save_arrays
from evaluation.base import Evaluation
from evaluation.cells import Cell, Labels, Result, labels_text
from evaluation.experiment import Experiment, Published
from evaluation.fingerprints import file_digest
from evaluation.inversion_figures import inversion_figures, is_finite, write_boards
from evaluation.loading import checked_device, found_weights, load_flow
from evaluation.methods import Keep, Method, Outcome, Task
from evaluation.sources import Measured, Simulated, rms
from evaluation.table import Metric, Table
from flowprior.command_line import UsageError
from flowprior.flows import Flow
from flowprior.inversion import batch_invariant, smoothed
from flowprior.metrics import lpips, typicality

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIMILARITY = {"ssim": True, "lpips": False, "psnr": True}
"""Name of a measure, and whether more is better."""

Start = Literal["latent", "smoothed_truth", "file"]


@dataclass(frozen=True)
class InversionCell(Cell):
    """An experiment, a method and a seed."""

    experiment: Experiment = None
    method: Method = None


class InversionEvaluation(Evaluation):
    """Recover test images, or measured data, with every method of every experiment.

    Similarity is that of the last iterate and, as papers give it, of the iteration with the best
    mean over the images of a cell, which takes the truth to find. Images whose loss became NaN or
    infinite are left out of the means and counted.

    Args:
        weights: folder of an exported flow, found beside evaluate.py too.
        experiments: operators, noise and methods.
        data: the data set; its test split, unquantised, is what is to be recovered.
        observations: .npy or .npz file of measured data instead (see `Observations.load`).
        images: number of test images, from the first; null for all.
        seeds: of the noise and the start; every image is recovered once with each.
        iterations: of the solvers, at most.
        start: "latent", one draw of N(0, I) for all images; "smoothed_truth", the truth under a
            Gaussian of `start_deviation` pixels; "file", the start that `observations` has.
        start_deviation: in pixels.
        batch_size: images that a process inverts at once. It changes nothing else.
        shown: number of images in figures.
        compare: labels whose values compete for the best number.
        published: numbers of a paper.
        title: of the report.
        device: "auto" takes a GPU if there is one.
    """

    metrics = (
        Metric("ssim", "SSIM", higher_is_better=True),
        Metric("best_ssim", "SSIM, best iteration", higher_is_better=True),
        Metric("lpips", "LPIPS", higher_is_better=False, missing="n/a"),
        Metric("best_lpips", "LPIPS, best iteration", higher_is_better=False, missing="n/a"),
        Metric("psnr", "PSNR", "dB", higher_is_better=True),
        Metric("best_psnr", "PSNR, best iteration", "dB", higher_is_better=True),
        Metric("residual", "Residual/noise (1)"),
        Metric("residual_rms", "Residual, rms"),
        Metric("radius", "Latent radius ‖z‖/√n (γ)"),
        Metric("kurtosis", "Latent kurtosis (3)"),
        Metric("patch_energy_spread", "Spread of patch energies (1)"),
    )

    def __init__(
        self,
        weights: Path,
        experiments: list[Experiment],
        data: ImageDataModule | None = None,
        observations: Path | None = None,
        images: int | None = 100,
        seeds: tuple[int, ...] = (0,),
        iterations: int = 100,
        start: Start = "latent",
        start_deviation: float = 5.0,
        batch_size: int = 25,
        shown: int = 4,
        compare: tuple[str, ...] = ("method",),
        published: list[Published] | None = None,
        title: str = "Inversion",
        device: str = "auto",
    ) -> None:
        counts = {"iterations": iterations, "batch_size": batch_size, "shown": shown}
        for name, value in {**counts, "images": 1 if images is None else images}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be different integers of at least 0, got {seeds}")
        if (data is None) == (observations is None):
            raise ValueError("either data or observations must be given, and not both")
        self.weights = found_weights(weights)
        self.experiments = experiments
        self.source = Simulated(data, images) if observations is None else Measured(observations)
        self.seeds = seeds
        self.iterations = iterations
        self.start = start
        self.start_deviation = start_deviation
        self.batch_size = batch_size
        self.shown = shown
        self.compare = compare
        self.published = published or []
        self.title = title
        self.device = checked_device(device)
        self._check()

    def check(self) -> None:
        """Every operator must suit the images, and the data be there."""
        for experiment in self.experiments:
            experiment.physics(self.flow.image_shape, assumed=True)

    def cells(self) -> Sequence[Cell]:
        """Experiments × methods × seeds."""
        common = {
            "weights": self._weights_digest,
            "iterations": self.iterations,
            "start": [self.start, self.start_deviation],
            "data": self.source.fingerprint(),
        }
        return [
            InversionCell(
                {**experiment.labels, **method.labels},
                range(self.source.count),
                {**common, **experiment.settings(), **method.settings()},
                self.batch_size,
                seed,
                experiment,
                method,
            )
            for experiment in self.experiments
            for method in experiment.methods
            for seed in self.seeds
        ]

    def evaluate(
        self, cell: InversionCell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Invert the data of these images, and keep curves and pictures."""
        with batch_invariant():
            task, noise = self._task(cell.experiment, list(images), cell.repeat, arrays)
            outcome = cell.method.solve(task)
            rows = _measured(task, outcome, noise)
        self._keep(cell, images, task, outcome, arrays)
        return rows

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """The similarity at the iteration whose mean over the images is best."""
        best: list[dict[str, float]] = [{} for _ in results]
        finite = [is_finite(result) for result in results]
        for name, more_is_better in SIMILARITY.items():
            if not any(finite) or any(name not in result.arrays for result in results):
                continue
            found = torch.stack([torch.from_numpy(result.arrays[name]) for result in results])
            mean = found[finite].mean(0)
            at = int(mean.argmax() if more_is_better else mean.argmin())
            for row, value in enumerate(found[:, at].tolist()):
                best[row][f"best_{name}"] = value if finite[row] else float("nan")
        return best

    def figures(
        self, table: Table, results: Sequence[Result]
    ) -> Mapping[str, tuple["Figure", str]]:
        """Similarity against iteration, recovered images beside the truth, latents."""
        return inversion_figures(self.experiments, results, self.shown)

    def write(self, results: Sequence[Result], output: Path) -> None:
        """TensorBoard curves of each row of the table; recovered images of measured data."""
        write_boards(results, output / "tensorboard", self.shown)
        if isinstance(self.source, Measured):
            self._write_recovered(results, output / "recovered")

    def notes(self) -> Sequence[str]:
        """How to get LPIPS where it is missing."""
        probe = torch.zeros(1, 1, 16, 16)
        if self.source.truth([0]) is not None and lpips(probe, probe) is None:
            return [
                "LPIPS is n/a: its network is not on this machine. With access to the network, "
                "python -c \"import lpips; lpips.LPIPS(net='alex')\" downloads it once; then "
                "measure into a new folder."
            ]
        return []

    def paper(self, labels: Labels, metric: str) -> float | None:
        """From `published`."""
        for known in self.published:
            if metric in known.metrics and known.matches(labels):
                return known.metrics[metric]
        return None

    @cached_property
    def flow(self) -> Flow:
        """The prior, frozen."""
        flow = load_flow(self.weights, self.device, self.source.data)
        truth = self.source.truth([0])
        if truth is not None and flow.image_shape != truth.shape[1:]:
            raise UsageError(
                f"evaluation.weights models images of shape {flow.image_shape}, those to be "
                f"recovered have {tuple(truth.shape[1:])}"
            )
        return flow

    @cached_property
    def _weights_digest(self) -> str:
        return file_digest(self.weights / "model.safetensors")

    def _check(self) -> None:
        for experiment in self.experiments:
            self.source.check(experiment)
        if self.start == "smoothed_truth" and self.source.truth([0]) is None:
            raise ValueError("start=smoothed_truth needs the truth, which observations lacks")
        if self.start == "file" and self.source.start([0]) is None:
            raise ValueError("start=file needs observations with a start")

    def _task(
        self, experiment: Experiment, images: list[int], seed: int, arrays: ArrayStore
    ) -> tuple[Task, Tensor | None]:
        """What a method gets to see, and the rms of the noise, (B,), if it is known."""
        y, noise = self.source.observed(experiment, images, seed)
        truth, start = self.source.truth(images), self._starting_images(images)
        dtype = next(self.flow.parameters()).dtype
        physics = experiment.physics(self.flow.image_shape, assumed=True).to(self.device)
        task = Task(
            prior=self.flow,
            physics=physics.double() if dtype == torch.float64 else physics,
            y=y.to(self.device, dtype.to_complex() if y.is_complex() else dtype),
            truth=None if truth is None else truth.to(self.device, dtype),
            start=None if start is None else start.to(self.device, dtype),
            iterations=self.iterations,
            seed=seed,
            pictures=self.shown,
            keep=Keep(arrays, images, self.device, self._weights_digest),
        )
        return task, noise

    def _starting_images(self, images: list[int]) -> Tensor | None:
        if self.start == "latent":
            return None
        if self.start == "file":
            return self.source.start(images)
        return smoothed(self.source.truth(images), self.start_deviation)

    def _keep(
        self, cell: Cell, images: Sequence[int], task: Task, outcome: Outcome, arrays: ArrayStore
    ) -> None:
        recording = outcome.recording
        curves = {**recording.curves, **recording.diagnostics}
        for row, image in enumerate(images):
            kept = {name: curve[:, row] for name, curve in curves.items()}
            kept["milestones"] = torch.tensor(list(recording.snapshots))
            if row < self.shown and image < self.shown:
                kept |= _pictures(task, outcome, row)
                for iteration, pictures in recording.snapshots.items():
                    kept[f"x_{iteration}"] = pictures[row]
            if isinstance(self.source, Measured):
                kept["x"] = outcome.x[row]
            arrays.save(cell.key, image, kept)

    def _write_recovered(self, results: Sequence[Result], folder: Path) -> None:
        cells: dict[str, list[Result]] = {}
        for result in results:
            name = f"{labels_text(result.cell.labels)} seed {result.cell.repeat}".strip()
            cells.setdefault(name, []).append(result)
        places = file_names(cells)
        for name, group in cells.items():
            images = [torch.from_numpy(result.arrays["x"]) for result in group]
            save_arrays(folder / f"{places[name]}.npz", {"x": torch.stack(images)})


def _measured(task: Task, outcome: Outcome, noise: Tensor | None) -> list[dict[str, float]]:
    latest = outcome.recording.latest
    columns = {name: latest[name] for name in SIMILARITY if name in latest}
    with torch.no_grad():
        residual = rms(task.physics.A(outcome.x) - task.y)
    if noise is None:
        columns["residual_rms"] = residual
    elif (noise > 0).all():
        columns["residual"] = residual / noise.to(residual)
    if outcome.z is not None and outcome.z.ndim == 4:
        found = typicality(outcome.z)
        columns |= {name: found[name] for name in ("radius", "kurtosis", "patch_energy_spread")}
    finite = outcome.finite.tolist()
    lists = {name: column.tolist() for name, column in columns.items()}
    return [
        {name: values[row] if finite[row] else float("nan") for name, values in lists.items()}
        for row in range(len(finite))
    ]


def _pictures(task: Task, outcome: Outcome, row: int) -> dict[str, Tensor]:
    """What figures show of an image: data, truth, result and latent."""
    kept = {"x": outcome.x[row], "y": task.y[row]}
    if task.truth is not None:
        kept["truth"] = task.truth[row]
    if outcome.z is not None:
        kept["z"] = outcome.z[row]
    return kept
