"""Weights and other options chosen on validation images, never on test ones."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from evaluation.cells import Labels, labels_key, labels_text
from evaluation.experiment import Method
from evaluation.sources import SimulatedData
from evaluation.table import Row, Table
from flowprior.inversion import Solver

if TYPE_CHECKING:
    from evaluation.inversion import InversionEvaluation

Options = Mapping[str, float]


def grid(method: Method) -> list[Options]:
    """All combinations of the values to try, by option; one empty one if there are none."""
    values = itertools.product(*method.tune.values())
    return [dict(zip(method.tune, point, strict=True)) for point in values]


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


def _with_option(target: Any, names: Sequence[str], value: float, path: str) -> Any:
    name, *rest = names
    known = inspect.signature(type(target)).parameters
    if name not in known:
        raise ValueError(f"tune.{path}: {type(target).__name__} has no option {name}")
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
                method,
                solver=with_options(method.solver, options),
                labels={**(method.labels or {"method": name}), **options},
                tune={},
            )
            for number, options in enumerate(grid(method))
        }
    except ValueError as error:
        raise ValueError(f"methods.{name}: {error}") from error


@dataclass(frozen=True)
class Choice:
    """What was tried for one method in one experiment, and what was best.

    Args:
        labels: of its row.
        tried: options and the mean of the metric, in the order of the grid; −∞ where an image
            failed.
        metric: by which the best is best.
        images: number of validation images.
    """

    labels: Labels
    tried: Sequence[tuple[Options, float]]
    metric: str
    images: int

    @property
    def best(self) -> Options:
        """The options with the largest mean."""
        return max(self.tried, key=itemgetter(1))[0]

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value:g}" for name, value in self.best.items())
        edge = ", at the edge of the grid" if self._at_edge() else ""
        grid = "; ".join(
            f"{', '.join(f'{value:g}' for value in options.values())}: {score:.4g}"
            for options, score in self.tried
        )
        return (
            f"{labels_text(self.labels)}: {chosen}{edge}, chosen by {self.metric} on {self.images} "
            f"validation images ({grid})"
        )

    def _at_edge(self) -> bool:
        for name, value in self.best.items():
            values = sorted({options[name] for options, _ in self.tried})
            if len(values) > 1 and value in (values[0], values[-1]):
                return True
        return False


def tuned(
    evaluation: InversionEvaluation, measured: Callable[[InversionEvaluation], Table]
) -> InversionEvaluation:
    """The evaluation with the options of its methods that are best on validation images.

    Each method is tuned in each experiment and with each prior by itself, all on the same images,
    with the noise and start of the first seed.

    Args:
        evaluation: some of its methods have `tune`.
        measured: runs an evaluation and gives its table.

    Raises:
        ValueError: no method has `tune`, or the data are measured, so that there is no truth.
    """
    if not any(method.tune for method in evaluation.methods.values()):
        raise ValueError("--tune: no method has values to try; give methods.NAME.tune")
    if evaluation.data is None:
        raise ValueError("--tune needs validation images of evaluation.data, not observations")
    trial = on_validation_images(evaluation)
    rows = {labels_key(row.labels): row for row in measured(trial).rows}
    choices = []
    for labels, method in _tunable(evaluation):
        scores = [
            (options, _score(rows[labels_key({**labels, **options})], evaluation.tune_metric))
            for options in grid(method)
        ]
        choices.append(Choice(labels, scores, evaluation.tune_metric, trial.source.count))
    return evaluation.with_choices(choices)


def on_validation_images(evaluation: InversionEvaluation) -> InversionEvaluation:
    """The same on the first validation images, for each value that a method has to try."""
    trial = copy.copy(evaluation)
    trial.title = f"{evaluation.title}: options tried on validation images"
    trial.source = SimulatedData(evaluation.data, evaluation.tune_images, "val")
    trial.seeds, trial.baselines, trial.published = evaluation.seeds[:1], False, []
    tried = {name: variants(name, method) for name, method in evaluation.methods.items()}
    trial.methods = {n: method for found in tried.values() for n, method in found.items()}
    trial.experiments = [
        replace(e, methods=[n for name in evaluation.names(e) for n in tried[name]])
        for e in evaluation.experiments
    ]
    return trial


def _tunable(evaluation: InversionEvaluation) -> list[tuple[Labels, Method]]:
    """Labels of each row whose method has values to try, and the method."""
    return [
        (evaluation.labels(experiment, prior, name), evaluation.methods[name])
        for experiment in evaluation.experiments
        for prior, name in evaluation.rows(experiment)
        if evaluation.methods[name].tune
    ]


def _score(row: Row, metric: str) -> float:
    """The mean; −∞ where an image failed."""
    stat = row.stats.get(metric)
    return float("-inf") if stat is None or stat.mean is None or stat.n_excluded else stat.mean
