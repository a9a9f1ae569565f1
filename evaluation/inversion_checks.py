"""Whether priors, methods, experiments and data of a table fit together, before any is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from evaluation.experiment import Experiment, check_names
from evaluation.tuning import variants
from flowprior.inversion import Problem, Solver
from flowprior.inversion.probe import check_prior
from flowprior.inversion.solving import check_data

if TYPE_CHECKING:
    from evaluation.inversion import InversionEvaluation


def check_fit(table: InversionEvaluation) -> None:
    """Raise ValueError unless every row of a table can be measured, as far as can be told."""
    table.priors.check(table.source)
    for name, method in table.methods.items():
        table.source.check_start(method.start or table.start)
        variants(name, method)
    rows = dict.fromkeys(row for one in table.experiments for row in table.rows(one))
    for prior, name in rows:
        with _named(f"methods.{name}"):
            table.methods[name].solver.check(table.priors.load(prior))
    solvers = [(prior, table.methods[name].solver) for prior, name in rows]
    for prior, needs, user, through in dict.fromkeys(
        (p, tuple(s.needs), type(s).__name__ if s.differentiates else None, s.through)
        for p, s in solvers
    ):
        options = {"who": f"priors.{prior}", "gradient_for": user, "through": through}
        check_prior(table.priors.load(prior), needs, _condition(table, prior), **options)
    for number, experiment in enumerate(table.experiments):
        rows = table.rows(experiment)
        for prior in table.priors_of(experiment):
            with _named(f"experiments[{number}]"):
                _probe(table, experiment, prior, [name for of, name in rows if of == prior])


def _condition(table: InversionEvaluation, name: str) -> Tensor | None:
    """What a prior is given of the first data it is used for; None if it is not conditional."""
    prior = table.priors.load(name)
    if not prior.conditional:
        return None
    number, first = next((n, e) for n, e in enumerate(table.experiments) if name in e.priors)
    with _named(f"experiments[{number}]"):
        y = table.source.probe(first, prior.image_shape)
        return first.problem(prior, y).condition


def check_rows(table: InversionEvaluation) -> None:
    """Raise ValueError unless every experiment has a prior, and every method a row."""
    for number, experiment in enumerate(table.experiments):
        if not experiment.priors:
            raise ValueError(f"experiments[{number}].priors must have at least one name")
    with_row = {name for one in table.experiments for _, name in table.rows(one)}
    for name, method in table.methods.items():
        check_names(method.priors or (), table.prior_names, f"methods.{name}: no prior")
        if name not in with_row:
            raise ValueError(
                f"methods.{name}: no experiment has this method and one of its priors: "
                "leave it out, or change methods or priors of the method or of an experiment"
            )


def _probe(
    table: InversionEvaluation, experiment: Experiment, prior_name: str, methods: Sequence[str]
) -> None:
    """Make problems: a wrong operator or a missing noise level is found before measuring."""
    prior = table.priors.load(prior_name)
    y = table.source.probe(experiment, prior.image_shape)
    with _named(table.source.probed):
        problems = {needy: experiment.problem(prior, y, needy) for needy in (True, False)}
    for name in methods:
        method, solver = table.methods[name], table.methods[name].solver
        problem = problems[bool(solver.needs)]
        no_images = y.shape[1:] != prior.image_shape or y.is_complex()
        if (method.start or table.start) == "data" and no_images:
            raise ValueError(f"start=data needs real data of the images' shape {prior.image_shape}")
        unknown = problem.noise is None and getattr(solver, "misfit", None) is None
        with _named(f"methods.{name}"):
            check_data(solver, problem)
            if unknown or not solver.needs:
                _begin(solver, problem)


def _begin(solver: Solver, problem: Problem) -> None:
    """Begin; a solver without `needs` may use the prior that it does not get."""
    try:
        solver.begin(problem)
    except AttributeError as error:
        if solver.needs:
            raise
        raise ValueError(
            f"{type(solver).__name__} has no `needs`, so that problem.prior is None: {error}. "
            'If it uses the prior, say needs = ("generate",)'
        ) from error


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say where in the config a mistake is, if it is known."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}" if what else str(error)) from error
