"""What conditional flows are given of data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_number, check_positive


@dataclass(frozen=True)
class Condition:
    """What a conditional flow is given of data y: s·y, or an image that is made of them.

    It must be the same in training and in use.

    Args:
        adjoint: give s·W Aᵀ(y − A(½)) instead, a migrated image: what the adjoint makes of data
            that a grey image does not explain. The operator must be linear.
        scale: s > 0; flows are best given numbers of about 1.
        depth_power: p ≥ 0; W multiplies row i of H by ((i + ½)/H)^p, where waves from the first row
            get weaker on their way. 0 for none.

    Raises:
        ValueError: names the option.
    """

    adjoint: bool = False
    scale: float = 1.0
    depth_power: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("scale", self.scale)
        check_number("depth_power", self.depth_power, least=0)
        if self.depth_power and not self.adjoint:
            raise ValueError("depth_power needs adjoint=True: data have no depth")

    @torch.no_grad()
    def __call__(self, physics: nn.Module, y: Tensor, grey: Tensor | None = None) -> Tensor:
        """The condition (B, ...) of data y; each row depends on its own data only.

        Args:
            physics: the operator.
            y: the data.
            grey: what `of_grey` gives, if it is known already.

        Raises:
            ValueError: the operator has no adjoint.
        """
        if not self.adjoint:
            return self.scale * y
        images = torch.cat([_adjoint(physics)(row) for row in y.split(1)])
        grey = self.of_grey(physics, images[:1]) if grey is None else grey
        height = images.shape[2]
        depth = (torch.arange(height, device=y.device) + 0.5) / height
        weight = self.scale * depth.to(images) ** self.depth_power
        return weight[:, None] * (images - grey)

    @torch.no_grad()
    def of_grey(self, physics: nn.Module, like: Tensor) -> Tensor:
        """AᵀA(½), (1, C, H, W) as `like`."""
        return _adjoint(physics)(physics.A(torch.full_like(like, 0.5)))


def _adjoint(physics: nn.Module) -> Callable[[Tensor], Tensor]:
    found = getattr(physics, "A_adjoint", None)
    if found is None:
        raise ValueError(
            f"{type(physics).__name__} has no A_adjoint: expected a linear operator, such as a "
            "deepinv LinearPhysics"
        )
    return found
