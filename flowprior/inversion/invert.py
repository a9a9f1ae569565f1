"""Recover images from data in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowprior.flows import Flow
from flowprior.gaussianization import Reparameterization
from flowprior.inversion.batch_invariant import batch_invariant
from flowprior.inversion.objective import Objective
from flowprior.inversion.problem import InverseProblem, Problem
from flowprior.inversion.solvers import CURVES, Method, Solver, make_solver

OnIteration = Callable[[int, Solver], None]


@dataclass(frozen=True)
class Inversion:
    """What `invert` found, one row per image.

    x is (B, C, H, W) in [0, 1] up to overshoot (clamp it for metrics), z and v are (B, ...); z is
    None where no flow is involved.
    `history` has loss, misfit and log_prior (see `Terms`), each (iterations + 1, B); row k is after
    k iterations. A row that became non-finite keeps its last finite latent; `finite` (B,) tells.
    """

    x: Tensor
    z: Tensor | None
    v: Tensor
    history: dict[str, Tensor]
    finite: Tensor


def invert(
    prior: Flow,
    physics: object,
    y: Tensor,
    *,
    reparameterization: Reparameterization | None = None,
    objective: Objective | None = None,
    iterations: int = 100,
    method: Method = "lbfgs",
    learning_rate: float = 0.05,
    start: Tensor | None = None,
    seed: int = 0,
    on_iteration: OnIteration | None = None,
) -> Inversion:
    """Minimise the objective over the latents of all images at once, each by itself.

    Args:
        prior: frozen flow.
        physics: deepinv `Physics`, or a function, of images (B, C, H, W) in [0, 1].
        y: data (B, ...).
        reparameterization: h in z = h(v), for example `Gaussianization.robust()`.
        objective: `Objective()` by default.
        iterations: at most so many.
        method: "lbfgs", every image with its own history and line search, or "adam".
        learning_rate: of Adam.
        start: latents v (B, ...); by default one draw of N(0, I) from `seed` for all images.
        seed: of the start.
        on_iteration: called at the start with 0 and after every iteration with its number, and
            with the solver (see `flowprior.inversion.solvers.Solver`).

    Raises:
        ValueError: as `InverseProblem`, or an option is wrong.
    """
    problem = InverseProblem(prior, physics, y, reparameterization, objective)
    start = starting_latents(prior, len(y), seed) if start is None else start
    start = checked_start(prior, len(y), start)
    return minimise(
        problem,
        start,
        iterations=iterations,
        method=method,
        learning_rate=learning_rate,
        on_iteration=on_iteration,
    )


def minimise(
    problem: Problem,
    start: Tensor,
    *,
    iterations: int = 100,
    method: Method = "lbfgs",
    learning_rate: float = 0.05,
    on_iteration: OnIteration | None = None,
) -> Inversion:
    """Minimise the objective of any problem from unknowns `start` (B, ...); options as `invert`."""
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    with batch_invariant():
        return _minimise(problem, start, iterations, method, learning_rate, on_iteration)


def _minimise(
    problem: Problem,
    start: Tensor,
    iterations: int,
    method: Method,
    learning_rate: float,
    on_iteration: OnIteration | None,
) -> Inversion:
    v = torch.nn.Parameter(start.detach().clone())
    solver = make_solver(problem, v, method, learning_rate)
    history = []
    for iteration in range(iterations + 1):
        if iteration > 0 and solver.active.any():
            solver.step()
        history.append(solver.values.clone())
        if on_iteration is not None:
            on_iteration(iteration, solver)
    v = v.detach()
    curves = dict(zip(CURVES, torch.stack(history, 1), strict=True))
    return Inversion(solver.x, problem.latents(v), v, curves, solver.finite)


def starting_latents(prior: Flow, count: int, seed: int = 0) -> Tensor:
    """One draw of N(0, I) for all images, (count, ...), the same on every device."""
    like = next(prior.parameters())
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(1, *prior.latent_shape, generator=generator, dtype=like.dtype)
    return one.to(like.device).repeat(count, *[1] * len(prior.latent_shape))


def checked_start(prior: Flow, count: int, start: Tensor) -> Tensor:
    """The latents to start from, in the prior's precision; ValueError if they do not fit."""
    shape = (count, *prior.latent_shape)
    if start.shape != shape or not start.isfinite().all():
        raise ValueError(f"start must be finite, of shape {shape}, got {tuple(start.shape)}")
    return start.detach().to(next(prior.parameters()))
