"""Recover images from data in plain PyTorch."""

from collections.abc import Sequence

from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.inversion.checkpoint import Checkpoint
from flowprior.inversion.map import MAP
from flowprior.inversion.problem import make_problem
from flowprior.inversion.progress import with_progress
from flowprior.inversion.solving import Estimate, Observer, Solver, check_solver, solve
from flowprior.physics.noise import Noise
from flowprior.priors import Prior


def invert(
    prior: Prior | None,
    physics: object,
    y: Tensor,
    *,
    sigma: float | None = None,
    noise: Noise | None = None,
    solver: Solver | None = None,
    iterations: int = 100,
    start: Tensor | None = None,
    latents: Tensor | None = None,
    condition: Tensor | None = None,
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    observers: Sequence[Observer] = (),
    checkpoint: Checkpoint | None = None,
    progress: bool | None = None,
) -> Estimate:
    """Recover many images at once; each result is independent of the other images.

    Args:
        prior: frozen prior; None for solvers that need none.
        physics: deepinv `Physics`, or a function, of images (B, C, H, W) in [0, 1].
        y: data (B, ...). They are computed with in the precision of the prior; without one in
            their own, or in that of the operator's tensors if the operator does not take it.
        sigma: standard deviation of the noise in the units of y: short for `noise=Gaussian(sigma)`.
        noise: noise model of the data. With either of them a solver's β = 1 is Bayes' rule.
        solver: the method with its options; `MAP()` by default.
        iterations: their maximum number.
        start: images (B, C, H, W) in [0, 1] to start from.
        latents: free latents v (B, n) to start from, or (B, *latent.shape) as the z of an earlier
            `Estimate`; B·count rows for `Restarts`. By default one draw of N(0, I) from `seed`.
        condition: one row per image, for a conditional prior; by default what its `conditioning`
            makes of y.
        image_shape: (C, H, W), if there is neither prior nor start.
        seed: of everything random.
        indices: numbers of the images, 0 to B − 1 by default: random numbers of an image depend
            on (seed, index) alone.
        observers: called with the number of each iteration, 0 first, and the run. Those that have
            a method `close` are closed at the end, and must open again to serve another call.
        checkpoint: file to resume from, and to save the state in.
        progress: whether to show iterations, loss and time left on stderr (see `Progress`). By
            default what takes more than two seconds does so on a terminal, and nothing elsewhere.

    Returns:
        The images, their latents, curves, residuals and warnings.

    Raises:
        ValueError: names the argument that is wrong or does not fit, before anything is computed.
    """
    check_types(invert, locals())
    solver = MAP() if solver is None else solver
    check_solver(solver)
    problem = make_problem(
        prior,
        physics,
        y,
        sigma=sigma,
        noise=noise,
        image_shape=image_shape,
        start=start,
        latents=latents,
        condition=condition,
        seed=seed,
        indices=indices,
    )
    observers = with_progress(observers, iterations, progress)
    return solve(solver, problem, iterations, observers, checkpoint)
