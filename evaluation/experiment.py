"""What a table of inversions compares: experiments and methods, as a config describes them."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from evaluation.base import Label, Labels
from flowprior.identity import identity
from flowprior.inversion import Problem, Solver, make_problem
from flowprior.physics import Noise, find_operator, make_operator
from flowprior.priors import Prior

StartName = Literal["random", "constant", "depth", "data", "smoothed_truth", "file"]
ImageShape = tuple[int, int, int]
Only = dict[str, list[Label]]
"""Values by label, of which a row that is chosen has one each."""
REFINEMENT = 4
"""Data of an operator on a grid are made on one so many times finer."""


@dataclass
class Method:
    """A way to recover images.

    Args:
        solver: how.
        labels: of its rows in the table; `{method: its name}` by default.
        iterations: maximum number; that of the evaluation by default.
        start: what it starts from; that of the evaluation by default.
        tune: values to try, by option of the solver, such as `{beta: [0.1, 1.0]}`; a dot reaches
            into an option, as in `reparameterization.temperature`; `iterations` are those of the
            method. `evaluate.py --tune` takes the best on validation images.
        priors: names of those that it takes, of the experiment's; all by default.
    """

    solver: Solver
    labels: dict[str, Label] = field(default_factory=dict)
    iterations: int | None = None
    start: StartName | None = None
    tune: dict[str, list[int | float]] = field(default_factory=dict)
    priors: list[str] | None = None

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < 0:
            raise ValueError(f"methods: iterations must be at least 0, got {self.iterations}")
        for option, values in self.tune.items():
            if not values:
                raise ValueError(f"methods: tune.{option} must have at least one value")


@dataclass
class Experiment:
    """An operator and the noise of its data, and what is to undo both.

    Args:
        labels: of its rows in the table.
        operator: a name of `flowprior.physics.OPERATORS`, or an import path such as
            `deepinv.physics.Inpainting`.
        options: of the operator.
        noise: of the data. For measured data it is what the methods believe.
        assumed: options that the methods believe in, where they are wrong about some.
        assumed_noise: what the methods believe of the noise, where they are wrong about it.
        data_options: options that make the data, on top of `options`. An operator on a grid (one
            that takes an integer `refine`, 1 by default) makes data on a finer one by default, so
            that data and inversion do not share their discretisation; `{refine: 1}` makes them on
            the same.
        methods: names of those compared; all by default.
        priors: names of those compared; all by default.
    """

    labels: dict[str, Label]
    operator: str
    options: dict[str, Any] = field(default_factory=dict)
    noise: Noise | None = None
    assumed: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    assumed_noise: Noise | None = None
    methods: list[str] | None = None
    priors: list[str] | None = None

    @property
    def believed_noise(self) -> Noise | None:
        """The noise that the methods believe in."""
        return self.noise if self.assumed_noise is None else self.assumed_noise

    def physics(self, image_shape: ImageShape) -> Any:
        """The operator that the methods believe in."""
        return make_operator(self.operator, image_shape, **{**self.options, **self.assumed})

    def data_physics(self, image_shape: ImageShape) -> Any:
        """The operator that makes the data."""
        options = dict(self.options)
        refine = inspect.signature(find_operator(self.operator)).parameters.get("refine")
        if refine is not None and type(refine.default) is int and refine.default == 1:
            options.setdefault("refine", REFINEMENT)
        return make_operator(self.operator, image_shape, **{**options, **self.data_options})

    def problem(self, prior: Prior, y: Tensor, needs_prior: bool = True, **options: Any) -> Problem:
        """Data as a problem, in the precision and on the device of the prior.

        A solver that needs no prior gets none: its only row would have the name of no prior.
        Options are those of `make_problem`.
        """
        like, shape = prior.like, prior.image_shape
        dtype = like.dtype.to_complex() if y.is_complex() else like.dtype
        physics = self.physics(shape).to(like.device)
        physics = physics.double() if like.dtype == torch.float64 else physics
        options |= {"noise": self.believed_noise, "image_shape": shape}
        y = y.to(like.device, dtype)
        return make_problem(prior if needs_prior else None, physics, y, **options)

    def fingerprint(self) -> Any:
        """What results depend on, with the code of an operator of a user's own."""
        described = identity(replace(self, labels={}, methods=None, priors=None))
        return {**described, "operators": identity([find_operator(self.operator)])}


def agrees(labels: Labels, only: Only) -> bool:
    """Whether labels have one of the values of each of `only`; None is that of a missing label."""
    return all(labels.get(name) in values for name, values in only.items())


def check_only(only: Only, rows: Sequence[Labels]) -> None:
    """Raise ValueError, with what there is, unless some of these rows are chosen."""
    names = dict.fromkeys(name for row in rows for name in row)
    for name, values in only.items():
        if name not in names:
            raise ValueError(f"only: no row has a label {name!r}; there are {', '.join(names)}")
        if not values:
            raise ValueError(f"only: {name} must have at least one value")
        known = dict.fromkeys(row.get(name) for row in rows)
        unknown = [value for value in values if value not in known]
        if unknown:
            there_are = ", ".join(map(repr, known))
            raise ValueError(f"only: no row has {name} {unknown[0]!r}; there are {there_are}")
    if not any(agrees(row, only) for row in rows):
        asked = ", ".join(f"{name} {' or '.join(map(repr, v))}" for name, v in only.items())
        raise ValueError(f"only: no row has all of {asked}")


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise ValueError, which starts with `what`, for the first name that is not known."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{what} named {unknown[0]!r}; there are {', '.join(known)}")
