"""How well images are recovered: operators × priors × methods, on a data set or measured data."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from datamodules import ImageDataModule
from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation, Label, Labels, Published, Result
from evaluation.baselines import Data
from evaluation.experiment import (
    Experiment,
    Method,
    Only,
    StartName,
    agrees,
    check_names,
    check_only,
)
from evaluation.inversion_arrays import kept_of_batch, write_recovered
from evaluation.inversion_checks import check_fit, check_rows
from evaluation.inversion_figures import inversion_figures, write_boards
from evaluation.measures import (
    BUILT_IN,
    Measure,
    check_distinct,
    derived,
    fit_notes,
    measured,
)
from evaluation.priors import PriorOfData
from evaluation.solver_notes import kept_warnings, solver_notes
from evaluation.sources import MeasuredData, PriorSource, SimulatedData, Source
from evaluation.table import SECONDS, Metric, Table
from evaluation.tuning import Choice, with_choice
from flowprior.checks import check_integer
from flowprior.identity import digest, identity
from flowprior.inversion import (
    Checkpoint,
    Problem,
    Recording,
    Run,
    batch_invariant,
    solve,
)
from flowprior.priors import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA = Method(Data(), iterations=0)
"""The row `data` of experiments, beside their methods."""


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
    became NaN or infinite are left out of the means and counted. Where the truth is known, every
    experiment whose data are images also has a row for these.

    Args:
        priors: by name: folders of exported weights, found beside evaluate.py too, priors, or what
            makes one of training images, such as `evaluation.priors.FittedGaussian`. One that no
            row uses need not exist, unless it is the first of an experiment, whose images' shape it
            gives.
        methods: by name.
        experiments: operators and noise.
        data: the data set; images of its test split, unquantised, are to be recovered.
        observations: .npy or .npz file of measured data instead (see `Observations.load`).
        images: number of test images, from the first; null for all.
        seeds: of the noise and of the start; every image is recovered once with each.
        iterations: maximum number, of methods that have none of their own.
        start: "random", one draw of N(0, I) for all images; "constant", grey; "depth", brighter
            with depth, from 0.25 to 0.75; "data", where these are images; "smoothed_truth", the
            truth under a Gaussian of `start_deviation` pixels; "file", the start in `observations`.
        start_deviation: in pixels.
        batch_size: number of images that a process inverts at once. It changes nothing else.
        tune_images: number of validation images that `--tune` chooses options on.
        tune_metric: name of the metric that it makes as good as it can: one in the table, also of
            `measures`, with `higher_is_better`.
        shown: number of images in figures.
        compare: labels whose values compete for the best number.
        published: numbers of a paper.
        measures: further columns.
        title: of the report.
        device: "auto" takes a GPU if there is one.
        only: labels of the rows to measure, such as `{problem: denoise, method: [CSGM, DPS]}`; all
            by default; null is the value of rows without the label. Rows of the data are measured
            where there are others. What was measured of other rows stays in the folder.

    Attributes:
        compares: whether images are compared with the truth: in columns, a row of the data, curves
            and pictures. False leaves only the further measures.
    """

    tunable = True
    compares = True

    def __init__(
        self,
        priors: dict[str, Path | Prior | PriorOfData],
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
        only: dict[str, Label | list[Label]] | None = None,
    ) -> None:
        if (data is None) == (observations is None):
            raise ValueError("either data or observations must be given, and not both")
        if not priors:
            raise ValueError("priors: at least one must be given by name")
        self.prior_names = tuple(priors)
        self.methods = methods
        self.experiments = [self._with_all_names(experiment) for experiment in experiments]
        self.data = data
        self.source: Source = (
            SimulatedData(data, images) if observations is None else MeasuredData(observations)
        )
        self.images, self.seeds = images, seeds
        self.iterations = iterations
        self.start, self.start_deviation = start, start_deviation
        self.batch_size = batch_size
        self.tune_images, self.tune_metric = tune_images, tune_metric
        self.shown, self.compare = shown, compare
        self.published = published or []
        self.further: list[Measure] = list(measures or [])
        self.title = title
        self.choices: list[Choice] = []
        self.baselines = self.compares and self.source.has_truth
        self.pictured = self.compares
        self.only: Only = {}
        self._check_options()
        if only:
            self._choose({k: v if isinstance(v, list) else [v] for k, v in only.items()})
        # Weights of the others need not be there.
        used = {name for one in self.experiments for name in self.priors_of(one)}
        self.priors = PriorSource({n: priors[n] for n in priors if n in used}, device, data)

    @property
    def measures(self) -> Sequence[Measure]:
        """Those of every table that compares images, and further ones."""
        return [*([kind() for kind in BUILT_IN] if self.compares else []), *self.further]

    @property
    def metrics(self) -> Sequence[Metric]:
        """Columns of the table: those of all measures."""
        found = [metric for measure in self.measures for metric in measure.metrics]
        # A column that nothing can fill is not even shown as missing.
        return found if self.source.has_truth else [replace(m, missing="") for m in found]

    @property
    def tuned_by(self) -> Metric:
        """The metric that options are chosen by."""
        directed = {m.name: m for m in self.metrics if m.higher_is_better is not None}
        check_names([self.tune_metric], directed, "tune_metric: no metric with higher_is_better")
        return directed[self.tune_metric]

    def check(self) -> None:
        """Fit together experiments, methods, priors and data, all before any is measured."""
        check_fit(self)

    def cells(self) -> Sequence[InversionCell]:
        """Experiments × priors × methods × seeds, with the data first."""
        return [
            self._cell(experiment, prior, name, seed)
            for experiment in self.experiments
            for prior, name in [*self._baselines(experiment), *self.rows(experiment)]
            for seed in self.seeds
        ]

    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Invert the data of these images, measure, and keep curves and pictures."""
        iterations = cell.settings["iterations"]
        key = digest(repr(cell.settings), repr(list(images)))[:24]
        checkpoint = Checkpoint(arrays.folder.parent / "underway" / f"{key}.ckpt")
        with batch_invariant():
            problem, truth = self._problem(cell, list(images))
            recording = Recording(truth if self.compares else None, self.shown, last=iterations)
            observers = [recording, partial(self._tell, len(images) / max(iterations, 1))]
            estimate = solve(cell.method.solver, problem, iterations, observers, checkpoint)
            rows = measured(self.measures, estimate, problem, truth)
        kept: list[dict[str, Any]] = [{} for _ in images]
        if self.compares:
            every = isinstance(self.source, MeasuredData)
            kept = kept_of_batch(cell, images, problem, estimate, recording, self.shown, every)
        kept[0] |= kept_warnings(estimate.own_warnings, len(images))
        for image, found in zip(images, kept, strict=True):
            if found:
                arrays.save(cell.key, image, found)
        checkpoint.remove()
        cost = problem.condition_cost
        spent = recording.seconds + (0.0 if cost is None else cost.seconds)
        seconds = {SECONDS.name: spent / len(images)}
        return [{**row, **seconds} for row in rows]

    def _tell(self, images: float, iteration: int, run: Run) -> None:
        """Report progress; an iteration counts as this many images."""
        if self.on_progress is not None:
            self.on_progress(images * iteration)

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """Further columns of the measures, which take all images of a row."""
        parts = [derived(measure, results) for measure in self.measures]
        return [{n: v for part in row for n, v in part.items()} for row in zip(*parts, strict=True)]

    def figures(
        self, table: Table, results: Sequence[Result]
    ) -> Mapping[str, tuple["Figure", str]]:
        """Similarity by iteration, recovered images beside the truth, latents."""
        return inversion_figures(results, self.shown) if self.pictured else {}

    def write(self, results: Sequence[Result], output: Path) -> None:
        """TensorBoard curves of each row of the table; recovered images of measured data."""
        if self.pictured:
            write_boards(results, output / "tensorboard", self.shown)
        if isinstance(self.source, MeasuredData):
            write_recovered(results, output / "recovered")

    def notes(self, table: Table) -> Sequence[str]:
        """What was tuned, what solvers and residuals warn of, and what the measures have to say."""
        names = dict.fromkeys(name for one in self.experiments for _, name in self.rows(one))
        tunable = [name for name in names if self.methods[name].tune]
        untuned = [] if self.choices or not tunable else [f"Not tuned: {', '.join(tunable)}."]
        of_measures = [n for m in self.measures for n in m.notes(self.source.has_truth)]
        fits = fit_notes(table) if self.pictured else []
        warned = solver_notes(table) if self.pictured or not self.compares else []
        return [*map(str, self.choices), *untuned, *warned, *fits, *of_measures]

    def with_choices(self, choices: Sequence[Choice]) -> Self:
        """A copy with the options that were found to be best."""
        other = copy.copy(self)
        other.choices = list(choices)
        return other

    def on_validation_images(
        self, methods: dict[str, Method], experiments: list[Experiment]
    ) -> Self:
        """Other methods and experiments on the first validation images, from the first seed.

        Without rows of the data, pictures and published numbers: it is measured several times.
        Of the further measures, only the one that options are chosen by is taken, so that others
        can be added later without choosing anew.
        """
        other = copy.copy(self)
        other.__dict__.pop("_fingerprints", None)  # the images are others
        other.further = [
            one for one in self.further if self.tune_metric in {m.name for m in one.metrics}
        ]
        other.methods, other.experiments = methods, experiments
        other.title = f"{self.title}: options tried on validation images"
        other.source = SimulatedData(self.data, self.tune_images, "val")
        other.seeds, other.published, other.only = self.seeds[:1], [], {}
        other.baselines = other.pictured = False
        return other

    def rows(self, experiment: Experiment) -> list[tuple[str, str]]:
        """Prior and method of each row; one that needs no prior has one row for all priors."""
        return [
            (prior, name)
            for name in experiment.methods
            for prior in self._priors_of_method(experiment, name)
            if agrees(self.labels(experiment, prior, name), self.only)
        ]

    def priors_of(self, experiment: Experiment) -> list[str]:
        """Priors of its rows, after its first one, which says what images of the data are."""
        rows = [prior for prior, _ in self.rows(experiment)]
        return list(dict.fromkeys([experiment.priors[0], *rows]))

    def _priors_of_method(self, experiment: Experiment, name: str) -> list[str]:
        """Priors of a method's rows."""
        priors, method = experiment.priors, self.methods[name]
        if not method.solver.needs:
            return priors[:1]
        return [p for p in priors if method.priors is None or p in method.priors]

    def labels(self, experiment: Experiment, prior: str, name: str) -> Labels:
        """Labels of the row of a prior and a method or baseline."""
        method = self._method(name)
        own = method.labels or {"method": name}
        several = {"prior": prior} if len(self.prior_names) > 1 and method.solver.needs else {}
        return {**experiment.labels, **own, **several}

    def _baselines(self, experiment: Experiment) -> list[tuple[str, str]]:
        """Prior and name of a row for the data, if they are images."""
        if not self.baselines:
            return []
        prior = experiment.priors[0]
        shape = self.priors.load(prior).image_shape
        y = self.source.probe(experiment, shape)
        return [(prior, "data")] if y.shape[1:] == shape and not y.is_complex() else []

    def _method(self, name: str, labels: Labels | None = None) -> Method:
        """A method with the options that were chosen for a row, if any were."""
        method = self.methods.get(name, DATA)
        best = [choice.best for choice in self.choices if choice.labels == labels]
        return with_choice(method, best[0]) if best else method

    @cached_property
    def _fingerprints(self) -> dict[str, Any]:
        """What the results of all cells depend on, with all priors."""
        priors = {name: self.priors.fingerprint(name) for name in self.priors.given}
        measures = identity(self.further)
        found = {"data": self.source.fingerprint(), "measures": measures, "prior": priors}
        return {**found, **self.own_code()}

    def _cell(self, experiment: Experiment, prior: str, name: str, seed: int) -> InversionCell:
        labels = self.labels(experiment, prior, name)
        method = self._method(name, labels)
        start = method.start or self.start
        settings = {
            **self._fingerprints,
            "prior": self._fingerprints["prior"][prior],
            "experiment": experiment.fingerprint(),
            "solver": identity(method.solver),
            "iterations": self.iterations if method.iterations is None else method.iterations,
            "start": start,
            "start_deviation": self.start_deviation if start == "smoothed_truth" else None,
            "seed": seed,
        }
        repeat, images = self.seeds.index(seed), range(self.source.count)
        made_of = {"experiment": experiment, "method": method, "prior": prior, "seed": seed}
        return InversionCell(labels, images, settings, self.batch_size, repeat, **made_of)

    def _problem(self, cell: InversionCell, images: list[int]) -> tuple[Problem, Tensor | None]:
        """Data of these images as a problem, and the truth if it is known."""
        prior, truth = self.priors.load(cell.prior), self.source.truth(images)
        y = self.source.observed(cell.experiment, images, cell.seed)
        name, shape = cell.settings["start"], prior.image_shape
        start = self.source.start(name, images, y, shape, self.start_deviation)
        truth, start = (None if t is None else t.to(prior.like) for t in (truth, start))
        more = {"start": start, "seed": cell.seed, "indices": images}
        return cell.experiment.problem(prior, y, bool(cell.method.solver.needs), **more), truth

    def _with_all_names(self, experiment: Experiment) -> Experiment:
        """With the names of all methods and priors where it chooses none."""
        check_names(experiment.methods or (), self.methods, "experiments: no method")
        check_names(experiment.priors or (), self.prior_names, "experiments: no prior")
        methods = list(self.methods) if experiment.methods is None else experiment.methods
        priors = list(self.prior_names) if experiment.priors is None else experiment.priors
        return replace(experiment, methods=methods, priors=priors)

    def _choose(self, only: Only) -> None:
        """Keep the rows with these labels, and the experiments that have some."""
        labels = [
            [self.labels(one, *row) for row in [(one.priors[0], "data"), *self.rows(one)]]
            for one in self.experiments
        ]
        check_only(only, [row for rows in labels for row in rows])
        self.only = only
        self.experiments = [
            one
            for one, rows in zip(self.experiments, labels, strict=True)
            if any(agrees(row, only) for row in rows)
        ]

    def _check_options(self) -> None:
        for name in ("iterations", "batch_size", "shown", "tune_images", "images"):
            if (value := getattr(self, name)) is not None:
                check_integer(name, value, least=1)
        seeds = self.seeds
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be different integers of at least 0, got {seeds}")
        check_distinct(self.measures, BUILT_IN if self.compares else ())
        if self.tunable:
            _ = self.tuned_by
        check_rows(self)
        known = {metric.name for metric in self.metrics}
        for published in self.published:
            check_names(published.metrics, sorted(known), "published: no metric")
        if "data" in self.methods:
            raise ValueError("methods.data: experiments have a row of this name already")
