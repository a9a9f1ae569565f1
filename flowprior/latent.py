"""Latents: flat for solvers, named parts for priors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_types

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Latent:
    """Named parts of a latent ~ N(0, I), concatenated into one vector of `size` numbers.

    Solvers, starts and checkpoints see vectors (B, size). Priors see shapes: (B, *shape) if there
    is one part, otherwise what `split` gives.

    Args:
        parts: shape of each part by name, in the order of the vector.

    Raises:
        ValueError: there is no part, or a shape is empty or not positive.

    >>> latent = Latent({"style": (2, 4), "noise": (1, 3, 3)})
    >>> latent.size
    17
    >>> {name: tuple(part.shape) for name, part in latent.split(torch.zeros(5, 17)).items()}
    {'style': (5, 2, 4), 'noise': (5, 1, 3, 3)}
    """

    parts: Mapping[str, Shape]

    def __post_init__(self) -> None:
        parts = {str(name): tuple(int(n) for n in shape) for name, shape in self.parts.items()}
        if not parts or any(not shape or min(shape) < 1 for shape in parts.values()):
            raise ValueError(f"latent parts must have positive shapes by name, got {self.parts}")
        object.__setattr__(self, "parts", parts)

    @property
    def size(self) -> int:
        """Number of entries of one latent."""
        return sum(self._sizes)

    @property
    def shape(self) -> Shape:
        """Shape that a prior takes: that of the only part, or (size,) if there are several."""
        return next(iter(self.parts.values())) if len(self.parts) == 1 else (self.size,)

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.parts.values()]

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """Vectors (B, size) as parts (B, *shape) by name."""
        pieces = z.flatten(1).split(self._sizes, 1)
        named = zip(self.parts.items(), pieces, strict=True)
        return {name: piece.unflatten(1, shape) for (name, shape), piece in named}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Parts (B, *shape) by name as vectors (B, size); the inverse of `split`."""
        self._check_names(parts)
        return torch.cat([parts[name].flatten(1) for name in self.parts], 1)

    def shaped(self, z: Tensor) -> Tensor:
        """Vectors (B, size) as a prior takes them: (B, *self.shape)."""
        return z.unflatten(1, self.shape)

    def map(self, layers: Mapping[str, nn.Module], v: Tensor) -> Tensor:
        """Apply a module to each named part of v (B, size); the other parts stay as they are.

        Raises:
            ValueError: there is no part of that name, or a module refuses its part.
        """
        self._check_names(layers, complete=False)
        if not layers:
            return v
        parts = {
            n: _mapped(n, layers[n], p) if n in layers else p for n, p in self.split(v).items()
        }
        return self.join(parts)

    def draw(self, count: int, *, seed: int, like: Tensor) -> Tensor:
        """One draw of N(0, I), repeated for all rows, (count, size).

        It has the type and device of `like`; the numbers are the same on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        one = torch.randn(1, self.size, generator=generator, dtype=like.dtype)
        return one.to(like.device).repeat(count, 1)

    def _check_names(self, given: Mapping[str, object], complete: bool = True) -> None:
        unknown = sorted(given.keys() - self.parts.keys())
        missing = [name for name in self.parts if name not in given] if complete else []
        if unknown or missing:
            what = "no part " + ", ".join(unknown) if unknown else "missing " + ", ".join(missing)
            raise ValueError(f"latent: {what}; the parts are {', '.join(self.parts)}")


def _mapped(name: str, layer: nn.Module, part: Tensor) -> Tensor:
    try:
        return layer(part)
    except ValueError as error:
        raise ValueError(f"latent part {name}: {error}") from error


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Log density of N(0, I) at each latent of a batch (B, ...), (B,), in nats."""
    check_types(standard_normal_log_prob, {"z": z})
    dimensions = z[0].numel()
    return -0.5 * (z.flatten(1).square().sum(1) + dimensions * math.log(2 * math.pi))
