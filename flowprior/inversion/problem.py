"""One batch of inverse problems with a flow as the prior."""

import torch
from torch import Tensor

from flowprior.flows import Flow
from flowprior.gaussianization import Identity, Reparameterization
from flowprior.inversion.objective import Forward, Objective, Terms


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
        self._check()

    def terms(self, v: Tensor, rows: Tensor | None = None) -> Terms:
        """Terms of the objective for latents v of all images, or of `rows` of them."""
        y = self.y if rows is None else self.y[rows]
        return self.objective.terms(self.prior, self.reparameterization(v), self.forward, y)

    def images(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(x, z) of latents v, without gradients; x is not clamped."""
        with torch.no_grad():
            z = self.reparameterization(v)
            return self.prior.to_unit_range(self.prior.decode(z)[0]), z

    def _check(self) -> None:
        if any(p.requires_grad for p in self.prior.parameters()):
            raise ValueError("prior must be frozen: call prior.eval().requires_grad_(False)")
        like = next(self.prior.parameters())
        if self.y.device != like.device:
            raise ValueError(f"y is on {self.y.device} but the prior is on {like.device}")
        finite = self.y.isfinite().flatten(1).all(1)
        if not finite.all():
            bad = (~finite).nonzero()[:, 0].tolist()
            raise ValueError(f"y must be finite; rows {bad[:10]} have NaN or infinite entries")
        self._check_operator(like)

    def _check_operator(self, like: Tensor) -> None:
        x = torch.full((1, *self.prior.image_shape), 0.5, dtype=like.dtype, device=like.device)
        with torch.enable_grad():
            try:
                predicted = self.forward(x.requires_grad_())
            except (RuntimeError, ValueError, IndexError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{self.forward.name} does not take images of shape "
                    f"{self.prior.image_shape}: {reason}"
                ) from error
        if predicted.shape[1:] != self.y.shape[1:]:
            raise ValueError(
                f"y must have shape (B, {', '.join(map(str, predicted.shape[1:]))}), which "
                f"{self.forward.name} makes of images of shape {self.prior.image_shape}, got "
                f"{tuple(self.y.shape)}"
            )
        if not predicted.requires_grad:
            raise ValueError(f"{self.forward.name} has no gradient: A(x) does not require grad")
