"""The interface that every flow prior offers."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Flow(nn.Module, ABC):
    r"""A normalizing flow between images x and standardised latents z ~ N(0, I).

    Shapes: x is (B, C, H, W) in `data_range`; z is (B, \*`latent_shape`); every log-determinant is
    (B,), in nats, and belongs to the map in the direction of the call.

    Subclasses are looked up by `registered_name` when weights are loaded, so their constructor
    arguments (kept in `arguments`) must be plain numbers, strings, booleans or lists of these.
    """

    registry: ClassVar[dict[str, type["Flow"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Flow.registry[cls.registered_name()] = cls

    @classmethod
    def registered_name(cls) -> str:
        """Name in weights: the class's own for flowprior's flows, with its module for others.

        A class of a user cannot take the place of one of flowprior's this way.
        """
        ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        return cls.__name__ if ours else f"{cls.__module__}.{cls.__qualname__}"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        data_range: tuple[float, float],
        arguments: dict[str, Any],
    ) -> None:
        super().__init__()
        low, high = map(float, data_range)
        if not low < high:
            raise ValueError(f"data_range must be (low, high) with low < high, got {data_range}")
        self.image_shape = image_shape
        self.data_range = (low, high)
        self.arguments = arguments

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent of one image."""

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images x (B, C, H, W) to (z, log|det dz/dx|)."""

    @abstractmethod
    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map latents z (B, \*latent_shape) to (x, log|det dx/dz|)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x) = log N(z; 0, I) + log|det dz/dx| in nats, (B,), by the change of variables."""
        z, log_det = self.encode(x)
        return standard_normal_log_prob(z) + log_det

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float = 1.0, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n images (n, C, H, W) from z ~ N(0, temperature² I).

        The generator lives on the CPU, so a seed gives the same images on every device.
        """
        if n < 1 or temperature < 0:
            raise ValueError(f"sample needs n >= 1 and temperature >= 0, got {n} and {temperature}")
        like = next(self.parameters())
        z = torch.randn(n, *self.latent_shape, generator=generator, dtype=like.dtype)
        return self.decode(temperature * z.to(like.device))[0]

    def to_unit_range(self, x: Tensor) -> Tensor:
        """Map x from `data_range` to [0, 1] without clamping, for display and image metrics."""
        low, high = self.data_range
        return (x - low) / (high - low)

    def check_shape(self, tensor: Tensor, expected: tuple[int, ...], name: str) -> None:
        """Raise ValueError unless `tensor` is a floating-point batch of shape (B, *expected)."""
        if tuple(tensor.shape[1:]) != expected or tensor.ndim != len(expected) + 1:
            wanted = ", ".join(map(str, expected))
            raise ValueError(
                f"{type(self).__name__}: {name} must have shape (B, {wanted}), "
                f"got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: {name} must be floating point in {self.data_range}, "
                f"got {tensor.dtype}"
            )


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Log density of N(0, I) at each latent of a batch, (B,), in nats."""
    dimensions = z[0].numel()
    return -0.5 * (z.flatten(1).square().sum(1) + dimensions * math.log(2 * math.pi))
