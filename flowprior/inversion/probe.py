"""What priors and noise models return, tried on one row before anything is computed."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flowprior.inversion.problem import Problem
from flowprior.physics.noise import Noise
from flowprior.priors import Prior

_FAILURES = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError)


@torch.no_grad()
def check_prior(
    prior: Prior | None,
    needs: Sequence[str],
    condition: Tensor | None = None,
    who: str = "prior",
) -> None:
    """Raise ValueError, which starts with `who`, unless the prior makes an image of one latent.

    Tries `generate` and `decode`, if they are among `needs`.
    """
    for method in ("generate", "decode"):
        if method not in needs:
            continue
        name = f"{who}: {type(prior).__name__}.{method}"
        found = _tried(prior, method, condition, name)
        if method == "decode":
            if not isinstance(found, tuple) or len(found) != 2:
                raise ValueError(f"{name} must return (x, log_det), got {_kind(found)}")
            found, log_det = found
            if _shape(log_det) != (1,):
                raise ValueError(f"{name}: log_det must be (B,), here (1,), got {_kind(log_det)}")
        if _shape(found) != (1, *prior.image_shape):
            raise ValueError(
                f"{name} gives images {_kind(found)} of one latent, its image_shape is "
                f"{prior.image_shape}"
            )


def check_misfits(solver: object, problem: Problem) -> None:
    """Raise ValueError unless the noise models of data and solver give misfits (B,)."""
    for noise in _noises(solver, problem):
        name = f"noise: misfit of {type(noise).__name__}"
        row = problem.y[:1]
        try:
            found = noise.misfit(row, row)
        except (ValueError, NotImplementedError):  # as of σ = 0; not every solver uses it
            continue
        except _FAILURES as error:
            raise ValueError(
                f"{name} fails on data {tuple(row.shape)}: {_reason(error)}"
            ) from error
        if _shape(found) != (1,):
            raise ValueError(f"{name} must be (B,), here (1,), got {_kind(found)}")


def _tried(prior: Prior, method: str, condition: Tensor | None, name: str) -> Any:
    latent = prior.latent
    z = latent.shaped(latent.draw(1, seed=0, like=prior.like))
    given = (z,) if condition is None else (z, condition[:1])
    try:
        return getattr(prior, method)(*given)
    except _FAILURES as error:
        shapes = " and a condition ".join(str(tuple(tensor.shape)) for tensor in given)
        raise ValueError(f"{name} does not take a latent {shapes}: {_reason(error)}") from error


def _noises(solver: object, problem: Problem) -> Iterator[Noise]:
    """That of the data, that of the solver and those of solvers within it."""
    if problem.noise is not None:
        yield problem.noise
    while solver is not None:
        if isinstance(getattr(solver, "misfit", None), Noise):
            yield solver.misfit
        solver = getattr(solver, "solver", None)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _kind(value: Any) -> str:
    return type(value).__name__ if _shape(value) is None else str(_shape(value))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
