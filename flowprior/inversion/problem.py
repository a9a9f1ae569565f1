"""One batch of inverse problems with a flow as the prior."""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flowprior.flows import Flow
from flowprior.gaussianization import Identity, Reparameterization
from flowprior.inversion.objective import Forward, Objective, Terms


class Problem(Protocol):
    """What a solver minimises: an objective of unknowns v (B, ...), each row by itself."""

    def terms(self, v: Tensor, rows: Tensor | None = None) -> Terms:
        """Terms of the objective for the unknowns of all images, or of `rows` of them."""

    def latents(self, v: Tensor) -> Tensor | None:
        """Standardised latents z of the unknowns (B, ...), where there are any."""


class InverseProblem:
    """Data y of B images, and the objective as a function of their latents v; z = h(v), x = f(z).

    Args:
        prior: the flow f; its parameters must not require gradients.
        physics: operator A on images (B, C, H, W) in [0, 1]: a deepinv `Physics`, whose noise
            model is not used, or a function.
        y: data (B, ...), finite.
        reparameterization: h; z = v by default.
        objective: see `Objective`.

    Raises:
        ValueError: prior, physics and y do not fit, y is not finite, or A has no gradient.
    """

    def __init__(
        self,
        prior: Flow,
        physics: object,
        y: Tensor,
        reparameterization: Reparameterization | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.prior = prior
        self.forward = Forward(physics)
        self.y = y
        self.reparameterization = reparameterization or Identity()
        self.objective = objective or Objective()
        if any(p.requires_grad for p in self.prior.parameters()):
            raise ValueError("prior must be frozen: call prior.eval().requires_grad_(False)")
        like = next(self.prior.parameters())
        if y.device != like.device:
            raise ValueError(f"y is on {y.device} but the prior is on {like.device}")
        check_observations(self.forward, y, torch.zeros(prior.image_shape).to(like))

    def terms(self, v: Tensor, rows: Tensor | None = None) -> Terms:
        """Terms of the objective for latents v of all images, or of `rows` of them."""
        y = self.y if rows is None else self.y[rows]
        forward = partial(self.forward, rows=rows)
        return self.objective.terms(self.prior, self.reparameterization(v), forward, y)

    def latents(self, v: Tensor) -> Tensor:
        """Z = h(v), without gradients."""
        with torch.no_grad():
            return self.reparameterization(v)


def check_observations(forward: Forward, y: Tensor, like: Tensor) -> None:
    """Raise ValueError unless A takes an image like this one (C, H, W) and gives data like y.

    y must also be finite and A differentiable.
    """
    if not isinstance(y, Tensor) or y.ndim < 2:
        kind = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must be one tensor of data, (B, ...), got {kind}")
    finite = y.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero()[:, 0].tolist()
        raise ValueError(f"y must be finite; rows {bad[:10]} have NaN or infinite entries")
    shape = tuple(like.shape)
    reason = ""
    for count in (1, len(y)):  # alike for all images, or with parameters for each of them
        forward.images = None if count == 1 else count
        try:
            predicted = _predicted(forward, like, count)
            break
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = reason or " ".join(str(error).split())
    else:
        raise ValueError(f"{forward.name} does not take images of shape {shape}: {reason}")
    if predicted.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"y must have shape (B, {', '.join(map(str, predicted.shape[1:]))}), which "
            f"{forward.name} makes of images of shape {shape}, got {tuple(y.shape)}"
        )
    if not predicted.requires_grad:
        raise ValueError(f"{forward.name} has no gradient: A(x) does not require grad")


def _predicted(forward: Forward, like: Tensor, count: int) -> Tensor:
    """Data of grey images."""
    x = torch.full_like(like, 0.5).expand(count, *like.shape).clone().requires_grad_()
    with torch.enable_grad():
        predicted = forward(x)
    if not isinstance(predicted, Tensor):
        raise TypeError(f"it gives {type(predicted).__name__}, expected one tensor")
    if len(predicted) != count:
        raise ValueError(f"it makes {len(predicted)} rows of data of {count} images")
    return predicted
