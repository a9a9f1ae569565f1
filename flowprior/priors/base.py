"""The interface of a prior: a method that exists is a capability."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.latent import Latent

if TYPE_CHECKING:
    from flowprior.physics import Condition

CAPABILITIES = {
    "generate": "a generator (generate)",
    "decode": "a log-determinant (decode)",
    "encode": "an encoder (encode)",
    "encode_joint": "a flow of the data too (encode_joint)",
    "project": "a projection onto its range (project)",
    "project_with_log_prob": "a projection with a layer-wise density (project_with_log_prob)",
}
"""What a solver may need of a prior, by the name of the method."""


class Prior(nn.Module, ABC):
    """A generator x = G(z) of images, z ~ N(0, I).

    A subclass may also have

    - `decode(z) -> (x, log_det)`, log_det = log|det dx/dz| in nats, (B,);
    - `encode(x) -> (z, log_det)`, its inverse, log_det = log|det dz/dx|;
    - `log_prob(x)`, nats, (B,);
    - `project(x)`, images onto the range of G;
    - `project_with_log_prob(x)`, these and an approximate log density of them, nats, (B,).

    A method that is missing is a capability that is missing: a prior without log-determinants has
    no `decode`, rather than one that returns 0.

    Attributes:
        image_shape: (C, H, W).
        data_range: (low, high) of the images that the prior models.
        latent: parts of the latent. z is (B, *latent.shape).
        conditional: whether every method needs `condition=`, one row per image.
        made_of: what tells it from other priors where its weights are computed, so that their last
            digits depend on the machine. None where the weights tell it.
        conditioning: how conditions are made of data, as in the training of a conditional prior.
            None if it is not known: then who calls must make them.
    """

    conditional: bool = False
    made_of: Mapping[str, Any] | None = None
    conditioning: "Condition | None" = None

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent: Latent,
        data_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        low, high = map(float, data_range)
        if not -float("inf") < low < high < float("inf"):
            raise ValueError(
                f"data_range must be (low, high) with low < high, both finite, got {data_range}"
            )
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape must be (C, H, W), got {image_shape}")
        self.image_shape = tuple(image_shape)
        self.data_range = (low, high)
        self.latent = latent

    @abstractmethod
    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in `data_range` of latents z (B, *latent.shape)."""

    @torch.no_grad()
    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        *,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Draw n images (n, C, H, W) from z ~ N(0, temperature² I).

        The generator lives on the CPU, so a seed gives the same images on every device.

        Raises:
            ValueError: names an argument that is of another type, or out of range.
        """
        check_types(Prior.sample, locals())
        if n < 1 or not 0 <= temperature < float("inf"):
            raise ValueError(f"sample needs n >= 1 and temperature >= 0, got {n} and {temperature}")
        like = self.like
        z = torch.randn(n, *self.latent.shape, generator=generator, dtype=like.dtype)
        z = temperature * z.to(like.device)
        return self.generate(z, condition) if self.conditional else self.generate(z)

    def to_unit_range(self, x: Tensor) -> Tensor:
        """Map x from `data_range` to [0, 1] without clamping: for operators, metrics, display."""
        low, high = self.data_range
        return (x - low) / (high - low)

    def from_unit_range(self, x: Tensor) -> Tensor:
        """Map x from [0, 1] to `data_range`; the inverse of `to_unit_range`."""
        low, high = self.data_range
        return low + x * (high - low)

    @property
    def like(self) -> Tensor:
        """A tensor of the prior's precision on its device: a parameter, a buffer or a scalar."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor
        return torch.zeros(())


def require(prior: object, needs: Iterable[str], who: str, remedy: str = "") -> None:
    """Raise ValueError unless the prior has all these methods.

    Args:
        prior: the prior, or None.
        needs: names of methods, as in `CAPABILITIES`.
        who: what needs them; the message starts with it.
        remedy: what to do instead, for the end of the message if there is a prior.

    Raises:
        ValueError: names what is missing.
    """
    missing = [
        CAPABILITIES.get(name, name) for name in needs if not callable(getattr(prior, name, None))
    ]
    if missing:
        has = "there is no prior" if prior is None else f"{type(prior).__name__} does not have it"
        end = f": {remedy}" if remedy and prior is not None else ""
        raise ValueError(f"{who} needs {' and '.join(missing)}, but {has}{end}")
