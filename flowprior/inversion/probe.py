"""What priors and noise models return, tried on one row before anything is computed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowprior.inversion.problem import Problem
from flowprior.physics.noise import Noise
from flowprior.priors import Prior

_RETURNED = {
    "generate": None,
    "decode": "log_det",
    "project": None,
    "project_with_log_prob": "log_prob",
}
"""What methods return beside images."""
_RANDOM = "a prior must not draw random numbers itself"
_REMEDY = "; make its noise a part of the latent, or fix it"
_FAILURES = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError)


def check_prior(
    prior: Prior | None,
    needs: Sequence[str],
    condition: Tensor | None = None,
    who: str = "prior",
    gradient_for: str | None = None,
    through: bool = False,
) -> None:
    """Raise ValueError, which starts with `who`, unless the prior makes an image of one row.

    Tries those of `generate`, `decode`, `project` and `project_with_log_prob` that are among
    `needs`. Equal latents, or equal images to project, must give equal images. If `gradient_for`
    names a solver, these must have a gradient, projections only with `through`, and so must the
    log density of projections.
    """
    for method, second in _RETURNED.items():
        if method not in needs:
            continue
        name = f"{who}: {type(prior).__name__}.{method}"
        with torch.set_grad_enabled(gradient_for is not None):
            x, number = _image(prior, method, condition, name)
            again, _ = _image(prior, method, condition, name)
        projects = method.startswith("project")
        remedy = f": use IFlow(through=False), or make {method} differentiable" if projects else ""
        if gradient_for is not None and not x.requires_grad and (through or not projects):
            raise ValueError(f"{name} has no gradient, which {gradient_for} needs{remedy}")
        if gradient_for is not None and second == "log_prob" and not number.requires_grad:
            silent = "no gradient of its log_prob"
            raise ValueError(f"{name} has {silent}, which {gradient_for} needs: use beta=0")
        if not _equal(x.detach(), again.detach(), prior.like.dtype):
            what, remedy = ("image", "") if projects else ("latent", _REMEDY)
            raise ValueError(f"{name} gives different images of one {what}: {_RANDOM}{remedy}")


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


def _image(
    prior: Prior, method: str, condition: Tensor | None, name: str
) -> tuple[Tensor, Tensor | None]:
    """The image (1, C, H, W) of one row, and what is returned beside it, once they are right."""
    found, second, number = _tried(prior, method, condition, name), _RETURNED[method], None
    if second:
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(f"{name} must return (x, {second}), got {_kind(found)}")
        found, number = found
        if _shape(number) != (1,):
            raise ValueError(f"{name}: {second} must be (B,), here (1,), got {_kind(number)}")
    if _shape(found) != (1, *prior.image_shape):
        of = "image" if method.startswith("project") else "latent"
        raise ValueError(
            f"{name} gives images {_kind(found)} of one {of}, its image_shape is "
            f"{prior.image_shape}"
        )
    return found, number


def _tried(prior: Prior, method: str, condition: Tensor | None, name: str) -> Any:
    if method.startswith("project"):
        generator, what = torch.Generator().manual_seed(0), "an image"
        row = prior.from_unit_range(torch.rand(1, *prior.image_shape, generator=generator))
        row = row.to(prior.like)
    else:
        latent, what = prior.latent, "a latent"
        row = latent.shaped(latent.draw(1, seed=0, like=prior.like))
    row.requires_grad_(torch.is_grad_enabled())
    given = (row,) if condition is None else (row, condition[:1])
    try:
        return getattr(prior, method)(*given)
    except _FAILURES as error:
        shapes = " and a condition ".join(str(tuple(tensor.shape)) for tensor in given)
        raise ValueError(f"{name} does not take {what} {shapes}: {_reason(error)}") from error


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
