"""Weights and other options chosen on validation images, never on test ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from torch import nn

from evaluation.cells import Labels, labels_key, labels_text
from evaluation.experiment import Method
from evaluation.table import Table
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
    if name not in _option_names(target):
        raise ValueError(f"tune.{path}: {type(target).__name__} has no option {name}")
    if rest:
        value = _with_option(getattr(target, name), rest, value, path)
    if is_dataclass(target):
        return replace(target, **{name: value})
    return type(target)(**{**target.settings, name: value})


def _option_names(target: Any) -> set[str]:
    if is_dataclass(target):
        return {field.name for field in fields(target)}
    return set(getattr(target, "settings", {})) if isinstance(target, nn.Module) else set()


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
            f"{labels_text(self.labels)}: {chosen}{edge}, tuned by {self.metric} on {self.images} "
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
    variants = {name: _variants(name, method) for name, method in evaluation.methods.items()}
    table = measured(evaluation.on_validation_images(variants))
    found = {labels_key(row.labels): row.stats.get(evaluation.tune_metric) for row in table.rows}
    choices = [
        Choice(labels, [(o, _score(found, labels, o)) for o in grid(method)], *_by(evaluation))
        for labels, method in evaluation.tunable()
    ]
    return evaluation.with_choices(choices)


def _variants(name: str, method: Method) -> dict[str, Method]:
    """One method for each point of its grid; none if there is nothing to try."""
    if not method.tune:
        return {}
    return {
        f"{name} {number}": replace(
            method,
            solver=with_options(method.solver, options),
            labels={**(method.labels or {"method": name}), **options},
            tune={},
        )
        for number, options in enumerate(grid(method))
    }


def _by(evaluation: InversionEvaluation) -> tuple[str, int]:
    return evaluation.tune_metric, evaluation.tune_images


def _score(found: Mapping[str, Any], labels: Labels, options: Options) -> float:
    stat = found.get(labels_key({**labels, **options}))
    if stat is None or stat.mean is None or stat.n_excluded:
        return float("-inf")
    return stat.mean
