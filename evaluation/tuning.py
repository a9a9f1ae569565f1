"""Weights and other options chosen on validation images, never on test ones."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import nn

from evaluation.experiment import Method
from evaluation.table import Table
from flowprior.inversion import Solver

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
        labels: of its row, in one line.
        tried: mean of the metric for each combination of options, in the order of the grid.
        best: the place of the best in it.
        metric: by which it is best.
        images: number of validation images.
    """

    labels: str
    tried: Sequence[tuple[Options, float]]
    best: int
    metric: str
    images: int

    def __str__(self) -> str:
        options, score = self.tried[self.best]
        chosen = ", ".join(f"{name} {value:g}" for name, value in options.items())
        others = "; ".join(
            f"{', '.join(f'{v:g}' for v in tried.values())}: {found:.4g}"
            for tried, found in self.tried
        )
        edge = ", at the edge of the grid" if self._at_edge() else ""
        return (
            f"{self.labels}: {chosen}{edge} ({self.metric} {score:.4g} on {self.images} validation "
            f"images; tried {others})"
        )

    def _at_edge(self) -> bool:
        best = self.tried[self.best][0]
        for name, value in best.items():
            values = sorted({options[name] for options, _ in self.tried})
            if len(values) > 1 and value in (values[0], values[-1]):
                return True
        return False


def scores(table: Table, metric: str) -> dict[str, tuple[float, int]]:
    """Mean and number of images of a metric in each row of a table, by the row's labels."""
    from evaluation.cells import labels_key

    found = {}
    for row in table.rows:
        stat = row.stats.get(metric)
        usable = stat is not None and stat.mean is not None and not stat.excluded
        found[labels_key(row.labels)] = (stat.mean, stat.n) if usable else (float("-inf"), 0)
    return found
