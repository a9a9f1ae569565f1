"""Flows of other libraries as priors: zuko and normflows, over flattened images."""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.latent import Latent, standard_normal_log_prob
from flowprior.priors.base import Prior


class VectorFlow(Prior):
    """A bijection between flattened images and vectors z ~ N(0, I) of the same size."""

    def __init__(
        self,
        flow: nn.Module,
        image_shape: tuple[int, int, int],
        data_range: tuple[float, float] = (-0.5, 0.5),
    ) -> None:
        super().__init__(image_shape, Latent({"z": (math.prod(image_shape),)}), data_range)
        self.flow = flow

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images x (B, C, H, W) to (z (B, C·H·W), log|det dz/dx|)."""

    @abstractmethod
    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents z (B, C·H·W) to (x (B, C, H, W), log|det dx/dz|)."""

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) of latents z (B, C·H·W)."""
        if condition is not None:
            raise ValueError(f"{type(self).__name__} takes no condition: write a Prior that does")
        return self.decode(z)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of images x (B, C, H, W) in nats, (B,)."""
        z, log_det = self.encode(x)
        return standard_normal_log_prob(z) + log_det


class _Zuko(VectorFlow):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow().transform.call_and_ladj(x.flatten(1))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self.flow().transform.inv.call_and_ladj(z)
        return x.unflatten(1, self.image_shape), log_det


class _NormFlows(VectorFlow):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow.inverse_and_log_det(x.flatten(1))
        mean, log_scale = self._base(z)
        return (z - mean) * torch.exp(-log_scale), log_det - log_scale.sum(1)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self._base(z)
        x, log_det = self.flow.forward_and_log_det(mean + z * torch.exp(log_scale))
        return x.unflatten(1, self.image_shape), log_det + log_scale.sum(1)

    def _base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        base = self.flow.q0
        return base.loc.reshape(1, -1), base.log_scale.reshape(1, -1).expand(1, z.shape[1])


def from_zuko(
    flow: nn.Module,
    image_shape: tuple[int, int, int],
    data_range: tuple[float, float] = (-0.5, 0.5),
) -> Prior:
    """Make a prior of an unconditional zuko flow over flattened images, as `zuko.flows.NSF(64)`.

    Raises:
        ValueError: the flow needs a context, or its base is not N(0, I) of C·H·W dimensions.
    """
    check_types(from_zuko, locals())
    prior = _Zuko(flow, image_shape, data_range)
    _check_density(prior, "from_zuko", lambda z: flow().base.log_prob(z), "N(0, I)")
    return prior


def from_normflows(
    flow: nn.Module,
    image_shape: tuple[int, int, int],
    data_range: tuple[float, float] = (-0.5, 0.5),
) -> Prior:
    """Make a prior of a `normflows.NormalizingFlow` over flattened images, of `DiagGaussian` base.

    Raises:
        ValueError: the base is another distribution, or does not have C·H·W dimensions.
    """
    check_types(from_normflows, locals())
    prior = _NormFlows(flow, image_shape, data_range)

    def density(z: Tensor) -> Tensor:
        mean, log_scale = prior._base(z)
        return flow.q0.log_prob(mean + z * torch.exp(log_scale)) + log_scale.sum(1)

    _check_density(prior, "from_normflows", density, "a DiagGaussian")
    return prior


def _check_density(
    prior: VectorFlow, who: str, density: Callable[[Tensor], Tensor], base: str
) -> None:
    """Raise ValueError unless this is the density of N(0, I) and the flow takes images."""
    size = math.prod(prior.image_shape)
    z = torch.linspace(-1, 1, size).expand(1, -1).to(prior.like)
    try:
        found = density(z)
        prior.encode(z.unflatten(1, prior.image_shape))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{who}: not an unconditional flow of {size} entries: {reason}") from None
    if found.shape != (1,) or not torch.allclose(found, standard_normal_log_prob(z)):
        raise ValueError(f"{who}: the base of the flow must be {base} of {size} dimensions")
