"""What priors and noise models return, tried on one row before anything is computed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowprior.inversion.problem import Problem
from flowprior.physics.noise import Noise
from flowprior.priors import Prior

_FAILURES = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError)


def check_prior(
    prior: Prior | None,
    needs: Sequence[str],
    condition: Tensor | None = None,
    who: str = "prior",
    gradient_for: str | None = None,
) -> None:
    """Raise ValueError, which starts with `who`, unless the prior makes an image of one latent.

    Tries `generate` and `decode`, if they are among `needs`. Equal latents must give equal images,
    and if `gradient_for` names a solver, they must have a gradient.
    """
    for method in ("generate", "decode"):
        if method not in needs:
            continue
        name = f"{who}: {type(prior).__name__}.{method}"
        with torch.set_grad_enabled(gradient_for is not None):
            x = _image(prior, method, condition, name)
            again = _image(prior, method, condition, name)
        if gradient_for is not None and not x.requires_grad:
            raise ValueError(f"{name} has no gradient, which {gradient_for} needs")
        if not _equal(x.detach(), again.detach(), prior.like.dtype):
            raise ValueError(
                f"{name} gives different images of one latent: a prior must not draw random "
                "numbers itself; make its noise a part of the latent, or fix it"
            )


def check_misfits(solver: object, problem: Problem) -> None:
    """Raise ValueError unless the noise models of data and solver give misfits (B,).

    The one that a solver differentiates must have a gradient.
    """
    own = _misfits(solver)
    tried = [(noise, True) for noise in own]
    if problem.noise is not None:
        tried.insert(0, (problem.noise, not own))
    for noise, used in tried:
        name = f"noise: misfit of {type(noise).__name__}"
        # Two rows tell a misfit of each image from one of all of them.
        y = problem.y[:1].repeat(2, *[1] * (problem.y.ndim - 1))
        asked = used and solver.differentiates
        predicted = y.clone().requires_grad_(asked)
        try:
            with torch.set_grad_enabled(asked):
                found = noise.misfit(predicted, y)
        except (ValueError, NotImplementedError):  # as of σ = 0; not every solver uses it
            continue
        except _FAILURES as error:
            raise ValueError(f"{name} fails on data {tuple(y.shape)}: {_reason(error)}") from error
        if _shape(found) != (2,):
            raise ValueError(f"{name} must be (B,), here (2,), got {_kind(found)}")
        if asked and not found.requires_grad:
            raise ValueError(f"{name} has no gradient, which {type(solver).__name__} needs")


def _image(prior: Prior, method: str, condition: Tensor | None, name: str) -> Tensor:
    """The image of one latent, (1, C, H, W), once shapes are as they should be."""
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
    return found


def _tried(prior: Prior, method: str, condition: Tensor | None, name: str) -> Any:
    latent = prior.latent
    z = latent.shaped(latent.draw(1, seed=0, like=prior.like))
    z.requires_grad_(torch.is_grad_enabled())
    given = (z,) if condition is None else (z, condition[:1])
    try:
        return getattr(prior, method)(*given)
    except _FAILURES as error:
        shapes = " and a condition ".join(str(tuple(tensor.shape)) for tensor in given)
        raise ValueError(f"{name} does not take a latent {shapes}: {_reason(error)}") from error


def _equal(x: Tensor, again: Tensor, dtype: torch.dtype) -> bool:
    """Whether images are equal up to the rounding of a dtype: calls on a GPU may differ by it."""
    slack = torch.finfo(dtype).eps ** 0.5
    return torch.allclose(x.double(), again.double(), rtol=slack, atol=slack, equal_nan=True)


def _misfits(solver: object) -> list[Noise]:
    """Those of the solver and of solvers within it, in place of the data's noise."""
    found = []
    while solver is not None:
        if isinstance(getattr(solver, "misfit", None), Noise):
            found.append(solver.misfit)
        solver = getattr(solver, "solver", None)
    return found


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _kind(value: Any) -> str:
    return type(value).__name__ if _shape(value) is None else str(_shape(value))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
