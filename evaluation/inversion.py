"""How well images are recovered: operators × priors × methods, on a data set or measured data."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from datamodules import ImageDataModule
from evaluation.arrays import ArrayStore, file_names, save_arrays
from evaluation.base import Evaluation
from evaluation.baselines import Data, Start
from evaluation.cells import Cell, Labels, Result, labels_text
from evaluation.experiment import Experiment, Method, Published, chosen
from evaluation.experiment import Start as StartName
from evaluation.fingerprints import digest, plain
from evaluation.inversion_figures import inversion_figures, is_finite, write_boards
from evaluation.measures import Measure, Similarity, measured
from evaluation.priors import PriorSource
from evaluation.sources import MeasuredData, SimulatedData, Source
from evaluation.table import Metric, Table
from evaluation.tuning import Choice, with_options
from flowprior.inversion import (
    Checkpoint,
    Estimate,
    Problem,
    Recording,
    batch_invariant,
    make_problem,
    smoothed,
    solve,
)
from flowprior.priors import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES = {"data": Method(Data()), "start": Method(Start())}
"""Rows of every experiment beside its methods."""


@dataclass(frozen=True)
class InversionCell(Cell):
    """A cell, and what it is made of."""

    experiment: Experiment = field(kw_only=True)
    method: Method = field(kw_only=True)
    prior: str = field(kw_only=True)
    seed: int = field(kw_only=True)


class InversionEvaluation(Evaluation):
    """Recover test images, or measured data, with every method and prior of every experiment.

    Similarity to the truth is that of the last iterate and, as papers give it, of the iteration
    with the best mean over the images of a row, which takes the truth to find. Images whose loss
    became NaN or infinite are left out of the means and counted. Every experiment also has a row
    for the data, where they are images, and one for the start.

    Args:
        priors: by name: folders of exported weights, found beside evaluate.py too, or priors.
        methods: by name.
        experiments: operators and noise.
        data: the data set; images of its test split, unquantised, are to be recovered.
        observations: .npy or .npz file of measured data instead (see `Observations.load`).
        images: number of test images, from the first; null for all.
        seeds: of the noise and of the start; every image is recovered once with each.
        iterations: maximum number, of solvers that have none of their own.
        start: "random", one draw of N(0, I) for all images; "constant", grey; "smoothed_truth", the
            truth under a Gaussian of `start_deviation` pixels; "file", the start in `observations`.
        start_deviation: in pixels.
        batch_size: number of images that a process inverts at once. It changes nothing else.
        tune_images: number of validation images that `--tune` chooses options on.
        tune_metric: what it makes as large as it can: "psnr" or "ssim".
        shown: number of images in figures.
        compare: labels whose values compete for the best number.
        published: numbers of a paper.
        measures: further columns.
        title: of the report.
        device: "auto" takes a GPU if there is one.
    """

    def __init__(
        self,
        priors: dict[str, Path | Prior],
        methods: dict[str, Method],
        experiments: list[Experiment],
        data: ImageDataModule | None = None,
        observations: Path | None = None,
        images: int | None = 100,
        seeds: tuple[int, ...] = (0,),
        iterations: int = 100,
        start: StartName = "random",
        start_deviation: float = 5.0,
        batch_size: int = 25,
        tune_images: int = 16,
        tune_metric: str = "psnr",
        shown: int = 4,
        compare: tuple[str, ...] = ("method", "prior"),
        published: list[Published] | None = None,
        measures: list[Measure] | None = None,
        title: str = "Inversion",
        device: str = "auto",
    ) -> None:
        self.priors = PriorSource(priors, device)
        self.methods, self.experiments = methods, experiments
        self.data, self.observations = data, observations
        self.images, self.seeds = images, seeds
        self.iterations = iterations
        self.start, self.start_deviation = start, start_deviation
        self.batch_size = batch_size
        self.tune_images, self.tune_metric = tune_images, tune_metric
        self.shown, self.compare = shown, compare
        self.published = published or []
        self.measures: list[Measure] = [Similarity(), *(measures or [])]
        self.title = title
        self.choices: list[Choice] = []
        self.baselines = True
        self._check_numbers()
        if (data is None) == (observations is None):
            raise ValueError("either data or observations must be given, and not both")
        self.source: Source = (
            SimulatedData(data, images) if observations is None else MeasuredData(observations)
        )

    @property
    def metrics(self) -> Sequence[Metric]:
        """Columns of the table: those of all measures."""
        return [metric for measure in self.measures for metric in measure.metrics]

    def check(self) -> None:
        """Fit together experiments, methods, priors and data, all before any is measured."""
        for name in self.priors.names:
            self.priors.check(name, self.source)
        if self.start == "file" and self.source.start([0]) is None:
            raise ValueError("start=file needs observations with start")
        if self.start == "smoothed_truth" and self.source.truth([0]) is None:
            raise ValueError("start=smoothed_truth needs the true images")
        for experiment in self.experiments:
            names = chosen(experiment.methods, self.methods, "method")
            self.source.check(experiment)
            for prior_name in chosen(experiment.priors, self.priors.names, "prior"):
                prior = self.priors.load(prior_name)
                experiment.physics(prior.image_shape)
                for name in names:
                    self.methods[name].solver.check(prior, f"methods.{name}: ")
                self._probe(experiment, prior_name)

    def cells(self) -> Sequence[InversionCell]:
        """Experiments × priors × methods × seeds, with the baselines first."""
        return [
            self._cell(experiment, prior, name, seed)
            for experiment in self.experiments
            for prior, name in self._rows(experiment)
            for seed in self.seeds
        ]

    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Invert the data of these images, and keep curves and pictures."""
        with batch_invariant():
            problem, truth = self._problem(cell, list(images), arrays)
            iterations = cell.method.iterations or self.iterations
            recording = Recording(truth, self.shown, last=iterations)
            key = digest(repr(cell.settings), repr(list(images)))[:24]
            checkpoint = Checkpoint(arrays.folder.parent / "underway" / f"{key}.ckpt")
            estimate = solve(cell.method.solver, problem, iterations, [recording], checkpoint)
            rows = measured(self.measures, estimate, problem, truth)
        self._keep(cell, images, problem, truth, estimate, recording, arrays)
        checkpoint.remove()
        return rows

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """Further columns of the measures, which take all images of a row."""
        found: list[dict[str, float]] = [{} for _ in results]
        for measure in self.measures:
            for row, extra in zip(found, measure.derived(results), strict=True):
                row.update(extra)
        return found

    def figures(
        self, table: Table, results: Sequence[Result]
    ) -> Mapping[str, tuple["Figure", str]]:
        """Similarity by iteration, recovered images beside the truth, latents."""
        return inversion_figures(results, self.shown)

    def write(self, results: Sequence[Result], output: Path) -> None:
        """TensorBoard curves of each row of the table; recovered images of measured data."""
        write_boards(results, output / "tensorboard", self.shown)
        if isinstance(self.source, MeasuredData):
            write_recovered(results, output / "recovered")

    def notes(self) -> Sequence[str]:
        """What was tuned, and what the measures have to say."""
        has_truth = self.source.truth([0]) is not None
        return [*map(str, self.choices), *(n for m in self.measures for n in m.notes(has_truth))]

    def paper(self, labels: Labels, metric: str) -> float | None:
        """From `published`."""
        for known in self.published:
            if metric in known.metrics and known.matches(labels):
                return known.metrics[metric]
        return None

    def tunable(self) -> list[tuple[Labels, Method]]:
        """Labels of each row whose method has values to try, and the method."""
        return [
            (self._labels(experiment, prior, name), self.methods[name])
            for experiment in self.experiments
            for prior, name in self._rows(experiment)
            if name in self.methods and self.methods[name].tune
        ]

    def on_validation_images(self, variants: Mapping[str, Mapping[str, Method]]) -> Self:
        """The same on the first validation images, with variants of some methods by name."""
        other = self._copy()
        other.title = f"{self.title}: options tried on validation images"
        other.source = SimulatedData(self.data, self.tune_images, "val")
        other.seeds, other.baselines, other.published = self.seeds[:1], False, []
        other.methods = {n: m for methods in variants.values() for n, m in methods.items()}
        other.experiments = [
            replace(e, methods=[n for name in e.methods or self.methods for n in variants[name]])
            for e in self.experiments
        ]
        return other

    def with_choices(self, choices: Sequence[Choice]) -> Self:
        """The same with the options that were found to be best."""
        other = self._copy()
        other.choices = list(choices)
        return other

    def _copy(self) -> Self:
        other = copy.copy(self)
        other.__dict__ = self.__getstate__()
        return other

    @cached_property
    def _common(self) -> dict[str, Any]:
        """What the results of all cells depend on."""
        return {"data": self.source.fingerprint(), "start_deviation": self.start_deviation}

    def _rows(self, experiment: Experiment) -> list[tuple[str, str]]:
        """Prior and method of each row; one that needs no prior has one row for all priors."""
        priors = chosen(experiment.priors, self.priors.names, "prior")
        names = chosen(experiment.methods, self.methods, "method")
        rows = [(priors[0], name) for name in self._baselines(experiment)]
        for name in names:
            needs = self.methods[name].solver.needs
            rows += [(prior, name) for prior in (priors if needs else priors[:1])]
        return rows

    def _baselines(self, experiment: Experiment) -> list[str]:
        if not self.baselines or self.source.truth([0]) is None:
            return []
        y = self.source.observed(experiment, [0], self.seeds[0])
        are_images = y.shape[1:] == self.source.truth([0]).shape[1:] and not y.is_complex()
        return ["data", "start"] if are_images else ["start"]

    def _cell(self, experiment: Experiment, prior: str, name: str, seed: int) -> InversionCell:
        labels = self._labels(experiment, prior, name)
        method = self._method(name, labels)
        described = replace(experiment, labels={}, methods=None, priors=None)
        settings = {
            **self._common,
            "experiment": plain(described),
            "solver": plain(method.solver),
            "iterations": method.iterations or self.iterations,
            "start": method.start or self.start,
            "prior": self.priors.fingerprint(prior),
            "seed": seed,
        }
        return InversionCell(
            labels,
            range(self.source.count),
            settings,
            self.batch_size,
            repeat=self.seeds.index(seed),
            experiment=experiment,
            method=method,
            prior=prior,
            seed=seed,
        )

    def _labels(self, experiment: Experiment, prior: str, name: str) -> Labels:
        method = self.methods.get(name) or BASELINES[name]
        several = len(self.priors.names) > 1 and method.solver.needs
        own = method.labels or {"method": name}
        return {**experiment.labels, **own, **({"prior": prior} if several else {})}

    def _method(self, name: str, labels: Labels) -> Method:
        """A method with the options that were chosen for a row, if any were."""
        method = self.methods.get(name) or BASELINES[name]
        best = [choice.best for choice in self.choices if choice.labels == labels]
        return replace(method, solver=with_options(method.solver, best[0])) if best else method

    def _problem(
        self, cell: InversionCell, images: list[int], arrays: ArrayStore
    ) -> tuple[Problem, Tensor | None]:
        """Data of these images as a problem, and the truth if it is known."""
        prior = self.priors.load(cell.prior)
        truth, start = self.source.truth(images), self._starting_images(cell.method, images)
        truth, start = (None if t is None else t.to(prior.like) for t in (truth, start))
        y = self.source.observed(cell.experiment, images, cell.seed)
        y = y.to(prior.like.device, _precision(y, prior.like))
        problem = make_problem(
            prior,
            cell.experiment.physics(prior.image_shape).to(prior.like.device),
            y,
            noise=cell.experiment.noise,
            start=start,
            seed=cell.seed,
            indices=images,
            cache=Cache(arrays, images, str(self.priors.fingerprint(cell.prior))),
        )
        return problem, truth

    def _starting_images(self, method: Method, images: list[int]) -> Tensor | None:
        name = method.start or self.start
        if name == "random":
            return None
        if name == "file":
            return self.source.start(images)
        if name == "constant":
            shape = self.source.image_shape or self.priors.image_shape
            return torch.full((len(images), *shape), 0.5)
        return smoothed(self.source.truth(images), self.start_deviation)

    def _probe(self, experiment: Experiment, prior_name: str) -> None:
        """Make the problem of one image: a wrong operator is found before anything is written."""
        prior = self.priors.load(prior_name)
        y = self.source.observed(experiment, [0], self.seeds[0])
        make_problem(
            prior,
            experiment.physics(prior.image_shape).to(prior.like.device),
            y.to(prior.like.device, _precision(y, prior.like)),
            noise=experiment.noise,
        )

    def _keep(
        self,
        cell: InversionCell,
        images: Sequence[int],
        problem: Problem,
        truth: Tensor | None,
        estimate: Estimate,
        recording: Recording,
        arrays: ArrayStore,
    ) -> None:
        curves = {**recording.curves, **recording.diagnostics}
        for row, image in enumerate(images):
            kept = {name: curve[:, row] for name, curve in curves.items()}
            kept["milestones"] = torch.tensor(list(recording.snapshots))
            if row < self.shown and image < self.shown:
                kept |= {"x": estimate.x[row], "y": problem.y[row]}
                kept |= {} if truth is None else {"truth": truth[row]}
                kept |= {} if estimate.z is None else {"z": estimate.z[row]}
                for iteration, pictures in recording.snapshots.items():
                    kept[f"x_{iteration}"] = pictures[row]
            if isinstance(self.source, MeasuredData):
                kept["x"] = estimate.x[row]
            arrays.save(cell.key, image, kept)

    def _check_numbers(self) -> None:
        counts = {
            "iterations": self.iterations,
            "batch_size": self.batch_size,
            "shown": self.shown,
            "tune_images": self.tune_images,
            "images": 1 if self.images is None else self.images,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        seeds = self.seeds
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be different integers of at least 0, got {seeds}")
        if self.tune_metric not in ("psnr", "ssim"):
            raise ValueError(f"tune_metric must be psnr or ssim, got {self.tune_metric!r}")


class Cache:
    """Tensors of these images by name, looked up or else computed and kept in an `ArrayStore`.

    What does not depend on the data need not be computed for each noise level.
    """

    def __init__(self, arrays: ArrayStore, images: Sequence[int], prior: str) -> None:
        self.arrays, self.images, self.prior = arrays, images, prior

    def __call__(self, name: str, of: Tensor, compute: Any) -> Tensor:
        """Rows (B, ...) that follow from the name, the prior and the rows `of` (B, ...)."""
        groups = [f"kept-{digest(name, self.prior, row)[:16]}" for row in of]
        places = list(zip(groups, self.images, strict=True))
        if not all(self.arrays.has(*place) for place in places):
            for place, row in zip(places, compute(), strict=True):
                self.arrays.save(*place, {"row": row})
        rows = [torch.from_numpy(self.arrays.load(*place)["row"]) for place in places]
        return torch.stack(rows).to(of.device)


def write_recovered(results: Sequence[Result], folder: Path) -> None:
    """Recovered images (n, C, H, W) of each row of the table, as .npz."""
    cells: dict[str, list[Result]] = {}
    for result in results:
        repeat = f" {result.cell.repeat}" if result.cell.repeat else ""
        cells.setdefault(labels_text(result.cell.labels) + repeat, []).append(result)
    for name, place in file_names(cells).items():
        images = [torch.from_numpy(result.arrays["x"]) for result in cells[name]]
        save_arrays(folder / f"{place}.npz", {"x": torch.stack(images)})


def _precision(y: Tensor, like: Tensor) -> torch.dtype:
    return like.dtype.to_complex() if y.is_complex() else like.dtype


__all__ = ["Experiment", "InversionEvaluation", "Method", "Published", "is_finite"]
