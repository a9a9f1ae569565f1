"""What conditional priors are given of data."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_number, check_positive
from flowprior.registry import registered_name

_PLAIN = "options must be numbers, strings, booleans or lists, which a file keeps"


class UnknownCondition(ValueError):
    """There is no condition of that name among those that are imported."""


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

    def described(self) -> dict[str, Any]:
        """Its name and options, as JSON has them.

        Raises:
            ValueError: it is no dataclass, or an option is nothing that JSON has.
        """
        name = registered_name(type(self))
        if not is_dataclass(self):
            raise ValueError(f"condition {name} must be a frozen dataclass")
        described = {"condition": name, "options": asdict(self)}
        try:
            again = Condition.restored(json.loads(json.dumps(described, allow_nan=False)))
            same = bool(again == self)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"condition {name}: {_PLAIN}: {error}") from error
        if not same:
            raise ValueError(f"condition {name}: {_PLAIN}: it comes back as {again}")
        return described

    @staticmethod
    def restored(described: Any) -> "Condition":
        """The condition of such a name and options.

        Raises:
            UnknownCondition: none of that name is imported.
            ValueError: it is nothing that `described` gives.
        """
        name = described.get("condition") if isinstance(described, dict) else None
        known = ", ".join(sorted(Condition.registry))
        if not isinstance(name, str):
            raise ValueError(f"condition must be one of {known}, got {described}")
        if name not in Condition.registry:
            raise UnknownCondition(f"condition must be one of {known}, got {name}")
        kind, options = Condition.registry[name], described.get("options")
        names = {field.name for field in fields(kind)}
        if not isinstance(options, dict) or options.keys() != names:
            raise ValueError(f"options of {name} must be {', '.join(sorted(names))}, got {options}")
        return kind(**options)

    @torch.no_grad()
    def __call__(self, physics: nn.Module, y: Tensor, like: Tensor) -> Tensor:
        """Conditions (B, ...) of data y (B, ...), each row by itself; arguments as `of`."""
        of_data = self.of(physics, like)
        return torch.cat([of_data(part) for part in y.split(len(like))])

    @abstractmethod
    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of data y of an operator to conditions; what all data share is computed here.

        The data are those of one image, (1, ...), and so are the conditions: a result must not
        depend on its batch. Of an operator with parameters for each image they are of all images.

        Args:
            physics: the operator.
            like: an image (1, C, H, W) of the shape, precision and device of those sought; B of
                them if the operator has parameters, such as masks, for each of B images.

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

    The operator must be linear, or affine with the adjoint of its linear part (`AboutGrey`).

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

        return lambda y: weight * (adjoint(y) - of_grey)
