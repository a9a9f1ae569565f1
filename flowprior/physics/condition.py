"""What conditional priors are given of data."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_number, check_positive
from flowprior.registry import registered_name

ImageShape = tuple[int, int, int]


class Condition(ABC):
    """What a conditional prior is given of data y, the same in training and in use.

    A subclass is a frozen dataclass whose options are numbers, strings, booleans or lists of these.
    Training keeps it beside the weights, so that a loaded flow has it (`Prior.conditioning`).

    Attributes:
        gives_images: whether it gives images, of the shape of those that are sought.
    """

    gives_images: ClassVar[bool] = False
    registry: ClassVar[dict[str, type["Condition"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Condition.registry[registered_name(cls)] = cls

    @abstractmethod
    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of data y (B, ...) of an operator, to conditions (B, ...).

        Each row depends on its own data only. What all data share is computed here, once.

        Args:
            physics: the operator.
            like: an image (1, C, H, W) of the shape, precision and device of those sought.

        Raises:
            ValueError: the operator lacks what is needed.
        """


@dataclass(frozen=True)
class ScaledData(Condition):
    """The data themselves, s·y.

    Args:
        scale: s > 0; flows are best given numbers of about 1.

    Raises:
        ValueError: names the option.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("scale", self.scale)

    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Condition.of`."""
        return lambda y: self.scale * y


@dataclass(frozen=True)
class MigratedData(Condition):
    """A migrated image, s·W Aᵀ(y − A(½)), of what grey does not explain of the data.

    The operator must be linear.

    Reference: Siahkoohi & Herrmann, Learning by example: fast reliability-aware seismic imaging
    with normalizing flows (2021).

    Args:
        scale: s > 0; flows are best given numbers of about 1.
        depth_power: p ≥ 0; W multiplies row i of H by ((i + ½)/H)^p, where waves from the first row
            get weaker on their way. 0 for none.

    Raises:
        ValueError: names the option.
    """

    scale: float = 1.0
    depth_power: float = 0.0

    gives_images = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("scale", self.scale)
        check_number("depth_power", self.depth_power, least=0)

    @torch.no_grad()
    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Condition.of`."""
        adjoint = getattr(physics, "A_adjoint", None)
        if adjoint is None:
            raise ValueError(
                f"{type(physics).__name__} has no A_adjoint, which MigratedData needs: expected a "
                "linear operator, such as a deepinv LinearPhysics"
            )
        height = like.shape[2]
        depth = (torch.arange(height, device=like.device) + 0.5) / height
        weight = self.scale * depth.to(like)[:, None] ** self.depth_power
        of_grey = adjoint(physics.A(torch.full_like(like, 0.5)))

        @torch.no_grad()
        def migrated(y: Tensor) -> Tensor:
            return weight * (torch.cat([adjoint(row) for row in y.split(1)]) - of_grey)

        return migrated
