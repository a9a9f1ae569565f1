"""What conditional flows are given of data."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_positive


@dataclass(frozen=True)
class Condition:
    """What a conditional flow is given of data y: scale · y, or an image that is made of them.

    It must be the same in training and in use.

    Args:
        adjoint: give scale · Aᵀy instead, as migration does; the operator must be linear.
        scale: positive; flows are best given numbers of about 1.

    Raises:
        ValueError: the scale is not positive.
    """

    adjoint: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("scale", self.scale)

    @torch.no_grad()
    def __call__(self, physics: nn.Module, y: Tensor) -> Tensor:
        """Of data y (B, ...) of an operator, (B, ...), each row whatever the others are.

        Raises:
            ValueError: the operator has no adjoint.
        """
        if not self.adjoint:
            return self.scale * y
        if not hasattr(physics, "A_adjoint"):
            raise ValueError(
                f"{type(physics).__name__} has no A_adjoint: expected a linear operator, such as a "
                "deepinv LinearPhysics"
            )
        return torch.cat([self.scale * physics.A_adjoint(row) for row in y.split(1)])
