"""Weights and other options chosen on validation images, never on test ones."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.base import Labels, labels_key, labels_text
from evaluation.experiment import Experiment, Method
from evaluation.records import measured_labels
from evaluation.table import Metric, Row, Table
from flowprior.inversion import Solver

if TYPE_CHECKING:
    from evaluation.inversion import InversionEvaluation

Options = Mapping[str, float]
EXTENSIONS = 6
"""How many times a grid is extended at most."""


def grid(method: Method) -> list[Options]:
    """All combinations of the values to try, by option; one empty one if there are none."""
    values = itertools.product(*method.tune.values())
    return [dict(zip(method.tune, point, strict=True)) for point in values]


def extended(values: Sequence[float], best: float) -> list[float]:
    """The values, with the next of a geometric series if the best is the first or the last.

    The ratio is that of the two values at this end. Integers stay integers. Values that are not
    all positive, or only one, are not extended.

    >>> extended([1.0, 3.0, 10.0], best=1.0)
    [0.333, 1.0, 3.0, 10.0]
    >>> extended([1.0, 3.0, 10.0], best=3.0)
    [1.0, 3.0, 10.0]
    """
    ordered = sorted(set(values))
    if len(ordered) < 2 or ordered[0] <= 0 or best not in (ordered[0], ordered[-1]):
        return list(values)
    beside = ordered[1] if best == ordered[0] else ordered[-2]
    following = float(f"{best * best / beside:.3g}")
    if all(isinstance(value, int) for value in values):
        following = round(following)
    return sorted({*ordered, following} - {0})


def with_options(solver: Solver, options: Options) -> Solver:
    """The solver with other values of some options; dots reach into options.

    Raises:
        ValueError: there is no such option, or it does not take the value.

    >>> from flowprior.inversion import MAP, Restarts
    >>> with_options(Restarts(MAP()), {"solver.beta": 0.5}).solver.beta
    0.5
    """
    for path, value in options.items():
        solver = _with_option(solver, path.split("."), value, path)
    return solver


def with_choice(method: Method, options: Options) -> Method:
    """The method with other values of options of its solver, or of its `iterations`.

    Raises:
        ValueError: there is no such option, or it does not take the value.
    """
    rest = dict(options)
    iterations = rest.pop("iterations", method.iterations)
    return replace(method, solver=with_options(method.solver, rest), iterations=iterations)


def _with_option(target: Any, names: Sequence[str], value: float, path: str) -> Any:
    name, *rest = names
    if isinstance(target, Mapping):
        if name not in target:
            raise ValueError(f"tune.{path}: no {name}, expected one of {', '.join(target)}")
        return {**target, name: _with_option(target[name], rest, value, path) if rest else value}
    known = inspect.signature(type(target)).parameters
    if name not in known:
        raise ValueError(f"tune.{path}: {type(target).__name__} has no option {name}")
    hidden = [option for option in known if not hasattr(target, option)]
    if hidden:
        raise ValueError(
            f"tune.{path}: {type(target).__name__} must be a dataclass to be tuned, or have its "
            f"options as attributes: it has no {hidden[0]}"
        )
    given = {option: getattr(target, option) for option in known}
    if rest:
        value = _with_option(given[name], rest, value, path)
    return type(target)(**{**given, name: value})


def variants(name: str, method: Method) -> dict[str, Method]:
    """One method for each point of its grid, by name; none if there is nothing to try.

    Raises:
        ValueError: its solver has no such option, or does not take a value.
    """
    if not method.tune:
        return {}
    try:
        return {
            f"{name} {number}": replace(
                with_choice(method, options),
                labels={**(method.labels or {"method": name}), **options},
                tune={},
            )
            for number, options in enumerate(grid(method))
        }
    except ValueError as error:
        raise ValueError(f"methods.{name}: {error}") from error


@dataclass(frozen=True)
class Choice:
    """A row whose method has values to try: what was tried, and what was best.

    Args:
        number: of its experiment.
        prior: its name.
        name: of its method.
        labels: of the row.
        method: its `tune` has all values to try, those that were added at the edges as well.
        metric: by which the best is best.
        given: number of the combinations that the config has.
        scores: means of the metric, in the order of the grid; ∞, on the worse side, where an image
            failed. None are known at first.
        images: number of validation images.
    """

    number: int
    prior: str
    name: str
    labels: Labels
    method: Method
    metric: Metric
    given: int
    scores: Sequence[float] = ()
    images: int = 0

    @property
    def tried(self) -> list[tuple[Options, float]]:
        """Options and their score."""
        return list(zip(grid(self.method), self.scores, strict=True))

    @property
    def best(self) -> Options:
        """The options with the best mean."""
        better = max if self.metric.higher_is_better else min
        return better(self.tried, key=itemgetter(1))[0]

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value:g}" for name, value in self.best.items())
        edge = ", at the edge of the grid" if self._at_edge() else ""
        more = len(self.tried) - self.given
        extended = f", extended by {more} at its edge" if more else ""
        grid = "; ".join(
            f"{', '.join(f'{value:g}' for value in options.values())}: {score:.4g}"
            for options, score in self.tried
        )
        side = "" if self.metric.higher_is_better else ", lower is better,"
        return (
            f"{labels_text(self.labels)}: {chosen}{edge}, chosen by {self.metric.name}{side} on "
            f"{self.images} validation images (grid of {self.given}{extended}: {grid})"
        )

    def _at_edge(self) -> bool:
        values = {name: values for name, values in self.method.tune.items() if len(set(values)) > 1}
        return any(self.best[name] in (min(v), max(v)) for name, v in values.items())

    def scored(self, rows: Mapping[str, Row], images: int) -> Choice:
        """A copy with its scores, given the rows of the table of all that were tried."""
        found = [rows[labels_key({**self.labels, **options})] for options in grid(self.method)]
        return replace(self, scores=[_score(row, self.metric) for row in found], images=images)

    def wider(self) -> Choice:
        """A copy with another value of each option that is best at an edge, if it takes it.

        None for iterations: a method is hardly ever worse for more of them, and takes longer.
        """
        if all(map(math.isinf, self.scores)):
            return self
        tune = {
            name: values if name == "iterations" else extended(values, self.best[name])
            for name, values in self.method.tune.items()
        }
        try:
            other = replace(self, method=replace(self.method, tune=tune))
            variants(self.name, other.method)
        except ValueError:  # such as a temperature above its largest
            return self
        return other


def check_none_measured(evaluation: InversionEvaluation, results: Path, trials: Path) -> None:
    """Raise where tuning would end, hours later, in the refusal of results that were not tuned.

    Args:
        evaluation: what is to be tuned.
        results: file of its records.
        trials: file of the records of its tuning.

    Raises:
        ValueError: names the first row that has results, and of whose values none has been tried.
    """
    known, tried = (
        [dict(labels) for labels in measured_labels(path)] for path in (results, trials)
    )
    for row in _choices(evaluation):
        shared = {name: v for name, v in row.labels.items() if name not in row.method.tune}
        if row.labels in known and not any(shared.items() <= one.items() for one in tried):
            raise ValueError(
                f"--tune: {results} holds results of {labels_text(row.labels)} that were not "
                "tuned: give another --output, or leave the row out by --evaluation.only"
            )


def tuned(
    evaluation: InversionEvaluation, measured: Callable[[InversionEvaluation], Table]
) -> InversionEvaluation:
    """The evaluation with the options of its methods that are best on validation images.

    Each method is tuned in each experiment and with each prior by itself, all on the same images,
    with the noise and start of the first seed. While a best value is at the edge of its grid, the
    grid is extended there, at most `EXTENSIONS` times; that of iterations never is.

    Args:
        evaluation: some of its methods have `tune`.
        measured: runs an evaluation and gives its table; what it measured before is kept.

    Raises:
        ValueError: no method has `tune`, the data are measured, so that there is no truth, or no
            row has the metric, as without the package that it takes.
    """
    if not any(method.tune for method in evaluation.methods.values()):
        raise ValueError("--tune: no method has values to try; give methods.NAME.tune")
    if evaluation.data is None:
        raise ValueError("--tune needs validation images of evaluation.data, not observations")
    choices = _choices(evaluation)
    if not choices:  # `only` leaves rows that have nothing to choose
        return evaluation
    for extensions in range(EXTENSIONS + 1):
        trial = _all_trials(evaluation, choices)
        rows = {labels_key(row.labels): row for row in measured(trial).rows}
        if all(evaluation.tune_metric not in row.stats for row in rows.values()):
            raise ValueError(f"tune_metric={evaluation.tune_metric}: nothing has measured it")
        choices = [one.scored(rows, trial.source.count) for one in choices]
        wider = [one.wider() for one in choices]
        if extensions == EXTENSIONS or wider == choices:
            break
        choices = wider
    return evaluation.with_choices(choices)


def _choices(evaluation: InversionEvaluation) -> list[Choice]:
    """The rows that have values to try."""
    return [
        Choice(
            number,
            prior,
            name,
            evaluation.labels(experiment, prior, name),
            method,
            metric=evaluation.tuned_by,
            given=len(grid(method)),
        )
        for number, experiment in enumerate(evaluation.experiments)
        for prior, name in evaluation.rows(experiment)
        if (method := evaluation.methods[name]).tune
    ]


def _all_trials(evaluation: InversionEvaluation, choices: Sequence[Choice]) -> InversionEvaluation:
    """The evaluation of all values that methods have to try, on the first validation images."""
    methods: dict[str, Method] = {}
    experiments: list[Experiment] = []
    for one in choices:
        tried = variants(one.name, one.method)
        tried = {f"{one.number}, {one.prior}, {name}": method for name, method in tried.items()}
        experiment = evaluation.experiments[one.number]
        methods |= tried
        experiments.append(replace(experiment, methods=list(tried), priors=[one.prior]))
    return evaluation.on_validation_images(methods, experiments)


def _score(row: Row, metric: Metric) -> float:
    """The mean; ∞, on the worse side, where an image failed."""
    stat = row.stats.get(metric.name)
    if stat is None or stat.mean is None or stat.n_excluded:
        return -math.inf if metric.higher_is_better else math.inf
    return stat.mean
