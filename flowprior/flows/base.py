"""The interface that every flow prior offers."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from flowprior.latent import Latent, standard_normal_log_prob
from flowprior.priors.base import Prior
from flowprior.registry import registered_name


class Flow(Prior):
    r"""A normalizing flow between images x and standardised latents z ~ N(0, I).

    Shapes: x is (B, C, H, W) in `data_range`; z is (B, \*`latent.shape`); every log-determinant is
    (B,), in nats, and belongs to the map in the direction of the call.

    A conditional flow, of images x given data y, has `conditional` and `condition_shape` set, and
    its methods take one more argument, `condition` (B, \*`condition_shape`). Log-determinants are
    those of x ↔ z at a fixed y, and `log_prob` is the density of x given y.

    Subclasses are looked up by `registered_name` when weights are loaded, so their constructor
    arguments (kept in `arguments`) must be plain numbers, strings, booleans, None, or lists or
    dictionaries of these.

    Args:
        image_shape: (C, H, W).
        data_range: (low, high) of the images that the flow models.
        arguments: those of the subclass's constructor.
        latent: parts of the latent; by default one part "z" of the image's shape.
    """

    registry: ClassVar[dict[str, type["Flow"]]] = {}
    condition_shape: tuple[int, ...] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Flow.registry[registered_name(cls)] = cls

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        data_range: tuple[float, float],
        arguments: dict[str, Any],
        latent: Latent | None = None,
    ) -> None:
        super().__init__(image_shape, latent or Latent({"z": image_shape}), data_range)
        self.arguments = arguments

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images x (B, C, H, W) to (z, log|det dz/dx|)."""

    @abstractmethod
    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map latents z (B, \*latent.shape) to (x, log|det dx/dz|)."""

    @property
    def injective(self) -> bool:
        """Whether the latent is smaller than the image, so that images fill only a surface."""
        return self.latent.size < math.prod(self.image_shape)

    def latents(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        r"""Latents (B, \*latent.shape) of images x (B, C, H, W): `encode` without its log-det."""
        return self.encode(x, *_given(condition))[0]

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        r"""Images (B, C, H, W) of latents z (B, \*latent.shape): `decode` without its log-det."""
        return self.decode(z, *_given(condition))[0]

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log p(x) = log N(z; 0, I) + log|det dz/dx| in nats, (B,), by the change of variables."""
        z, log_det = self.encode(x, *_given(condition))
        return standard_normal_log_prob(z) + log_det

    def checked_condition(self, condition: Tensor | None, x: Tensor) -> Tensor:
        """The condition in the precision of x.

        Raises:
            ValueError: it is missing, or not one row of `condition_shape` for each row of x.
        """
        name = type(self).__name__
        if not isinstance(condition, Tensor):
            raise ValueError(f"{name}: condition must be a tensor, got {type(condition).__name__}")
        self.check_shape(condition, self.condition_shape, "condition")
        if len(condition) != len(x):
            raise ValueError(
                f"{name}: condition must have {len(x)} rows, one for each image, got "
                f"{len(condition)}"
            )
        return condition.to(x.dtype)

    def check_shape(self, tensor: Tensor, expected: tuple[int, ...], name: str) -> None:
        """Raise ValueError unless `tensor` is a floating-point batch of shape (B, *expected)."""
        if tuple(tensor.shape[1:]) != expected or tensor.ndim != len(expected) + 1:
            wanted = ", ".join(map(str, expected))
            raise ValueError(
                f"{type(self).__name__}: {name} must have shape (B, {wanted}), "
                f"got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            where = "" if name == "condition" else f" in {self.data_range}"
            raise ValueError(
                f"{type(self).__name__}: {name} must be floating point{where}, got {tensor.dtype}"
            )


def _given(condition: Tensor | None) -> tuple[Tensor, ...]:
    """What `encode` and `decode` take besides x; flows that are not conditional take nothing."""
    return () if condition is None else (condition,)
